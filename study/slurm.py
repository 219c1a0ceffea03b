"""The engine for Slurm without Ray: it writes an array job, which its user submits; the same command goes on then."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho.errors import InputError
from study.engines import Ended, HandedOverError, Job
from study.local_engine import LocalEngine, default_workers
from study.records import write_bytes
from study.settings import RunSettings, StudyConfig

if TYPE_CHECKING:
    from study.trainings import Training

MOST_ELEMENTS = 1000  # of an array; clusters allow 1001 unless told otherwise
NOT_IN_PATHS = set('"%\\')  # they mean something in a line for sbatch

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}{throttle}
#SBATCH --cpus-per-task={threads}{gpus}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{folder}/%A_%a.log"
#SBATCH --signal=B:USR1@120
cd {here} || exit 1
stop() {{ kill -TERM "$task"; wait "$task"; }}
trap 'stop; exit 130' TERM  # preempted: Slurm starts it again
trap 'stop; scontrol requeue "$SLURM_JOB_ID"; exit 130' USR1  # two minutes before its time is over
{python} -m study.slurm_task {tasks} &
task=$!
wait "$task"
"""


class SlurmEngine:
    """Array jobs, one for each round of the study; use it as a context manager.

    Args:
        root: the study's folder, which every machine sees.
        workers: elements of the array that run at a time; None for as many as Slurm starts.
        threads, gpus: CPUs and whole GPUs that each is given.
        time_limit_s: longest time for one run; None for no limit.
        here: runs the jobs that need this machine.
    """

    def __init__(
        self,
        root: Path,
        workers: int | None,
        threads: int,
        gpus: int,
        time_limit_s: float | None,
        here: LocalEngine,
    ) -> None:
        self.root, self.workers, self.threads, self.gpus, self.time_limit_s = root, workers, threads, gpus, time_limit_s
        self.name = "shootout-" + hashlib.sha256(str(root).encode()).hexdigest()[:8]
        self._here = here

    @classmethod
    def of(cls, config: StudyConfig, settings: RunSettings, out: Path) -> SlurmEngine:
        """The arrays of a study."""
        gpus = math.ceil(config.gpus_per_run) if settings.device == "cuda" else 0
        here = LocalEngine.of(config, settings, most=default_workers(settings.threads))
        return cls(out, config.workers, settings.threads, gpus, config.time_limit, here)

    def __enter__(self) -> SlurmEngine:
        if not str(self.root).isprintable() or NOT_IN_PATHS & set(str(self.root)):
            raise InputError(f"out: {str(self.root)!r} cannot stand in a Slurm script; allowed: a plain path")
        if is_queued(self.name):
            raise InputError(f"engine: Slurm still has jobs named {self.name}; allowed once they have ended")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Sequence[Job]) -> Iterator[Ended]:
        """Run what needs this machine; write an array job for the rest. See :class:`study.engines.Engine`."""
        with self._here:
            yield from self._here.run([job for job in jobs if job.here])
        if trainings := [row(training) for job in jobs if not job.here for training in job.arguments]:
            script = self._write(trainings)
            raise HandedOverError(f"next: sbatch {shlex.quote(str(script))}, and when it has ended this command again")

    def _write(self, trainings: Sequence[dict[str, object]]) -> Path:
        """The script, beside what its elements are to do; another round has other files."""
        elements = min(len(trainings), MOST_ELEMENTS)
        array = {
            **{"out": str(self.root), "elements": elements, "threads": self.threads},
            **{"time_limit_s": self.time_limit_s, "trainings": trainings},
        }
        content = json.dumps(array, indent=1).encode()
        folder = self.root / "slurm"
        folder.mkdir(exist_ok=True)
        tasks = folder / f"{hashlib.sha256(content).hexdigest()[:8]}.json"
        write_bytes(tasks, content)
        script = SCRIPT.format(
            name=self.name,
            last=elements - 1,
            throttle="" if self.workers is None else f"%{self.workers}",
            threads=self.threads,
            gpus=f"\n#SBATCH --gpus-per-task={self.gpus}\n#SBATCH --ntasks=1" if self.gpus else "",
            folder=folder,
            here=shlex.quote(str(Path.cwd())),
            python=shlex.quote(sys.executable),
            tasks=shlex.quote(str(tasks)),
        )
        write_bytes(tasks.with_suffix(".sh"), script.encode())
        return tasks.with_suffix(".sh")


def row(training: Training) -> dict[str, object]:
    """A training as plain values; ``study.slurm_task`` reads it."""
    return {
        "regime": training.spec.regime,
        "settings": dataclasses.asdict(training.spec.settings),
        "files": [str(path) for path in training.files],
        "folder": str(training.folder),
        "stop_failed": training.stop_failed,
    }


def is_queued(name: str) -> bool:
    """Whether Slurm has jobs of that name, waiting or at work; not where there is no Slurm.

    Raises:
        InputError: Slurm gives no answer; what it is at work on would be taken for dead.
    """
    squeue = shutil.which("squeue")
    if squeue is None:
        return False
    asked = subprocess.run([squeue, "--noheader", "--name", name], capture_output=True, text=True, check=False)
    if asked.returncode:
        said = " ".join(asked.stderr.split())[:200] or f"exit status {asked.returncode}"
        raise InputError(f"engine: squeue gives no answer ({said}); allowed once Slurm answers")
    return bool(asked.stdout.strip())
