"""The benchmark runs and says what was held against what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_benchmark_prints_its_two_tables() -> None:
    command = [sys.executable, "-m", "benchmarks.clipping", "--set", "small_200", "--rounds", "2"]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "## small_200: 200 tensors, 56,400 parameters, cpu, 1 thread(s), 2 rounds" in done.stdout
    for contender in ("seed agc loop", "clip_grad_norm_ foreach", "floor", "ours agc_unit", "ours skip"):
        assert f"| {contender} |" in done.stdout
    assert "| ours agc against clip_grad_norm_ foreach | of its time, at most 0.5 |" in done.stdout
