"""``python -m study.inspect``: what it says of a scan is right, and a bad file is one line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import h5py
import matplotlib.image
import numpy as np
import pytest

from ptycho.config.config import DataConfig, ScanConfig
from ptycho.config.settings import chosen
from ptycho.errors import InputError
from ptycho.readers.overview import look_at
from ptycho.simulate import simulate_grid_lines
from study.inspect import describe, next_command, save_picture
from study.settings import StudyConfig
from study.shootout import build_parser

DETECTOR = "entry_1/instrument_1/detector_1"
PIXEL_M = 1e-10 * 2.0 / (32 * 75e-6)


def write_cxi(path: Path, **changes: Any) -> Path:
    """A small scan on a raster of 4 px, without a probe; frame 3 is lost, frame 5 holds NaN, a pixel is hot."""
    data = DataConfig(object_size=72, n_lines=30, nphotons=1e5, probe="gaussian", outer_offset_train=8)
    train = simulate_grid_lines(data, 32, 1, 0).train
    counts = np.round(train.counts()[:, 0])
    counts[:, 4, 5], counts[3], counts[5, 2, 2] = 300, 0, np.nan
    mask = np.zeros((32, 32), int)
    mask[0] = 1
    content = {
        "entry_1/data_1/data": counts.astype(np.float32),
        "entry_1/data_1/translation": train.positions_px[:, 0, ::-1] * PIXEL_M,
        f"{DETECTOR}/distance": 2.0,
        f"{DETECTOR}/x_pixel_size": 75e-6,
        f"{DETECTOR}/mask": mask,
        "entry_1/instrument_1/source_1/wavelength": 1e-10,
    }
    with h5py.File(path, "w") as file:
        for name, value in {**content, **changes}.items():
            if value is not None:
                file[name] = value
    return path


def said(path: Path, **settings: Any) -> dict[str, str]:
    lines = describe(look_at(path, ScanConfig(**settings)))
    return {label: " | ".join(line.text for line in lines if line.label == label) for label, _ in lines}


def test_what_is_understood_is_said(tmp_path: Path) -> None:
    text = said(write_cxi(tmp_path / "scan.cxi"))
    assert text["format"] == "CXI, counts"
    assert text["frames"].endswith("of 32 x 32 px: N = 32")
    assert text["masked"] == "3.12% of the pixels"
    assert text["geometry"] == "energy 12.4 keV, distance 2 m, detector pixel 75 um, object pixel 83.33 nm"
    assert "step 4 px (0.333 um)" in text["scan"]
    assert "40 x 40 px (3.33 x 3.33 um)" in text["scan"]
    assert text["probe"].startswith("estimated from the frames, 1 mode, ")
    assert "1 frames: dropped (all zero) (3)" in text["suspected"]
    assert "1 frames: not finite (5); --drop-nan leaves them out" in text["suspected"]
    assert "1 hot pixels ((4, 5)); --mask-hot" in text["suspected"]
    assert "estimated from the mean pattern" in text["note"]
    assert text["overlap"].endswith("a probe out of focus is larger, and has to come from --scan-probe")


def test_crop_and_bin_are_said(tmp_path: Path) -> None:
    text = said(write_cxi(tmp_path / "scan.cxi"), scan_crop=16, scan_bin=2)
    assert text["frames"].endswith("of 32 x 32 px, 16 px used, 2 x 2 binned: N = 8")
    assert "object pixel 166.7 nm" in text["geometry"]
    assert "step 2 px (0.333 um)" in text["scan"]


def test_what_is_missing_is_named_with_its_flag(tmp_path: Path) -> None:
    path = write_cxi(tmp_path / "scan.cxi", **{f"{DETECTOR}/distance": None})
    scan = look_at(path, ScanConfig(scan_crop=16))
    text = {line.label: line.text for line in describe(scan)}
    assert text["missing"] == "the distance to the detector: give --distance-m"
    command = next_command(scan, {"scan_crop": 16})
    assert command == f"python -m study.inspect {path} --scan-crop 16 --distance-m M"
    save_picture(scan, str(tmp_path / "unconverted.png"))
    assert said(path, distance_m=2.0)["geometry"].startswith("energy 12.4 keV, distance 2 m")


def test_the_next_command_is_understood_by_the_shootout(tmp_path: Path) -> None:
    given = {"scan_bin": 2, "mask_hot": True, "clip_negative": False, "zero_frequency": "16,16", "distance_m": 2.0}
    scan = look_at(write_cxi(tmp_path / "a scan.cxi"), ScanConfig(**given))
    words = shlex.split(next_command(scan, given))
    assert words[:3] == ["python", "-m", "study.shootout"]
    namespace = build_parser().parse_args(words[3:])
    assert chosen(namespace, ScanConfig) == given | {"drop_nan": True}
    assert chosen(namespace, StudyConfig)["preset"] == "real"


def test_a_picture_has_four_panels_and_the_suspects(tmp_path: Path) -> None:
    path = save_picture(look_at(write_cxi(tmp_path / "scan.cxi"), ScanConfig()), None)
    assert path == tmp_path / "scan.cxi.png"
    image = matplotlib.image.imread(path)
    assert image.shape[:2] == (770, 880)
    for part in (image[:385, :440], image[:385, 440:], image[385:, :440], image[385:, 440:]):
        assert len(np.unique(part.reshape(-1, part.shape[-1]), axis=0)) > 50
    with pytest.raises(InputError, match=r"picture: .* cannot be written"):
        save_picture(look_at(tmp_path / "scan.cxi", ScanConfig()), str(tmp_path / "none" / "a.png"))


def test_the_command_prints_plain_lines_and_says_what_is_next(call: Any, tmp_path: Path) -> None:
    process = call("inspect", str(write_cxi(tmp_path / "scan.cxi")), "--scan-crop", "16", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0] == "format          CXI, counts"
    assert lines[-1].startswith("next            python -m study.shootout --preset real --data ")
    assert "--scan-crop 16" in lines[-1]
    assert (tmp_path / "scan.cxi.png").exists()
    assert "\x1b" not in process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.cxi",), "none.cxi: no such file"),
        (("scan.cxi", "--scan-crop", "64"), "scan_crop: 64 px, but the frames of scan.cxi have 32 x 32 px"),
        (("scan.cxi", "--scan-corp", "64"), "unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    call: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    write_cxi(tmp_path / "scan.cxi")
    process = call("inspect", *arguments, cwd=tmp_path)
    assert process.returncode == 2
    assert message in process.stderr
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""


def test_near_field_data_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = write_cxi(tmp_path / "scan.cxi", **{"entry_1/propagation": "near field"})
    with pytest.raises(InputError, match=r"near-field data \(entry_1/propagation = near field\); allowed: far-field"):
        look_at(path, ScanConfig())
