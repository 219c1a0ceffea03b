"""What becomes of the memory that a training frees.

Each step makes the arrays of the step before anew. The GNU C library hands large ones back to the system when they
are freed, and the system fills the next ones with zeros, page by page: a fifth of a step of eight default networks
together. So a process keeps what it has as long as it trains. Other systems are left as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
NEVER = 2**31 - 1


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let this process keep what it frees for what it asks for next; what is free at the end is given back."""
    _call("mallopt", M_MMAP_MAX, 0)
    _call("mallopt", M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    function = getattr(library, name, None)
    if function is not None:
        function(*arguments)
