"""What the harness adds to the training: telemetry, MLflow and the Trainer per step; a study around its trainings.

    python -m benchmarks.harness [--rounds 4]

*Per step*: a bare loop (forward, backward, clip, optimizer) on one thread; the same with records written as a study
writes them; the same step in the Lightning Trainer with records that go nowhere, and with both; for the default model
also the step of one of several runs that train together, as in a study. What MLflow costs is the processor time of
sending the records of one run, which the study's driver does beside the trainings, for each step.
*A study*: the default preset with one seed (15 of its 120 runs) on two workers, as its user starts it, against half
the time that the steps it made take in the bare loop. Of its start-up, which does not grow with the number of
runs, the second ratio is free: it counts from the first step on record to the end of the last run.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import psutil
import torch

from benchmarks.cases import DEFAULT, HYBRID_17M, LEARNING_RATE, TOY, Case
from benchmarks.command import Effort, run_benchmark
from benchmarks.ensemble import steps_of_members
from benchmarks.tables import Line, Table, goals
from benchmarks.timing import Measured, Times, in_turns, ratio, threads, wall_ms
from ptycho_torch.config_params import TrainingConfig
from ptycho_torch.dataset import evaluation_loader, training_loader
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.optimizers import make_optimizer
from ptycho_torch.telemetry import NoSink, Sink, StepBuffer, UpdateMeter
from ptycho_torch.train_utils import GradientClipper
from study.divergence import DivergenceRule
from study.ensembles import MOST
from study.records import STEPS_FILE, RunRecorder
from study.run_training import make_trainer
from study.tracking_notes import NOTE_FILE

WARM_UP = 2  # steps of a training that are not timed


def training_of(case: Case, steps: int) -> TrainingConfig:
    """The settings of a short training."""
    clip = {"gradient_clip_algorithm": "agc", "gradient_clip_val": 0.01}
    sizes = {"batch_size": case.batch_size, "max_steps": steps, "eval_every": 10**6}
    return TrainingConfig(learning_rate=LEARNING_RATE, device="cpu", **clip, **sizes)  # type: ignore[arg-type]


def recorder() -> RunRecorder:
    """Records into a folder of their own."""
    return RunRecorder(Path(tempfile.mkdtemp(dir=FOLDER.name)), DivergenceRule(constant=1.0, mean_patch=1.0))


FOLDER = tempfile.TemporaryDirectory(prefix="benchmark-")


def bare_ms(case: Case, steps: int, sink: Sink | None = None) -> float:
    """Milliseconds of ``steps`` steps in a bare loop, with records where there is a sink."""
    model, frames, scale = case.build(), case.frames(), case.scale()
    config = training_of(case, steps)
    optimizer = make_optimizer(model.parameters(), config)
    clipper = GradientClipper(model, algorithm="agc", threshold=0.01)
    meter, buffer = UpdateMeter([p for group in optimizer.param_groups for p in group["params"]]), StepBuffer()
    batches = itertools.cycle(torch.randperm(case.n_frames).split(case.batch_size))
    for step in range(-WARM_UP, steps):
        if step == 0:
            start = time.thread_time()
        measured = frames[next(batches)]
        loss = case.loss(model(measured), measured, scale)
        loss.backward()
        report = clipper()
        if sink is not None:
            meter.mark()
        optimizer.step()
        optimizer.zero_grad()
        if sink is not None and step >= 0:
            update, norm = meter.measure()
            row = (loss.detach(), report.norm_before, report.norm_after, report.clipped_fraction, update, norm)
            buffer.add(step, row, LEARNING_RATE)
            if buffer.full:
                sink.on_steps(buffer.flush())
    return (time.thread_time() - start) * 1e3


class Stopwatch(L.Callback):
    """The thread's time from the end of the last step that is not timed to the end of the training."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == WARM_UP:
            self.start = time.thread_time()
        self.end = time.thread_time()


def trainer_ms(case: Case, steps: int, sink: Sink) -> float:
    """Milliseconds of ``steps`` steps in the Trainer."""
    config, watch = training_of(case, steps + WARM_UP), Stopwatch()
    module = PtychoPINN_Lightning(case.build(), config, case.scale(), steps + WARM_UP, sink)
    loader = training_loader(case.arrays(), (), config.batch_size, seed=0)
    make_trainer(config, [watch]).fit(module, loader, evaluation_loader(case.arrays(), case.batch_size))
    return (watch.end - watch.start) * 1e3


def per_step(case: Case, rounds: int, steps: int, together: bool) -> Times:
    """Milliseconds of a step in each way; also of runs that train together, if a study would do so."""
    ways: dict[str, Callable[[], float]] = {
        "bare": lambda: bare_ms(case, steps),
        "telemetry": lambda: bare_ms(case, steps, recorder()),
        "Trainer": lambda: trainer_ms(case, steps, NoSink()),
        "both": lambda: trainer_ms(case, steps, recorder()),
    }
    if together:
        few = max(1, steps // 4)  # each is that of several runs
        ways["together"] = lambda: together_ms(case, few) * steps / few
    with threads(1):
        times = in_turns(ways, rounds, clock=lambda run: float(run()), warm_up=0)  # type: ignore[arg-type]
    return {name: [value / steps for value in values] for name, values in times.items()}


def together_ms(case: Case, steps: int) -> float:
    """Milliseconds of ``steps`` steps of one of several runs that train together, with records."""
    ensemble = steps_of_members(case, MOST)
    for _ in range(WARM_UP):
        next(ensemble)
    start = time.thread_time()
    for _ in range(steps):
        next(ensemble)
    return (time.thread_time() - start) * 1e3 / MOST


def lines_of(name: str, times: Times, mlflow_ms: float, goal: float | None) -> Iterator[Line]:
    """Each part's cost in percent of a bare step."""
    extra = mlflow_ms / Measured.of(times["bare"]).median
    for part, label in (("telemetry", "telemetry alone"), ("Trainer", "Trainer with telemetry that goes nowhere")):
        yield Line(what=f"{name}: {label}", reached=percent(ratio(times, part, "bare"), 0.0), unit="%")
    yield Line(what=f"{name}: MLflow alone", reached=Measured(100 * extra, 0.0), unit="%")
    both = percent(ratio(times, "both", "bare"), extra)
    yield Line(what=f"{name}: all on", reached=both, goal=goal, at_most=True, unit="%")
    if "together" in times:
        shared = percent(ratio(times, "together", "bare"), extra)
        what = f"{name}: {MOST} runs together, telemetry and MLflow"
        yield Line(what=what, reached=shared, goal=goal, at_most=True, unit="%")


def percent(times: Measured, extra: float) -> Measured:
    """How much above 1 a ratio is; its spread stays that of the ratio."""
    return Measured(100 * (times.median - 1 + extra), times.spread)


# a whole study ----------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Watched:
    """A study as seen from outside, seconds after its command and MiB."""

    wall_s: float = 0.0
    first_steps_s: float = 0.0
    last_result_s: float = 0.0
    worker_mib: float = 0.0


def watch_study(out: Path, arguments: list[str]) -> Watched:
    """Run a study and look at its folder and its processes now and then."""
    seen, start = Watched(), time.perf_counter()
    command = [sys.executable, "-m", "study.shootout", "--out", str(out), *arguments]
    command += ["--tracking-uri", f"sqlite:///{out}.db", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        seen.worker_mib = max(seen.worker_mib, largest_child_mib(process.pid))
        if not seen.first_steps_s and any(out.glob(f"runs/*/{STEPS_FILE}")):
            seen.first_steps_s = time.perf_counter() - start
        time.sleep(0.1)
    seen.wall_s = time.perf_counter() - start
    if process.returncode:
        raise ChildProcessError(f"{' '.join(command)} ended with {process.returncode}")
    ends = [path.stat().st_mtime for path in out.glob("runs/*/result.json")]
    seen.last_result_s = max(ends) - time.time() + time.perf_counter() - start
    return seen


def largest_child_mib(pid: int) -> float:
    """Resident memory of the largest process that a study has started."""
    sizes = [0.0]
    for child in psutil.Process(pid).children(recursive=True):
        try:
            sizes.append(child.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            continue
    return max(sizes)


def steps_made(out: Path) -> int:
    """Optimizer steps of all runs of a study."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("runs/*/result.json")]
    return sum(int(result["steps"]) for result in results)


def sending_ms(out: Path) -> float:
    """Milliseconds of processor time that MLflow takes for each step of one finished run, in a new store."""
    from study.tracker import Tracker

    run = max(out.glob("runs/*"), key=lambda folder: (folder / STEPS_FILE).stat().st_size)
    study = json.loads((out / "study.json").read_text(encoding="utf-8"))
    (run / NOTE_FILE).unlink(missing_ok=True)
    tracker = Tracker(f"sqlite:///{out}-again.db", "benchmark", out)
    try:
        tracker.open_study(study)
        start = time.process_time()
        tracker.ship(run)
        return (time.process_time() - start) * 1e3 / (run / STEPS_FILE).read_bytes().count(b"\n")
    finally:
        tracker.close()


def help_s() -> Measured:
    """Seconds of a word of help."""
    command = [sys.executable, "-m", "study.shootout", "--help"]
    ask = functools.partial(subprocess.run, command, capture_output=True, check=True)
    return Measured.of([wall_ms(ask) / 1e3 for _ in range(3)])


def study_lines(seen: Watched, bare_s: float) -> Iterator[Line]:
    """The study against its trainings, and what its user waits for."""
    half = bare_s / 2
    trained_s = seen.last_result_s - seen.first_steps_s
    yield Line(what="study, whole command / (bare loops / 2)", reached=once(seen.wall_s / half))
    yield Line(what="study, its runs / (bare loops / 2)", reached=once(trained_s / half), goal=1.1, at_most=True)
    yield Line(what="--help", reached=help_s(), goal=1, at_most=True, unit="s")
    yield Line(
        what="command to first steps on record", reached=once(seen.first_steps_s), goal=10, at_most=True, unit="s"
    )
    yield Line(what="memory of one worker", reached=once(seen.worker_mib), goal=700, at_most=True, unit="MiB")


def once(value: float) -> Measured:
    """A number that was measured once."""
    return Measured(value, 0.0)


def measure(effort: Effort) -> Iterator[Table]:
    """The tables of the harness."""
    preset = ["--preset", "smoke", "--seeds", "1", "--max-steps", "12"] if effort.toy else ["--seeds", "1"]
    default, large = (TOY, TOY) if effort.toy else (DEFAULT, HYBRID_17M)
    out = Path(FOLDER.name) / "study"
    seen = watch_study(out, preset)
    mlflow_ms, steps = sending_ms(out), steps_made(out)
    small = per_step(default, effort.rounds_or(4), 12 if effort.toy else 100, together=True)
    bare_s = steps * Measured.of(small["bare"]).median / 1e3
    yield goals("The harness: a study around its trainings", [*study_lines(seen, bare_s)])
    title = "The harness: what a step takes above the bare loop"
    yield goals(f"{title}, default model", [*lines_of("default model", small, mlflow_ms, 5)])
    big = per_step(large, effort.rounds_or(2), 2, together=False)
    yield goals(f"{title}, 17 M hybrid", [*lines_of("17 M hybrid", big, mlflow_ms, 1)])


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, __doc__))
