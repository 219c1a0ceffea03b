"""What an engine costs: runs of known length, on two workers, against the time that they take by themselves.

    python benchmarks/engines.py --engine local --runs 200 --seconds 1 --workers 2

Counted is everything: starting the engine, loading torch in its workers (``--no-torch`` leaves that out), handing
out runs and collecting results.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.stub_run import Stubbed, stub_run
from study.engines import Engine, Job
from study.local_engine import LocalEngine
from study.ray_engine import LOAD, RayEngine
from study.tracking_uri import worker_environment


def make_engine(name: str, workers: int, load: Sequence[str], root: Path) -> Engine:
    """An engine on this machine, with one thread a run."""
    local = LocalEngine(workers, 1, None, worker_environment(), load)
    return local if name == "local" else RayEngine("local", root, workers, 1, 1.0, None, local, load)


def gaps(stubs: Sequence[Stubbed]) -> list[float]:
    """Seconds between two runs of one worker."""
    by_process = itertools.groupby(sorted(stubs), key=lambda stub: stub.process)
    return [b.start - a.end for _, group in by_process for a, b in itertools.pairwise(group)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    jobs = [Job(str(number), stub_run, (given.seconds,)) for number in range(given.runs)]
    begun = time.time()
    with (
        tempfile.TemporaryDirectory() as root,
        make_engine(given.engine, given.workers, LOAD if given.torch else (), Path(root)) as engine,
    ):
        stubs = [ended.value for ended in engine.run(jobs)]
        wall_s = time.time() - begun
    ideal_s = sum(stub.end - stub.start for stub in stubs) / given.workers
    first_s = min(stub.start for stub in stubs) - begun
    between = gaps(stubs)
    sys.stdout.write(
        f"{given.engine}: {given.runs} runs of {given.seconds:g} s on {given.workers} workers, "
        f"load {os.getloadavg()[0]:.1f}\n"
        f"wall {wall_s:.1f} s, ideal {ideal_s:.1f} s, loss {100 * (wall_s / ideal_s - 1):.1f}%\n"
        f"until the first run {first_s:.1f} s; without it, loss {100 * ((wall_s - first_s) / ideal_s - 1):.1f}%\n"
        f"between two runs of a worker: median {1e3 * statistics.median(between):.0f} ms, "
        f"longest {1e3 * max(between):.0f} ms; {len({stub.process for stub in stubs})} processes\n"
    )


if __name__ == "__main__":
    main()
