"""Ensembles in a study: which runs go together, and that nobody can tell from the outcomes that they did."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptycho.errors import InputError
from study.design import RunSpec
from study.ensembles import OF_A_MEMBER, grouped
from study.local_engine import LocalEngine
from study.plan import Plan, make_plan, unfinished
from study.progress import StudyProgress
from study.records import PENDING_FILE, RESULT_FILE, SPEC_FILE, STEPS_FILE, complete_result, write_results
from study.settings import RunSettings, StudyConfig
from study.tracking_uri import worker_environment
from study.trainings import prepare_datasets, train
from tests.processes import workers_of

TOY: dict[str, Any] = {
    **{"N": 16, "object_size": 48, "n_lines": 20, "validation_fraction": 0.2},
    **{"fno_width": 4, "fno_modes": 3, "fno_blocks": 2, "max_steps": 40, "eval_every": 20},
}
NUMBERS = ("val_loss_final", "val_loss_best", "grad_norm_median", "clipped_fraction", "amp_ssim")
SAME = ("run_id", "algorithm", "threshold", "learning_rate", "outcome", "reason", "failed_at_step", "steps")


def run(**changes: Any) -> RunSpec:
    return RunSpec(regime="any", settings=RunSettings(**changes))


def of_at_most(members: int) -> StudyConfig:
    return StudyConfig(ensemble=members)


# which go together


def test_groups_hold_every_run_once_and_are_as_even_as_can_be() -> None:
    runs = [run(seed=k) for k in range(10)]
    groups = grouped(runs, of_at_most(4))
    assert sorted(map(len, groups)) == [3, 3, 4]
    assert [run for group in groups for run in group] == runs
    assert [len(group) for group in grouped(runs, of_at_most(1))] == [1] * 10


def test_members_may_differ_in_what_no_step_takes_its_shape_from() -> None:
    assert set(OF_A_MEMBER) <= {field.name for field in dataclasses.fields(RunSettings)}
    runs = [
        run(),
        run(gradient_clip_algorithm="agc", gradient_clip_val=0.01),
        run(optimizer="sgd", learning_rate=0.1, scheduler="plateau"),
        run(fault=("overload:rate=0.1",), log_grad_norm=True),
    ]
    assert len(grouped(runs, of_at_most(8))) == 1


@pytest.mark.parametrize(
    "change",
    [
        *({"architecture": "fno"}, {"N": 32}, {"batch_size": 8}, {"max_steps": 9}, {"torch_loss_mode": "poisson"}),
        *({"eval_every": 7}, {"accumulate_grad_batches": 2}, {"threads": 2}, {"nphotons": 1e5}),
    ],
    ids=str,
)
def test_runs_of_another_shape_do_not_go_together(change: dict[str, Any]) -> None:
    assert len(grouped([run(), run(**change)], of_at_most(8))) == 2


@pytest.mark.parametrize("alone", [{"checkpoint_every": 5}, {"precision": "bf16-mixed"}, {"device": "cuda"}], ids=str)
def test_some_runs_have_to_be_alone(alone: dict[str, Any]) -> None:
    assert len(grouped([run(**alone, seed=k) for k in range(3)], of_at_most(8))) == 3


@pytest.mark.parametrize("other", [{"time_limit": 5.0}, {"engine": "slurm"}], ids=str)
def test_what_counts_on_a_process_for_each_run_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^ensemble: 4 does not go with .*; allowed: 1"):
        StudyConfig(ensemble=4, **other)


# how many where the study says nothing

SMALL: dict[str, Any] = {"N": 32, "fno_width": 8, "batch_size": 4}


def automatic(*runs: RunSpec, **config: Any) -> list[int]:
    return [len(group) for group in grouped(runs, StudyConfig(**config))]


def test_small_networks_train_together_in_groups_that_keep_every_core_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(seed=k, **SMALL) for k in range(40)]
    for cores, sizes in ((1, [8] * 5), (2, [8] * 5), (8, [5] * 8), (64, [1] * 40)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert automatic(*runs) == sizes
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert automatic(*(run(seed=k, **SMALL, threads=2) for k in range(16))) == [8, 8]
    assert automatic(*runs[:5]) == [2, 3]


def test_groups_do_not_hang_on_the_number_of_workers() -> None:
    runs = [run(seed=k, **SMALL) for k in range(40)]
    assert grouped(runs, StudyConfig(workers=1)) == grouped(runs, StudyConfig(workers=3))


def test_where_training_together_saves_nothing_each_run_is_alone() -> None:
    small = [run(seed=k, **SMALL) for k in range(32)]
    assert max(automatic(*small)) > 1
    assert set(automatic(*(run(seed=k) for k in range(32)))) == {1}, "the layers of full size"
    assert set(automatic(*small, time_limit=60.0)) == {1}
    assert set(automatic(*small, engine="ray")) == {1}
    assert set(automatic(*small, engine="slurm")) == {1}


def test_on_a_gpu_each_run_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert set(automatic(*(run(seed=k, **SMALL) for k in range(32)))) == {1}
    assert max(automatic(*(run(seed=k, **SMALL, device="cpu") for k in range(32)))) > 1


# that outcomes do not depend on it


class Toy:
    """A small study: three algorithms, two replicates, clean frames and some that overflow."""

    def __init__(self, out: Path, ensemble: int) -> None:
        config = StudyConfig(preset="smoke", regime=("overload",), seeds=2, ensemble=ensemble, out=str(out))
        self.plan: Plan = make_plan(config, TOY, "")
        self.engine = LocalEngine(1, 1, None, worker_environment())

    def train(self) -> None:
        specs = self.plan.design.next_runs(self.plan.overrides, [])
        todo = unfinished(self.plan, specs)
        with self.engine as engine, StudyProgress() as progress:
            train(self.plan, specs, prepare_datasets(self.plan, todo, engine, {}), engine, progress)

    def results(self) -> dict[str, dict[str, Any]]:
        found = [json.loads(p.read_text()) for p in self.plan.out.glob(f"runs/*/{RESULT_FILE}")]
        return {result["run_id"]: result for result in found}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = Toy(tmp_path_factory.mktemp("alone"), 1)
    toy.train()
    return toy


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = Toy(tmp_path_factory.mktemp("together"), 4)
    toy.train()
    return toy


def assert_same_outcomes(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for run_id, result in found.items():
        said = {name: expected[run_id][name] for name in SAME}
        assert {name: result[name] for name in SAME} == said
        numbers = {name: expected[run_id][name] for name in NUMBERS}
        assert {name: result[name] for name in NUMBERS} == pytest.approx(numbers, rel=0.02, abs=1e-3, nan_ok=True)


def test_a_study_in_ensembles_has_the_outcomes_of_one_without(alone: Toy, together: Toy) -> None:
    assert_same_outcomes(together.results(), alone.results())
    assert sorted(r["ensemble_size"] for r in together.results().values()) == [3] * 6
    assert {r["ensemble_size"] for r in alone.results().values()} == {1}


def test_every_member_leaves_the_files_of_a_run(alone: Toy, together: Toy) -> None:
    for folder in alone.plan.out.glob("runs/*"):
        other = together.plan.out / "runs" / folder.name
        assert {path.name for path in other.iterdir()} == {path.name for path in folder.iterdir()}
        for name in (SPEC_FILE, STEPS_FILE, "evals.jsonl"):
            assert len((other / name).read_text().splitlines()) == len((folder / name).read_text().splitlines())


def results_of(tmp_path: Path, names: str) -> tuple[list[Path], list[dict[str, Any]]]:
    folders = [tmp_path / name for name in names]
    for folder in folders:
        folder.mkdir()
    return folders, [{"run": name} for name in names]


def test_the_results_of_a_group_count_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever file of the group is being put in its place when the process dies."""
    last_before_any_counts = 3
    for dies_at in range(1, 9):
        monkeypatch.undo()
        (at := tmp_path / str(dies_at)).mkdir()
        folders, results = results_of(at, "abc")
        replace, calls = os.replace, itertools.count(1)

        def die(*paths: Any, replace: Any = replace, calls: Any = calls, dies_at: int = dies_at) -> None:
            if next(calls) == dies_at:
                raise KeyboardInterrupt
            replace(*paths)

        monkeypatch.setattr(os, "replace", die)
        with contextlib.suppress(KeyboardInterrupt):
            write_results(folders, results)
        monkeypatch.undo()
        for folder in folders:  # what the next start does first
            complete_result(folder)
        count = [json.loads(p.read_text()) for folder in folders if (p := folder / RESULT_FILE).exists()]
        assert count == ([] if dies_at <= last_before_any_counts else results)
        if count:
            assert not list(at.glob(f"*/{PENDING_FILE}"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"group": 3, "result": {}}', '{"group": ["a"], "result": 1}'])
def test_a_damaged_result_in_waiting_is_as_none(tmp_path: Path, text: str) -> None:
    (folder,), _ = results_of(tmp_path, "a")
    (folder / PENDING_FILE).write_text(text)
    complete_result(folder)
    assert not (folder / RESULT_FILE).exists()


def test_a_study_goes_on_with_what_is_left_of_a_group(alone: Toy, together: Toy, tmp_path: Path) -> None:
    toy = Toy(shutil.copytree(together.plan.out, tmp_path / "copy"), 4)
    kept, *lost = sorted(toy.plan.out.glob(f"runs/*/{RESULT_FILE}"))[:3]
    before = kept.stat().st_mtime_ns
    for path in lost:
        path.unlink()
    toy.train()
    assert kept.stat().st_mtime_ns == before
    assert {toy.results()[path.parent.name]["ensemble_size"] for path in lost} == {2}
    assert_same_outcomes(toy.results(), alone.results())


@pytest.fixture
def struck() -> Iterator[Any]:
    """Strike the first worker that has recorded a step, once."""
    threads = []

    def strike(out: Path, blow: signal.Signals) -> None:
        def wait_and_strike() -> None:
            while not any(out.glob(f"runs/*/{STEPS_FILE}")):
                over.wait(0.01)
            for worker in workers_of(os.getpid()):
                os.kill(worker.pid, blow)

        over = threading.Event()
        threads.append(threading.Thread(target=wait_and_strike))
        threads[-1].start()

    yield strike
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(("blow", "size"), [(signal.SIGKILL, 3), (signal.SIGSEGV, 1)])
def test_what_takes_the_process_of_a_group_down_is_the_outcome_of_none(
    alone: Toy, together: Toy, struck: Any, tmp_path: Path, blow: signal.Signals, size: int
) -> None:
    toy = Toy(tmp_path, 4)
    struck(tmp_path, blow)
    toy.train()
    assert_same_outcomes(toy.results(), alone.results())
    aside = [json.loads(path.read_text()) for path in tmp_path.glob(f"attempts/*/{RESULT_FILE}")]
    assert len(aside) == 3
    assert {result["outcome"] for result in aside} == {"killed"}
    again = {toy.results()[result["run_id"]]["ensemble_size"] for result in aside}
    assert again == {size}
    if blow == signal.SIGKILL:  # the group was trained whole once more
        expected = together.results()
        for run_id, result in toy.results().items():
            assert {name: result[name] for name in NUMBERS} == {name: expected[run_id][name] for name in NUMBERS}
