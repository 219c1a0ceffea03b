"""From a run's step records to MLflow points: window means and maxima, finite and bounded.

Everything here is a pure function of the records, so that sending twice sends the same points:
windows start at fixed steps, whatever was already written when they were read, and a point's
time stamp derives from its step.

MLflow hides a whole curve whose last value is NaN, and draws a few hundred points per run: hence
finite values only, and a maximum beside each mean, so that a spike of one step is not thinned away.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from study.run_trace import Record

THIN = 10
LOSS_CEILING = 1e3
OTHER_CEILING = 1e6

MEANS = {
    "loss": "train/loss",
    "grad_norm_preclip": "grad_norm/preclip",
    "grad_norm_postclip": "grad_norm/postclip",
    "clipped_fraction": "grad_norm/clipped_fraction",
    "update_ratio": "divergence/update_ratio",
    "learning_rate": "lr",
}
MAXIMA = ("loss", "grad_norm_preclip", "update_ratio")
EVALS = {"val_loss": "val/loss", "amp_spread": "val/amp_spread", "phase_spread": "val/phase_spread"}
LOSSES = ("loss", "val_loss")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of one metric at one optimizer step."""

    key: str
    value: float
    step: int


def first_finite(records: Iterable[Record], known: Mapping[str, float] | None = None) -> dict[str, float]:
    """The first finite, non-zero value of every series: the yardstick of its ceiling."""
    first = dict(known or {})
    for record in records:
        for name in (*MEANS, *EVALS):
            value = record.values.get(name)
            if name not in first and is_number(value) and value != 0:
                first[name] = float(value)
    return first


def windows(records: Iterable[Record], *, final: bool, thin: int = THIN) -> Iterator[list[Record]]:
    """The records in groups of ``thin`` steps; a last, unfinished group only when the run is over."""
    group: list[Record] = []
    for record in records:
        if group and record.values["step"] // thin != group[-1].values["step"] // thin:
            yield group
            group = []
        group.append(record)
    if group and final:
        yield group


def window_points(window: list[Record], first: Mapping[str, float]) -> list[Point]:
    """Mean and maximum of every series over one window, at the window's last step."""
    step = window[-1].values["step"]
    points = []
    for name, key in MEANS.items():
        values = [v for r in window if (v := bounded(name, r.values.get(name), first)) is not None]
        if values:
            points.append(Point(key=key, value=math.fsum(values) / len(values), step=step))
        if values and name in MAXIMA:
            points.append(Point(key=key + "_max", value=max(values), step=step))
        if values and name == "loss" and "loss" in first:
            ratio = math.fsum(values) / len(values) / abs(first["loss"])
            points.append(Point(key="divergence/loss_ratio", value=ratio, step=step))
    return points


def eval_points(record: Record, first: Mapping[str, float]) -> list[Point]:
    """The validation's numbers of one record."""
    found = {key: bounded(name, record.values.get(name), first) for name, key in EVALS.items()}
    return [Point(key=k, value=v, step=record.values["step"]) for k, v in found.items() if v is not None]


def bounded(name: str, value: Any, first: Mapping[str, float]) -> float | None:
    """``value`` held within a multiple of its series' first value; None where it is no number at all.

    Losses are held within 1,000 times the initial training loss, other series within a million
    times their first value: large enough to see a divergence, small enough to see anything else.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return None
    start = first.get("loss", first.get(name)) if name in LOSSES else first.get(name)
    if start is None:
        return float(value) if math.isfinite(value) else None
    ceiling = abs(start) * (LOSS_CEILING if name in LOSSES else OTHER_CEILING)
    return max(-ceiling, min(ceiling, float(value)))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a finite number (a truth value is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


FINAL = {
    "final/": (
        "val_loss_best", "amp_ssim", "phase_ssim", "amp_mae", "phase_mae", "frc50", "steps", "wall_s",
        "clipped_fraction", "n_parameters", "baseline_constant", "baseline_mean_patch", "baseline_oracle",
    ),
    "divergence/": (
        "spikes", "stall_ratio", "update_ratio_p99", "grad_norm_median", "grad_norm_p99", "grad_norm_max",
        "failed_at_step",
    ),
}  # fmt: skip


def final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of a finished run under the names the tracking store shows.

    ``divergence/failed`` is 1 for a run that failed or stalled, so that the mean over a group of
    runs is a rate: the mean of a loss over the survivors would hide the failures.
    """
    metrics = {prefix + name: result.get(name) for prefix, names in FINAL.items() for name in names}
    metrics["final/val_loss"] = result.get("val_loss_final")
    median, p99 = result.get("grad_norm_median"), result.get("grad_norm_p99")
    if is_number(median) and is_number(p99) and median:
        metrics["divergence/grad_norm_p99_over_median"] = p99 / median
    if result.get("outcome") in ("ok", "plateau", "failed"):
        metrics["divergence/failed"] = float(result["outcome"] == "failed")
    return {key: float(value) for key, value in metrics.items() if is_number(value)}


ARM = (
    *("n", "n_ok", "n_plateau", "n_failed", "p_fail", "p_fail_low", "p_fail_high", "p_vs_control", "rmst"),
    *("val_loss_iqm", "amp_ssim_median"),
    *("price_pairs", "loss_ratio", "loss_ratio_low", "loss_ratio_high"),
    *("amp_ssim_shift", "amp_ssim_shift_low", "amp_ssim_shift_high"),
)


def arm_name(arm: Mapping[str, Any]) -> str:
    """``<regime>/<algorithm>``, each with what else tells the arm apart: rate, architecture, depth; threshold.

    >>> arm_name({"condition": "frontier · rate 0.3", "label": "agc 0.01"})
    'frontier · rate 0.3/agc 0.01'
    """
    return f"{arm.get('condition') or arm['regime']}/{arm.get('label') or arm['algorithm']}"


def arm_metrics(arms: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """``arm/<arm>/<number>`` for the numbers of every arm; ``arm/<algorithm>/<number>`` over all conditions.

    Over all conditions there are ``p_fail``, and ``loss_ratio``, the dearest of them. An algorithm under several
    thresholds has these numbers for each, too, under its label.
    """
    metrics: dict[str, float] = {}
    pooled: dict[str, list[float]] = {}
    dearest: dict[str, float] = {}
    for arm in arms:
        name = metric_name(arm_name(arm))
        metrics |= {f"arm/{name}/{k}": float(arm[k]) for k in ARM if is_number(arm.get(k))}
        for group in {metric_name(arm["algorithm"]), metric_name(arm.get("label") or arm["algorithm"])}:
            counts = pooled.setdefault(group, [0.0, 0.0])
            counts[0] += float(arm.get("n_failed") or 0)
            counts[1] += float(arm.get("n") or 0)
            if is_number(ratio := arm.get("loss_ratio")):
                dearest[group] = max(ratio, dearest.get(group, ratio))
    metrics |= {f"arm/{a}/loss_ratio": ratio for a, ratio in dearest.items()}
    return metrics | {f"arm/{a}/p_fail": failed / n for a, (failed, n) in pooled.items() if n}


def metric_name(text: str) -> str:
    """``text`` with every character that MLflow refuses in a metric's name replaced."""
    words = str(text).replace(" · ", "/")
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. :/") else "_" for c in words)
