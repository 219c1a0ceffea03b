"""The total map between the shared training configuration and the torch one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ptycho.config import config as shared
from ptycho.errors import InputError
from ptycho_torch.config_params import TrainingConfig

SHARED_FIELDS = frozenset(f.name for f in dataclasses.fields(shared.TrainingConfig))
TORCH_FIELDS = frozenset(f.name for f in dataclasses.fields(TrainingConfig))
TORCH_ONLY_FIELDS = TORCH_FIELDS - SHARED_FIELDS


def to_torch(config: shared.TrainingConfig, torch_only: Mapping[str, Any] | None = None) -> TrainingConfig:
    """The torch configuration that says what ``config`` says.

    Args:
        config: shared configuration, or a subclass of it.
        torch_only: values of the settings that only torch has; those left out keep their defaults.

    Raises:
        InputError: a field of ``config``, or a key of ``torch_only``, has no place in the torch configuration.
    """
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    _require(values, TORCH_FIELDS, "the torch training configuration")
    extra = dict(torch_only or {})
    _require(extra, TORCH_ONLY_FIELDS, "the settings that only torch has")
    return TrainingConfig(**{**values, **extra})


def to_shared(config: TrainingConfig) -> tuple[shared.TrainingConfig, dict[str, Any]]:
    """The shared part of ``config``, and the settings that only torch has; ``to_torch(*...)`` is the inverse.

    Raises:
        InputError: a field of ``config`` belongs to neither.
    """
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    _require(values, TORCH_FIELDS, "the torch training configuration")
    torch_only = {name: values.pop(name) for name in sorted(TORCH_ONLY_FIELDS)}
    return shared.TrainingConfig(**values), torch_only


def _require(values: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    lost = sorted(set(values) - known)
    if lost:
        raise InputError(f"{', '.join(lost)}: not mapped; no such field in {where}")
