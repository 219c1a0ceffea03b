"""The example scan is what a beamline would write: it reads back in pixels and photons, with nothing to complain of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho.config.config import ScanConfig
from ptycho.errors import InputError
from ptycho.example_scan import COUNTS_PER_FRAME, write_example_scan
from ptycho.readers import read_scan
from ptycho.readers.overview import look_at


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example_scan(tmp_path_factory.mktemp("example") / "scan.cxi", size_px=64)


def test_metres_come_back_as_whole_pixels_and_counts_as_counts(scan: Path) -> None:
    arrays = read_scan(scan)
    positions = arrays.positions_px[:, 0]
    assert arrays.n_frames == 64
    np.testing.assert_allclose(positions - positions[0], np.rint(positions - positions[0]), atol=1e-3)
    assert arrays.counts().sum(axis=(1, 2, 3)).mean() == pytest.approx(COUNTS_PER_FRAME, rel=1e-3)


def test_nothing_is_missing_and_nothing_suspected(tmp_path: Path) -> None:
    overview = look_at(write_example_scan(tmp_path / "scan.cxi"), ScanConfig())
    assert len(overview.facts.totals) == 256
    assert (overview.missing, dict(overview.frames)) == ((), {})
    assert not overview.pixels.hot.any()
    assert overview.overlap is not None
    assert overview.overlap > 0.6


def test_a_file_that_is_there_is_left_alone(scan: Path) -> None:
    before = scan.read_bytes()
    with pytest.raises(InputError, match=r"scan\.cxi: it is there already"):
        write_example_scan(scan)
    assert scan.read_bytes() == before
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        write_example_scan(scan.parent / "nowhere" / "scan.cxi")
