"""CXI files: units and axes come out right, crop and bin keep the physics, and what is missing is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho.config.config import ScanConfig
from ptycho.errors import InputError
from ptycho.probe import gaussian_probe
from ptycho.readers import read_scan
from ptycho.simulate import diffraction_intensity

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "siemens-star" / "siemens-star-small.npz.bz2"
F, N = 12, 16
ENERGY_KEV, DISTANCE_M, PIXEL_M = 8.8, 1.92, 75e-6
WAVELENGTH_M = 12.398419843320026e-10 / ENERGY_KEV
OBJECT_PIXEL_M = WAVELENGTH_M * DISTANCE_M / (N * PIXEL_M)
DETECTOR, SOURCE = "entry_1/instrument_1/detector_1", "entry_1/instrument_1/source_1"


def toy(size: int = N) -> dict[str, np.ndarray]:
    """Counts (F, N, N) with the zero frequency in the centre, positions (F, 2) in px, two probe modes."""
    rng = np.random.default_rng(0)
    first = gaussian_probe(size, 0.4, 2.0)[0]
    probe = np.stack([first, 0.3 * np.roll(first, 1, axis=0)])
    patches = np.exp(1j * rng.normal(scale=0.3, size=(F, size, size)))
    intensity = diffraction_intensity(patches, probe)
    counts = rng.poisson(5000 * intensity / intensity.sum(axis=(1, 2)).mean())
    return {"counts": counts, "positions": rng.uniform(0, 6, size=(F, 2)), "probe": probe}


def cxi() -> dict[str, Any]:
    scan = toy()
    y, x = scan["positions"].T * OBJECT_PIXEL_M
    return {
        "cxi_version": 160,
        f"{DETECTOR}/data": scan["counts"].astype(np.uint16),
        "entry_1/data_1/data": h5py.SoftLink(f"/{DETECTOR}/data"),
        "entry_1/sample_1/geometry_1/translation": np.stack([x, y, np.zeros(F)], axis=-1),
        f"{DETECTOR}/distance": DISTANCE_M,
        f"{DETECTOR}/x_pixel_size": PIXEL_M,
        f"{DETECTOR}/y_pixel_size": PIXEL_M,
        f"{DETECTOR}/mask": np.zeros((N, N), np.uint32),
        f"{SOURCE}/energy": ENERGY_KEV * 1.602176634e-16,
        f"{SOURCE}/illumination": scan["probe"],
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            file[name] = value
    return path


def without(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if not name.endswith(names)}


def test_metres_become_object_pixels(tmp_path: Path) -> None:
    scan, arrays = toy(), read_scan(write(tmp_path / "scan.cxi", cxi()))
    assert arrays.about["object_pixel_nm"] == pytest.approx(OBJECT_PIXEL_M * 1e9, rel=1e-6)
    np.testing.assert_allclose(arrays.positions_px[:, 0], scan["positions"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(arrays.counts()[:, 0], scan["counts"], atol=0.01)
    assert arrays.probe.shape == (2, N, N)
    np.testing.assert_allclose(arrays.probe / arrays.probe[0, 8, 8], scan["probe"] / scan["probe"][0, 8, 8], atol=1e-5)
    assert arrays.mask is None


def test_the_name_of_the_file_does_not_decide(tmp_path: Path) -> None:
    assert read_scan(write(tmp_path / "scan.npz", cxi())).about["format"] == "CXI"


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({f"{SOURCE}/wavelength": WAVELENGTH_M}, {}),
        ({f"{SOURCE}/energy": 8800.0}, {}),
        ({f"{SOURCE}/energy": 8.8}, {}),
        ({}, {"energy_kev": 8.8}),
        ({f"{SOURCE}/energy": 4.4}, {"energy_kev": 8.8}),
    ],
)
def test_energy_comes_in_any_unit_and_the_flag_wins(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    arrays = read_scan(write(tmp_path / "a.cxi", without(cxi(), "energy") | changes), settings=ScanConfig(**settings))
    assert arrays.about["object_pixel_nm"] == pytest.approx(OBJECT_PIXEL_M * 1e9, rel=1e-6)


def test_units_that_the_file_names_are_believed(tmp_path: Path) -> None:
    content = cxi()
    y, x = toy()["positions"].T * OBJECT_PIXEL_M
    content["entry_1/sample_1/geometry_1/translation"] = np.stack([x, y]) * 1e6
    content[f"{DETECTOR}/distance"] = DISTANCE_M * 1e3
    path = write(tmp_path / "scan.cxi", content)
    with h5py.File(path, "a") as file:
        file["entry_1/sample_1/geometry_1/translation"].attrs["units"] = "um"
        file[f"{DETECTOR}/distance"].attrs["units"] = np.bytes_("mm")
    arrays = read_scan(path)
    np.testing.assert_allclose(arrays.positions_px[:, 0], toy()["positions"], rtol=1e-6, atol=1e-6)
    with h5py.File(path, "a") as file:
        file[f"{DETECTOR}/distance"].attrs["units"] = "parsec"
    with pytest.raises(InputError, match="distance has unit 'parsec'; allowed: m, mm"):
        read_scan(path)


def test_the_detectors_axes_turn_the_positions(tmp_path: Path) -> None:
    """A detector that is read out from below: its rows run up, so the object's do."""
    content = without(cxi(), "x_pixel_size", "y_pixel_size")
    content[f"{DETECTOR}/basis_vectors"] = np.array([[0, PIXEL_M, 0], [-PIXEL_M, 0, 0]])
    arrays = read_scan(write(tmp_path / "scan.cxi", content))
    np.testing.assert_allclose(arrays.positions_px[:, 0], toy()["positions"] * [-1, 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("axes", "matrix"),
    [
        ("flip_y", [[-1, 0], [0, 1]]),
        ("flip_x", [[1, 0], [0, -1]]),
        ("flip_both", [[-1, 0], [0, -1]]),
        ("swap", [[0, 1], [1, 0]]),
        ("swap_flip_y", [[0, -1], [1, 0]]),
        ("swap_flip_both", [[0, -1], [-1, 0]]),
    ],
)
def test_positions_can_be_turned(tmp_path: Path, axes: Any, matrix: list[list[int]]) -> None:
    arrays = read_scan(write(tmp_path / "scan.cxi", cxi()), settings=ScanConfig(scan_axes=axes))
    expected = toy()["positions"] @ np.array(matrix).T
    np.testing.assert_allclose(arrays.positions_px[:, 0], expected, rtol=1e-6, atol=1e-6)


def test_positions_far_from_their_origin_keep_their_fraction_of_a_pixel(tmp_path: Path) -> None:
    content = cxi()
    content["entry_1/sample_1/geometry_1/translation"] = content["entry_1/sample_1/geometry_1/translation"] + 0.02
    arrays = read_scan(write(tmp_path / "scan.cxi", content))
    expected = toy()["positions"] - toy()["positions"].mean(axis=0)
    np.testing.assert_allclose(arrays.positions_px[:, 0], expected, atol=1e-4)


def test_a_crop_makes_the_objects_pixels_larger(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.cxi", cxi())
    whole, arrays = read_scan(path), read_scan(path, settings=ScanConfig(scan_crop=8))
    assert arrays.about["object_pixel_nm"] == pytest.approx(2 * OBJECT_PIXEL_M * 1e9)
    np.testing.assert_allclose(arrays.positions_px, whole.positions_px / 2, rtol=1e-6)
    np.testing.assert_allclose(arrays.counts()[:, 0], toy()["counts"][:, 4:12, 4:12], atol=0.01)


def test_a_cropped_probe_makes_the_middle_of_the_same_far_field(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.cxi", cxi())
    cropped = read_scan(path, settings=ScanConfig(scan_crop=8))
    flat, cut = np.ones((1, N, N)), slice(4, 12)
    expected = diffraction_intensity(flat, toy()["probe"])[0, cut, cut]
    found = diffraction_intensity(np.ones((1, 8, 8)), cropped.probe)[0]
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), atol=1e-6)
    middle = np.abs(cropped.probe[0])
    assert np.unravel_index(middle.argmax(), middle.shape) == (4, 4)


def test_a_bin_keeps_the_counts_and_the_objects_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.cxi", cxi())
    whole, arrays = read_scan(path), read_scan(path, settings=ScanConfig(scan_bin=2))
    assert arrays.about["object_pixel_nm"] == pytest.approx(OBJECT_PIXEL_M * 1e9)
    assert np.array_equal(arrays.positions_px, whole.positions_px)
    np.testing.assert_allclose(arrays.counts().sum(axis=(1, 2, 3)), toy()["counts"].sum(axis=(1, 2)), rtol=1e-5)
    assert arrays.counts()[0, 0, 3, 4] == pytest.approx(toy()["counts"][0, 6:8, 8:10].sum(), abs=0.01)
    ratio = arrays.probe[0] / whole.probe[0, 4:12, 4:12]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)


def test_the_beams_centre_is_where_it_is_said_to_be(tmp_path: Path) -> None:
    content = cxi()
    content[f"{DETECTOR}/data"] = np.pad(toy()["counts"], ((0, 0), (2, 6), (5, 0)))
    path = write(tmp_path / "scan.cxi", without(content, "mask", "illumination"))
    with pytest.raises(InputError, match=r"frames of 24 x 21 px; allowed: square frames, or --scan-crop 21 or less"):
        read_scan(path)
    arrays = read_scan(path, settings=ScanConfig(scan_crop=16, zero_frequency="10,13"))
    np.testing.assert_allclose(arrays.counts()[:, 0], toy()["counts"], atol=0.01)
    assert arrays.about["probe_source"] == "estimated"
    with pytest.raises(InputError, match=r"scan_crop: 18 px around the beam's centre .* allowed: at most 16"):
        read_scan(path, settings=ScanConfig(scan_crop=18, zero_frequency="10,13"))


def test_a_corner_is_found_and_can_be_stated(tmp_path: Path) -> None:
    content = cxi()
    content[f"{DETECTOR}/data"] = np.fft.ifftshift(toy()["counts"], axes=(1, 2))
    content[f"{DETECTOR}/mask"] = np.fft.ifftshift(np.eye(N, dtype=np.uint8))
    path = write(tmp_path / "scan.cxi", content)
    for place in ("auto", "corner"):
        arrays = read_scan(path, settings=ScanConfig(zero_frequency=place))
        np.testing.assert_allclose(arrays.counts()[:, 0], toy()["counts"] * (1 - np.eye(N)), atol=0.01)
    assert read_scan(path, settings=ScanConfig(zero_frequency="centre")).counts()[0, 0, 0, 1] > 100


def test_masked_pixels_are_zero_whatever_they_held(tmp_path: Path) -> None:
    content, counts = cxi(), toy()["counts"].astype(np.float32)
    bad = np.zeros((N, N), bool)
    bad[3, 4] = bad[8, 8] = bad[9, 1] = True
    counts[:, 3, 4], counts[:, 8, 8], counts[2, 9, 1] = np.nan, 1e9, -5
    content[f"{DETECTOR}/data"] = counts
    content[f"{DETECTOR}/mask"] = np.where(bad, 4, np.where(counts[0] > 20, 0x1000, 0)).astype(np.uint32)
    arrays = read_scan(write(tmp_path / "scan.cxi", content))
    assert arrays.mask is not None
    assert np.array_equal(~arrays.mask, bad)
    np.testing.assert_allclose(arrays.counts()[:, 0], np.where(bad, 0, toy()["counts"]), atol=0.01)
    power = diffraction_intensity(np.ones((1, N, N)), arrays.probe)[0][~bad].sum() * arrays.photons_per_intensity
    assert power == pytest.approx(np.where(bad, 0, toy()["counts"]).sum(axis=(1, 2)).mean(), rel=1e-4)


def test_a_binned_pixel_is_good_where_all_its_parts_are(tmp_path: Path) -> None:
    content = cxi()
    content[f"{DETECTOR}/mask"][5, 6] = 1
    arrays = read_scan(write(tmp_path / "scan.cxi", content), settings=ScanConfig(scan_bin=2))
    assert np.argwhere(~arrays.mask).tolist() == [[2, 3]]
    assert (arrays.counts()[:, 0, 2, 3] == 0).all()


@pytest.mark.parametrize(("dtype", "mark"), [("int32", -1), ("uint16", 65535), ("uint32", 2**32 - 1), ("f4", np.nan)])
def test_gaps_of_a_detector_are_masked_without_a_mask(tmp_path: Path, dtype: str, mark: float) -> None:
    counts = toy()["counts"].astype(dtype)
    counts[:, 5] = mark
    arrays = read_scan(write(tmp_path / "scan.cxi", without(cxi(), "mask") | {f"{DETECTOR}/data": counts}))
    assert np.flatnonzero(~arrays.mask.all(axis=1)).tolist() == [5]
    assert "16 pixels without a value in any frame are masked" in str(arrays.about["notes"])


def test_negative_values_are_clipped_where_that_is_asked(tmp_path: Path) -> None:
    counts = toy()["counts"].astype(np.float32)
    counts[1, 2, 3] = -0.5
    path = write(tmp_path / "scan.cxi", cxi() | {f"{DETECTOR}/data": counts})
    with pytest.raises(
        InputError, match=r"negative values \(lowest -0.5\); allowed: zero or above, or --clip-negative"
    ):
        read_scan(path)
    assert read_scan(path, settings=ScanConfig(clip_negative=True)).counts().min() == 0


def test_frames_that_are_not_finite_are_left_out_where_that_is_asked(tmp_path: Path) -> None:
    counts = toy()["counts"].astype(np.float32)
    counts[[1, 4], 2, 3] = np.nan
    path = write(tmp_path / "scan.cxi", cxi() | {f"{DETECTOR}/data": counts})
    with pytest.raises(InputError, match=r"2 values that are not finite \(frames 1, 4\); .* or --drop-nan"):
        read_scan(path)
    arrays, whole = read_scan(path, settings=ScanConfig(drop_nan=True)), np.delete(np.arange(F), [1, 4])
    np.testing.assert_allclose(arrays.counts()[:, 0], toy()["counts"][whole], atol=0.01)
    np.testing.assert_allclose(arrays.positions_px[:, 0], toy()["positions"][whole], rtol=1e-6, atol=1e-6)


def test_the_probe_of_another_file_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.cxi", without(cxi(), "illumination"))
    np.savez(tmp_path / "probe.npz", probeGuess=toy()["probe"])
    arrays = read_scan(path, settings=ScanConfig(scan_probe=str(tmp_path / "probe.npz")))
    assert np.array_equal(arrays.probe, read_scan(write(tmp_path / "with.cxi", cxi())).probe)
    np.savez(tmp_path / "none.npz", other=np.ones(3))
    with pytest.raises(InputError, match="has no probe; allowed: an NPZ file with probeGuess or probe"):
        read_scan(path, settings=ScanConfig(scan_probe=str(tmp_path / "none.npz")))


def test_an_estimated_probe_explains_the_mean_frame(tmp_path: Path) -> None:
    """Of a probe in focus and an object of modulus 1, the estimate finds the amplitude again."""
    probe = gaussian_probe(N, 0.35, 0.0)
    frames = np.repeat(diffraction_intensity(np.ones((1, N, N)), probe), F, axis=0) * 1000
    path = write(tmp_path / "scan.cxi", without(cxi(), "illumination") | {f"{DETECTOR}/data": frames})
    arrays = read_scan(path)
    found, true = np.abs(arrays.probe[0]).ravel(), np.abs(probe[0]).ravel()
    assert np.corrcoef(found, true)[0, 1] > 0.98
    assert "estimated from the mean pattern" in str(arrays.about["notes"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda c: without(c, "energy"), "the photon energy to convert them is missing; give --energy-kev$"),
        (lambda c: without(c, "distance"), "the distance to the detector .* give --distance-m$"),
        (
            lambda c: without(c, "energy", "pixel_size"),
            "the photon energy and the detector's pixel size .* are missing; give --energy-kev --pixel-size-um",
        ),
        (lambda c: without(c, "translation"), "Missing required key 'data_1/translation'"),
        (lambda c: c | {f"{DETECTOR}/mask": np.zeros((8, 8), int)}, r"the mask has shape \(8, 8\)"),
        (lambda c: c | {f"{DETECTOR}/mask": np.ones((N, N), int)}, "no pixel is left that is not masked"),
        (lambda c: c | {f"{DETECTOR}/distance": -1.0}, "distance_m is -1; allowed: above 0"),
        (lambda c: c | {f"{DETECTOR}/distance": "far"}, "distance is .*far.*; allowed: one number"),
        (lambda c: c | {f"{SOURCE}/illumination": np.ones((8, 8))}, "illumination has shape"),
        (lambda c: c | {f"{DETECTOR}/data": np.ones((F, N))}, r"data has shape \(12, 16\); allowed: \(frames, rows"),
        (lambda c: c | {f"{DETECTOR}/data": np.full((F, N, N), np.nan)}, "no pixel is left"),
        (lambda c: c | {"entry_1/propagation": "Near-Field"}, r"near-field data \(entry_1/propagation = near-field\)"),
        (lambda c: c | {f"{DETECTOR}/distance": 1e-4}, "holds an illumination of .* at most: near-field data, or a"),
        (lambda c: {"other": np.ones(3)}, "not a known kind of scan; .*CXI has"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "scan.cxi", content(cxi()))
    with pytest.raises(InputError, match=message) as caught:
        read_scan(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_one_line(tmp_path: Path, keep: float) -> None:
    path = write(tmp_path / "scan.cxi", cxi())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(InputError, match=r"scan\.cxi: not a readable HDF5 file"):
        read_scan(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_frequency": "middle"}, "zero_frequency: 'middle' is no place in a frame; allowed: auto, corner"),
        ({"scan_crop": 16, "scan_bin": 3}, "scan_bin: 3 does not divide scan_crop 16"),
        ({"scan_axes": "mirror"}, "scan_axes: unknown value 'mirror'"),
        ({"energy_kev": 0.0}, "energy_kev: 0.0 is out of range"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScanConfig(**settings)


@pytest.mark.parametrize("path", [path for path in [REAL] if path.exists()])
def test_the_siemens_star_as_cxi_reads_as_the_original(tmp_path: Path, path: Path) -> None:
    original = read_scan(path)
    pixel_m = 1e-10 * 2.0 / (128 * 75e-6)
    x, y = original.positions_px[:, 0, ::-1].astype(float).T * pixel_m
    content = {
        "entry_1/data_1/data": np.rint(original.counts()[:, 0]).astype(np.uint16),
        "entry_1/data_1/translation": np.stack([x, y, np.zeros_like(x)], axis=-1),
        f"{DETECTOR}/distance": 2.0,
        f"{DETECTOR}/x_pixel_size": 75e-6,
        f"{SOURCE}/wavelength": 1e-10,
        f"{SOURCE}/illumination": original.probe,
    }
    arrays = read_scan(write(tmp_path / "star.cxi", content))
    np.testing.assert_allclose(arrays.amplitude, original.amplitude, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(arrays.positions_px, original.positions_px, atol=1e-4)
    np.testing.assert_allclose(arrays.probe, original.probe, rtol=1e-4, atol=1e-6)
    assert arrays.photons_per_intensity == pytest.approx(original.photons_per_intensity, rel=1e-5)
