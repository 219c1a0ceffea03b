"""What the fuzzing tests share: files damaged at random, and a limit on the time that a reader may take."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

fuzzed = settings(derandomize=True, database=None, deadline=None, max_examples=60)


def one_line(error: BaseException) -> str:
    """What an error says, which has to be one line."""
    text = str(error)
    assert text.strip()
    assert "\n" not in text
    return text


def damaged(whole: bytes, plan: Sequence[tuple[str, int, int]]) -> bytes:
    """A file's bytes with something overwritten, cut off, put in or left out, from either end on."""
    made = bytearray(whole)
    for what, where, how in plan:
        at = where % max(1, len(made))
        match what:
            case "flip" if made:
                made[at] ^= 1 << how % 8
            case "fill":
                made[at : at + 8] = bytes([how]) * len(made[at : at + 8])
            case "cut":
                del made[at:]
            case "insert":
                made[at:at] = bytes([how]) * (1 + how % 16)
            case "remove":
                del made[at : at + 1 + how]
    return bytes(made)


def plans(kinds: Sequence[str]) -> Any:
    """Strategy of mutations; places often lie near either end."""
    where = st.one_of(st.integers(-2000, 2000), st.integers(0, 10**6))
    return st.lists(st.tuples(st.sampled_from(kinds), where, st.integers(0, 255)), min_size=1, max_size=3)


DAMAGES = plans(["flip", "fill", "cut", "insert", "remove"])


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def soon(seconds: int = 10) -> Iterator[None]:
    """Fail what hangs."""

    def late(*_: object) -> None:
        raise AssertionError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
