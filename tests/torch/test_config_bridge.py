"""Every training setting crosses the bridge, both ways, and nothing is lost without a word."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from ptycho.config import config as shared
from ptycho.config.settings import allowed_names, annotations_of, split_optional
from ptycho.errors import InputError
from ptycho_torch import config_bridge
from ptycho_torch.config_params import TrainingConfig


def another_value(config: Any, name: str) -> Any:
    """A valid value of a setting other than the one it has."""
    kind, _ = split_optional(annotations_of(type(config))[name])
    value = getattr(config, name)
    (field,) = (field for field in dataclasses.fields(config) if field.name == name)
    if names := allowed_names(field, kind):
        return next(other for other in names if other != value)
    if kind is bool:
        return not value
    if typing.get_origin(kind) is tuple:
        return ("zinger",)
    if value is None:
        return kind(3)
    return value + 1 if kind is int else value * 0.5 + 0.01


SHARED = [f.name for f in dataclasses.fields(shared.TrainingConfig)]
TORCH_ONLY = sorted(config_bridge.TORCH_ONLY_FIELDS)


@pytest.mark.parametrize("name", SHARED)
def test_every_shared_field_reaches_the_torch_configuration(name: str) -> None:
    changed = dataclasses.replace(shared.TrainingConfig(), **{name: another_value(shared.TrainingConfig(), name)})
    bridged = config_bridge.to_torch(changed)
    assert bridged != config_bridge.to_torch(shared.TrainingConfig())
    assert getattr(bridged, name) == getattr(changed, name)


@pytest.mark.parametrize("name", SHARED + TORCH_ONLY)
def test_every_torch_field_comes_back(name: str) -> None:
    changed = dataclasses.replace(TrainingConfig(), **{name: another_value(TrainingConfig(), name)})
    assert config_bridge.to_shared(changed) != config_bridge.to_shared(TrainingConfig())
    assert config_bridge.to_torch(*config_bridge.to_shared(changed)) == changed


def test_a_field_without_a_place_raises() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Extended(shared.TrainingConfig):
        channel_cap: int = 512

    with pytest.raises(InputError, match="channel_cap: not mapped"):
        config_bridge.to_torch(Extended())
    with pytest.raises(InputError, match="channel_cap: not mapped"):
        config_bridge.to_torch(shared.TrainingConfig(), {"channel_cap": 512})


def test_a_torch_field_without_a_place_raises() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Extended(TrainingConfig):
        warm_restart: int = 3

    with pytest.raises(InputError, match="warm_restart: not mapped"):
        config_bridge.to_shared(Extended())


@pytest.mark.parametrize("config", [shared.TrainingConfig, TrainingConfig])
def test_the_clipping_algorithm_follows_the_threshold_and_defaults_to_norm(config: type) -> None:
    names = [f.name for f in dataclasses.fields(config)]
    assert names[names.index("gradient_clip_val") + 1] == "gradient_clip_algorithm"
    assert config().gradient_clip_algorithm == "norm"


@pytest.mark.parametrize("config", [shared.TrainingConfig, TrainingConfig])
def test_an_unknown_algorithm_is_refused_with_the_known_ones(config: type) -> None:
    with pytest.raises(
        InputError, match=r"gradient_clip_algorithm: unknown value 'agd'; known: none, norm, value, agc"
    ):
        config(gradient_clip_algorithm="agd")


def test_the_torch_configuration_restates_nothing() -> None:
    assert not set(vars(TrainingConfig).get("__annotations__", {})) & set(SHARED)
