"""Frames on disk: one NPZ file for each split, in the layout of the grid-lines study.

Shape legend: B frames, C = gridsize**2 channels (last in the file), P probe modes, N side of a frame.

| key | shape | content |
|---|---|---|
| ``diffraction`` | (B, N, N, C) float32 | amplitudes in model units |
| ``Y_I``, ``Y_phi`` | (B, N, N, C) float32 | modulus and phase (radians) of the object under each frame; (0, N, N, C) where it is not known |
| ``coords_nominal``, ``coords_true`` | (B, 1, 2, C) float32 | (row, column) of the probe's centre in px |
| ``YY_full`` | (H, W) complex64 | the whole object, where it is known |
| ``probeGuess`` | (N, N) complex64 | first mode of the probe that was used |
| ``probe_modes`` | (P, N, N) complex64 | all of them, where there is more than one |
| ``photons_per_intensity`` | float64 | photons for one unit of model intensity |
| ``probe_scale`` | float64 | factor that brought the probe's power to the counts |
| ``detector_mask`` | (N, N) bool | True where the detector can be believed; missing where it can everywhere |
| ``YY_ground_truth``, ``norm_Y_I`` | | test split only: the object again, and sqrt(photons_per_intensity) |
| ``_metadata`` | unicode | JSON object |

Nothing is pickled, and nothing pickled is read.
"""  # noqa: E501 (the table's rows)

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ptycho.arrays import PtychoArrays
from ptycho.config.config import DataConfig, ScanConfig
from ptycho.errors import InputError
from ptycho.npz import Arrays, check_numbers, one_line, read_npz, require
from ptycho.probe import as_modes
from ptycho.simulate import simulate_grid_lines

REQUIRED = ("diffraction", "Y_I", "Y_phi", "coords_nominal", "probeGuess")
OPTIONAL = ("probe_modes", "YY_full", "photons_per_intensity", "probe_scale", "detector_mask", "_metadata")
DEFAULT_NPHOTONS = 1e9  # mean photons of a frame where a file of the earlier study does not say

RECIPE = 1  # raise it with any change to the simulation that changes its numbers
SPLITS = ("train", "validation", "test")
# settings that the simulation does not look at
NOT_SIMULATED = ("data", "test_fraction", "fault", *(field.name for field in dataclasses.fields(ScanConfig)))

log = logging.getLogger(__name__)


def save_split(path: str | Path, arrays: PtychoArrays, metadata: dict[str, Any]) -> None:
    """Write one split, whole or not at all: a reader never sees half a file.

    Args:
        path: NPZ file to make or to replace.
        arrays: the frames.
        metadata: JSON values; ``split`` "test" adds the keys of the test split where the object is known.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    content = _content(arrays)
    content["_metadata"] = np.array(
        json.dumps({"name": arrays.name, "about": dict(arrays.about)} | metadata, sort_keys=True)
    )
    if metadata.get("split") == "test" and arrays.object_true is not None:
        content["YY_ground_truth"] = arrays.object_true
        content["norm_Y_I"] = np.array(np.sqrt(arrays.photons_per_intensity))
    try:
        _write_atomically(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _content(arrays: PtychoArrays) -> dict[str, NDArray[Any]]:
    patches = arrays.amplitude[:0] if arrays.patches_true is None else arrays.patches_true
    positions = _channels_last(arrays.positions_px)[:, None]
    content: dict[str, NDArray[Any]] = {
        "diffraction": _channels_last(arrays.amplitude),
        "Y_I": _channels_last(np.abs(patches)),
        "Y_phi": _channels_last(np.angle(patches).astype(np.float32)),
        "coords_nominal": positions,
        "coords_true": positions,
        "probeGuess": arrays.probe[0],
        "photons_per_intensity": np.array(arrays.photons_per_intensity, dtype=np.float64),
        "probe_scale": np.array(arrays.probe_scale, dtype=np.float64),
    }
    if arrays.object_true is not None:
        content["YY_full"] = arrays.object_true
    if arrays.mask is not None:
        content["detector_mask"] = arrays.mask
    if len(arrays.probe) > 1:
        content["probe_modes"] = arrays.probe
    return content


def _channels_last(array: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(array, 1, -1)


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def _write_atomically(path: Path, content: dict[str, NDArray[Any]]) -> None:
    """Write beside the target, flush to the disk, then rename: the last step is atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            np.savez(file, allow_pickle=False, **content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_split(path: str | Path) -> PtychoArrays:
    """Read one split.

    A file of the earlier study does not hold ``photons_per_intensity``; it is then derived from
    ``nphotons`` in the metadata, or from that study's default of 1e9 photons a frame.

    Raises:
        MissingKeyError: a required key is missing (also a KeyError).
        InputError: the file or one of its arrays cannot be used.
    """
    path = Path(path)
    stored = read_npz(path, REQUIRED + OPTIONAL)
    require(path, stored, REQUIRED)
    _check_shapes(path, stored)
    amplitude = _channels_first(stored["diffraction"]).astype(np.float32)
    probe_key = "probe_modes" if "probe_modes" in stored else "probeGuess"
    metadata = _metadata(path, stored)
    return PtychoArrays(
        amplitude=amplitude,
        positions_px=_channels_first(stored["coords_nominal"][:, 0]).astype(np.float32),
        probe=as_modes(path, probe_key, stored[probe_key], amplitude.shape[-1]),
        photons_per_intensity=_photons_per_intensity(path, stored, metadata),
        object_true=_object(path, stored),
        patches_true=_patches(stored),
        probe_scale=_positive(path, "probe_scale", stored["probe_scale"]) if "probe_scale" in stored else 1.0,
        mask=_mask(path, stored),
        name=str(metadata.get("name", path.name)),
        about=metadata.get("about", {}),
    )


def _check_shapes(path: Path, stored: Arrays) -> None:
    shape = stored["diffraction"].shape
    if len(shape) != 4 or shape[1] != shape[2]:
        raise InputError(f"{path}: diffraction has shape {shape}; allowed: (frames, N, N, channels)")
    truth = shape if stored["Y_I"].size else (0, *shape[1:])
    expected = {"Y_I": truth, "Y_phi": truth, "coords_nominal": (shape[0], 1, 2, shape[3])}
    for key, wanted in expected.items():
        if stored[key].shape != wanted:
            raise InputError(f"{path}: {key} has shape {stored[key].shape}; with this diffraction it must be {wanted}")
    for key in ("diffraction", "Y_I", "Y_phi", "coords_nominal"):
        if stored[key].size or key == "diffraction":
            check_numbers(path, key, stored[key], nonnegative=key in ("diffraction", "Y_I"))
        if np.iscomplexobj(stored[key]):
            raise InputError(f"{path}: {key} is complex; allowed: real numbers")


def _patches(stored: Arrays) -> NDArray[np.complex64] | None:
    if stored["Y_I"].size == 0:
        return None
    modulus, phase = _channels_first(stored["Y_I"]), _channels_first(stored["Y_phi"])
    return np.asarray(modulus * np.exp(1j * phase), dtype=np.complex64)


def _object(path: Path, stored: Arrays) -> NDArray[np.complex64] | None:
    if "YY_full" not in stored:
        return None
    check_numbers(path, "YY_full", stored["YY_full"])
    obj = np.squeeze(stored["YY_full"])
    if obj.ndim != 2:
        raise InputError(f"{path}: YY_full has shape {stored['YY_full'].shape}; allowed: (height, width)")
    return obj.astype(np.complex64)


def _mask(path: Path, stored: Arrays) -> NDArray[np.bool_] | None:
    mask = stored.get("detector_mask")
    if mask is not None and mask.dtype != np.bool_:
        raise InputError(f"{path}: detector_mask has type {mask.dtype}; allowed: bool")
    return mask


def _metadata(path: Path, stored: Arrays) -> dict[str, Any]:
    text = stored.get("_metadata")
    if text is None:
        return {}
    try:
        metadata = json.loads(str(text))
    except json.JSONDecodeError:
        metadata = None
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: _metadata is not a JSON object")
    return metadata


def _photons_per_intensity(path: Path, stored: Arrays, metadata: dict[str, Any]) -> float:
    if "photons_per_intensity" in stored:
        return _positive(path, "photons_per_intensity", stored["photons_per_intensity"])
    amplitude = stored["diffraction"].astype(np.float64)
    frame_intensity = float(np.mean(np.sum(amplitude**2, axis=(1, 2))))
    if frame_intensity == 0:
        raise InputError(f"{path}: diffraction is zero everywhere, so the number of photons cannot be told")
    nphotons = metadata.get("nphotons", DEFAULT_NPHOTONS)
    if not isinstance(nphotons, (int, float)) or not 0 < nphotons < float("inf"):
        raise InputError(f"{path}: nphotons in _metadata is {nphotons!r}; allowed: a number above 0")
    log.info("%s: no photons_per_intensity; taking %g photons for a mean frame", path, nphotons)
    return float(nphotons) / frame_intensity


def _positive(path: Path, key: str, value: NDArray[Any]) -> float:
    check_numbers(path, key, value)
    if value.size != 1 or np.iscomplexobj(value) or value <= 0:
        raise InputError(f"{path}: {key} is {one_line(value)}; allowed: one number above 0")
    return float(value.item())


def cached_grid_lines(
    data: DataConfig, N: int, gridsize: int, seed: int, folder: str | Path
) -> tuple[Path, Path, Path]:
    """Training, validation and test files of one simulated dataset, made where they are not there yet.

    The folder of a dataset is named by a hash of all that made it. Several processes may ask for one at
    the same time: each that finds it incomplete makes it, and as equal files replace each other in one
    step, all of them read the same numbers.

    Raises:
        InputError: see ``simulate_grid_lines`` and ``save_split``.
    """
    made_from = _made_from(data, N, gridsize, seed)
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:20]
    paths = [Path(folder) / f"grid-lines-{key}" / f"{split}.npz" for split in SPLITS]
    if not all(_is_made_by(path, key) for path in paths):
        splits = simulate_grid_lines(data, N, gridsize, seed)
        for path, split in zip(paths, SPLITS, strict=True):
            save_split(path, getattr(splits, split), made_from | {"key": key, "split": split})
    return paths[0], paths[1], paths[2]


def _made_from(data: DataConfig, N: int, gridsize: int, seed: int) -> dict[str, Any]:
    """Everything that decides the numbers of a simulated dataset."""
    probe = Path(data.probe)
    return {
        **{f.name: getattr(data, f.name) for f in dataclasses.fields(DataConfig) if f.name not in NOT_SIMULATED},
        "probe_digest": hashlib.sha256(probe.read_bytes()).hexdigest() if probe.is_file() else None,
        "N": N,
        "gridsize": gridsize,
        "seed": seed,
        "recipe": RECIPE,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def _is_made_by(path: Path, key: str) -> bool:
    """Whether a readable file of this key is there."""
    if not path.is_file():
        return False
    try:
        return _metadata(path, read_npz(path, ["_metadata"])).get("key") == key
    except InputError as error:
        log.warning("%s; it is made again", error)
        return False
