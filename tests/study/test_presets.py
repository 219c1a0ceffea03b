"""The named designs: what each compares, and what a user may change of it. Nothing is trained here."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ptycho.config.algorithms import ALGORITHMS
from ptycho.config.config import ModelConfig
from ptycho.config.settings import annotations_of, literal_names, project
from ptycho.errors import InputError
from ptycho_torch.generators import build_generator, count_parameters
from study.design import Design, RunSpec
from study.presets import CONTROL_REGIME, OVERLOAD_REGIME, PRESETS, make_design
from study.settings import StudyConfig


def design(preset: str, **choices: Any) -> Design:
    return make_design(StudyConfig(preset=preset, **choices))  # type: ignore[arg-type]


def first_round(preset: str, overrides: dict[str, Any] | None = None, **choices: Any) -> list[RunSpec]:
    return design(preset, **choices).next_runs(overrides or {}, [])


def values(specs: list[RunSpec], *names: str) -> set[tuple[Any, ...]]:
    return {tuple(getattr(spec.settings, name) for name in names) for spec in specs}


def test_every_preset_has_a_name_and_every_name_a_preset():
    assert set(PRESETS) == set(literal_names(annotations_of(StudyConfig)["preset"]))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_begins_and_pairs_its_arms(preset: str):
    specs = first_round(preset, {"data": "scan.npz"} if preset == "real" else {})
    assert specs
    assert len({spec.run_id for spec in specs}) == len(specs)
    replicates: dict[str, set[int]] = {}
    for spec in specs:
        replicates.setdefault(spec.settings.gradient_clip_algorithm, set()).add(spec.settings.seed)
    assert len({frozenset(found) for found in replicates.values()}) == 1
    assert "none" in replicates


@pytest.mark.parametrize("preset", PRESETS)
def test_the_arms_of_a_condition_differ_in_nothing_else(preset: str):
    arms = ("gradient_clip_algorithm", "gradient_clip_val")
    alike: dict[str, set[str]] = {}
    for spec in first_round(preset):
        rest = {k: v for k, v in dataclasses.asdict(spec.settings).items() if k not in arms}
        alike.setdefault(f"{spec.regime}{rest}", set()).add(spec.settings.gradient_clip_algorithm)
    assert len({frozenset(found) for found in alike.values()}) == 1


def test_depth_compares_two_networks_at_three_depths_under_the_same_faults():
    specs = first_round("depth")
    assert values(specs, "architecture", "fno_blocks") == {
        (architecture, blocks) for architecture in ("hybrid", "stable_hybrid") for blocks in (2, 4, 6)
    }
    assert values(specs, "N", "fault", "max_steps") == {(64, OVERLOAD_REGIME.settings["fault"], 200)}
    assert [arm.algorithm for arm in design("depth").arms] == ["none", "norm", "agc", "agc_unit"]


def test_a_users_setting_narrows_a_factor_and_doubles_no_run():
    specs = first_round("depth", {"fno_blocks": 4}, seeds=1)
    assert values(specs, "architecture", "fno_blocks") == {("hybrid", 4), ("stable_hybrid", 4)}
    assert len(specs) == 2 * 4


def test_quality_is_the_control_regime_at_length_on_a_large_object():
    specs = first_round("quality")
    assert len(specs) == 5 * 8
    assert {spec.regime for spec in specs} == {"control"}
    assert values(specs, "N", "object_size", "fno_width", "batch_size", "max_steps") == {(32, 392, 16, 8, 2000)}
    calm = {key: (value,) for key, value in CONTROL_REGIME.settings.items()}
    assert {key: values(specs, key) for key in calm} == {key: {value} for key, value in calm.items()}


def test_full_is_the_paper_scale():
    specs = first_round("full")
    assert values(specs, "N", "architecture", "epochs", "max_steps") == {
        (64, "hybrid", 50, None), (128, "hybrid", 50, None),
    }  # fmt: skip
    assert {spec.settings.seed for spec in specs} == set(range(20))
    sizes = [count_parameters(build_generator(_model(spec))) for spec in specs[:: len(specs) - 1]]
    assert sizes == pytest.approx([9.9e6, 21.4e6], rel=0.02), "17 million, less and more with the reachable modes"


def _model(spec: RunSpec) -> ModelConfig:
    return ModelConfig(**project(spec.settings, ModelConfig))


def test_thresholds_sweep_the_range_of_each_algorithm_on_replicates_apart():
    specs = first_round("thresholds")
    assert {spec.regime for spec in specs} == {"overload-tuning", "rate-stress-tuning"}
    assert min(spec.settings.seed for spec in specs) >= 10_000
    for algorithm in ("norm", "value", "agc", "agc_unit"):
        swept = [s.settings.gradient_clip_val for s in specs if s.settings.gradient_clip_algorithm == algorithm]
        info = ALGORITHMS[algorithm]  # type: ignore[index]
        assert (min(swept), max(swept)) == (info.low, info.high)
        assert len(set(swept)) >= 5


def test_a_regime_comes_with_the_one_its_thresholds_are_chosen_in():
    chosen = design("thresholds", regime=("overload",)).regimes
    assert [(regime.name, regime.evidence) for regime in chosen] == [("overload-tuning", False), ("overload", True)]


def test_seeds_and_their_offset():
    specs = first_round("frontier", seeds=2, seed_offset=1000)
    assert {spec.settings.seed for spec in specs} == {1000, 1001}
    tuned = first_round("thresholds", seed_offset=1000)
    assert min(spec.settings.seed for spec in tuned) == 11_000


@pytest.mark.parametrize(
    ("preset", "choices", "overrides", "message"),
    [
        ("frontier", {}, {"learning_rate": 0.1}, "learning_rate: 0.1 cannot be set"),
        ("thresholds", {"threshold": 0.1}, {}, "threshold: it cannot be set"),
        ("thresholds", {"algo": ("agc=0.1",)}, {}, "threshold: it cannot be set"),
        ("frontier", {"adaptive": True}, {}, "adaptive: the preset frontier has rounds of its own"),
        ("default", {"adaptive": True, "algo": ("agc",)}, {}, "adaptive: agc leaves nothing to compare"),
        ("default", {"adaptive": True, "algo": ("none",)}, {}, "adaptive: none leaves nothing to compare"),
        ("default", {"regime": ("overlord",)}, {}, "regime: unknown value 'overlord'"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(preset: str, choices: Any, overrides: Any, message: str):
    with pytest.raises(InputError, match=message):
        first_round(preset, overrides, **choices)
