"""A study's records, mutated: the report gives an answer or one line, whatever the files hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho.errors import InputError
from study.report import write_report
from study.slurm_task import read_array, training_of
from study.summaries import summarise
from study.table import collect
from study.verdict import decide
from tests.faults.mutations import DAMAGES, damaged, fuzzed, one_line, quietly, soon

few = settings(fuzzed, max_examples=20)  # a study takes a tenth of a second

RECORDS = ("study.json", "result.json", "spec.json", "steps.jsonl", "evals.jsonl")
WORDS = st.sampled_from(["", "none", "agc", "ok", "failed", "overload", "../..", "<b>", "\x00", "1e400", "é" * 300])
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([2**70, -(2**70), 1e308, float("nan"), float("inf"), 0.5]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
VALUES = st.one_of(LEAVES, st.lists(LEAVES, max_size=2), st.dictionaries(WORDS, LEAVES, max_size=2))


@pytest.fixture(scope="module")
def whole(write_study_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study that a report can be written of."""
    out = tmp_path_factory.mktemp("whole") / "study"
    return write_study_folder(out, {"overload": {"none": (1, 0, 1), "agc": (2, 0, 0)}}, steps=12, side=8)


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "study")
    return tmp_path / "study"


def record(out: Path, name: str) -> Path:
    return out / name if name == "study.json" else sorted(out.glob(f"runs/*/{name}"))[0]


def answer(out: Path, *, page: bool = False) -> str | None:
    """What is said of a study; None where it is answered."""
    try:
        with soon(30), quietly():
            if page:
                write_report(out)
            else:
                tables = collect(out)
                summaries = summarise(tables)
                decide(tables, summaries)
    except InputError as error:
        return one_line(error)
    return None


def with_value(path: Path, where: int, value: Any) -> str:
    """A record's text with one value of its first line replaced, or, beyond the last, one put in."""
    text = path.read_text()
    first, rest = (text, "") if path.suffix == ".json" else text.split("\n", 1)
    content = json.loads(first)
    keys = sorted(content)
    content[[*keys, "new"][where % (len(keys) + 1)]] = value
    return json.dumps(content) + ("\n" + rest if path.suffix == ".jsonl" else "")


def test_what_is_mutated_is_answered_where_it_is_whole(broken: Path) -> None:
    assert answer(broken) is None


@pytest.mark.parametrize("name", RECORDS)
def test_damaged_bytes(broken: Path, name: str) -> None:
    path = record(broken, name)
    content = path.read_bytes()

    @few
    @given(DAMAGES)
    def check(plan: Any) -> None:
        path.write_bytes(damaged(content, plan))
        answer(broken)

    check()


@pytest.mark.parametrize("name", RECORDS)
def test_wrong_values(broken: Path, name: str) -> None:
    path = record(broken, name)
    content = path.read_bytes()

    @few
    @given(st.integers(0, 60), VALUES)
    def check(where: int, value: Any) -> None:
        path.write_bytes(content)
        path.write_text(with_value(path, where, value))
        answer(broken)

    check()


@pytest.mark.parametrize(("name", "key", "value"), [("study.json", "title", [[]]), ("result.json", "algorithm", "<b>")])
def test_a_page_of_wrong_values(broken: Path, name: str, key: str, value: Any) -> None:
    """As above, to the last line of the report; fewer, since a page takes seconds."""
    path = record(broken, name)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    answer(broken, page=True)


ARRAY = {
    **{"out": "/nowhere", "elements": 1, "threads": 1, "time_limit_s": None},
    "trainings": [
        {"regime": "r", "settings": {"seed": 1}, "files": ["a", "b", "c"], "folder": "d", "stop_failed": True}
    ],
}


def test_what_an_array_is_to_do(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    content = json.dumps(ARRAY).encode()

    def read() -> str | None:
        try:
            for row in read_array(path)["trainings"]:
                training_of(row)
        except InputError as error:
            return str(error)
        return None

    @fuzzed
    @given(DAMAGES, st.sampled_from([*ARRAY, *(f"trainings.{key}" for key in ARRAY["trainings"][0])]), VALUES)
    def check(plan: Any, where: str, value: Any) -> None:
        path.write_bytes(damaged(content, plan))
        read()
        changed = json.loads(content)
        part = changed["trainings"][0] if "." in where else changed
        part[where.rpartition(".")[2]] = value
        path.write_text(json.dumps(changed))
        read()

    path.write_bytes(content)
    assert read() is None
    check()
