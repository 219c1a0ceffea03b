"""The thread that sends a study's runs to the tracking store while the study goes on.

It never raises into the study and never holds it up: when the store is away it tries again, less and
less often, and what it could not send stays on disk.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Protocol

from study.attempts import run_folders
from study.tracking_notes import TrackingError

logger = logging.getLogger(__name__)
BEAT_S = 30.0
LAST_ROUNDS = 5
LONGEST_WAIT_S = 60.0


class Sender(Protocol):
    """What the thread needs of a tracker."""

    def ship(self, folder: Path) -> bool: ...

    def beat(self) -> None: ...


class Shipper:
    """Sends what is new in every run folder, every few seconds, in a thread of its own.

    Args:
        tracker: an opened tracker; nobody else may use it between :meth:`start` and :meth:`stop`.
        out: the study folder.
        interval_s: time between two rounds.
    """

    def __init__(self, tracker: Sender, out: Path, interval_s: float = 5.0) -> None:
        self._tracker, self._out, self._interval_s = tracker, out, interval_s
        self._complete: set[tuple[Path, int]] = set()
        self._complained: set[str] = set()
        self._away_for = 0
        self._last_beat = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-shipper", daemon=True)

    def start(self) -> Shipper:
        """Begin to send."""
        self._thread.start()
        return self

    def stop(self, timeout_s: float = 60.0) -> list[Path]:
        """Send what is left, at most for ``timeout_s``, and end the thread.

        Returns:
            The ended runs of which the store lacks something; ``python -m study.sync`` sends it later.
        """
        self._stopping.set()
        self._thread.join(timeout_s)
        ended = (folder for folder in run_folders(self._out) if (folder / "result.json").exists())
        return [folder for folder in ended if _training(folder) not in self._complete]

    @property
    def busy(self) -> bool:
        """Whether the thread still works, for instance on a request that the store does not answer."""
        return self._thread.is_alive()

    def _work(self) -> None:
        while not self._stopping.wait(self._wait_s()):
            self._round()
        for _ in range(LAST_ROUNDS):
            if not self._round():
                return
            time.sleep(0.2)  # in a file, another study's transaction may have stood in the way

    def _wait_s(self) -> float:
        return min(self._interval_s * 2**self._away_for, max(LONGEST_WAIT_S, self._interval_s))

    def _round(self) -> bool:
        """Send what is new; whether the store, which is there, did not take some run."""
        try:
            self._beat()
            refused = [
                self._refuses(folder) for folder in run_folders(self._out) if _training(folder) not in self._complete
            ]
        except TrackingError as error:
            self._complain("store", error)
            self._away_for = min(self._away_for + 1, 10)
            return False
        self._away_for = 0
        return any(refused)

    def _refuses(self, folder: Path) -> bool:
        """Send a run; whether the store does not take it."""
        training = _training(folder)
        try:
            if self._tracker.ship(folder):
                self._complete.add(training)
        except TrackingError as error:
            self._tracker.beat()  # raises where the store is away; else it is this run alone that it refuses
            self._complain(folder.name, error)
            return True
        return False

    def _complain(self, what: str, error: TrackingError) -> None:
        level = logging.DEBUG if what in self._complained else logging.WARNING
        self._complained.add(what)
        logger.log(level, "%s: %s; the study goes on, and what is not sent is kept and tried again", what, error)

    def _beat(self) -> None:
        if time.monotonic() - self._last_beat > BEAT_S:
            self._tracker.beat()
            self._last_beat = time.monotonic()


def _training(folder: Path) -> tuple[Path, int]:
    """A run folder as it stands: another training may begin in the same place."""
    try:
        return folder, (folder / "spec.json").stat().st_mtime_ns
    except FileNotFoundError:  # moved or begun anew meanwhile
        return folder, 0
