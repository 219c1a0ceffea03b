"""Send to MLflow what a study could not send: ``python -m study.sync DIR``. Trains nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptycho.errors import InputError
from study.attempts import run_folders
from study.command import FAILED, FINISHED, Parser, run_command
from study.records import read_object
from study.tracking_notes import NOTE_FILE, TrackingError, study_artifacts
from study.tracking_uri import EXPERIMENT, check_store, resolve_tracking_uri


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="python -m study.sync", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="study folder, as --out named it")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: the one the study used)")
    parser.add_argument("--experiment", metavar="NAME", help="MLflow experiment (default: the one the study used)")
    return parser


def main() -> int:
    """Send everything that the store lacks of one study."""
    arguments = build_parser().parse_args()
    folder: Path = arguments.folder
    study, noted = read_object(folder / "study.json"), read_object(folder / NOTE_FILE) or {}
    if study is None:
        raise InputError(f"{folder}: no study.json there; allowed: a folder that a study has written")
    uri = store_of(arguments.tracking_uri, noted)
    unsent = send_study(folder, study, uri, arguments.experiment or noted.get("experiment") or EXPERIMENT, noted)
    for run in unsent:
        sys.stdout.write(f"not sent: {run}\n")
    sys.stdout.write(f"{folder}: {'everything is sent' if not unsent else f'{len(unsent)} not sent'}\n")
    return FAILED if unsent else FINISHED


def store_of(flag: str | None, noted: Mapping[str, Any]) -> str:
    """The store to send to: the flag, the environment, or the one noted, unless its credentials were left out."""
    store = str(noted.get("store") or "")
    if not flag and not os.environ.get("MLFLOW_TRACKING_URI") and store and "***" not in store:
        flag = store
    return resolve_tracking_uri(flag)


def send_study(
    folder: Path, study: Mapping[str, Any], uri: str, experiment: str, noted: Mapping[str, Any]
) -> list[str]:
    """Send every run and the study's own results; what the store did not take, by name.

    Raises:
        InputError: the store cannot be used, or the study is still at work.
    """
    check_store(uri)
    from study.tracker import Tracker  # loads MLflow, which takes seconds

    tracker = Tracker(uri, experiment, folder)
    try:
        tracker.open_study(study)
        unsent = []
        for run in run_folders(folder):
            try:
                tracker.ship(run)
            except TrackingError as error:
                unsent.append(f"{run.name} ({error})")
        arms = (read_object(folder / "summary.json") or {}).get("arms", [])
        if not tracker.finish_study(noted.get("finished") or "interrupted", arms, study_artifacts(folder)):
            unsent.append("the study's own results")
    finally:
        tracker.close()
    return unsent


if __name__ == "__main__":
    sys.exit(run_command(main))
