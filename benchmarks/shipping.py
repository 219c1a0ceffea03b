"""How fast finished runs reach a tracking store: a study's folder, sent into a new SQLite store.

python benchmarks/shipping.py results/default
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from study.attempts import run_folders
from study.tracker import Tracker


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a finished study")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "study"
        shutil.copytree(given.study, out, ignore=shutil.ignore_patterns("tracking.json", "data"))
        os.chdir(place)
        tracker = Tracker(f"sqlite:///{place}/store.db", "benchmark", out)
        study = json.loads((out / "study.json").read_text(encoding="utf-8"))
        tracker.open_study(study)
        empty, start, cpu = size(Path(place)) - size(out), time.perf_counter(), time.process_time()
        folders = run_folders(out)
        sent = sum(tracker.ship(folder) for folder in folders)
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
        tracker.close()
        import sqlite3

        with sqlite3.connect(f"{place}/store.db") as store:
            (points,) = store.execute("select count(*) from metrics").fetchone()
        records = sum(map(size, folders)) / sent
        stored = (size(Path(place)) - size(out) - empty) / sent
    sys.stdout.write(
        f"{sent} runs in {wall_s:.1f} s ({wall_s / sent:.2f} s a run, {cpu_s / sent:.2f} s of CPU), "
        f"{points / wall_s:.0f} metric points a second ({points / sent:.0f} a run)\n"
        f"a run leaves {records / 1e3:.0f} kB of records and {stored / 1e3:.0f} kB in the store; "
        f"load {os.getloadavg()[0]:.1f}\n"
    )


if __name__ == "__main__":
    main()
