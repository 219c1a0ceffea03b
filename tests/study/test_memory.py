"""What a process that trains does with freed memory: seen from its resident size."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEPS = """
import contextlib
import psutil
import torch
from study.memory import freed_memory_kept

def resident_mib():
    return psutil.Process().memory_info().rss >> 20

with {how}():
    start = resident_mib()
    arrays = [torch.ones(1 << 22) for _ in range(16)]
    held = resident_mib()
    arrays.clear()
    freed = resident_mib()
print(held - start, freed - start, resident_mib() - start)
"""


def sizes_mib(how: str) -> list[int]:
    """Of a process above its start: with 256 MiB of arrays, when they are freed, and afterwards."""
    asked = subprocess.run([sys.executable, "-c", STEPS.format(how=how)], capture_output=True, text=True, check=True)
    return [int(word) for word in asked.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="of the GNU C library")
def test_what_is_freed_is_kept_until_the_training_is_over() -> None:
    held, freed, after = sizes_mib("freed_memory_kept")
    assert held >= 250
    assert freed >= 250, "kept for the next arrays"
    assert after < 50


def test_otherwise_large_arrays_go_back_at_once() -> None:
    held, freed, _ = sizes_mib("contextlib.nullcontext")
    assert held >= 250
    assert freed < 50
