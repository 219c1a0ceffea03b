"""The result of one run: the row it adds to ``runs.csv``, and what was realised."""

from __future__ import annotations

import functools
import math
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from study.design import STUDY_VERSION
from study.divergence import Outcome, count_spikes, stall_ratio
from study.seeds import seeds_of

if TYPE_CHECKING:  # the driver writes results too, and needs no torch
    from ptycho_torch.baselines import Baselines
    from ptycho_torch.telemetry import EvalRecord, StepRecord


def identity_row(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The columns known before a run starts, from its specification."""
    seeds = seeds_of(int(identity["replicate"]))
    return {
        **{name: identity[name] for name in ("run_id", "regime", "algorithm", "threshold", "architecture")},
        **{name: identity[name] for name in ("optimizer", "learning_rate", "replicate")},
        **{"seed_init": seeds.init, "seed_order": seeds.order, "seed_data": seeds.data},
        "git_commit": git_commit(),
        "study_version": STUDY_VERSION,
        "ensemble_size": 1,
    }


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """The columns that say how the run ended."""
    return {"outcome": outcome.word, "reason": outcome.reason, "failed_at_step": outcome.failed_at_step}


def step_columns(steps: Sequence[StepRecord]) -> dict[str, Any]:
    """The columns drawn from the step records; norms that are not finite are left out of the quantiles."""
    norms = np.array([s.grad_norm_preclip for s in steps])
    finite = norms[np.isfinite(norms)]
    clipped = [s.clipped_fraction for s in steps if math.isfinite(s.clipped_fraction)]
    updates = np.array([s.update_ratio for s in steps])
    updates = updates[np.isfinite(updates)]
    return {
        "steps": len(steps),
        "grad_norm_median": quantile(finite, 0.5),
        "grad_norm_p99": quantile(finite, 0.99),
        "grad_norm_max": quantile(finite, 1.0),
        "clipped_fraction": float(np.mean(clipped)) if clipped else math.nan,
        "stall_ratio": stall_ratio([s.update_ratio for s in steps]),
        "update_ratio_p99": quantile(updates, 0.99),
        "spikes": count_spikes([s.loss for s in steps]),
    }


def eval_columns(evals: Sequence[EvalRecord], baselines: Baselines) -> dict[str, Any]:
    """The columns drawn from the validations, beside the baselines they are judged by."""
    finite = [e.val_loss for e in evals if math.isfinite(e.val_loss)]
    return {
        "val_loss_final": evals[-1].val_loss if evals else math.nan,
        "val_loss_best": min(finite) if finite else math.nan,
        "baseline_constant": baselines.constant,
        "baseline_mean_patch": baselines.mean_patch,
        "baseline_oracle": math.nan if baselines.oracle is None else baselines.oracle,
        "amp_spread_final": evals[-1].amp_spread if evals else math.nan,
    }


def quantile(values: np.ndarray, q: float) -> float:
    """The quantile of ``values``; NaN where there are none."""
    return float(np.quantile(values, q)) if len(values) else math.nan


@functools.cache
def git_commit() -> str:
    """Commit of the code that runs, with ``+`` where files differ from it; empty outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return ""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def software_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {name: metadata.version(name) for name in ("torch", "lightning", "numpy", "scipy")}
