"""How one setting is declared, checked and turned into a command-line flag.

A setting is a dataclass field made by :func:`setting`. Its annotation gives the type and, for a
``Literal``, the allowed names; its metadata give a sentence, a unit and a range. From that one
declaration come the validation, the flag and the documentation.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from ptycho.errors import InputError, unknown_name


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    unit: str = "",
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    flag: str | None = None,
    names: Collection[str] | None = None,
) -> Any:
    """Declare one setting.

    Args:
        default: value when nothing is said; without one the setting is required.
        help: one sentence for the command line and the documentation.
        unit: physical unit, shown after the sentence.
        low: smallest allowed value (inclusive).
        above: allowed values are greater than this (exclusive).
        high: largest allowed value (inclusive).
        flag: command-line spelling where it differs from the field's name.
        names: the allowed names, where users can add to them; looked up at each check.
    """
    metadata = dict(help=help, unit=unit, low=low, above=above, high=high, flag=flag, names=names)
    return dataclasses.field(default=default, metadata=metadata)


def annotations_of(cls: Any) -> Mapping[str, Any]:
    """Resolved annotations of a dataclass, inherited ones included."""
    return types.MappingProxyType(typing.get_type_hints(cls))


def literal_names(annotation: Any) -> tuple[str, ...]:
    """The names of a ``Literal`` annotation; empty for any other."""
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def allowed_names(field: dataclasses.Field[Any], annotation: Any) -> tuple[str, ...]:
    """The names that a setting can have: those of its table, else of its ``Literal``; empty for any other."""
    table = field.metadata.get("names")
    return literal_names(annotation) if table is None else tuple(table)


def split_optional(annotation: Any) -> tuple[Any, bool]:
    """``X | None`` as (X, True); any other annotation as (annotation, False)."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        members = [a for a in typing.get_args(annotation) if a is not type(None)]
        return members[0], len(members) < len(typing.get_args(annotation))
    return annotation, False


def allowed_text(field: dataclasses.Field[Any]) -> str:
    """The allowed range of a number in words, for messages and documentation."""
    meta = field.metadata
    parts = []
    if meta.get("low") is not None:
        parts.append(f"at least {meta['low']:g}")
    if meta.get("above") is not None:
        parts.append(f"above {meta['above']:g}")
    if meta.get("high") is not None:
        parts.append(f"at most {meta['high']:g}")
    return " and ".join(parts)


def validate(config: Any) -> None:
    """Check every field of a settings dataclass against its declaration, then what a class says of several.

    A class that has more to say defines ``check_together(self)``; every such method up the line is called.

    Raises:
        InputError: one line with the setting, its value and what is allowed.
    """
    hints = annotations_of(type(config))
    for field in dataclasses.fields(config):
        _check(field, hints[field.name], getattr(config, field.name))
    for cls in type(config).__mro__:
        if "check_together" in vars(cls):
            vars(cls)["check_together"](config)


def _check(field: dataclasses.Field[Any], annotation: Any, value: Any) -> None:
    kind, optional = split_optional(annotation)
    if value is None and optional:
        return
    names = allowed_names(field, kind)
    if names:
        if value not in names:
            raise unknown_name(field.name, value, names)
        return
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not all(isinstance(v, str) for v in value):
            raise InputError(f"{field.name}: {value!r} is not a tuple of strings")
        return
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{field.name}: {value!r} is not of type {kind.__name__}")
    if kind in (int, float):
        _check_range(field, value)


def _check_range(field: dataclasses.Field[Any], value: float) -> None:
    meta, allowed = field.metadata, allowed_text(field)
    if not math.isfinite(value):
        raise InputError(f"{field.name}: {value} is not a finite number; allowed: {allowed or 'any finite number'}")
    low, above, high = meta.get("low"), meta.get("above"), meta.get("high")
    if (
        (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    ):
        raise InputError(f"{field.name}: {value} is out of range; allowed: {allowed}")


def flag_of(field: dataclasses.Field[Any]) -> str:
    """The command-line spelling of a setting."""
    return field.metadata.get("flag") or "--" + field.name.replace("_", "-")


def add_flags(parser: argparse._ActionsContainer, cls: type, skip: Iterable[str] = ()) -> None:
    """Add one flag per setting of ``cls``; a flag not given leaves nothing in the namespace."""
    hints, skipped = annotations_of(cls), set(skip)
    for field in dataclasses.fields(cls):
        if field.name not in skipped:
            _add_flag(parser, field, hints[field.name])


def _add_flag(parser: argparse._ActionsContainer, field: dataclasses.Field[Any], annotation: Any) -> None:
    kind, optional = split_optional(annotation)
    required = field.default is dataclasses.MISSING
    unit = f" [{field.metadata['unit']}]" if field.metadata.get("unit") else ""
    shown = "" if required else f" (default: {'off' if field.default is None else field.default})"
    options: dict[str, Any] = dict(
        dest=field.name,
        default=argparse.SUPPRESS,
        required=required,
        help=(field.metadata.get("help", "") + unit + shown).replace("%", "%%"),
    )
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is tuple:
        options |= dict(action="append", metavar="TEXT")
    else:
        names = allowed_names(field, kind)
        options |= dict(action=_Keep, parse=_Parser(field.name, kind, optional))
        options["metavar"] = "{" + ",".join(names) + "}" if names else kind.__name__.upper()
    parser.add_argument(flag_of(field), **options)


NOT_GIVEN = object()


class _Parser:
    """Turn a flag's text into the setting's type.

    ``off`` stands for None where None is allowed, and an empty text for a flag that was not given:
    a caller that passes every flag on, such as an MLflow project, can leave one open.
    """

    def __init__(self, name: str, kind: Any, optional: bool) -> None:
        self.name, self.kind, self.optional = name, kind, optional

    def __call__(self, text: str) -> Any:
        if text == "":
            return NOT_GIVEN
        if self.optional and text.lower() in ("off", "none"):
            return None
        if literal_names(self.kind):
            if text not in literal_names(self.kind):
                raise unknown_name(self.name, text, literal_names(self.kind))
            return text
        try:
            return self.kind(text)
        except ValueError:
            raise InputError(f"{self.name}: {text!r} is not a number of type {self.kind.__name__}") from None


class _Keep(argparse.Action):
    """Store the parsed text. Not a ``type``: argparse would hide the message of a refusal."""

    def __init__(self, *args: Any, parse: _Parser, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parse = parse

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        value = self.parse(values)
        if value is not NOT_GIVEN:
            setattr(namespace, self.dest, value)


def chosen(namespace: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The settings of ``cls`` that were given on the command line."""
    given = {}
    for field in dataclasses.fields(cls):
        value = getattr(namespace, field.name, NOT_GIVEN)
        if isinstance(value, list):
            value = tuple(text for text in value if text) or NOT_GIVEN
        if value is not NOT_GIVEN:
            given[field.name] = value
    return given


def from_plain(given: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Settings of ``cls`` from a file or from Python: lists as tuples, texts as what the flag of that text says.

    >>> from ptycho.config.config import TrainingConfig
    >>> from_plain({"learning_rate": "1e-3", "max_steps": False}, TrainingConfig)
    {'learning_rate': 0.001, 'max_steps': None}

    Args:
        given: names of settings of ``cls``, and values; False stands for off where off is allowed, since this is
            what YAML makes of the word.

    Raises:
        InputError: a text that is no number. What the class itself refuses is left to it.
    """
    hints, values = annotations_of(cls), {}
    for name, value in given.items():
        kind, optional = split_optional(hints[name])
        value = _plain(name, kind, optional, value)
        if value is not NOT_GIVEN:
            values[name] = value
    return values


def _plain(name: str, kind: Any, optional: bool, value: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else value
    if value is False and optional and kind is not bool:
        return None
    match value:
        case str() if kind is not bool:
            return _Parser(name, kind, optional)(value)
        case Path():
            return str(value)
        case numbers.Integral() if not isinstance(value, bool):
            return int(value)
    return value


def project(config: Any, cls: type) -> dict[str, Any]:
    """The fields of ``cls`` as they stand in ``config``, a dataclass that has them all."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(cls)}
