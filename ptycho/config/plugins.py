"""Users' own clipping algorithms, networks and faults: Python files and modules that register them by name.

A plugin is loaded wherever settings are checked: in the process that makes a study and in each that trains.
Only the standard library is imported here; what a plugin imports is its own affair.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from ptycho.config.settings import setting, validate
from ptycho.errors import InputError

Kind = Literal["algorithm", "architecture", "fault"]
Info = TypeVar("Info")
GROUP = "stability_shootout.plugins"
DIGEST = "#sha256="
NAME = re.compile(r"[a-z][a-z0-9_]*")


class Origin(NamedTuple):
    """Where a registered name comes from: a file and its SHA-256, both empty for one made in this process alone."""

    path: str
    digest: str


ORIGINS: dict[tuple[Kind, str], Origin] = {}
"""Every name that a user has registered; the names of the project itself are not here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginConfig:
    """Which plugins are loaded."""

    plugin: tuple[str, ...] = setting(
        (), "Python file or module with algorithms, networks or faults of your own (repeatable)"
    )

    def __post_init__(self) -> None:
        validate(self)


def register(kind: Kind, table: dict[str, Info], name: str, info: Info, function: Callable[..., Any]) -> None:
    """Put a user's entry into one of the project's tables; the same file, or a copy of it, may put it there again.

    Raises:
        InputError: a name that cannot be a name, or that is taken.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{kind}: {name!r} cannot be a name; allowed: small letters, digits and _, a letter first")
    origin, taken = _origin(function), ORIGINS.get((kind, name))
    if name in table and (taken is None or not set(taken) & set(origin)):
        raise InputError(f"{kind}: {name!r} is taken by {taken.path if taken else 'the project itself'}")
    table[name] = info
    ORIGINS[kind, name] = origin


def load_plugins(references: Iterable[str]) -> tuple[str, ...]:
    """Load the plugins of installed packages, then those given; each as its full path or module with its digest.

    Args:
        references: Python files or modules; with a digest (as returned) only that very content is accepted.

    Raises:
        InputError: a plugin that is not there, that fails, that registers nothing, or that is no longer what it was.
    """
    for entry in importlib.metadata.entry_points(group=GROUP):
        _load(entry.module)
    return tuple(_load(reference) for reference in references)


def plugin_digests(algorithm: str, architecture: str, faults: Iterable[str]) -> list[str]:
    """The contents of the plugins that these names come from: what a run's numbers hang on besides its settings."""
    used: list[tuple[Kind, str]] = [("algorithm", algorithm), ("architecture", architecture)]
    used += [("fault", text.partition(":")[0].strip()) for text in faults]
    return sorted({ORIGINS[key].digest for key in used if key in ORIGINS})


def _origin(function: Callable[..., Any]) -> Origin:
    if _loading:
        return _loading[-1]
    path = getattr(sys.modules.get(function.__module__), "__file__", None)
    if path is None or function.__module__ == "__main__":
        return Origin("", "")
    return Origin(path, _digest(Path(path)))


_loading: list[Origin] = []
_loaded: dict[str, str] = {}  # paths, and the contents that were run last


def _load(reference: str) -> str:
    where, _, wanted = reference.partition(DIGEST)
    path = _find(where)
    origin = Origin(str(path), _digest(path))
    if wanted and wanted != origin.digest:
        raise InputError(f"plugin: {where} has changed since the study began; allowed: the file as it was, or --fresh")
    if _loaded.get(origin.path) != origin.digest:
        _run(where, origin)
        _loaded[origin.path] = origin.digest
    if origin not in ORIGINS.values():
        raise InputError(f"plugin: {where} registers nothing; allowed: a file with an algorithm, a network or a fault")
    return f"{path if where.endswith('.py') else where}{DIGEST}{origin.digest}"


def _find(where: str) -> Path:
    """The file of a plugin.

    Raises:
        InputError: there is none.
    """
    if where.endswith(".py"):
        path = Path(where).absolute()
        if path.is_file():
            return path
    else:
        try:
            spec = importlib.util.find_spec(where)
        except (ImportError, ValueError):
            spec = None
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            return Path(spec.origin)
    raise InputError(f"plugin: {where!r} is not there; allowed: a Python file (.py), or a module that can be imported")


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"plugin: {path} cannot be read ({error.strerror}); allowed: a readable file") from None


def _run(where: str, origin: Origin) -> None:
    """Run a plugin's code, whatever it is.

    Raises:
        InputError: it raises something; the line says what and where.
    """
    _loading.append(origin)
    try:
        _execute(where, origin)
    except InputError as error:
        raise InputError(f"plugin: {where}: {error}") from None
    except (Exception, SystemExit) as error:  # a user's code may raise anything  # noqa: BLE001
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == origin.path]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        at = "" if line is None else f", line {line}"
        said = " ".join(str(error).split())
        raise InputError(f"plugin: {where} fails{at}: {type(error).__name__}: {said}") from None
    finally:
        _loading.pop()


def _execute(where: str, origin: Origin) -> None:
    if not where.endswith(".py"):
        importlib.import_module(where)
        return
    name = f"plugin_{Path(where).stem}_{origin.digest[:12]}"
    spec = importlib.util.spec_from_file_location(name, origin.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up there
    spec.loader.exec_module(module)
