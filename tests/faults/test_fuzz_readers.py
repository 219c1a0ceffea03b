"""Scans' files, mutated: the readers answer rightly or refuse in one line, whatever the bytes are."""

from __future__ import annotations

import bz2
import io
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from hypothesis import given

from ptycho.arrays import PtychoArrays
from ptycho.cache import load_split, save_split
from ptycho.config.config import DataConfig
from ptycho.errors import InputError
from ptycho.probe import gaussian_probe
from ptycho.readers import read_scan
from ptycho.simulate import diffraction_intensity, simulate_grid_lines
from tests.faults.mutations import DAMAGES, damaged, fuzzed, one_line, plans, quietly, soon

A, B, N = 2, 3, 16
F = A * B
Content = dict[str, Any]


class Layout(NamedTuple):
    """A format: what its file holds, and how that becomes bytes."""

    content: Content
    write: Callable[[Content], bytes]


def npz(content: Content) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **content)
    return buffer.getvalue()


def npz_bz2(content: Content) -> bytes:
    return bz2.compress(npz(content))


def hdf5(content: Content) -> bytes:
    """Datasets by path, and attributes by path@name."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, value in sorted(content.items(), key=lambda item: "@" in item[0]):
            place, at, attribute = name.partition("@")
            if at:
                owner = file if not place else file[place] if place in file else file.create_group(place)
                owner.attrs[attribute] = storable(value)
            else:
                file[place] = storable(value)
    return buffer.getvalue()


def storable(value: Any) -> Any:
    """What HDF5 has no type for, as text."""
    return str(value) if np.asarray(value).dtype.kind in "UM" else value


def layouts() -> dict[str, Layout]:
    """One toy scan in every format. A further format is one more entry."""
    rng = np.random.default_rng(0)
    probe = gaussian_probe(N, 0.5, 2.0)
    intensity = diffraction_intensity(np.exp(1j * rng.normal(scale=0.3, size=(F, N, N))), probe)
    counts = rng.poisson(5000 * intensity / intensity.sum(axis=(1, 2)).mean()).astype(np.uint16)
    places = rng.uniform(0, 20, size=(F, 2))
    metres, y, x = places * 1e-8, places[:, 0] * 1e-8, places[:, 1] * 1e-8
    shape, side, detector = (N, N), 75e-6, "entry_1/instrument_1/detector_1"
    tike = {"data": counts[None], "scan": places[None], "probe": probe[None]}
    pinn = {"diffraction": np.sqrt(counts / 5e3), "xcoords": x * 1e8, "ycoords": y * 1e8, "probeGuess": probe[0]}
    cxi = {
        "entry_1/data_1/data": counts, "entry_1/data_1/translation": np.stack([x, y, 0 * x], axis=-1),
        f"{detector}/distance": 1.9, f"{detector}/x_pixel_size": side, f"{detector}/mask": np.zeros(shape, np.uint32),
        "entry_1/instrument_1/source_1/energy": 1.4e-15, "entry_1/instrument_1/source_1/illumination": probe,
    }  # fmt: skip
    nexus = {
        "entry@NX_class": "NXentry", "entry/definition": "NXcxi_ptycho", "entry/i@NX_class": "NXinstrument",
        "entry/i/beam@NX_class": "NXbeam", "entry/i/beam/incident_beam_energy": 8.8,
        "entry/i/d@NX_class": "NXdetector", "entry/i/d/data": counts, "entry/i/d/distance": 1.9,
        "entry/i/d/x_pixel_size": side, "entry/i/d/pixel_mask": np.zeros(shape, np.uint32),
        "entry/sample@NX_class": "NXsample", "entry/sample/moves@NX_class": "NXtransformations",
        "entry/sample/moves/x": x, "entry/sample/moves/x@vector": [-1.0, 0.0, 0.0], "entry/sample/moves/y": y,
    }  # fmt: skip
    ptychodus = {
        "dp": counts, "bad_pixels": np.zeros(shape, bool), "probe_position_x_m": x, "probe_position_y_m": y,
        "probe_position_indexes": np.arange(F), "probe": probe[None], "@probe_energy_eV": 8.8e3,
        "@detector_object_distance_m": 1.9, "dp@detector_pixel_size_m": side,
    }  # fmt: skip
    ptyd = {
        "meta/energy": 8.8, "meta/distance": 1.9, "meta/psize": [side, side], "info/propagation": "farfield",
        "chunks/0/data": counts[:2], "chunks/0/positions": metres[:2], "chunks/0/weights": np.ones((2, N, N)),
        "chunks/1/data": counts[2:], "chunks/1/positions": metres[2:], "chunks/1/weights": np.ones((F - 2, N, N)),
    }  # fmt: skip
    return {
        "tike": Layout(tike, npz),
        "tike, bzip2": Layout(tike, npz_bz2),
        "PtychoPINN": Layout(pinn, npz),
        "CXI": Layout(cxi, hdf5),
        "NXcxi_ptycho": Layout(nexus, hdf5),
        "ptychodus": Layout(ptychodus, hdf5),
        "PtyPy": Layout(ptyd, hdf5),
    }


LAYOUTS = layouts()
DTYPES = ("int8", "uint64", "float16", "float32", "complex64", "bool", "S3", "datetime64[s]", "i4,f4")
VALUES = (np.nan, np.inf, -1.0, 0.0, 1e300, -1e-300)
TEXTS = ("", "?", "NXnothing", "nearfield")
SHAPES: Sequence[Callable[[np.ndarray], Any]] = (
    lambda a: a[..., :0] if a.ndim else a,
    lambda a: a.reshape(-1)[:0],
    lambda a: a.reshape(-1)[:1].sum(),
    lambda a: a.reshape(-1),
    lambda a: a.T,
    lambda a: a[:-1] if a.ndim else a,
    lambda a: a[..., :-1] if a.ndim else a,
    lambda a: np.concatenate([a, a]) if a.ndim else a,
    lambda a: a[None],
    lambda a: a[..., None, None],
    lambda a: a[:1] if a.ndim else a,
    lambda a: a[..., ::2, ::2] if a.ndim > 1 else a,
)


def changed(content: Content, plan: Sequence[tuple[str, int, int]]) -> Content:
    """What a file holds with something wrong in it: for each step of the plan what, where and how."""
    made = dict(content)
    for what, where, how in plan:
        key, other = sorted(made)[where % len(made)], sorted(made)[how % len(made)]
        value = np.asarray(made[key])
        if what == "gone" and len(made) > 1:
            del made[key]
        elif what == "renamed":
            made[(key.upper(), f"{key}_")[how % 2]] = made.pop(key)
        elif what == "swapped":
            made[key], made[other] = made[other], made[key]
        elif what == "text":
            made[key] = TEXTS[how % len(TEXTS)]
        elif what == "shape" and value.dtype.kind in "biufc":
            made[key] = SHAPES[how % len(SHAPES)](value)
        elif what == "type" and value.dtype.kind in "biufc":
            made[key] = with_type(value, np.dtype(DTYPES[how % len(DTYPES)]))
        elif what == "value" and value.dtype.kind in "biufc" and value.size:
            made[key] = value.astype(complex if value.dtype.kind == "c" else float)
            made[key].flat[where % value.size :: 1 + how] = VALUES[how % len(VALUES)]
    return made


def with_type(value: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind in "VM":
        return np.zeros(value.shape, dtype)
    with quietly():
        return value.astype(dtype)


CHANGES = plans(["gone", "renamed", "swapped", "type", "shape", "value", "text"])


def outcome(path: Path, read: Callable[[Path], PtychoArrays] = read_scan) -> PtychoArrays | str:
    """What a reader makes of a file: arrays that a training can use, or one line."""
    try:
        with soon(), quietly():
            arrays = read(path)
    except InputError as error:
        text = one_line(error)
        assert len(text) < 2000
        return text
    count, channels, height, width = arrays.amplitude.shape
    assert count > 0
    assert height == width
    assert arrays.amplitude.dtype == np.float32
    assert np.isfinite(arrays.amplitude).all()
    assert arrays.amplitude.min() >= 0
    assert arrays.amplitude.any()
    assert arrays.positions_px.shape == (count, channels, 2)
    assert np.isfinite(arrays.positions_px).all()
    assert arrays.probe.shape == (len(arrays.probe), height, width)
    assert np.isfinite(arrays.probe).all()
    assert arrays.probe.any()
    assert 0 < arrays.photons_per_intensity < np.inf
    return arrays


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bytes], Path]:
    """A file of the given bytes, with the ending that its format has."""
    folder = tmp_path_factory.mktemp("fuzz")

    def put(layout: str, content: bytes) -> Path:
        path = folder / ("scan.npz.bz2" if "bzip2" in layout else "scan.npz")  # HDF5 is told by its first bytes
        path.write_bytes(content)
        return path

    return put


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_mutated_is_read_where_it_is_whole(layout: str, scan: Callable[[str, bytes], Path]) -> None:
    found = outcome(scan(layout, LAYOUTS[layout].write(LAYOUTS[layout].content)))
    assert isinstance(found, PtychoArrays), found
    assert found.amplitude.shape == (F, 1, N, N)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrong_contents(layout: str, scan: Callable[[str, bytes], Path]) -> None:
    @fuzzed
    @given(CHANGES)
    def check(plan: Any) -> None:
        outcome(scan(layout, LAYOUTS[layout].write(changed(LAYOUTS[layout].content, plan))))

    check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_bytes(layout: str, scan: Callable[[str, bytes], Path]) -> None:
    whole = LAYOUTS[layout].write(LAYOUTS[layout].content)
    right = outcome(scan(layout, whole))
    assert isinstance(right, PtychoArrays)
    checksummed = LAYOUTS[layout].write is not hdf5

    @fuzzed
    @given(DAMAGES)
    def check(plan: Any) -> None:
        found = outcome(scan(layout, damaged(whole, plan)))
        if checksummed and isinstance(found, PtychoArrays):
            assert found.digest() == right.digest()

    check()


def test_our_own_cached_frames(tmp_path: Path) -> None:
    split = simulate_grid_lines(DataConfig(object_size=48, n_lines=5), N, 1, 0).test
    save_split(tmp_path / "split.npz", split, {})
    whole = (tmp_path / "split.npz").read_bytes()
    with np.load(tmp_path / "split.npz") as stored:
        content = dict(stored)

    @fuzzed
    @given(CHANGES, DAMAGES)
    def check(change: Any, damage: Any) -> None:
        for broken in (npz(changed(content, change)), damaged(whole, damage)):
            (tmp_path / "split.npz").write_bytes(broken)
            for read in (load_split, read_scan):
                outcome(tmp_path / "split.npz", read)

    check()


def npy_header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "member",
    [
        npy_header((10**6, 10**4, 10**4)),
        npy_header((2**62, 2**62)),
        npy_header((-1, 16)),
        npy_header((10**40,)),
        npy_header((4, 4), "|O"),
        npy_header((4, 4), "|V2000000000"),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x09\x00",
        b"",
    ],
    ids=["terabytes", "overflow", "negative", "huge", "objects", "wide", "deep", "version", "nothing"],
)
def test_a_header_that_promises_too_much(member: bytes, scan: Callable[[str, bytes], Path]) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for key in LAYOUTS["tike"].content:
            archive.writestr(f"{key}.npy", member)
    for layout, data in (("tike", content.getvalue()), ("tike, bzip2", bz2.compress(content.getvalue()))):
        assert "scan.npz" in str(outcome(scan(layout, data)))


@pytest.mark.parametrize("key", ["dp", "probe", "probe_position_x_m", "bad_pixels"])
def test_a_dataset_that_promises_too_much(key: str, scan: Callable[[str, bytes], Path]) -> None:
    buffer = io.BytesIO(hdf5(LAYOUTS["ptychodus"].content))
    with h5py.File(buffer, "a") as file:
        attributes = dict(file[key].attrs)
        del file[key]
        file.create_dataset(key, shape=(10**6, 10**4, 10**4), dtype="f4", chunks=(1, 100, 100))
        file[key].attrs.update(attributes)
    assert "scan.npz" in str(outcome(scan("ptychodus", buffer.getvalue())))
