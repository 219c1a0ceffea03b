"""The study in a real MLflow store: what arrives, how often, and what a crash, an outage or a resume leaves."""

from __future__ import annotations

import dataclasses
import http.server
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.errors import InputError
from study.report import write_report
from study.shipping import Shipper
from study.summaries import summarise
from study.table import collect
from study.tracker import Tracker
from study.tracking_fetch import fetch_study
from study.tracking_notes import TrackingError, load_note, study_artifacts
from study.tracking_uri import worker_environment
from study.tracking_view import read_view_state

pytestmark = [
    # from inside alembic and MLflow
    pytest.mark.filterwarnings("ignore:.*path_separator.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
WriteRun = Callable[..., dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = "stability-shootout"


@pytest.fixture(autouse=True)
def _not_under_mlflow_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path) -> str:
    """A fresh store."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


class Study:
    """A study folder in a store: writes runs, sends them, asks the store."""

    def __init__(self, out: Path, uri: str, write_run: WriteRun, write_study_json: Callable[..., None]) -> None:
        self.out, self.uri, self._write_run = out, uri, write_run
        out.mkdir()
        write_study_json(out, ["overload"], ["none", "agc"], study_id=out.name)
        self.tracker: Tracker | None = None

    @property
    def description(self) -> dict[str, Any]:
        return json.loads((self.out / "study.json").read_text())

    def run(self, replicate: int = 0, outcome: str = "ok", algorithm: str = "agc", **changes: Any) -> Path:
        row = self._write_run(
            self.out, regime="overload", algorithm=algorithm, replicate=replicate, outcome=outcome, **changes
        )
        return self.out / "runs" / row["run_id"]

    def open(self) -> Tracker:
        if self.tracker is not None:
            self.tracker.close()
        self.tracker = Tracker(self.uri, EXPERIMENT, self.out)
        self.parent = self.tracker.open_study(self.description).run_id
        return self.tracker

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def runs(self) -> list[Any]:
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        return list(self.client.search_runs(experiments, max_results=1000))

    def children(self) -> list[Any]:
        return [r for r in self.runs() if r.data.tags.get("mlflow.parentRunId") == self.parent]

    def histories(self) -> dict[tuple[str, str], list[tuple[int, int, float]]]:
        """Every point in the store by run name and metric."""
        return {
            (run.info.run_name, key): sorted(
                (m.step, m.timestamp, m.value) for m in self.client.get_metric_history(run.info.run_id, key)
            )
            for run in self.children()
            for key in run.data.metrics
        }


@pytest.fixture
def study(tmp_path: Path, uri: str, write_run: WriteRun, write_study_json: Callable[..., None]) -> Iterator[Study]:
    made = Study(tmp_path / "toy", uri, write_run, write_study_json)
    yield made
    if made.tracker is not None:
        made.tracker.close()


def test_a_study_arrives_whole(study: Study) -> None:
    folders = [study.run(0), study.run(1, "failed"), study.run(2, algorithm="none")]
    tracker = study.open()
    assert all(tracker.ship(folder) for folder in folders)
    (study.out / "figures").mkdir()
    (study.out / "figures" / "loss.png").write_bytes(b"png")
    (study.out / "report.html").write_text("<p>report</p>")
    arm = dict(regime="overload", algorithm="agc", n=2, n_failed=1, p_fail=0.5, p_fail_low=0.01, p_fail_high=0.99)
    assert tracker.finish_study("finished", [arm], study_artifacts(study.out))

    assert {r.info.status for r in study.runs()} == {"FINISHED"}
    assert not study.client.search_runs(["0"])
    view = read_view_state(study.client.get_experiment_by_name(EXPERIMENT).tags["mlflow.sharedViewState.study"])
    assert view["searchFilter"] == f"tags.`mlflow.parentRunId` = '{study.parent}'"
    assert {r.data.tags["arm"] for r in study.children()} == {"overload/agc", "overload/none"}
    assert sorted(r.info.run_name for r in study.children()) == ["overload/agc/0", "overload/agc/1", "overload/none/2"]
    parent = study.client.get_run(study.parent)
    assert parent.data.metrics["arm/overload/agc/p_fail"] == parent.data.metrics["arm/agc/p_fail"] == 0.5
    assert "| overload | agc | 2 | 1 | 0.50 | 0.01 to 0.99 |" in parent.data.tags["mlflow.note.content"]
    uploaded = {f.path for f in study.client.list_artifacts(study.parent)}
    assert uploaded == {"figures", "report.html", "study.json"}
    assert [f.path for f in study.client.list_artifacts(study.parent, "figures")] == ["figures/loss.png"]


def test_arms_of_one_algorithm_are_told_apart_once_all_is_known(study: Study) -> None:
    for rate in (0.1, 1.0):
        for threshold in (0.01, 0.1):
            study.run(learning_rate=rate, threshold=threshold, suffix=str(threshold), reconstruction=False)
    tracker = study.open()
    assert all(tracker.ship(folder) for folder in (study.out / "runs").iterdir())
    assert {r.data.tags["arm"] for r in study.children()} == {"overload/agc"}
    arms = [dataclasses.asdict(arm) for arm in summarise(collect(study.out))]
    assert tracker.finish_study("finished", arms, [])
    names = {f"overload · rate {rate}/agc {threshold}" for rate in ("0.1", "1") for threshold in (0.01, 0.1)}
    assert {r.data.tags["arm"] for r in study.children()} == names
    view = read_view_state(study.client.get_experiment_by_name(EXPERIMENT).tags["mlflow.sharedViewState.study"])
    assert view["groupsExpanded"] == {f"tag.arm.{name}": False for name in names}
    metrics = study.client.get_run(study.parent).data.metrics
    assert metrics["arm/overload/rate 0.1/agc 0.01/n"] == 1


def test_a_child_says_what_was_realised_and_how_it_ended(study: Study) -> None:
    folder = study.run(1, "failed", realised={"learning_rate": 0.003, "fault": None})
    result = json.loads((folder / "result.json").read_text())
    study.open().ship(folder)
    (child,) = study.children()
    assert child.data.params["learning_rate"] == "0.003"
    assert set(child.data.params) == set(result["realised"])
    tags = child.data.tags
    assert (tags["study.outcome"], tags["study.reason"]) == ("failed", "collapsed")
    assert tags["study.failed_at_step"] == str(result["failed_at_step"])
    assert (tags["study.regime"], tags["study.algorithm"], tags["study.replicate"]) == ("overload", "agc", "1")
    assert tags["study.version"] == "0.1.0"
    assert len(tags.get("mlflow.source.git.commit", "")) == (40 if (ROOT / ".git").exists() else 0)
    assert "failed (collapsed" in tags["mlflow.note.content"]
    (data,) = child.inputs.dataset_inputs
    assert data.dataset.digest == "d" * 32
    assert child.data.metrics["final/val_loss"] == pytest.approx(result["val_loss_final"])
    assert child.data.metrics["divergence/failed"] == 1.0
    names = {f.path for f in study.client.list_artifacts(child.info.run_id)}
    assert names == {"spec.json", "result.json", "evals.jsonl", "steps.parquet", "reconstruction.npz"}


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("ok", "FINISHED"), ("plateau", "FINISHED"), ("failed", "FINISHED"), ("killed", "KILLED"),
        ("oom", "FAILED"), ("error", "FAILED"), ("timeout", "FAILED"),
    ],
)  # fmt: skip
def test_the_outcome_decides_the_state(study: Study, outcome: str, status: str) -> None:
    folder = study.run(0, outcome, steps=20)
    study.open().ship(folder)
    (child,) = study.children()
    assert (child.info.status, child.data.tags["study.outcome"]) == (status, outcome)


def test_no_value_in_the_store_is_nan_or_infinite(study: Study) -> None:
    folder = study.run(0, "failed", val_loss_final=math.nan, grad_norm_max=math.inf)
    with (folder / "steps.jsonl").open("a") as stream:
        for step in range(100, 130):
            row = dict(
                step=step, loss=math.nan if step % 2 else math.inf, grad_norm_preclip=math.inf, update_ratio=math.nan
            )
            stream.write(json.dumps(row) + "\n")
    study.open().ship(folder)
    histories = study.histories()
    first = json.loads((folder / "steps.jsonl").read_text().splitlines()[0])["loss"]
    assert all(math.isfinite(v) and abs(v) < 1e308 for series in histories.values() for _, _, v in series)
    assert histories["overload/agc/0", "train/loss_max"][-1][2] == pytest.approx(1000 * first)


def test_sent_piecewise_is_what_is_sent_at_once(study: Study) -> None:
    folder = study.run(0)
    study.open().ship(folder)
    whole = {key: [(s, v) for s, _, v in series] for key, series in study.histories().items()}
    other = study.run(0, suffix="-piecewise")
    files = {name: (other / name).read_text() for name in ("steps.jsonl", "evals.jsonl", "result.json")}
    for name in files:
        (other / name).unlink()
    spec = json.loads((other / "spec.json").read_text())
    (other / "spec.json").write_text(json.dumps(spec | {"name": "piecewise"}))
    assert not study.tracker.ship(other)
    for cut in (0.1, 0.33, 0.35, 0.8, 1.0):
        for name in ("steps.jsonl", "evals.jsonl"):
            (other / name).write_text(files[name][: int(cut * len(files[name]))])
        assert not study.tracker.ship(other)
    (other / "result.json").write_text(files["result.json"])
    assert study.tracker.ship(other)
    pieces = {key: [(s, v) for s, _, v in series] for key, series in study.histories().items() if key[0] == "piecewise"}
    assert {("overload/agc/0", key): series for (_, key), series in pieces.items()} == whole


def test_what_is_sent_twice_is_there_once(study: Study) -> None:
    folder = study.run(0)
    result = (folder / "result.json").read_text()
    (folder / "result.json").unlink()
    study.open().ship(folder)
    (folder / "tracking.json").unlink()  # as if the process had died between sending and noting
    study.open().ship(folder)
    before = load_note(folder)
    (folder / "result.json").write_text(result)
    study.tracker.ship(folder)
    whole, expected = study.histories(), len((folder / "steps.jsonl").read_text().splitlines())
    assert len(whole["overload/agc/0", "train/loss"]) == math.ceil((expected + 1) / 10)
    before.save(folder)  # died after everything was sent, before it was noted
    study.open().ship(folder)
    (folder / "tracking.json").unlink()
    assert study.open().ship(folder)
    assert study.histories() == whole
    assert len(study.children()) == 1


def test_a_run_whose_note_was_lost_and_whose_child_was_given_up_arrives_all_the_same(study: Study) -> None:
    """As after a disk that was full when the child had been made: it ends as killed, the run itself had ended well."""
    folder = study.run(0)
    result = (folder / "result.json").read_text()
    (folder / "result.json").unlink()
    study.open().ship(folder)
    (folder / "tracking.json").unlink()
    (folder / "result.json").write_text(result)
    assert study.open().ship(folder)
    (child,) = study.children()
    assert (child.info.status, child.data.tags["study.outcome"]) == ("FINISHED", "ok")


def test_a_resumed_study_keeps_its_parent_and_goes_on_in_its_children(study: Study) -> None:
    done, begun = study.run(0), study.run(1)
    result = (begun / "result.json").read_text()
    (begun / "result.json").unlink()
    tracker = study.open()
    first = study.parent
    assert tracker.ship(done)
    assert not tracker.ship(begun)
    assert tracker.finish_study("interrupted", [], [])
    assert {r.info.run_name: r.info.status for r in study.children()} == {
        "overload/agc/0": "FINISHED",
        "overload/agc/1": "KILLED",
    }
    (begun / "result.json").write_text(result)
    tracker = study.open()
    assert study.parent == first
    assert tracker.ship(done)
    assert tracker.ship(begun)
    assert tracker.finish_study("finished", [], [])
    assert {r.info.status for r in study.runs()} == {"FINISHED"}
    assert len(study.runs()) == 3


def test_each_attempt_is_a_run_of_its_own_and_the_latest_that_ended_counts(study: Study, tmp_path: Path) -> None:
    folder = study.run(0, "killed")
    spec = json.loads((folder / "spec.json").read_text())
    tracker = study.open()
    for attempt, outcome in (("first", "killed"), ("second", "ok"), ("third", None)):
        shutil.rmtree(folder)
        study.run(0, outcome or "ok")
        (folder / "spec.json").write_text(json.dumps(spec | {"attempt": attempt}))
        os.utime(folder / "spec.json", (time.time(), time.time() + len(study.children())))
        if outcome is None:
            (folder / "result.json").unlink()
        assert tracker.ship(folder) is (outcome is not None)
    tracker.finish_study("interrupted", [], study_artifacts(study.out))
    outcomes = {r.data.tags["study.attempt"]: r.data.tags["study.outcome"] for r in study.children()}
    assert outcomes == {"first": "killed", "second": "ok", "third": "killed"}
    assert {r.info.status for r in study.children()} == {"FINISHED", "KILLED"}
    again = collect(fetch_study(EXPERIMENT, study.uri, tmp_path / "again"))
    assert again.runs["outcome"].tolist() == ["ok"]
    with pytest.raises(InputError, match="holds something already"):
        fetch_study(EXPERIMENT, study.uri, tmp_path / "again")


def test_the_run_of_mlflow_run_becomes_the_parent(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = study.client.create_experiment("elsewhere", artifact_location=study.out.parent.as_uri())
    adopted = study.client.create_run(experiment).info.run_id
    study.client.log_param(adopted, "learning_rate", "3e-3")
    monkeypatch.setenv("MLFLOW_RUN_ID", adopted)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    assert not {"MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"} & worker_environment().keys()
    tracker = study.open()
    assert study.parent == adopted
    assert "MLFLOW_RUN_ID" not in os.environ
    assert tracker.ship(study.run(0, realised={"learning_rate": 0.003}))
    assert tracker.finish_study("finished", [], [])
    (child,) = study.children()
    assert child.info.experiment_id == experiment
    assert {r.info.run_id for r in study.runs()} == {adopted, child.info.run_id}
    assert study.client.get_run(adopted).info.status == "FINISHED"


def test_children_move_to_the_parent_of_the_latest_mlflow_run(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study.run(0)
    study.open().ship(folder)
    study.tracker.finish_study("interrupted", [], [])
    earlier, experiment = study.parent, study.client.get_experiment_by_name(EXPERIMENT).experiment_id
    monkeypatch.setenv("MLFLOW_RUN_ID", study.client.create_run(experiment).info.run_id)
    assert study.open().ship(folder)
    assert study.parent != earlier
    assert len(study.children()) == 1
    assert study.client.get_run(earlier).data.tags["study.continued_in"] == study.parent
    later = study.parent
    study.open()
    assert study.parent == later


def test_a_missing_run_of_mlflow_run_is_one_clear_line(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(InputError, match=f"cannot be used .*{'0' * 32}"):
        study.open()


OPEN_AND_HANG = """
import json, sys, time
from pathlib import Path
from study.tracker import Tracker
out = Path(sys.argv[2])
tracker = Tracker(sys.argv[1], "stability-shootout", out)
tracker.open_study(json.loads((out / "study.json").read_text()))
for folder in (out / "runs").iterdir():
    tracker.ship(folder)
print("open", flush=True)
time.sleep(600)
"""


def test_runs_of_a_killed_process_are_ended_and_those_of_a_living_one_are_not(
    study: Study, tmp_path: Path, write_run: WriteRun, write_study_json: Callable[..., None]
) -> None:
    (study.run(0) / "result.json").unlink()
    command = [sys.executable, "-c", OPEN_AND_HANG, study.uri, str(study.out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(InputError, match="another process is sending"):
            study.open()
        other = Study(tmp_path / "other", study.uri, write_run, write_study_json)
        other.open()
        assert [r.info.status for r in study.runs()] == ["RUNNING"] * 3
        process.send_signal(signal.SIGKILL)
    last = Study(tmp_path / "last", study.uri, write_run, write_study_json)
    last.open()
    states = sorted((r.data.tags.get("study.id", "child"), r.info.status) for r in study.runs())
    assert states == [("child", "KILLED"), ("last", "RUNNING"), ("other", "RUNNING"), ("toy", "KILLED")]


def test_several_processes_may_make_one_new_store(tmp_path: Path, write_study_json: Callable[..., None]) -> None:
    uri, processes = f"sqlite:///{tmp_path}/new/mlflow.db", []
    for name in ("a", "b", "c"):
        out = tmp_path / name
        (out / "runs").mkdir(parents=True)
        write_study_json(out, ["overload"], ["agc"], study_id=name)
        command = [sys.executable, "-c", OPEN_AND_HANG.replace("600", "0"), uri, str(out)]
        processes.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    assert [(p.communicate()[1], p.returncode) for p in processes] == [("", 0)] * 3


def test_a_deleted_experiment_is_one_clear_line(study: Study) -> None:
    study.client.delete_experiment(study.client.create_experiment(EXPERIMENT))
    with pytest.raises(InputError, match="--experiment: 'stability-shootout' was deleted"):
        study.open()


def test_a_study_is_rebuilt_from_the_store(study: Study, tmp_path: Path) -> None:
    folders = [study.run(0), study.run(1, "failed", algorithm="none")]
    tables = collect(study.out)
    tracker = study.open()
    assert all(tracker.ship(folder) for folder in folders)
    assert tracker.finish_study("finished", [], study_artifacts(study.out))
    for name in (EXPERIMENT, study.parent):
        again = collect(fetch_study(name, study.uri, tmp_path / name))
        assert again.runs.sort_values("run_id").to_csv(index=False) == tables.runs.sort_values("run_id").to_csv(
            index=False
        )
        key = ["run_id", "step"]
        assert again.steps.sort_values(key).to_csv(index=False) == tables.steps.sort_values(key).to_csv(index=False)
        assert len(again.evals) == len(tables.evals)
        picture = np.load(tmp_path / name / "runs" / folders[0].name / "reconstruction.npz", allow_pickle=False)
        assert picture["reconstruction"].dtype == np.complex64
    with pytest.raises(InputError, match=r"'nothing' is not in the store; known: .*stability-shootout"):
        fetch_study("nothing", study.uri, tmp_path / "nothing")


def test_the_report_is_written_from_an_experiment(study: Study, call: Callable[..., Any], tmp_path: Path) -> None:
    folders = [
        study.run(k, word, algorithm) for k in range(2) for algorithm, word in {"none": "failed", "agc": "ok"}.items()
    ]
    tracker = study.open()
    assert all(tracker.ship(folder) for folder in folders)
    first = write_report(study.out).read_text()
    assert tracker.finish_study("finished", [], study_artifacts(study.out))
    for name, arguments in (("stability-shootout", ["--", EXPERIMENT]), ("stability-shootout-2", [EXPERIMENT])):
        done = call("report", *arguments, cwd=tmp_path, store=tmp_path / "mlflow.db")
        assert done.returncode == 0, done.stderr
        report = tmp_path / done.stdout.strip()
        assert report == tmp_path / "results" / name / "report.html"
        assert report.read_text() == first


class AnswerLoser(http.server.BaseHTTPRequestHandler):
    """Between tracker and server: hands every request on, and loses the answer to the second run made."""

    server_uri = ""
    made = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding")}
        request = urllib.request.Request(self.server_uri + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request) as response:
                status, answer = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, answer = error.code, error.read()
        type(self).made += self.path.endswith("runs/create")
        if self.path.endswith("runs/create") and self.made == 2:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def lossy(server: Any, tmp_path: Path, write_run: WriteRun, write_study_json: Callable[..., None]) -> Iterator[Study]:
    """A study whose server's answer to the second run made is lost."""
    AnswerLoser.server_uri, AnswerLoser.made = server.uri, 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), AnswerLoser) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield Study(tmp_path / "lossy", f"http://127.0.0.1:{proxy.server_port}", write_run, write_study_json)
        proxy.shutdown()


def test_a_lost_answer_doubles_nothing(lossy: Study) -> None:
    folder, tracker = lossy.run(0), lossy.open()
    with pytest.raises(TrackingError):
        tracker.ship(folder)
    assert tracker.ship(folder)
    assert len(lossy.children()) == 1
    tracker.close()


def test_a_run_that_the_store_does_not_take_at_the_end_is_sent_once_more(lossy: Study) -> None:
    lossy.run(0)
    tracker = lossy.open()
    shipper = Shipper(tracker, lossy.out, interval_s=3600).start()
    assert shipper.stop(60) == []
    assert [run.info.status for run in lossy.children()] == ["FINISHED"]
    tracker.close()


def test_an_outage_loses_nothing_and_doubles_nothing(
    call: Callable[..., Any], server: Any, tmp_path: Path, write_run: WriteRun, write_study_json: Callable[..., None]
) -> None:
    study = Study(tmp_path / "toy", server.uri, write_run, write_study_json)
    tracker = study.open()
    shipper = Shipper(tracker, study.out, interval_s=0.1).start()
    study.run(0)
    wait_until(lambda: (note := load_note(study.out / "runs" / "overload-agc---0")) is not None and note.complete)
    server.stop()
    late = [study.run(replicate) for replicate in (1, 2)]
    time.sleep(0.5)
    assert shipper.stop(10) == late
    assert not shipper.busy
    assert not tracker.finish_study("finished", [], study_artifacts(study.out))
    with pytest.raises(TrackingError):
        tracker.ship(late[0])
    tracker.close()
    down = call("sync", str(study.out), cwd=tmp_path)  # told nothing but the folder
    assert (down.returncode, down.stderr.count("\n")) == (2, 1)
    assert f"{server.uri} cannot be reached" in down.stderr

    server.start()
    up = call("sync", str(study.out), cwd=tmp_path)
    assert (up.returncode, up.stdout) == (0, f"{study.out}: everything is sent\n"), up.stderr
    assert sorted(r.info.run_name for r in study.children()) == [f"overload/agc/{i}" for i in range(3)]
    assert {r.info.status for r in study.children()} == {"FINISHED"}
    assert study.client.get_run(study.parent).info.status == "FINISHED"
    counts = {key: len(series) for (name, key), series in study.histories().items()}
    assert counts["train/loss"] == 7
    assert all(len(set(series)) == len(series) for series in study.histories().values())
    uploaded = {f.path for f in study.client.list_artifacts(study.parent)}
    assert "study.json" in uploaded


def wait_until(condition: Callable[[], bool], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
