"""What all engines share: jobs in, endings out. An engine says where runs execute, never what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from study.divergence import Outcome

if TYPE_CHECKING:
    from study.plan import Plan
    from study.settings import RunSettings

ATTEMPTS = 3  # of a run that is killed from outside
LOAD = (
    "study.grid_lines_torch_runner",
    "ptycho_torch.baselines",
    "ptycho_torch.checkpoints",
    "ptycho_torch.ensemble",
)
"""What trains: loaded by a worker before its first job, so that no run's time holds it."""


class Job(NamedTuple):
    """One call somewhere else: ``function(*arguments)``, all of it picklable and small.

    Attributes:
        key: its name among the jobs of a round.
        function, arguments: the call.
        reads: files of the study's folder that it needs.
        folders: folders of the study's folder that it writes.
        here: whether it has to run on the driver's machine, where the user's own files are.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    reads: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()
    here: bool = False


class Ended(NamedTuple):
    """How a job ended: what it returned, or the outcome of the run that took its process down.

    Attributes:
        job: the job.
        value: what it returned.
        outcome: how the run ended whose process died; None where the job returned.
        message: the same in words.
        wall_s: time from the job's start.
        attempt: which start of the job this was, from 1.
        again: it will be started once more, so this is not its end.
    """

    job: Job
    value: Any = None
    outcome: Outcome | None = None
    message: str = ""
    wall_s: float = 0.0
    attempt: int = 1
    again: bool = False


class Engine(Protocol):
    """Where runs execute; a context manager."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *error: object) -> None: ...

    def run(self, jobs: Sequence[Job]) -> Iterator[Ended]:
        """Run jobs; yield each as it ends.

        A job that was killed from outside is yielded with ``again`` and started once more, up to ``ATTEMPTS``
        times. An exception that a job raises is raised here: runs turn theirs into outcomes themselves, so what
        comes through is a mistake in the input, in this program, or a disk that fails.

        Raises:
            InputError: the engine cannot be used.
            OSError: workers cannot be started.
            HandedOverError: the jobs wait in the queue of another program.
        """
        ...


class HandedOverError(Exception):
    """The jobs wait in the queue of another program; its text says what to do, in one line."""


def make_engine(plan: Plan, settings: RunSettings, most: int) -> Engine:
    """The engine of a study.

    Args:
        plan: the study.
        settings: those of any of its runs; they agree in threads and device.
        most: jobs of its first round.

    Raises:
        InputError: an engine that is not installed.
    """
    match plan.config.engine:
        case "local":
            from study.local_engine import LocalEngine

            return LocalEngine.of(plan.config, settings, most)
        case "ray":
            from study.ray_engine import RayEngine

            return RayEngine.of(plan.config, settings, plan.out)
        case "slurm":
            from study.slurm import SlurmEngine

            return SlurmEngine.of(plan.config, settings, plan.out)
