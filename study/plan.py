"""What a study will do: its settings as a design and a folder, before anything is written or trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptycho.config.config import DataConfig, ScanConfig
from ptycho.config.plugins import load_plugins
from ptycho.config.settings import project
from ptycho.errors import InputError
from study.design import Design, RunSpec, used_plugins
from study.settings import RunSettings, StudyConfig


class Plan(NamedTuple):
    """A study before it runs: what was asked for, the design, settings given for all its runs, its folder, the call."""

    config: StudyConfig
    design: Design
    overrides: Mapping[str, Any]
    out: Path
    command: str

    def run_folder(self, spec: RunSpec) -> Path:
        """Where a run's records stand."""
        return self.out / "runs" / spec.run_id


def make_plan(config: StudyConfig, overrides: Mapping[str, Any], command: str) -> Plan:
    """Turn settings into runs; refuses settings that cannot work. Nothing is written.

    Args:
        config, overrides: the study's settings, and those given for all its runs.
        command: how the study was called, for its record.

    Raises:
        InputError: a bad setting, a scan that cannot be used.
    """
    from study.presets import make_design

    plugins = load_plugins(overrides.get("plugin", ()))  # those of installed packages too
    if plugins:
        overrides = {**overrides, "plugin": plugins}
    design = make_design(config)
    if config.preset == "real" or overrides.get("data"):
        overrides = {**overrides, **scan_settings(overrides)}
    for spec in design.next_runs(overrides, []):  # refuses settings that do not go together
        used_plugins(spec.settings)
        check_probe(spec.settings)
    return Plan(config, design, overrides, Path(config.out or f"results/{config.preset}").absolute(), command)


def check_probe(settings: RunSettings) -> None:
    """Make the probe of a simulated run once, which refuses what cannot be one.

    Raises:
        InputError: a file that cannot be used, settings of another kind of probe.
    """
    if settings.data is None:
        _made_probe(DataConfig(**project(settings, DataConfig)), settings.N)


@functools.cache
def _made_probe(data: DataConfig, N: int) -> None:
    from ptycho.probe import make_probe

    make_probe(data, N)


def scan_settings(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a scan's file decides: N, and the full paths of what is read.

    Raises:
        InputError: no scan, one that cannot be used, or frames of another size than ``N``.
    """
    from study.data import scan_frame_size

    if not overrides.get("data"):
        raise InputError("data: the preset real needs a scan; give --data FILE")
    paths = {
        name: str(Path(overrides[name]).absolute())
        for name in ("data", "scan_probe", "scan_positions")
        if overrides.get(name)
    }
    said = {field.name for field in dataclasses.fields(ScanConfig)} & set(overrides)
    size = scan_frame_size(Path(paths["data"]), ScanConfig(**{name: {**overrides, **paths}[name] for name in said}))
    if overrides.get("N", size) != size:
        raise InputError(
            f"N: {overrides['N']} px, but the frames of {paths['data']} have {size} px; "
            "--scan-crop makes them smaller in the far field, --scan-bin in the field of view"
        )
    return {"N": size, **paths}


def unfinished(plan: Plan, specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs without a result; with ``fresh``, all of them."""
    from study.records import RESULT_FILE

    return [spec for spec in specs if plan.config.fresh or not (plan.run_folder(spec) / RESULT_FILE).exists()]
