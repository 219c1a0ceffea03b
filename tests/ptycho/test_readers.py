"""Readers: every format from toy files and the real scan, units, and files that cannot be used."""

from __future__ import annotations

import bz2
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.arrays import PtychoArrays
from ptycho.cache import save_split
from ptycho.config.config import DataConfig
from ptycho.errors import InputError
from ptycho.probe import gaussian_probe, probe_power
from ptycho.readers import group_neighbours, read_scan, split_scan, zero_frequency_at_corner
from ptycho.simulate import diffraction_intensity, simulate_grid_lines

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "siemens-star" / "siemens-star-small.npz.bz2"
F, N = 12, 16


def toy() -> dict[str, np.ndarray]:
    """Counts (F, N, N) with the zero frequency in the centre, positions (F, 2) and the probe of a toy scan."""
    rng = np.random.default_rng(0)
    probe = gaussian_probe(N, 0.5, 2.0)
    patches = np.exp(1j * rng.normal(scale=0.3, size=(F, N, N)))
    intensity = diffraction_intensity(patches, probe)
    counts = rng.poisson(5000 * intensity / intensity.sum(axis=(1, 2)).mean())
    return {"counts": counts, "positions": rng.uniform(0, 20, size=(F, 2)), "probe": 3 * probe}


def tike() -> dict[str, np.ndarray]:
    scan = toy()
    return {
        "data": np.fft.ifftshift(scan["counts"], axes=(1, 2))[None].astype(np.float32),
        "scan": scan["positions"][None],
        "probe": scan["probe"][None, None, None],
    }


def ptychopinn() -> dict[str, np.ndarray]:
    scan = toy()
    return {
        "diffraction": np.sqrt(scan["counts"] / 5000.0),
        "xcoords": scan["positions"][:, 1],
        "ycoords": scan["positions"][:, 0],
        "probeGuess": scan["probe"][0],
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    if path.suffix == ".bz2":
        buffer = io.BytesIO()
        np.savez(buffer, **content)
        path.write_bytes(bz2.compress(buffer.getvalue()))
    else:
        np.savez(path, **content)
    return path


def assert_is_the_toy(arrays: PtychoArrays) -> None:
    scan = toy()
    assert arrays.amplitude.shape == (F, 1, N, N)
    assert arrays.counts()[:, 0] == pytest.approx(scan["counts"], abs=0.01)
    assert arrays.positions_px[:, 0] == pytest.approx(scan["positions"])


@pytest.mark.parametrize("name", ["scan.npz", "scan.npz.bz2"])
@pytest.mark.parametrize("corner", [True, False])
def test_a_tike_file_is_read_wherever_its_zero_frequency_lies(tmp_path: Path, name: str, corner: bool) -> None:
    content = tike()
    if not corner:
        content["data"] = np.fft.fftshift(content["data"], axes=(2, 3))
    arrays = read_scan(write(tmp_path / name, content))
    assert_is_the_toy(arrays)
    assert arrays.name == name


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "float64"])
def test_counts_of_any_number_type_are_read(tmp_path: Path, dtype: str) -> None:
    content = tike()
    content["data"] = np.minimum(content["data"], 255).astype(dtype)
    arrays = read_scan(write(tmp_path / "scan.npz", content))
    expected = np.fft.fftshift(content["data"][0], axes=(1, 2))
    assert arrays.counts()[:, 0] == pytest.approx(expected.astype(float), abs=1e-3)


def test_arrays_without_the_axis_of_views_and_several_modes(tmp_path: Path) -> None:
    content = tike()
    content = {"data": content["data"][0], "scan": content["scan"][0], "probe": np.repeat(content["probe"][0, 0], 3, 1)}
    arrays = read_scan(write(tmp_path / "scan.npz", content))
    assert_is_the_toy(arrays)
    assert arrays.probe.shape == (3, N, N)


def test_the_probe_explains_the_mean_counts_and_its_factor_is_reported(tmp_path: Path) -> None:
    content = tike()
    arrays = read_scan(write(tmp_path / "scan.npz", content))
    mean_counts = float(content["data"].sum(axis=(2, 3)).mean())
    assert probe_power(arrays.probe) * arrays.photons_per_intensity == pytest.approx(mean_counts, rel=1e-5)
    assert arrays.probe_scale == pytest.approx(mean_counts / probe_power(content["probe"]), rel=1e-5)
    found = content["probe"][0, 0, 0] * np.sqrt(arrays.probe_scale / arrays.photons_per_intensity)
    assert arrays.probe == pytest.approx(found, rel=1e-4)


def test_the_brightness_of_the_stored_probe_does_not_matter(tmp_path: Path) -> None:
    first = read_scan(write(tmp_path / "a.npz", tike()))
    second = read_scan(write(tmp_path / "b.npz", tike() | {"probe": 50 * tike()["probe"]}))
    assert second.amplitude == pytest.approx(first.amplitude, rel=1e-5)
    assert second.probe_scale == pytest.approx(first.probe_scale / 2500, rel=1e-5)


def test_a_simulation_saved_as_counts_comes_back_in_the_same_units(tmp_path: Path) -> None:
    """With an object of modulus 1 the reader must find the simulation's own units again."""
    truth = simulate_grid_lines(DataConfig(object_size=40, n_lines=20, probe="gaussian", nphotons=1e6), 16, 1, 0).train
    phase_only = truth.patches_true[:, 0] / np.abs(truth.patches_true[:, 0])
    counts = diffraction_intensity(phase_only, truth.probe) * truth.photons_per_intensity
    content = {"data": counts, "scan": truth.positions_px[:, 0], "probe": truth.probe}
    arrays = read_scan(write(tmp_path / "scan.npz", content))
    assert arrays.photons_per_intensity == pytest.approx(truth.photons_per_intensity, rel=1e-4)
    assert arrays.probe == pytest.approx(truth.probe, rel=1e-4)
    assert arrays.probe_scale == pytest.approx(truth.photons_per_intensity, rel=1e-4)


@pytest.mark.parametrize("key", ["diffraction", "diff3d"])
@pytest.mark.parametrize("last", [True, False])
def test_a_ptychopinn_file_is_read_with_frames_first_or_last(tmp_path: Path, key: str, last: bool) -> None:
    content = ptychopinn()
    frames = content.pop("diffraction")
    content[key] = np.moveaxis(frames, 0, -1) if last else frames
    mean_counts = toy()["counts"].sum(axis=(1, 2)).mean()
    assert_is_the_toy(read_scan(write(tmp_path / "scan.npz", content), nphotons=mean_counts))


def test_frames_come_first_where_all_axes_are_equal(tmp_path: Path) -> None:
    cube = np.ones((N, N, N))
    cube[3] = 2  # frame 3 is twice as bright as the others
    cube[:, N // 2, N // 2] = 5
    content = ptychopinn() | {"diffraction": cube, "xcoords": np.arange(16.0), "ycoords": np.arange(16.0)}
    total = read_scan(write(tmp_path / "scan.npz", content)).counts().sum(axis=(1, 2, 3))
    assert np.argmax(total) == 3
    assert total[3] > 1.5 * np.median(total)


def test_whole_numbers_in_a_ptychopinn_file_are_counts(tmp_path: Path) -> None:
    content = ptychopinn() | {"diffraction": toy()["counts"]}
    assert_is_the_toy(read_scan(write(tmp_path / "scan.npz", content)))


def test_amplitudes_without_a_unit_get_the_photons_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.npz", ptychopinn())
    dim, bright = read_scan(path, nphotons=1e4), read_scan(path)
    assert dim.counts().sum(axis=(2, 3)).mean() == pytest.approx(1e4, rel=1e-5)
    assert bright.counts().sum(axis=(2, 3)).mean() == pytest.approx(1e9, rel=1e-5)
    assert bright.amplitude == pytest.approx(dim.amplitude, rel=1e-5)


def test_an_object_guess_is_not_taken_for_the_truth(tmp_path: Path) -> None:
    assert read_scan(write(tmp_path / "scan.npz", ptychopinn() | {"objectGuess": np.ones((9, 9))})).object_true is None


def test_our_own_cached_file_is_a_scan_too(tmp_path: Path) -> None:
    train = simulate_grid_lines(DataConfig(object_size=40, n_lines=20), 16, 1, 0).train
    save_split(tmp_path / "train.npz", train, {})
    assert read_scan(tmp_path / "train.npz").digest() == train.digest()
    grouped = read_scan(tmp_path / "train.npz", gridsize=2)
    assert grouped.patches_true is not None
    assert grouped.patches_true.shape == (train.n_frames // 4, 4, 16, 16)
    with pytest.raises(InputError, match="gridsize: 3 asked for, but grid-lines has 4 channels"):
        group_neighbours(grouped, 3)


def test_grouping_keeps_frames_and_positions_together(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.npz", tike())
    single, grouped = read_scan(path), read_scan(path, gridsize=2)
    assert grouped.amplitude.shape == (3, 4, N, N)
    where = {tuple(place): i for i, place in enumerate(single.positions_px[:, 0].tolist())}
    for group in range(3):
        for channel in range(4):
            i = where[tuple(grouped.positions_px[group, channel].tolist())]
            assert np.array_equal(grouped.amplitude[group, channel], single.amplitude[i, 0])
    with pytest.raises(InputError, match="12 frames are too few for one group of 16"):
        read_scan(path, gridsize=4)


def test_the_split_uses_each_frame_once_and_depends_on_the_seed(tmp_path: Path) -> None:
    arrays = read_scan(write(tmp_path / "scan.npz", tike()))
    splits = split_scan(arrays, 0.25, 0.1, 3)
    parts = (splits.train, splits.validation, splits.test)
    assert [part.n_frames for part in parts] == [8, 3, 1]
    places = np.concatenate([part.positions_px[:, 0] for part in parts])
    assert len(np.unique(places, axis=0)) == F
    assert split_scan(arrays, 0.25, 0.1, 3).train.digest() == splits.train.digest()
    assert split_scan(arrays, 0.25, 0.1, 4).train.digest() != splits.train.digest()
    with pytest.raises(InputError, match="2 frames leave none to train on"):
        split_scan(arrays.take(np.array([0, 1])), 0.1, 0.1, 0)


@pytest.mark.parametrize("size", [8, 9, 64])
def test_the_zero_frequency_is_found(size: int) -> None:
    frames = np.ones((3, size, size))
    frames[:, 0, 1] = 50
    assert zero_frequency_at_corner(frames)
    assert not zero_frequency_at_corner(np.fft.fftshift(frames, axes=(1, 2)))


def _put(key: str, value: float) -> Any:
    def change(content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        array = content[key].astype(complex if np.iscomplexobj(content[key]) else float)
        array.flat[3] = value
        return content | {key: array}

    return change


def _without(key: str) -> Any:
    return lambda content: {name: array for name, array in content.items() if name != key}


def _set(key: str, value: Any) -> Any:
    return lambda content: content | {key: np.asarray(value)}


PICKLED = np.array([{}], dtype=object)


@pytest.mark.parametrize(
    ("content", "change", "message"),
    [
        (tike, _without("data"), "Missing required key 'data'"),
        (tike, _without("scan"), "Missing required key 'scan'"),
        (tike, _without("probe"), "Missing required key 'probe'"),
        (tike, _put("data", np.nan), "data has 1 values that are not finite"),
        (tike, _put("data", np.inf), "data has 1 values that are not finite"),
        (tike, _put("data", -1), "data has negative values"),
        (tike, _put("scan", np.nan), "scan has 1 values"),
        (tike, _put("probe", np.nan), "probe has 1 values"),
        (tike, _set("probe", np.zeros((N, N))), "probe is zero everywhere"),
        (tike, _set("probe", np.ones((8, 8))), "probe has shape"),
        (tike, _set("data", np.zeros((1, F, N, N))), "data is zero everywhere"),
        (tike, _set("data", np.ones((2, F, N, N))), "data has shape"),
        (tike, _set("data", np.ones((F, N))), "data has shape"),
        (tike, _set("data", np.ones((1, F, N, N + 1))), "square frames"),
        (tike, _set("data", np.ones((1, 0, N, N))), "data is empty"),
        (tike, _set("data", np.ones((1, F, N, N), complex)), "data is complex"),
        (tike, _set("data", np.full((1, F, N, N), "a")), "data has type"),
        (tike, _set("data", PICKLED), "data cannot be read"),
        (tike, _set("scan", np.ones((1, F - 1, 2))), r"shape \(11, 2\); 12 frames"),
        (tike, _set("scan", np.ones((1, F, 3))), r"shape \(12, 3\); 12 frames"),
        (tike, _set("scan", np.ones((F, 2), complex)), "scan are complex"),
        (tike, _set("scan", np.ones(F)), "scan has shape"),
        (ptychopinn, _without("diffraction"), "Missing required key 'diffraction'"),
        (ptychopinn, _without("xcoords"), "Missing required key 'xcoords'"),
        (ptychopinn, _without("ycoords"), "Missing required key 'ycoords'"),
        (ptychopinn, _without("probeGuess"), "Missing required key 'probeGuess'"),
        (ptychopinn, _put("diffraction", np.nan), "diffraction has 1 values"),
        (ptychopinn, _put("diffraction", -0.5), "diffraction has negative values"),
        (ptychopinn, _put("xcoords", np.inf), "xcoords, ycoords has 1 values"),
        (ptychopinn, _set("xcoords", np.ones(F + 1)), "13 xcoords, but 12 ycoords"),
        (ptychopinn, lambda c: c | {"xcoords": np.ones(5), "ycoords": np.ones(5)}, "12 frames"),
        (ptychopinn, _set("diffraction", np.ones((F, N))), "square frames"),
        (ptychopinn, _set("diffraction", np.zeros((F, N, N))), "zero everywhere"),
        (ptychopinn, _set("probeGuess", np.ones((8, 8))), "probeGuess has shape"),
        (ptychopinn, _set("probeGuess", PICKLED), "probeGuess cannot be read"),
        (ptychopinn, lambda c: {"other": np.ones(3)}, "not a known kind of scan; tike has data, scan, probe"),
        (ptychopinn, lambda c: {"diffraction": c["diffraction"]}, "Missing required key 'Y_I'"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, content: Any, change: Any, message: str) -> None:
    path = write(tmp_path / "scan.npz", change(content()))
    with pytest.raises(InputError, match=message) as caught:
        read_scan(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["scan.npz", "scan.npz.bz2"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, name: str, keep: float) -> None:
    path = write(tmp_path / name, tike())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(InputError, match="not a readable NPZ file") as caught:
        read_scan(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.npz: no such file"):
        read_scan(tmp_path / "none.npz")


@pytest.mark.parametrize("path", [path for path in [REAL] if path.exists()])
def test_the_siemens_star_is_read_with_its_counts(path: Path) -> None:
    arrays = read_scan(path)
    assert arrays.amplitude.shape == (516, 1, 128, 128)
    counts = arrays.counts()
    assert counts.max() == pytest.approx(963, rel=1e-4)
    assert np.abs(counts - np.rint(counts)).max() < 0.01
    assert counts.sum(axis=(2, 3)).mean() == pytest.approx(461_000, rel=0.01)
    assert arrays.probe_scale == pytest.approx(461_000 / 51.83, rel=0.01)
    middle = counts.mean(axis=0)[0, 32:96, 32:96]
    assert middle.sum() > 0.5 * counts.mean(axis=0).sum()
    assert arrays.positions_px.min() == pytest.approx(-164.4, abs=0.1)
    grouped = group_neighbours(arrays, 2)
    assert grouped.n_frames == 129
    assert np.ptp(grouped.positions_px, axis=1).mean() < 25
