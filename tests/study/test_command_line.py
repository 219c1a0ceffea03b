"""The command line: help that fits a screen, settings from a file, a dry run, completion."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ptycho.errors import InputError
from study.config_file import read_config, write_config
from study.dry_run import runs_by_arm
from study.settings import RUN_FIELDS, STUDY_FIELDS, StudyConfig, split_settings
from study.shootout import build_parser, plan_of

COMMANDS = ("shootout", "grid_lines_torch_runner", "inspect", "report", "sync")
Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # from inside MLflow


@pytest.fixture
def run(call: Run, tmp_path: Path, empty_store: Path) -> Run:
    """Call a command in an empty folder, with a store elsewhere."""

    def inside(name: str, *arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
        store = tmp_path.with_name(f"{tmp_path.name}.db")
        if not store.exists():
            shutil.copy(empty_store, store)
        return call(name, *arguments, cwd=tmp_path, store=store, columns=columns)

    return inside


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize(("columns", "most"), [(80, 45), (100, 35)])
def test_help_fits_a_screen(module: str, columns: int, most: int, run: Run) -> None:
    done = run(module, "--help", columns=columns)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert 5 < len(lines) <= most
    assert max(map(len, lines)) <= columns


def test_the_short_help_names_every_setting_of_a_study_and_the_long_one_explains_them_all(run: Run) -> None:
    short, full = run("shootout", "--help").stdout, run("shootout", "--help-all").stdout
    for name in STUDY_FIELDS:
        assert f"{name.replace('_', '-')} " in short
    for name in (*STUDY_FIELDS, *RUN_FIELDS, "config", "dry_run"):
        assert f"--{name.replace('_', '-')}" in full
    for group in ("data", "network", "training"):
        assert f"\n  {group} " in short


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_the_flags(shell: str, run: Run, tmp_path: Path) -> None:
    script = run("shootout", "--print-completion", shell)
    assert (script.returncode, script.stderr) == (0, "")
    assert "stability-shootout" in script.stdout
    assert "--learning-rate" in script.stdout
    if shell == "bash":
        (tmp_path / "completion").write_text(script.stdout)
        ask = (
            f"source {tmp_path}/completion; COMP_WORDS=(stability-shootout --learn); COMP_CWORD=1; "
            "$(complete -p stability-shootout | sed 's/.*-F \\([^ ]*\\).*/\\1/') stability-shootout --learn ''; "
            'echo "${COMPREPLY[@]}"'
        )
        offered = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert offered.stdout.split() == ["--learning-rate"]
        assert subprocess.run(["bash", "-n", tmp_path / "completion"], check=False).returncode == 0


def test_another_shell_is_refused(run: Run) -> None:
    done = run("shootout", "--print-completion", "fish")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: print-completion: unknown value 'fish'; known: bash, zsh\n"


# Settings from a file ---------------------------------------------------------------------------


def settings_of(*words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The study's settings that are not the default, and those of its runs."""
    plan = plan_of(build_parser().parse_args(words), "")
    own = {name: getattr(plan.config, name) for name in STUDY_FIELDS}
    plain = {name: getattr(StudyConfig(), name) for name in STUDY_FIELDS}
    return {name: value for name, value in own.items() if value != plain[name]}, dict(plan.overrides)


def test_a_file_says_what_flags_say_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "preset: smoke\nalgo: [none, agc=0.02]\nseeds: 3\nadaptive: no\nthreshold: off\nmax-steps: off\nepochs: 3\n"
        "learning_rate: 1e-3  # YAML takes it for a text\nfault: overload:rate=0.1\nset_phi: yes\nN: 32\n"
    )
    own, overrides = settings_of("--config", str(file))
    assert own == {"preset": "smoke", "algo": ("none", "agc=0.02"), "seeds": 3}
    assert overrides == {
        "max_steps": None, "epochs": 3, "learning_rate": 1e-3, "fault": ("overload:rate=0.1",), "set_phi": True, "N": 32
    }  # fmt: skip
    own, overrides = settings_of("--config", str(file), "--seeds", "5", "--algo", "none", "--learning-rate", "0.1")
    assert (own["seeds"], own["algo"], overrides["learning_rate"]) == (5, ("none",), 0.1)


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "learning_rat: no such setting; did you mean 'learning_rate'"),
        ("seed: 1", "seed: an arm or the number of seeds says this"),
        ("config: x", "config: no such setting"),
        ("- a\n- b", "holds a list; allowed: NAME: VALUE in each line"),
        ("a: [", "is not read (while parsing"),
        ("seeds: 1\nseeds: 2", "seeds is there twice"),
        (BOMB, "an alias"),
        ("algo: " + "[" * 40_000, "is not read"),
        ("#" * 200_000, "has more than 100000 bytes"),
        ("seeds: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("\x00", "is not read"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as raised:
        read_config(tmp_path / "bad.yaml")
    assert message in str(raised.value)
    assert str(raised.value).startswith("config: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["seeds: [1]", "learning_rate: fast", "adaptive: perhaps", "algo: 3", "preset: {}"])
def test_a_value_of_the_wrong_kind_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as raised:
        settings_of("--config", str(tmp_path / "bad.yaml"))
    assert "\n" not in str(raised.value)


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    given = dict(
        preset="smoke", algo=["none", "agc=0.02"], threshold="off", seeds=2, learning_rate=1e-05, max_steps="off",
        fault=["overload:rate=0.1"], experiment="2026-11-28", tracking_uri="http://me:secret@host", set_phi=False,
    )  # fmt: skip
    config, overrides = split_settings(given)
    write_config(tmp_path / "study.yaml", config, overrides)
    text = (tmp_path / "study.yaml").read_text()
    assert "secret" not in text
    again, more = split_settings(read_config(tmp_path / "study.yaml"))
    assert more == overrides
    for name in STUDY_FIELDS:
        if name != "tracking_uri":
            assert getattr(again, name) == getattr(config, name)
    assert yaml.safe_load(text)["max_steps"] == "off"


# Dry run ----------------------------------------------------------------------------------------

TOY = (
    *("--preset", "smoke", "--regime", "control", "--seeds", "1", "--N", "16", "--object-size", "48"),
    *("--n-lines", "20", "--fno-width", "4", "--fno-modes", "3", "--fno-blocks", "2", "--max-steps", "4"),
    *("--eval-every", "4", "--validation-fraction", "0.2", "--workers", "1", "--out", "out"),
)


def test_a_dry_run_shows_the_runs_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    done = run("shootout", *TOY, "--algo", "none", "--algo", "agc", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 runs, 0 of them finished" in done.stdout
    assert "agc=0.01" in done.stdout
    assert "from a few steps made here" in done.stdout
    assert " MB in " in done.stdout
    assert not list(tmp_path.iterdir())
    refused = run("shootout", *TOY, "--algo", "agd", "--dry-run")
    assert refused.returncode == 2


def test_a_dry_run_tells_networks_and_rates_apart() -> None:
    def kinds(preset: str) -> dict[tuple[str, ...], int]:
        plan = plan_of(build_parser().parse_args(["--preset", preset, "--algo", "none", "--algo", "agc"]), "")
        return runs_by_arm(plan.design.next_runs(plan.overrides, []))

    depth = kinds("depth")
    assert depth["overload", "agc=0.01", "stable_hybrid, 4 blocks, 64 px", "0.003", "200"] == 8
    assert (len(depth), set(depth.values())) == (2 * 6, {8})
    assert kinds("frontier")["frontier", "none", "hybrid, 3 blocks, 32 px", "0.1", "200"] == 6


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (("--batch-size", str(10**9)), "batch_size: 1000000000 frames do not fit into this machine's memory"),
        (("--device", "cuda"), "device: 'cuda', but torch finds no CUDA device"),
    ],
)
def test_what_the_machine_does_not_have_is_one_line_of_a_dry_run(
    run: Run, setting: tuple[str, ...], message: str
) -> None:
    if "cuda" in setting and torch.cuda.is_available():
        assert run("shootout", *TOY, *setting, "--dry-run").returncode == 0
        return
    done = run("shootout", *TOY, *setting, "--dry-run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


def test_a_log_level_that_there_is_not_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGLEVEL", "chatty")
    done = run("report", "out")
    assert (done.returncode, done.stderr) == (
        2,
        "error: LOGLEVEL: unknown value 'CHATTY'; known: DEBUG, INFO, WARNING, ERROR, CRITICAL\n",
    )


def test_a_finished_study_is_repeated_from_the_file_it_left(run: Run, tmp_path: Path) -> None:
    first = run("shootout", *TOY, "--algo", "none", "--algo", "agc", "--learning-rate", "0.002")
    assert first.returncode == 0, first.stderr
    preview = run("shootout", "--config", "out/study.yaml", "--dry-run", "--seeds", "3")
    assert "6 runs, 2 of them finished" in preview.stdout
    assert "from earlier runs in this folder" in preview.stdout
    again = plan_of(build_parser().parse_args(["--config", str(tmp_path / "out" / "study.yaml")]), "")
    planned = [spec.run_id for spec in again.design.next_runs(again.overrides, [])]
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").glob("*/result.json")}
    fresh = run("shootout", "--config", "out/study.yaml", "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert all(path.stat().st_mtime_ns > then for path, then in results.items()), "trained again"
    assert "fresh" not in (tmp_path / "out" / "study.yaml").read_text(), "which repeating the study would do again"
    assert sorted(planned) == sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert len(planned) == 2
