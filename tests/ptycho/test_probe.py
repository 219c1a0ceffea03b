"""Probes: shape, power, units, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho.config.config import DataConfig
from ptycho.errors import InputError
from ptycho.probe import disk_probe, gaussian_probe, load_probe, make_probe, match_power, normalise_probe, probe_power


@pytest.mark.parametrize("diameter", [0.25, 0.5, 1.0])
def test_the_power_of_a_disk_is_its_area(diameter: float) -> None:
    area = np.pi * (diameter * 128 / 2) ** 2
    assert probe_power(disk_probe(128, diameter)) == pytest.approx(area, rel=0.02)


def test_the_disk_is_centred_on_the_frame_s_centre() -> None:
    disk = disk_probe(16, 0.5)[0].real
    assert (disk * np.arange(16)[:, None]).sum() / disk.sum() == pytest.approx(8)
    assert disk[8, 8] == 1


def test_the_gaussian_falls_to_1_over_e2_in_intensity_at_its_diameter() -> None:
    probe = gaussian_probe(64, 0.5, 0.0)[0]
    assert np.abs(probe[32, 32 + 16]) ** 2 == pytest.approx(np.exp(-2))
    assert probe_power(probe[None]) == pytest.approx(np.pi * 16**2 / 2, rel=1e-3)  # pi w^2 / 2


def test_defocus_is_a_quadratic_phase_and_leaves_the_modulus() -> None:
    sharp, blurred = gaussian_probe(64, 0.5, 0.0)[0], gaussian_probe(64, 0.5, 1.5)[0]
    assert np.abs(blurred) == pytest.approx(np.abs(sharp))
    assert np.angle(blurred[32, 48]) == pytest.approx(1.5)
    assert np.angle(blurred[32, 40]) == pytest.approx(1.5 / 4)


def test_a_normalised_probe_has_the_unit_of_the_grid_lines_study() -> None:
    found = 7 * gaussian_probe(64, 0.5, 1.0)
    probe, unit = normalise_probe(found)
    assert probe * unit == pytest.approx(found)
    mask = np.abs(disk_probe(64, 0.5)[0])
    assert 10 * np.mean(mask * np.abs(probe[0])) == pytest.approx(1)


def test_splitting_a_probe_into_equal_modes_keeps_its_unit() -> None:
    whole = gaussian_probe(32, 0.5, 1.0)
    halves = np.concatenate([whole, whole]) / np.sqrt(2)
    assert normalise_probe(halves.astype(np.complex64))[1] == pytest.approx(normalise_probe(whole)[1])


def test_match_power_reports_the_factor_on_the_power() -> None:
    probe = gaussian_probe(32, 0.5, 1.0)
    scaled, factor = match_power(probe, 1234.0)
    assert probe_power(scaled) == pytest.approx(1234.0)
    assert factor == pytest.approx(1234.0 / probe_power(probe))


def test_a_probe_without_power_at_the_centre_has_no_unit() -> None:
    probe = np.zeros((1, 16, 16), np.complex64)
    probe[0, 0, 0] = 1
    with pytest.raises(InputError, match="no power within 4 px"):
        normalise_probe(probe)


@pytest.mark.parametrize("shape", [(16, 16), (3, 16, 16)])
def test_a_probe_from_a_file_is_used_with_all_its_modes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0).normal(size=(2, *shape))
    stored = draw[0] + 1j * draw[1]
    np.savez(tmp_path / "probe.npz", probeGuess=stored)
    made = make_probe(DataConfig(probe=str(tmp_path / "probe.npz")), 16)
    assert made.shape == (shape[0] if len(shape) == 3 else 1, 16, 16)
    assert made == pytest.approx(normalise_probe(stored.reshape(-1, 16, 16).astype(np.complex64))[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"probe": np.ones((16, 16))}, "Missing required key 'probeGuess'"),
        ({"probeGuess": np.ones((8, 8))}, r"shape \(8, 8\); frames of 16 px"),
        ({"probeGuess": np.ones(16)}, "shape"),
        ({"probeGuess": np.full((16, 16), np.nan)}, "not finite"),
        ({"probeGuess": np.zeros((16, 16))}, "zero everywhere"),
        ({"probeGuess": np.array([["a"] * 16] * 16)}, "type <U1"),
        ({"probeGuess": np.array([[None] * 16] * 16)}, "probeGuess cannot be read"),
    ],
)
def test_an_unusable_probe_file_is_one_clear_error(
    tmp_path: Path, content: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "probe.npz"
    np.savez(path, **content)
    with pytest.raises(InputError, match=message) as caught:
        load_probe(path, 16)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probe": "dsik"}, "probe: 'dsik' is no file; allowed: disk, gaussian"),
        ({"probe": "disk", "probe_defocus": 1.0}, "probe_defocus: 1.0 has no effect on probe 'disk'"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_probe(DataConfig(**settings), 16)
