"""The driver's memory: it does not grow with the records of a study, nor much with its runs.

``MEMORY_RUNS=2000 MEMORY_STEPS=2000`` measures a study of that size.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUNS, STEPS = (int(os.environ.get(f"MEMORY_{name}", default)) for name, default in (("RUNS", 12), ("STEPS", 12_000)))
FEW = max(100, 56_000 // RUNS)  # steps that fill each buffer once
MOST_MB, GROWTH_MB = 500, 40
REPORT = """
import json, re, sys, time
from pathlib import Path
import study.local_engine, study.shipping, study.running, study.tracker  # as in the driver
from study.report import write_report
peaks, start = [], time.monotonic()
for folder in sys.argv[1:]:
    write_report(Path(folder))
    status = Path("/proc/self/status").read_text()  # getrusage counts what the parent had before the exec
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1024)
print(json.dumps([*peaks, time.monotonic() - start]))
"""


def grow(out: Path, runs: int, steps: int) -> None:
    """Make of a study one of so many runs and steps, by copying the runs that it has."""
    study = json.loads((out / "study.json").read_text())
    for number, source in enumerate([*(out / "runs").iterdir()] * -(-runs // len([*(out / "runs").iterdir()]))):
        result, replicate = json.loads((source / "result.json").read_text()), 1000 + number
        folder = out / "grown" / f"{source.name}-{replicate}"
        folder.mkdir(parents=True)
        lines = [line.partition(",")[2] for line in (source / "steps.jsonl").read_text().splitlines(keepends=True)]
        with (folder / "steps.jsonl").open("w") as file:
            file.writelines(f'{{"step": {k + 1},{lines[k * len(lines) // steps]}' for k in range(steps))
        shutil.copy(source / "evals.jsonl", folder)
        changed = {"run_id": folder.name, "replicate": replicate, "steps": steps}
        (folder / "result.json").write_text(json.dumps(result | changed))
    shutil.rmtree(out / "runs")
    (out / "grown").rename(out / "runs")
    (out / "study.json").write_text(json.dumps(study))


def test_the_report_of_many_records_takes_no_more_memory(tmp_path: Path, write_study_folder: Any) -> None:
    counts = {"overload": {"none": (2, 1, 3), "agc": (5, 1, 0)}}
    few, many = (write_study_folder(tmp_path / name, counts, steps=60, side=12) for name in ("few", "many"))
    grow(few, RUNS, FEW)
    grow(many, RUNS, STEPS)
    done = subprocess.run(
        [sys.executable, "-c", REPORT, few, many], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with_few, with_many, took_s = json.loads(done.stdout)
    sys.stdout.write(f"{RUNS} runs of {STEPS} steps: {with_many} MB, of {FEW} steps: {with_few} MB; {took_s:.0f} s\n")
    assert with_many < MOST_MB
    assert with_many - with_few < GROWTH_MB, "holding the records takes three times that"
