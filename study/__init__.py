"""The experiment about training: which clipping keeps a network from diverging.

As a library::

    from study import load_study, shootout

    result = shootout("smoke", algo=["none", "agc"], seeds=2)
    result.table, result.verdict, result.figure("failure_probability")

Nothing is loaded before it is asked for.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study.library import StudyResult, load_study
    from study.library import shootout as shootout

__all__ = ["StudyResult", "load_study", "shootout"]


def __getattr__(name: str) -> Any:
    if name not in ("StudyResult", "load_study"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from study import library

    return getattr(library, name)


class _Package(types.ModuleType):
    """Keeps ``study.shootout`` the function, although the import system binds the command's module to that name."""

    @property
    def shootout(self) -> Any:
        """:func:`study.library.shootout`."""
        from study.library import shootout

        return shootout

    @shootout.setter
    def shootout(self, module: types.ModuleType) -> None:
        """The module stays reachable by its full name: ``from study.shootout import ...``."""


sys.modules[__name__].__class__ = _Package
