"""Draw what each clipping algorithm does to a spike: one small figure per algorithm.

    python docs/clipping_figures.py

Two tensors receive random gradients of steady size. At step 20 the first tensor's gradient is 40
times as large, once; from step 40 on both are three times as large, for good. Every algorithm sees
the same gradients, at its default threshold. Unit-wise clipping has 20 units per tensor, and the
spike hits two of them.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn

from ptycho.config.algorithms import ALGORITHMS
from ptycho_torch.train_utils import GradientClipper

FOLDER = Path(__file__).parent / "figures"
BEFORE_STEPS, STEPS = 110, 60
SPIKE, SHIFT = 20, 40
UNITS, ENTRIES = 20, 400
TYPICAL_NORM = 0.4
"""Norm of one tensor's gradient on an ordinary step."""
WEIGHT_NORM = 100.0
"""With the default ratio of 0.01, adaptive clipping then bounds a tensor's gradient to 1."""

Curve = list[float]


def tensors() -> tuple[nn.Parameter, nn.Parameter]:
    """Two weights of norm 100, all units alike."""
    entry = WEIGHT_NORM / math.sqrt(UNITS * ENTRIES)
    return nn.Parameter(torch.full((UNITS, ENTRIES), entry)), nn.Parameter(torch.full((UNITS, ENTRIES), entry))


def give_gradients(parameters: tuple[nn.Parameter, nn.Parameter], step: int) -> None:
    """The gradients of one step, the same for every algorithm."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(parameters):
        size = TYPICAL_NORM * math.exp(0.15 * float(torch.randn((), generator=generator)))
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = gradient * (size * (3 if step >= SHIFT else 1) / gradient.norm())
        if step == SPIKE and i == 0:
            p.grad[:2] *= 40 * math.sqrt(UNITS / 2)


def follow(algorithm: str) -> tuple[Curve, Curve, list[Curve]]:
    """Global norm before and after, and by how much each tensor's norm was scaled, step by step."""
    parameters = tensors()
    clipper = GradientClipper(parameters, algorithm=algorithm, threshold=ALGORITHMS[algorithm].default)
    before: Curve = []
    after: Curve = []
    scales: list[Curve] = [[], []]
    for step in range(-BEFORE_STEPS, STEPS):
        give_gradients(parameters, step)
        norms = [float(p.grad.norm()) for p in parameters]
        report = clipper()
        before.append(float(report.norm_before))
        after.append(float(report.norm_after) if bool(report.keep) else math.nan)
        for curve, p, norm in zip(scales, parameters, norms, strict=True):
            curve.append(float(p.grad.norm()) / norm if bool(report.keep) else math.nan)
    return before[-STEPS:], after[-STEPS:], [curve[-STEPS:] for curve in scales]


def draw(algorithm: str) -> None:
    """Write one figure."""
    before, after, scales = follow(algorithm)
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(5, 3.2), sharex=True, height_ratios=[3, 2], layout="constrained"
    )
    top.semilogy(before, color="0.6", linewidth=1, label="before")
    top.semilogy(after, color="C0", linewidth=1.6, label="after")
    top.set_ylim(0.02, 150)
    top.set_ylabel("global norm")
    top.legend(loc="upper right", fontsize=7, frameon=False)
    for curve, color, label in zip(scales, ("C3", "C2"), ("tensor that is hit", "the other tensor"), strict=True):
        bottom.semilogy(curve, color=color, linewidth=1.3, label=label)
    bottom.set_ylim(0.003, 2)
    bottom.set_ylabel("scaled by")
    bottom.set_xlabel("optimizer step")
    bottom.legend(loc="lower right", fontsize=7, frameon=False)
    for step in range(STEPS):
        if math.isnan(after[step]):
            top.axvline(step, color="C1", linewidth=0.8, linestyle=":")
            top.text(step + 0.4, 0.03, "left out", fontsize=7, color="C1")
    threshold = "" if algorithm == "none" else f", threshold {ALGORITHMS[algorithm].default:g}"
    figure.suptitle(algorithm + threshold, fontsize=9)
    figure.savefig(FOLDER / f"clipping-{algorithm}.png", dpi=90, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in ALGORITHMS:
        draw(name)
