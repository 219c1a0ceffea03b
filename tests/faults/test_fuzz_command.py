"""Words on the command line, at random: a plan or one line, never a traceback."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho.config.settings import chosen, flag_of
from ptycho.errors import InputError
from study.plan import make_plan
from study.settings import OF_THE_DESIGN, RunSettings, StudyConfig
from study.shootout import build_parser
from tests.faults.mutations import fuzzed, one_line, soon

PARSER = build_parser()
FLAGS = [
    flag_of(field)
    for cls in (StudyConfig, RunSettings)
    for field in dataclasses.fields(cls)
    if field.name not in (*OF_THE_DESIGN, "data", "out")
]
VALUES = st.one_of(
    st.sampled_from(["", "off", "none", "agc", "agc=", "agc=nan", "=1", "1", "0", "-1", "1e999", "nan", "true", "ray"]),
    st.sampled_from(["smoke", "real", "frontier", "thresholds", "depth", "sgd", "adam", "hybrid", "cnn", "poisson"]),
    st.sampled_from(["../../etc/passwd", "$(id)", "a\nb", "\x00", "é", "9" * 5000, "nan_frame:rate=1", "nan_frame:x"]),
    st.integers(-9, 9).map(str),
    st.text(max_size=8),
)
WORDS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(FLAGS), VALUES).map("=".join),
        st.sampled_from(FLAGS),
        VALUES.filter(lambda word: word not in ("-h", "--help")),
    ),
    max_size=6,
)


def answer(words: list[str]) -> str | None:
    """What is said of a command line; None where a plan is made of it."""
    try:
        with soon():
            given = PARSER.parse_args(words)
            make_plan(StudyConfig(**chosen(given, StudyConfig)), chosen(given, RunSettings), "")
    except InputError as error:
        return one_line(error)
    return None


def test_what_is_mutated_is_a_plan_where_it_is_right() -> None:
    assert answer(["--preset=smoke", "--algo=agc", "--seeds=1"]) is None
    assert "did you mean 'agc'" in str(answer(["--preset=smoke", "--algo=agcc"]))


@settings(fuzzed, max_examples=300)
@given(WORDS)
def test_words_at_random(words: list[str]) -> None:
    answer(words)
