"""What training together saves: an ensemble of K members against K runs in turn, on one thread.

    python -m benchmarks.ensemble [--rounds 4]

Both sides are a study's own: K runs in turn are as many trainings by the Lightning Trainer, with the records and
validations of a run; the ensemble trains the same members together, with the same records. Members differ in
algorithm and initial weights. Of the runs in turn a few are timed in each round, and their mean counts.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.cases import DEFAULT, LEARNING_RATE, TOY, Case
from benchmarks.command import Effort, run_benchmark
from benchmarks.tables import Line, Table, goals
from benchmarks.timing import Times, in_turns, ratio, threads
from ptycho_torch.config_params import TrainingConfig
from ptycho_torch.dataset import evaluation_loader, training_loader
from ptycho_torch.ensemble import EnsembleTrainer, Member
from ptycho_torch.model import PtychoPINN_Lightning, build_model
from study.divergence import DivergenceRule
from study.records import RunRecorder
from study.run_training import make_trainer

ARMS = (("none", None), ("norm", 1.0), ("value", 0.01), ("agc", 0.01), ("agc_unit", 0.01))  # the default study's
GOALS = {4: None, 8: None, 16: 2.2}
VALIDATION = 40  # frames of a validation, as in the default study; there is one in each training
IN_TURN = len(ARMS)  # runs that stand for K of them: one of each arm
FOLDER = tempfile.TemporaryDirectory(prefix="benchmark-")


def member(case: Case, number: int, steps: int) -> Member:
    """One training with records into a folder of its own; members differ in arm and initial weights."""
    algorithm, threshold = ARMS[number % len(ARMS)]
    config = TrainingConfig(
        learning_rate=LEARNING_RATE,
        device="cpu",
        batch_size=case.batch_size,
        max_steps=steps,
        eval_every=steps,
        gradient_clip_algorithm=algorithm,  # type: ignore[arg-type]
        gradient_clip_val=threshold,
    )
    recorder = RunRecorder(Path(tempfile.mkdtemp(dir=FOLDER.name)), DivergenceRule(constant=1.0, mean_patch=1.0))
    model = build_model(case.model, case.probe(), seed=number)
    module = PtychoPINN_Lightning(model, config, case.scale(), steps, recorder)
    validation = case.arrays().take(np.arange(min(VALIDATION, case.n_frames)))
    frames = training_loader(case.arrays(), (), case.batch_size, seed=number)
    return Member(module, frames, evaluation_loader(validation, config.infer_batch_size))


def alone(case: Case, steps: int) -> None:
    """One run of each arm, in turn."""
    for number in range(IN_TURN):
        one = member(case, number, steps)
        make_trainer(one.module.training_config).fit(one.module, one.steps, one.validation)


def together(case: Case, size: int, steps: int) -> EnsembleTrainer:
    """An ensemble, about to train."""
    return EnsembleTrainer([member(case, number, steps) for number in range(size)])


def steps_of_members(case: Case, size: int) -> Iterator[object]:
    """Steps of an ensemble, without end for as long as anybody asks."""
    return together(case, size, 10**6).steps()


def compare(case: Case, sizes: tuple[int, ...], rounds: int, steps: int) -> Times:
    """Milliseconds for each step of each run."""
    ways: dict[str, Callable[[], object]] = {"in turn": lambda: alone(case, steps)}
    ways |= {str(size): lambda size=size: together(case, size, steps).fit() for size in sizes}  # type: ignore[misc]
    with threads(1):
        times = in_turns(ways, rounds, warm_up=1)
    runs = {"in turn": IN_TURN} | {str(size): size for size in sizes}
    return {name: [ms / steps / runs[name] for ms in values] for name, values in times.items()}


def measure(effort: Effort) -> Iterator[Table]:
    """The ratio for each size of ensemble."""
    case, steps, sizes = (TOY, 2, (2,)) if effort.toy else (DEFAULT, 40, tuple(GOALS))
    times = compare(case, sizes, effort.rounds_or(4), steps)
    lines = [
        Line(
            what=f"ensemble of {size} against {size} runs in turn: times faster",
            reached=ratio(times, "in turn", str(size)),
            goal=GOALS.get(size),
        )
        for size in sizes
    ]
    yield goals("Ensembles, default model, one thread", lines, "Trainings as a study makes them, records included.")


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, __doc__))
