"""NeXus, ptychodus and pty-chi, PtyPy: one toy scan, written as each writes it, comes out the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho.arrays import PtychoArrays
from ptycho.config.config import ScanConfig
from ptycho.errors import InputError
from ptycho.probe import gaussian_probe
from ptycho.readers import read_scan, scan_sources
from ptycho.simulate import diffraction_intensity

A, B, N = 3, 4, 16
F = A * B
ENERGY_KEV, DISTANCE_M, PIXEL_M = 8.8, 1.92, 75e-6
OBJECT_PIXEL_M = 12.398419843320026e-10 / ENERGY_KEV * DISTANCE_M / (N * PIXEL_M)
BAD = (3, 4)

Content = dict[str, Any]


def toy() -> dict[str, np.ndarray]:
    """Counts (F, N, N), zero in a bad pixel; positions (F, 2) of a raster in px; a probe of one mode."""
    rng = np.random.default_rng(0)
    probe = gaussian_probe(N, 0.4, 2.0)
    intensity = diffraction_intensity(np.exp(1j * rng.normal(scale=0.3, size=(F, N, N))), probe)
    counts = rng.poisson(5000 * intensity / intensity.sum(axis=(1, 2)).mean())
    counts[:, BAD[0], BAD[1]] = 0
    rows, columns = np.meshgrid(1.5 * np.arange(A), 2.5 * np.arange(B), indexing="ij")
    return {"counts": counts, "positions": np.stack([rows.ravel(), columns.ravel()], axis=-1), "probe": probe}


def mask(bad: Any, good: Any) -> np.ndarray:
    found = np.full((N, N), good)
    found[BAD] = bad
    return found


def write(path: Path, content: Content) -> Path:
    """Datasets, and attributes after an @."""
    with h5py.File(path, "w") as file:
        for name, value in sorted(content.items(), key=lambda item: "@" in item[0]):
            place, at, attribute = name.partition("@")
            if at:
                (file[place or "/"] if place in file or not place else file.create_group(place)).attrs[attribute] = (
                    value
                )
            else:
                file[place] = value
    return path


def nexus() -> Content:
    scan, detector, moves = toy(), "entry/camera/eiger", "entry/sample/moves"
    y, x = scan["positions"].T.reshape(2, A, B) * OBJECT_PIXEL_M
    return {
        "entry@NX_class": "NXentry",
        "entry/definition": "NXcxi_ptycho",
        "entry/camera@NX_class": "NXinstrument",
        "entry/camera/ring@NX_class": "NXsource",
        "entry/camera/ring/energy": 3.0,
        "entry/camera/ring/energy@units": "GeV",
        "entry/camera/beam@NX_class": "NXbeam",
        "entry/camera/beam/incident_beam_energy": ENERGY_KEV,
        "entry/camera/beam/incident_beam_energy@units": "keV",
        f"{detector}@NX_class": "NXdetector",
        f"{detector}/data": scan["counts"].reshape(A, B, N, N),
        f"{detector}/distance": DISTANCE_M * 1e3,
        f"{detector}/distance@units": "mm",
        f"{detector}/x_pixel_size": PIXEL_M * 1e6,
        f"{detector}/x_pixel_size@units": "um",
        f"{detector}/pixel_mask": mask(2, 0),
        "entry/sample@NX_class": "NXsample",
        f"{moves}@NX_class": "NXtransformations",
        f"{moves}/x": -x * 1e6,
        f"{moves}/x@units": "um",
        f"{moves}/x@vector": [-1.0, 0.0, 0.0],
        f"{moves}/y": y,
    }


def ptychodus() -> Content:
    scan = toy()
    order = np.random.default_rng(1).permutation(F)
    y, x = scan["positions"].T * OBJECT_PIXEL_M
    return {
        "dp": scan["counts"],
        "bad_pixels": mask(True, False),
        "probe_position_x_m": x[order],
        "probe_position_y_m": y[order],
        "probe_position_indexes": order,
        "probe": scan["probe"][None],
        "@probe_energy_eV": ENERGY_KEV * 1e3,
        "@detector_object_distance_m": DISTANCE_M,
        "dp@detector_pixel_size_m": PIXEL_M,
    }


def ptyd() -> Content:
    scan = toy()
    content: Content = {
        "meta/energy": ENERGY_KEV,
        "meta/distance": DISTANCE_M,
        "meta/psize": [PIXEL_M, PIXEL_M],
        "meta/center": [0.0],
        "meta/center@type": "None",
        "info/propagation": "farfield",
    }
    for number, part in enumerate((slice(0, 5), slice(5, 11), slice(11, F))):
        content[f"chunks/{number}/data"] = scan["counts"][part]
        content[f"chunks/{number}/positions"] = scan["positions"][part] * OBJECT_PIXEL_M
        content[f"chunks/{number}/weights"] = np.broadcast_to(mask(0.0, 2.0), scan["counts"][part].shape)
    return content


def assert_is_the_toy(arrays: PtychoArrays) -> None:
    scan = toy()
    np.testing.assert_allclose(arrays.counts()[:, 0], scan["counts"], atol=0.01)
    np.testing.assert_allclose(arrays.positions_px[:, 0], scan["positions"], rtol=1e-6, atol=1e-6)
    assert arrays.about["object_pixel_nm"] == pytest.approx(OBJECT_PIXEL_M * 1e9, rel=1e-6)
    assert arrays.mask is not None
    assert np.array_equal(~arrays.mask, mask(True, False))


@pytest.mark.parametrize("content", [nexus, ptychodus, ptyd])
def test_one_scan_in_every_layout(tmp_path: Path, content: Callable[[], Content]) -> None:
    arrays = read_scan(write(tmp_path / "scan", content()))
    assert_is_the_toy(arrays)
    assert arrays.about["format"] == {nexus: "NXcxi_ptycho", ptychodus: "ptychodus", ptyd: "PtyPy"}[content]
    assert arrays.about["energy_kev"] == pytest.approx(ENERGY_KEV, rel=1e-9)


def test_axes_of_a_nexus_raster_may_be_given_once(tmp_path: Path) -> None:
    content = nexus()
    content["entry/sample/moves/x"] = content["entry/sample/moves/x"][:, :1] * 0 + toy()["positions"][:A, 0][:, None]
    rows, columns = 1.5 * np.arange(A) * OBJECT_PIXEL_M, 2.5 * np.arange(B) * OBJECT_PIXEL_M
    content |= {"entry/sample/moves/x": rows, "entry/sample/moves/y": columns}
    content |= {"entry/sample/moves/x@units": "m", "entry/sample/moves/x@vector": [1.0, 0.0, 0.0]}
    arrays = read_scan(write(tmp_path / "a.nxs", content), settings=ScanConfig(scan_axes="swap"))
    np.testing.assert_allclose(arrays.positions_px[:, 0], toy()["positions"], rtol=1e-6, atol=1e-6)


def test_the_beams_centre_of_a_nexus_file_is_cut_around(tmp_path: Path) -> None:
    content, detector = nexus(), "entry/camera/eiger"
    content[f"{detector}/data"] = np.pad(content[f"{detector}/data"], ((0, 0), (0, 0), (2, 6), (5, 3)))
    content[f"{detector}/pixel_mask"] = np.pad(content[f"{detector}/pixel_mask"], ((2, 6), (5, 3)))
    for unit in ({}, {f"{detector}/beam_center_{axis}@units": "m" for axis in "xy"}):
        scale = PIXEL_M if unit else 1.0
        content |= {f"{detector}/beam_center_y": 10 * scale, f"{detector}/beam_center_x": 13 * scale}
        path = write(tmp_path / "scan.nxs", content | unit)
        assert_is_the_toy(read_scan(path, settings=ScanConfig(scan_crop=N)))
        assert "the beam's centre (10, 13) is not that of the frames" in str(read_scan(path).about["notes"])


def test_the_product_beside_the_frames_is_found(tmp_path: Path) -> None:
    content = ptychodus()
    frames = {name: value for name, value in content.items() if name.startswith(("dp", "bad"))}
    product = {name: value for name, value in content.items() if name not in frames}
    path = write(tmp_path / "star_dp.hdf5", frames)
    with pytest.raises(InputError, match=r"Missing required key 'probe_position_y_m'.* give .* as --scan-positions"):
        read_scan(path)
    other = write(tmp_path / "star_para.hdf5", product)
    assert_is_the_toy(read_scan(path))
    assert scan_sources(path, ScanConfig()) == (path, other)
    elsewhere = other.rename(tmp_path / "metadata.h5")
    assert_is_the_toy(read_scan(path, settings=ScanConfig(scan_positions=str(elsewhere))))
    with pytest.raises(InputError, match="has positions, but no frames in /dp"):
        read_scan(elsewhere)


def test_a_product_may_give_the_objects_pixel_alone(tmp_path: Path) -> None:
    content = {k: v for k, v in ptychodus().items() if "energy" not in k and "detector" not in k}
    path = write(
        tmp_path / "a_dp.h5", content | {"probe@pixel_height_m": OBJECT_PIXEL_M} | {"probe@pixel_width_m": 2e-8}
    )
    arrays = read_scan(path)
    expected = toy()["positions"] * [1, OBJECT_PIXEL_M / 2e-8]
    np.testing.assert_allclose(arrays.positions_px[:, 0], expected, rtol=1e-6, atol=1e-6)
    half = read_scan(path, settings=ScanConfig(scan_crop=8))
    np.testing.assert_allclose(half.positions_px[:, 0], expected / 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "said",
    [
        {"@lambda_nm": 1.2398419843320026 / ENERGY_KEV, "@det_distance_m": DISTANCE_M, "@ccd_pixel_um": PIXEL_M * 1e6},
        {"energy_kev": ENERGY_KEV, "z_m": DISTANCE_M, "det_pixelsize_m": PIXEL_M},
    ],
)
def test_the_names_of_beamline_scripts_are_known(tmp_path: Path, said: Content) -> None:
    content = {k: v for k, v in ptychodus().items() if "energy" not in k and "detector" not in k}
    assert_is_the_toy(read_scan(write(tmp_path / "a.h5", content | said)))


def test_chunks_in_files_of_their_own_are_read(tmp_path: Path) -> None:
    content = ptyd()
    own = {name.removeprefix("chunks/1/"): value for name, value in content.items() if name.startswith("chunks/1/")}
    part = write(tmp_path / "scan.ptyd.part001", own)
    rest = {name: value for name, value in content.items() if not name.startswith("chunks/1/")}
    path = write(tmp_path / "scan.ptyd", rest | {"chunks/1": h5py.ExternalLink(part.name, "/")})
    assert_is_the_toy(read_scan(path))
    assert scan_sources(path, ScanConfig()) == (path, part)
    part.unlink()
    with pytest.raises(InputError, match="chunks/1 leads to a file that is not there"):
        read_scan(path)


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (ptyd, {"info/propagation": "nearfield"}, r"near-field data \(info/propagation = nearfield\)"),
        (ptychodus, {"@propagator": "Fresnel"}, r"near-field data \(propagator = fresnel\)"),
        (nexus, {"entry/definition": "NXcxi_ptycho, near field"}, "near-field data"),
        (ptyd, {"chunks/0/positions": np.ones((5, 3))}, r"positions has shape \(5, 3\); allowed: \(frames, 2\)"),
        (ptyd, {"meta/energy": 0.0, "meta/energy@type": "None"}, "the photon energy .* give --energy-kev"),
        (ptychodus, {"probe_position_x_m": np.ones(F - 1)}, "12 probe_position_y_m, but 11 probe_position_x_m"),
        (ptychodus, {"probe": np.ones((1, 1, 8, 8))}, "probe has shape"),
        (ptychodus, {"@probe_energy_eV": "high"}, "probe_energy_eV is high; allowed: one number"),
        (nexus, {"entry/sample/moves/y": np.ones((A, B + 1))}, r"moves/y has shape \(3, 5\); frames need \(3, 4\)"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: Callable[[], Content], changes: Content, message: str) -> None:
    path = write(tmp_path / "scan.h5", content() | changes)
    with pytest.raises(InputError, match=message) as caught:
        read_scan(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_positions_from_another_file_are_for_dp_frames_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.ptyd", ptyd())
    with pytest.raises(InputError, match=r"scan_positions: b\.h5 has no effect on a scan of format PtyPy"):
        read_scan(path, settings=ScanConfig(scan_positions="b.h5"))
