"""Timing by turns: every contender once a round, in an order drawn anew, and ratios within the round.

Only ratios mean anything where other jobs may run on the machine; what slows one round down slows both sides of
its ratio. On one host thread the clock is that thread's own time, which leaves out what others were given meanwhile.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from study.memory import freed_memory_kept

Contender = Callable[[], object]
Clock = Callable[[Contender], float]
Times = dict[str, list[float]]


def thread_ms(run: Contender) -> float:
    """Milliseconds of the calling thread."""
    start = time.thread_time()
    run()
    return (time.thread_time() - start) * 1e3


def wall_ms(run: Contender) -> float:
    """Milliseconds on the wall."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def device_ms(run: Contender) -> float:
    """Milliseconds between two events on the current CUDA device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def clock_for(device: str = "cpu") -> Clock:
    """The clock for a device and the number of threads that torch has now."""
    if device.startswith("cuda"):
        return device_ms
    return thread_ms if torch.get_num_threads() == 1 else wall_ms


def in_turns(
    contenders: Mapping[str, Contender],
    rounds: int,
    *,
    clock: Clock | None = None,
    before: Callable[[], object] = lambda: None,
    warm_up: int = 3,
) -> Times:
    """Milliseconds of every contender, one entry for each round; ``before`` is called, untimed, ahead of each."""
    clock = clock or clock_for()
    times: Times = {name: [] for name in contenders}
    for number in range(-warm_up, rounds):
        for name, run in random.sample(list(contenders.items()), len(contenders)):
            before()
            elapsed_ms = clock(run)
            if number >= 0:
                times[name].append(elapsed_ms)
    return times


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Host threads of torch for a while, and memory as a training has it."""
    usual = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with freed_memory_kept():
            yield
    finally:
        torch.set_num_threads(usual)


class Measured(NamedTuple):
    """A number and how far it scatters: median, and half the interquartile range over it."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Measured:
        """Of some repetitions."""
        median = statistics.median(values)
        if len(values) < 2:
            return cls(median, 0.0)
        lower, _, upper = statistics.quantiles(values, n=4)
        return cls(median, (upper - lower) / 2 / abs(median) if median else 0.0)


def ratio(times: Times, upper: str, lower: str) -> Measured:
    """The time of ``upper`` over that of ``lower``, round by round."""
    return Measured.of([a / b for a, b in zip(times[upper], times[lower], strict=True)])
