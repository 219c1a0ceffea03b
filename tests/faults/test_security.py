"""Nothing that comes from outside is run, and no credential is shown or kept."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho.cache import cached_grid_lines, load_split
from ptycho.config.config import DataConfig, ScanConfig
from ptycho.errors import InputError
from ptycho.readers import read_scan
from study.slurm_task import read_array
from study.table import collect
from tests.faults.test_fuzz_readers import LAYOUTS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*path_separator.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3t-of-the-test"
UNPICKLERS = re.compile(r"\bpickle\.|import pickle|\bdill\b|joblib|allow_pickle=True|weights_only=False|read_pickle")


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def pickled(mark: Path) -> bytes:
    return pickle.dumps(Malicious(mark))


def npz_of(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy_of_objects(mark: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Malicious(mark)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


NAMES = (
    "data",
    "scan",
    "probe",
    "diffraction",
    "diff3d",
    "xcoords",
    "ycoords",
    "probeGuess",
    "objectGuess",
    "amplitude",
)


def forms(mark: Path) -> dict[str, bytes]:
    """Every way to put a pickle where an array file is looked for."""
    return {
        "a pickle": pickled(mark),
        "an npy of objects": npy_of_objects(mark),
        "an npz of objects": npz_of({f"{name}.npy": npy_of_objects(mark) for name in NAMES}),
        "an npz of pickles": npz_of({f"{name}.npy": pickled(mark) for name in NAMES}),
        "an npz whose metadata is a pickle": npz_of({"metadata.npy": npy_of_objects(mark)}),
    }


@pytest.mark.parametrize("form", forms(Path()))
@pytest.mark.parametrize("suffix", [".npz", ".h5", ".cxi", ".npy"])
def test_a_malicious_scan_is_refused_and_does_nothing(tmp_path: Path, form: str, suffix: str) -> None:
    path, mark = tmp_path / f"scan{suffix}", tmp_path / "pwned"
    path.write_bytes(forms(mark)[form])
    for read in (read_scan, load_split):
        with pytest.raises(InputError, match="scan"):
            read(path)
    assert not mark.exists()


def test_a_scan_with_pickles_inside_hdf5_is_refused_and_does_nothing(tmp_path: Path) -> None:
    path, mark = tmp_path / "scan.h5", tmp_path / "pwned"
    with h5py.File(path, "w") as file:
        for name in NAMES:
            file[name] = np.void(pickled(mark))
    with pytest.raises(InputError, match=r"scan\.h5"):
        read_scan(path)
    assert not mark.exists()


@pytest.mark.parametrize("form", forms(Path()))
def test_a_malicious_probe_is_refused_and_does_nothing(tmp_path: Path, form: str) -> None:
    path, mark = tmp_path / "probe.npz", tmp_path / "pwned"
    path.write_bytes(forms(mark)[form])
    with pytest.raises(InputError, match=r"probe\.npz"):
        cached_grid_lines(DataConfig(object_size=48, n_lines=5, probe=str(path)), 16, 1, 0, tmp_path / "cache")
    assert not mark.exists()


@pytest.mark.parametrize("form", forms(Path()))
@pytest.mark.parametrize("place", ["scan_positions", "scan_probe"])
def test_malicious_positions_and_probes_of_a_scan_are_refused_and_do_nothing(
    tmp_path: Path, form: str, place: str
) -> None:
    scan, path, mark = tmp_path / "scan.h5", tmp_path / f"{place}.npz", tmp_path / "pwned"
    scan.write_bytes(LAYOUTS["ptychodus"].write(LAYOUTS["ptychodus"].content))
    path.write_bytes(forms(mark)[form])
    with pytest.raises(InputError, match=rf"{place}\.npz") as refused:
        read_scan(scan, settings=ScanConfig(**{place: str(path)}))
    assert "has no effect" not in str(refused.value)
    assert not mark.exists()


RECORDS = ("study.json", "runs/*/result.json", "runs/*/spec.json", "runs/*/steps.jsonl", "runs/*/evals.jsonl")


@pytest.mark.parametrize("name", [*RECORDS, "summary.json", "tracking.json", "runs/*/tracking.json"])
def test_malicious_records_do_nothing(tmp_path: Path, name: str, write_study_folder: Any) -> None:
    from study.tracking_notes import load_note, read_object

    out = write_study_folder(tmp_path / "study", {"overload": {"none": (1, 0, 1), "agc": (2, 0, 0)}}, steps=12, side=8)
    mark, folder = tmp_path / "pwned", next(out.glob("runs/*"))
    path = (folder if "/" in name else out) / Path(name).name
    path.write_bytes(pickled(mark))
    with contextlib.suppress(InputError):
        collect(out)
    for read in (read_object, lambda file: load_note(file.parent), read_array):
        with contextlib.suppress(InputError, OSError):
            read(path)
    assert not mark.exists()


def test_malicious_reconstructions_do_nothing_to_the_report(call: Any, tmp_path: Path, undisturbed: Any) -> None:
    out, mark = tmp_path / "study", tmp_path / "pwned"
    shutil.copytree(undisturbed.out, out)
    bad = list(forms(mark).values())
    for k, path in enumerate(sorted(out.glob("runs/*/reconstruction.npz"))):
        path.write_bytes(bad[k % len(bad)])
    done = call("report", str(out), cwd=tmp_path)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert not mark.exists()


def test_no_code_unpickles() -> None:
    sources = [path for package in ("ptycho", "ptycho_torch", "study") for path in (ROOT / package).rglob("*.py")]
    assert not [str(path) for path in sources if UNPICKLERS.search(path.read_text(encoding="utf-8"))]
    loads = [line for path in sources for line in path.read_text().splitlines() if re.search(r"torch\.load\(", line)]
    assert all("weights_only=True" in line for line in loads)


def test_credentials_are_shown_nowhere_and_kept_nowhere(
    tracking_server: Callable[[str], str], toy_study: Any, call: Any, new_store: Path, tmp_path: Path
) -> None:
    server = tracking_server(f"sqlite:///{new_store}")
    study = toy_study(tmp_path / "study", 1)
    stderr = study.here(call, f"--tracking-uri=http://me:{SECRET}@{server}")
    assert f"http://***@{server}" in stderr
    assert SECRET not in stderr
    places = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert new_store in places
    assert study.out / "report.html" in places
    assert not [path for path in places if SECRET.encode() in path.read_bytes()]
    assert "--tracking-uri=http://***@" in (study.out / "study.json").read_text()


def test_an_error_of_the_store_shows_no_credentials() -> None:
    from study.tracking import deferring, refusing
    from study.tracking_notes import TrackingError

    error = OSError(f"no answer from http://me:{SECRET}@host/api?key={SECRET}")
    with pytest.raises(TrackingError) as later, deferring():
        raise error
    with pytest.raises(InputError) as refused, refusing(f"http://host?key={SECRET}"):
        raise error
    assert SECRET not in f"{later.value} {refused.value}"
    assert "http://***@host/api?***" in str(later.value)
