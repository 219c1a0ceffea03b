"""Suspected frames and pixels: each kind of fault is found where it was put, and a healthy scan shows none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho.config.config import DataConfig, ScanConfig
from ptycho.diagnosis import gather_facts, suspected_frames, suspected_pixels
from ptycho.readers import read_scan
from ptycho.readers.overview import look_at
from ptycho.simulate import diffraction_intensity, simulate_grid_lines

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "siemens-star" / "siemens-star-small.npz.bz2"
N = 32
GOOD = np.ones((N, N), bool)


@pytest.fixture
def counts() -> np.ndarray:
    """(F, N, N) counts of a healthy scan of a phase object, whose frames are about as bright as each other."""
    data = DataConfig(object_size=72, n_lines=30, probe="gaussian", outer_offset_train=12)
    train = simulate_grid_lines(data, N, 1, 0).train
    assert train.patches_true is not None
    intensity = diffraction_intensity(np.exp(1j * np.angle(train.patches_true[:, 0])), train.probe)
    return np.random.default_rng(0).poisson(1e5 * intensity / intensity[0].sum()).astype(float)


def suspects(counts: np.ndarray, not_finite: tuple[int, ...] = ()) -> dict[str, list[int]]:
    chunks = [(start, counts[start : start + 7]) for start in range(0, len(counts), 7)]
    return {what: frames.tolist() for what, frames in suspected_frames(gather_facts(chunks), not_finite).items()}


def test_a_healthy_scan_is_not_suspected(counts: np.ndarray) -> None:
    assert suspects(counts) == {}
    assert not any(found.any() for found in suspected_pixels(counts, GOOD))


def test_each_wrong_frame_is_found(counts: np.ndarray) -> None:
    counts[2] = 0
    counts[5] = np.random.default_rng(0).poisson(0.05, (N, N))
    counts[9] = counts[8]
    counts[11] *= 10
    counts[13, 3, 4] = 1000 * counts.max()
    assert suspects(counts, (1,)) == {
        "not finite": [1],
        "dropped (all zero)": [2],
        "dark": [5],
        "duplicate of an earlier frame": [9],
        "overloaded": [11, 13],
    }


def test_an_intensity_jump_needs_no_bright_pixel(counts: np.ndarray) -> None:
    counts[4] *= 2.5
    assert suspects(counts) == {"intensity jump": [4]}


def test_wrong_pixels_are_found_and_the_beam_is_none(counts: np.ndarray) -> None:
    counts[:, 3, 4] = 200
    counts[:, N // 2 + 5, N // 2] = 0
    counts[:, N // 2, N // 2] *= 50
    counts[7, 20, 2] = 1e6  # a zinger sits in one frame
    found = suspected_pixels(counts, GOOD)
    assert np.argwhere(found.hot).tolist() == [[3, 4]]
    assert np.argwhere(found.dead).tolist() == [[N // 2 + 5, N // 2]]
    masked = GOOD.copy()
    masked[3, 4] = masked[N // 2 + 5, N // 2] = False
    assert not any(kind.any() for kind in suspected_pixels(counts, masked))


def test_hot_pixels_are_masked_where_that_is_asked(counts: np.ndarray, tmp_path: Path) -> None:
    counts[:, 3, 4] = 200
    probe = np.ones((N, N), complex)
    positions = np.random.default_rng(0).uniform(0, 40, (len(counts), 2))
    np.savez(tmp_path / "scan.npz", data=counts, scan=positions, probe=probe)
    assert read_scan(tmp_path / "scan.npz", settings=ScanConfig(zero_frequency="centre")).mask is None
    arrays = read_scan(tmp_path / "scan.npz", settings=ScanConfig(zero_frequency="centre", mask_hot=True))
    assert arrays.mask is not None
    assert np.argwhere(~arrays.mask).tolist() == [[3, 4]]
    assert arrays.about["notes"] == "1 pixels that are hot or dead are masked"


@pytest.mark.parametrize("path", [path for path in [REAL] if path.exists()])
def test_the_siemens_star_is_healthy(path: Path) -> None:
    scan = look_at(path, ScanConfig())
    assert scan.frames == {}
    assert not any(found.any() for found in scan.pixels)
    assert scan.overlap == pytest.approx(0.83, abs=0.01)
    assert scan.probe_factor == pytest.approx(461_000 / 51.83, rel=0.01)
