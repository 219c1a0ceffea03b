"""A run of known length that trains nothing: what an engine itself costs is the time that is left over."""

from __future__ import annotations

import os
import time
from typing import NamedTuple


class Stubbed(NamedTuple):
    """When a stub began and ended, in seconds since 1970, and which process it ran in."""

    process: int
    start: float
    end: float


def stub_run(duration_s: float) -> Stubbed:
    """Wait, as a training on a GPU does whose work is done elsewhere."""
    start = time.time()
    time.sleep(duration_s)
    return Stubbed(os.getpid(), start, time.time())
