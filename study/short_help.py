"""Help that fits a screen: the settings that belong to a command itself, and one line for each group of others."""

from __future__ import annotations

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from ptycho.config.settings import allowed_names, annotations_of, flag_of, split_optional

FLAG_COLUMN = 24


def short_help(
    usage: str, about: str, own: Sequence[type], groups: Mapping[str, type], skip: Iterable[str] = ()
) -> str:
    """The short help of a command.

    Args:
        usage: the command's line.
        about: what it does.
        own: declarations of which every setting is shown, with the first clause of its sentence.
        groups: declarations of which names are shown, as many as fit a line.
        skip: settings left out of the groups.
    """
    width = min(shutil.get_terminal_size().columns, 120) - 1
    lines = [
        *textwrap.wrap(f"usage: {usage}", width, subsequent_indent=" " * 7, break_on_hyphens=False),
        "",
        *textwrap.wrap(" ".join(about.split()), width),
        "",
    ]
    for cls in own:
        hints = annotations_of(cls)
        for field in own_fields(cls):
            lines += _setting_lines(field, hints[field.name], width)
    lines += ["", "for every run (--help-all explains each):" if groups else "--help-all explains each"]
    for title, cls in groups.items():
        flags = " ".join(flag_of(f) for f in dataclasses.fields(cls) if f.name not in skip)
        lines.append(f"  {title:<10}" + textwrap.shorten(flags, width - 12, placeholder=" ...", break_on_hyphens=False))
    return "\n".join([*lines, ""])


def own_fields(cls: type) -> list[dataclasses.Field[object]]:
    """The settings that a class declares itself, without those it inherits."""
    return [field for field in dataclasses.fields(cls) if field.name in vars(cls).get("__annotations__", {})]


def _setting_lines(field: dataclasses.Field[object], annotation: object, width: int) -> list[str]:
    kind, _ = split_optional(annotation)
    flag, names = flag_of(field), allowed_names(field, kind)
    if kind is bool:
        flag = flag if field.default is False else flag.replace("--", "--[no-]", 1)
    else:
        flag += {int: " N", float: " X"}.get(kind, " NAME" if names else " TEXT")
    sentence = re.split(r"[;(]", str(field.metadata["help"]))[0].strip()
    if len(names) > 1:
        sentence = f"{sentence.partition(':')[0]}: {', '.join(names)}"
    indent = " " * FLAG_COLUMN
    text = textwrap.wrap(sentence, width - FLAG_COLUMN)
    head = f"  {flag}"
    if len(head) >= FLAG_COLUMN:
        return [head, *(indent + line for line in text)]
    return [head.ljust(FLAG_COLUMN) + text[0], *(indent + line for line in text[1:])]
