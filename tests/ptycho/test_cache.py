"""The cached dataset: round trip, atomic writing, keys, and files that cannot be used."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.arrays import PtychoArrays
from ptycho.cache import NOT_SIMULATED, REQUIRED, cached_grid_lines, load_split, save_split
from ptycho.config.config import DataConfig
from ptycho.errors import InputError
from ptycho.npz import MissingKeyError
from ptycho.simulate import simulate_grid_lines

ROOT = Path(__file__).resolve().parents[2]
SMALL = DataConfig(object_size=32, n_lines=20, outer_offset_train=8, outer_offset_test=16)


@pytest.fixture(scope="module")
def train() -> PtychoArrays:
    return simulate_grid_lines(SMALL, 16, 2, 3).train


def stored(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def test_a_split_comes_back_as_it_was(tmp_path: Path, train: PtychoArrays) -> None:
    modes = np.concatenate([train.probe, 0.5j * train.probe])
    train = dataclasses.replace(train, probe=modes, photons_per_intensity=1.0 / 3.0)
    save_split(tmp_path / "train.npz", train, {})
    loaded = load_split(tmp_path / "train.npz")
    assert loaded.digest() == train.digest()
    assert loaded.photons_per_intensity == train.photons_per_intensity
    assert np.array_equal(loaded.object_true, train.object_true)
    assert loaded.patches_true == pytest.approx(train.patches_true, rel=1e-6)
    assert loaded.name == train.name


def test_the_file_has_the_keys_shapes_and_types_of_the_contract(tmp_path: Path, train: PtychoArrays) -> None:
    save_split(tmp_path / "test.npz", train, {"split": "test", "seed": 3})
    arrays = stored(tmp_path / "test.npz")
    b = train.n_frames
    assert {key: (array.shape, array.dtype.name) for key, array in arrays.items() if key != "_metadata"} == {
        "diffraction": ((b, 16, 16, 4), "float32"),
        "Y_I": ((b, 16, 16, 4), "float32"),
        "Y_phi": ((b, 16, 16, 4), "float32"),
        "coords_nominal": ((b, 1, 2, 4), "float32"),
        "coords_true": ((b, 1, 2, 4), "float32"),
        "YY_full": ((32, 32), "complex64"),
        "probeGuess": ((16, 16), "complex64"),
        "photons_per_intensity": ((), "float64"),
        "probe_scale": ((), "float64"),
        "YY_ground_truth": ((32, 32), "complex64"),
        "norm_Y_I": ((), "float64"),
    }
    assert arrays["_metadata"].ndim == 0
    assert arrays["_metadata"].dtype.kind == "U"
    assert json.loads(str(arrays["_metadata"]))["seed"] == 3
    assert arrays["norm_Y_I"] ** 2 == pytest.approx(train.photons_per_intensity)
    assert np.array_equal(arrays["diffraction"][1, :, :, 3], train.amplitude[1, 3])
    assert np.array_equal(arrays["coords_nominal"][1, 0, :, 3], train.positions_px[1, 3])


def test_only_the_test_split_carries_its_keys(tmp_path: Path, train: PtychoArrays) -> None:
    save_split(tmp_path / "train.npz", train, {"split": "train"})
    assert not {"YY_ground_truth", "norm_Y_I"} & set(stored(tmp_path / "train.npz"))


def test_nothing_but_the_file_is_left_behind(tmp_path: Path, train: PtychoArrays) -> None:
    save_split(tmp_path / "a.npz", train, {})
    save_split(tmp_path / "a.npz", train, {})
    with pytest.raises(TypeError):
        save_split(tmp_path / "b.npz", train, {"not": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_frames_without_truth_come_back_without(tmp_path: Path, train: PtychoArrays) -> None:
    real = dataclasses.replace(train, patches_true=None, object_true=None, probe_scale=8895.5, name="real")
    save_split(tmp_path / "a.npz", real, {"split": "test"})
    loaded = load_split(tmp_path / "a.npz")
    assert loaded.patches_true is None
    assert loaded.object_true is None
    assert (loaded.digest(), loaded.probe_scale, loaded.name) == (train.digest(), 8895.5, "real")


def test_a_mask_and_what_was_said_of_a_scan_come_back(tmp_path: Path, train: PtychoArrays) -> None:
    mask = np.ones((16, 16), bool)
    mask[4, 5] = False
    masked = dataclasses.replace(train, mask=mask, about={"format": "CXI", "distance_m": 2.0})
    assert not masked.amplitude[..., 4, 5].any()
    assert np.array_equal(masked.amplitude[..., mask], train.amplitude[..., mask])
    assert masked.digest() != train.digest()
    save_split(tmp_path / "a.npz", masked, {})
    loaded = load_split(tmp_path / "a.npz")
    assert (loaded.digest(), loaded.about) == (masked.digest(), masked.about)
    with pytest.raises(InputError, match=r"mask has shape \(8, 8\)"):
        dataclasses.replace(train, mask=np.ones((8, 8), bool))
    with pytest.raises(InputError, match="0 good pixels"):
        dataclasses.replace(train, mask=np.zeros((16, 16), bool))


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path, train: PtychoArrays) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save_split(tmp_path / "file" / "a.npz", train, {})


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_an_input_error_and_a_key_error(tmp_path: Path, train: PtychoArrays, key: str) -> None:
    path = tmp_path / "a.npz"
    save_split(path, train, {})
    np.savez(path, **{name: array for name, array in stored(path).items() if name != key})
    with pytest.raises(MissingKeyError) as caught:
        load_split(path)
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, InputError)
    assert str(caught.value).startswith(f"{path}: Missing required key {key!r}")


def _set(key: str, value: Any) -> Any:
    return lambda arrays: arrays | {key: np.asarray(value)}


def _with(key: str, value: float) -> Any:
    def change(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        array = arrays[key].copy()
        array.flat[0] = value
        return arrays | {key: array}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with("diffraction", np.nan), "diffraction has 1 values that are not finite"),
        (_with("diffraction", -1), "diffraction has negative values"),
        (_with("Y_I", -1), "Y_I has negative values"),
        (_with("Y_phi", np.inf), "Y_phi has 1 values that are not finite"),
        (_with("coords_nominal", np.nan), "coords_nominal has 1 values"),
        (_with("probeGuess", np.nan), "probeGuess has 1 values"),
        (_with("YY_full", np.nan), "YY_full has 1 values"),
        (_set("diffraction", np.ones((4, 16, 16))), "diffraction has shape"),
        (_set("diffraction", np.ones((4, 16, 15, 4))), "diffraction has shape"),
        (_set("diffraction", [["a"]]), "diffraction has shape"),
        (_set("Y_I", np.ones((1, 16, 16, 4))), "Y_I has shape"),
        (_set("Y_phi", np.ones(3)), "Y_phi has shape"),
        (_set("coords_nominal", np.ones((3, 2))), "coords_nominal has shape"),
        (_set("probeGuess", np.ones((8, 8))), "probeGuess has shape"),
        (_set("YY_full", np.ones(5)), "YY_full has shape"),
        (_set("photons_per_intensity", 0.0), "photons_per_intensity is 0.0"),
        (_set("photons_per_intensity", [1.0, 2.0]), "photons_per_intensity is"),
        (_set("photons_per_intensity", np.nan), "photons_per_intensity has 1 values"),
        (_set("probe_scale", -1.0), "probe_scale is -1.0"),
        (_set("Y_I", np.ones((0, 16, 16, 4))), "Y_phi has shape"),
        (_set("Y_I", 1.0), "Y_I has shape"),
        (_set("_metadata", "[1]"), "_metadata is not a JSON object"),
        (_set("_metadata", "{"), "_metadata is not a JSON object"),
        (_set("_metadata", np.array({"a": 1}, dtype=object)), "_metadata cannot be read .*allow_pickle"),
        (_set("Y_I", np.array([{}], dtype=object)), "Y_I cannot be read .*allow_pickle"),
    ],
)
def test_a_bad_array_is_one_clear_error(tmp_path: Path, train: PtychoArrays, change: Any, message: str) -> None:
    path = tmp_path / "a.npz"
    save_split(path, train, {})
    np.savez(path, **change(stored(path)))
    with pytest.raises(InputError, match=message) as caught:
        load_split(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3000] ^= 0xFF
    path.write_bytes(content)


def _bare(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "not a readable NPZ file"),
        (_flip, "cannot be read"),
        (_bare, "one bare array"),
        (lambda path: path.write_bytes(b""), "not a readable NPZ file"),
        (lambda path: path.write_text("hello"), "not a readable NPZ file; a scan is NPZ, CXI or another kind of HDF5"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: (path.unlink(), path.mkdir()), "not a readable NPZ file, but a folder"),
    ],
    ids=["truncated", "flipped bit", "npy", "empty", "text", "missing", "folder"],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, train: PtychoArrays, damage: Any, message: str) -> None:
    path = tmp_path / "a.npz"
    save_split(path, train, {})
    damage(path)
    with pytest.raises(InputError, match=message) as caught:
        load_split(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("metadata", "photons"), [({"nphotons": 1e6}, 1e6), ({}, 1e9)])
def test_a_file_of_the_earlier_study_gets_its_photons_from_the_metadata(
    tmp_path: Path, train: PtychoArrays, metadata: dict[str, float], photons: float
) -> None:
    path = tmp_path / "a.npz"
    save_split(path, train, {})
    content = {name: stored(path)[name] for name in REQUIRED}
    np.savez(path, **content, _metadata=np.array(json.dumps(metadata)))
    loaded = load_split(path)
    assert loaded.object_true is None
    assert loaded.counts().sum(axis=(2, 3)).mean() == pytest.approx(photons, rel=1e-4)
    np.savez(path, **content, _metadata=np.array(json.dumps({"nphotons": "many"})))
    with pytest.raises(InputError, match="nphotons in _metadata is 'many'"):
        load_split(path)
    np.savez(path, **content | {"diffraction": np.zeros_like(content["diffraction"])})
    with pytest.raises(InputError, match="zero everywhere"):
        load_split(path)


def test_a_dataset_is_made_once_and_read_back(tmp_path: Path) -> None:
    paths = cached_grid_lines(SMALL, 16, 1, 3, tmp_path)
    times = [path.stat().st_mtime_ns for path in paths]
    fresh = simulate_grid_lines(SMALL, 16, 1, 3)
    for path, part in zip(paths, (fresh.train, fresh.validation, fresh.test), strict=True):
        assert load_split(path).digest() == part.digest()
    assert cached_grid_lines(SMALL, 16, 1, 3, tmp_path) == paths
    assert [path.stat().st_mtime_ns for path in paths] == times


CHANGES: dict[str, Any] = {
    "object_size": 33,
    "n_lines": 21,
    "set_phi": False,
    "outer_offset_train": 6,
    "outer_offset_test": 12,
    "nphotons": 1e5,
    "probe": "gaussian",
    "probe_diameter": 0.4,
    "probe_defocus": 1.0,
    "validation_fraction": 0.3,
    "data": "scan.npz",
    "test_fraction": 0.2,
    "fault": ("dropped",),
    "energy_kev": 8.8,
    "distance_m": 2.0,
    "pixel_size_um": 75.0,
    "scan_crop": 8,
    "scan_bin": 2,
    "scan_probe": "probe.npz",
    "scan_positions": "para.hdf5",
    "scan_axes": "swap",
    "zero_frequency": "corner",
    "mask_hot": True,
    "drop_nan": True,
    "clip_negative": True,
}


def test_every_data_setting_is_tried_below() -> None:
    assert set(CHANGES) == {field.name for field in dataclasses.fields(DataConfig)}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_another_dataset_where_it_acts(tmp_path: Path, name: str) -> None:
    start = dataclasses.replace(SMALL, probe="gaussian") if name == "probe_defocus" else SMALL
    before = cached_grid_lines(start, 16, 1, 3, tmp_path)
    after = cached_grid_lines(dataclasses.replace(start, **{name: CHANGES[name]}), 16, 1, 3, tmp_path)
    assert (before == after) == (name in NOT_SIMULATED)


@pytest.mark.parametrize(("N", "gridsize", "seed"), [(18, 1, 3), (16, 2, 3), (16, 1, 4)])
def test_size_gridsize_and_seed_are_in_the_key(tmp_path: Path, N: int, gridsize: int, seed: int) -> None:
    assert cached_grid_lines(SMALL, 16, 1, 3, tmp_path) != cached_grid_lines(SMALL, N, gridsize, seed, tmp_path)


def test_the_content_of_a_probe_file_is_in_the_key(tmp_path: Path) -> None:
    data = dataclasses.replace(SMALL, probe=str(tmp_path / "probe.npz"))
    np.savez(tmp_path / "probe.npz", probeGuess=np.ones((16, 16)))
    before = cached_grid_lines(data, 16, 1, 3, tmp_path)
    np.savez(tmp_path / "probe.npz", probeGuess=np.tri(16))
    assert cached_grid_lines(data, 16, 1, 3, tmp_path) != before


@pytest.mark.parametrize("damage", [_truncate, lambda path: path.unlink()], ids=["truncated", "missing"])
def test_a_damaged_dataset_is_made_again(tmp_path: Path, damage: Any) -> None:
    paths = cached_grid_lines(SMALL, 16, 1, 3, tmp_path)
    whole = paths[1].read_bytes()
    damage(paths[1])
    assert cached_grid_lines(SMALL, 16, 1, 3, tmp_path) == paths
    assert paths[1].read_bytes() == whole


def test_processes_that_make_the_same_dataset_at_once_all_succeed(tmp_path: Path) -> None:
    program = (
        "import sys; from ptycho.cache import cached_grid_lines, load_split;"
        "from ptycho.config.config import DataConfig;"
        "data = DataConfig(object_size=32, n_lines=20);"
        "sys.stdin.read(1);"
        "print(*(load_split(p).digest() for _ in range(5) for p in cached_grid_lines(data, 16, 1, 3, sys.argv[1])))"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("g")
        process.stdin.flush()
    answers = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(answers)) == 1
    assert len(answers[0].split()) == 15
    assert not list(tmp_path.rglob("*.part"))
