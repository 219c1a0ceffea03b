"""``python -m study.slurm_task FILE``: one element of an array job that ``--engine slurm`` has written.

It does the trainings that fall to its number, without those that have finished; one that Slurm ended goes on from
its checkpoint, or begins anew. The study's own command collects the results.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ptycho.config.plugins import load_plugins
from ptycho.config.settings import from_plain
from ptycho.errors import InputError
from study.attempts import attempts_of, record_loss, set_aside_unfinished
from study.command import FINISHED, Parser, run_command
from study.data import DataFiles
from study.design import RunSpec
from study.divergence import Outcome
from study.engines import ATTEMPTS
from study.local_engine import LocalEngine
from study.records import RESULT_FILE
from study.settings import RunSettings
from study.tracking_uri import worker_environment
from study.trainings import Training, job_of, settle

KINDS: Mapping[str, Any] = {
    "out": str,
    "elements": int,
    "threads": int,
    "time_limit_s": (int, float, type(None)),
    "trainings": list,
}
NUMBER = "SLURM_ARRAY_TASK_ID"


def do_element(array: Mapping[str, Any], number: int) -> None:
    """Train what falls to one element, each run once.

    Raises:
        InputError: data that cannot be used.
    """
    out = Path(array["out"])
    mine = [training_of(row) for row in array["trainings"][number :: array["elements"]]]
    with LocalEngine(1, array["threads"], array["time_limit_s"], worker_environment()) as pool:
        for training in mine:
            with alone(out, training) as first:
                if first and not is_over(out, training):
                    for ended in pool.run([job_of(training)]):
                        settle(out, ended)


def training_of(row: Mapping[str, Any]) -> Training:
    """The training that ``study.slurm.row`` wrote.

    Raises:
        InputError: something else wrote it.
    """
    try:
        load_plugins(row["settings"].get("plugin", ()))  # before anything asks whether their names exist
        settings = RunSettings(**from_plain(row["settings"], RunSettings))
        files = DataFiles(*map(Path, row["files"]))
        spec = RunSpec(regime=row["regime"], settings=settings)
        return Training(spec, files, Path(row["folder"]), row["stop_failed"])
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"array: no training ({error}); allowed: what --engine slurm wrote") from None


def is_over(out: Path, training: Training) -> bool:
    """Whether a run has its result, be it that it was ended as often as it may be. What was ended is put on record."""
    spec, folder = training.spec, training.folder
    set_aside_unfinished(out, spec)
    if not (folder / RESULT_FILE).exists() and attempts_of(out, spec) >= ATTEMPTS:
        record_loss(folder, spec, Outcome(word="killed"), 0.0, f"ended {ATTEMPTS} times by the queue or its machines")
    return (folder / RESULT_FILE).exists()


@contextlib.contextmanager
def alone(out: Path, training: Training) -> Iterator[bool]:
    """Whether no other process has this run in hand, as when an array was submitted twice."""
    folder = out / "slurm" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / training.spec.run_id).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def read_array(path: Path) -> Mapping[str, Any]:
    """What the elements of an array are to do.

    Raises:
        InputError: the file is missing, or none that ``--engine slurm`` wrote.
    """
    try:
        array = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); allowed: a file that --engine slurm wrote") from None
    if not (isinstance(array, dict) and all(isinstance(array.get(key), kind) for key, kind in KINDS.items())):
        raise InputError(f"{path}: holds no array; allowed: a file that --engine slurm wrote")
    return array


def command() -> int:
    """Do the element that Slurm names."""
    parser = Parser(prog="python -m study.slurm_task", description=__doc__)
    parser.add_argument("file", type=Path, help="what the array is to do")
    array, number = read_array(parser.parse_args().file), os.environ.get(NUMBER, "")
    if not number.isdecimal() or int(number) >= array["elements"]:
        raise InputError(f"{NUMBER}: {number!r}; allowed: 0 to {array['elements'] - 1}, as Slurm sets it")
    do_element(array, int(number))
    return FINISHED


def main() -> int:
    """Entry point."""
    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
