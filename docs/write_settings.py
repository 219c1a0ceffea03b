"""Write ``docs/settings.md`` from the declarations of the settings: ``python docs/write_settings.py``."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

from ptycho.config.config import DataConfig, FaultConfig, ModelConfig, ScanConfig
from ptycho.config.config import TrainingConfig as SharedTrainingConfig
from ptycho.config.plugins import PluginConfig
from ptycho.config.settings import allowed_names, allowed_text, annotations_of, flag_of, split_optional
from ptycho_torch.config_params import TrainingConfig
from study.settings import OF_THE_DESIGN, CommandLine, StudyConfig

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

Every setting, written from its declaration by `python docs/write_settings.py`. The flag goes to
`python -m study.shootout` (and, but for those of the study, to `python -m study.grid_lines_torch_runner`), the name
without dashes to `shootout(...)` from Python, and the flag without its first dashes to `mlflow run . -P`.
A preset sets some of them; what is given wins. `off` stands for no value.
"""
SECTIONS = {
    "The study": StudyConfig,
    "The command line alone": CommandLine,
    "Plugins": PluginConfig,
    "A real scan": ScanConfig,
    "Faults": FaultConfig,
    "The data": DataConfig,
    "The network": ModelConfig,
    "The training": SharedTrainingConfig,
    "The training, in torch": TrainingConfig,
}


def page() -> str:
    """The whole page."""
    said: set[str] = set()
    parts = [HEAD]
    for title, cls in SECTIONS.items():
        fields = [field for field in dataclasses.fields(cls) if field.name not in said]
        said |= {field.name for field in fields}
        intro = "" if cls is StudyConfig else str(inspect.getdoc(cls)).splitlines()[0].replace("``", "`") + "\n\n"
        rows = "\n".join(row(field, cls) for field in fields)
        parts.append(f"## {title}\n\n{intro}| flag | meaning | default | allowed |\n|---|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def row(field: dataclasses.Field[object], cls: type) -> str:
    """One setting as a line of a table."""
    unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
    note = " (in a study the arms and the replicates say this)" if field.name in OF_THE_DESIGN else ""
    meaning = field.metadata["help"].replace("*", "\\*") + unit + note
    cells = (f"`{flag_of(field)}`", meaning, default_text(field.default), allowed(field, cls))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def default_text(value: object) -> str:
    """A default as it would be typed."""
    match value:
        case None:
            return "off"
        case bool():
            return "on" if value else "off"
        case ():
            return "–"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def allowed(field: dataclasses.Field[object], cls: type) -> str:
    """What a setting can be."""
    kind, _ = split_optional(annotations_of(cls)[field.name])
    names = allowed_names(field, kind)
    if names:
        return ", ".join(f"`{name}`" for name in names)
    words = {bool: "on (the flag), off (`--no-...`)", int: "whole number", float: "number", str: "text"}
    return ", ".join(part for part in (words.get(kind, "text, repeatable"), allowed_text(field)) if part)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
