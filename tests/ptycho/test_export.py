"""What is written as CXI is read again as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho.arrays import PtychoArrays
from ptycho.config.config import DataConfig, ScanConfig
from ptycho.errors import InputError
from ptycho.export import write_cxi
from ptycho.readers import read_scan
from ptycho.simulate import simulate_grid_lines

STAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "siemens-star" / "siemens-star-small.npz.bz2"
GEOMETRY = {"energy_kev": 8.8, "distance_m": 1.92, "pixel_size_um": 75.0}


@pytest.fixture(scope="module")
def scan() -> PtychoArrays:
    config = DataConfig(object_size=64, n_lines=20, nphotons=1e4)
    found: PtychoArrays = simulate_grid_lines(config, 16, 1, 0).train
    mask = np.ones((16, 16), bool)
    mask[3, 5:7] = False
    return dataclasses.replace(found, mask=mask)


def require_same(read: PtychoArrays, written: PtychoArrays) -> None:
    np.testing.assert_allclose(read.counts(), written.counts(), rtol=1e-5, atol=0.01)
    np.testing.assert_allclose(read.positions_px, written.positions_px, rtol=1e-5, atol=1e-4)
    scale = np.sqrt(read.photons_per_intensity / written.photons_per_intensity)
    power = np.linalg.norm(read.probe) * scale / np.linalg.norm(written.probe)
    largest = float(np.abs(written.probe).max())
    np.testing.assert_allclose(read.probe * scale / power, written.probe, atol=1e-5 * largest)
    assert (read.mask is None) == (written.mask is None)
    if read.mask is not None and written.mask is not None:
        np.testing.assert_array_equal(read.mask, written.mask)


def test_a_simulated_scan_comes_back(scan: PtychoArrays, tmp_path: Path) -> None:
    write_cxi(tmp_path / "scan.cxi", scan, **GEOMETRY)
    read = read_scan(tmp_path / "scan.cxi", settings=ScanConfig(zero_frequency="centre"))
    require_same(read, scan)
    assert read.about["format"] == "CXI"
    for name, value in GEOMETRY.items():
        assert read.about[name] == pytest.approx(value)
    with h5py.File(tmp_path / "scan.cxi") as file:
        assert file["entry_1/data_1/data"].dtype == np.uint32
        assert file["cxi_version"][()] == 160
    assert [path.name for path in tmp_path.iterdir()] == ["scan.cxi"]


def test_what_was_read_is_written_without_another_word(scan: PtychoArrays, tmp_path: Path) -> None:
    write_cxi(tmp_path / "scan.cxi", scan, **GEOMETRY)
    binned = read_scan(tmp_path / "scan.cxi", settings=ScanConfig(zero_frequency="centre", scan_bin=2))
    write_cxi(tmp_path / "binned.cxi", binned)
    again = read_scan(tmp_path / "binned.cxi", settings=ScanConfig(zero_frequency="centre"))
    require_same(again, binned)
    assert again.about["object_pixel_nm"] == pytest.approx(binned.about["object_pixel_nm"])


@pytest.mark.skipif(not STAR.exists(), reason="the Siemens star is not here")
def test_the_siemens_star_comes_back(tmp_path: Path) -> None:
    star = read_scan(STAR)
    write_cxi(tmp_path / "star.cxi", star, **GEOMETRY)
    require_same(read_scan(tmp_path / "star.cxi"), star)


def test_what_cannot_be_written_is_one_line(scan: PtychoArrays, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"energy_kev: neither given nor said by"):
        write_cxi(tmp_path / "a.cxi", scan)
    with pytest.raises(InputError, match=r"distance_m: -1\.0; allowed: a number above 0"):
        write_cxi(tmp_path / "a.cxi", scan, **{**GEOMETRY, "distance_m": -1.0})
    with pytest.raises(InputError, match=r"cannot be written \(there is no folder .*no\)"):
        write_cxi(tmp_path / "no" / "a.cxi", scan, **GEOMETRY)
    two = dataclasses.replace(
        scan,
        amplitude=np.repeat(scan.amplitude, 4, axis=1),
        positions_px=np.repeat(scan.positions_px, 4, axis=1),
        patches_true=None,
    )
    with pytest.raises(InputError, match=r"frames have 4 channels; allowed: 1"):
        write_cxi(tmp_path / "a.cxi", two, **GEOMETRY)
    assert not list(tmp_path.iterdir())
