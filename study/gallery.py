"""The gallery: what the networks of one condition reconstructed, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptycho.alignment import align, fit_tilt, phase_tilt
from ptycho.errors import InputError
from ptycho.npz import read_npz
from study.drawing import plain, styled

WELL_SEEN = 0.2  # of the largest weight: the picture's rim saw too little light to show anything
PARTS: Mapping[str, Callable[..., np.ndarray]] = {"amplitude": np.abs, "phase / rad": np.angle}


class Picture(NamedTuple):
    """A reconstruction for the gallery: (H, W) complex64, NaN where too little light fell, and its truth or None."""

    image: np.ndarray
    truth: np.ndarray | None


def read_picture(path: Path) -> Picture:
    """A run's reconstruction, cut to where light fell.

    Raises:
        InputError: a damaged file.
    """
    try:
        file = read_npz(path, ("reconstruction", "weight", "truth"))
        image, weight = file["reconstruction"].astype(np.complex64), file["weight"]
        truth = file["truth"].astype(np.complex64) if "truth" in file else None
        seen = weight >= WELL_SEEN * weight.max()
        image[~seen] = np.nan
        box = np.ix_(seen.any(axis=1), seen.any(axis=0))
        return Picture(image[box], None if truth is None else truth[box])
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(
            f"{path}: no reconstruction can be read ({error}); allowed: the file as the run wrote it"
        ) from error


def for_display(picture: Picture) -> np.ndarray:
    """(H, W) complex: the image without what diffraction cannot tell.

    With a truth it is brought to the truth's phase, tilt and scale, as where it is scored; without one its own phase
    is levelled and turned to zero. What was not seen stays NaN.
    """
    image, truth = picture
    good = np.isfinite(image)
    known = np.where(good, image, 0)
    if truth is not None:
        shown = align(known, truth)
    else:
        level = known * phase_tilt(known.shape, -fit_tilt(known.astype(np.complex128)))
        shown = level * np.exp(-1j * np.angle(level.sum()))
    return np.where(good, shown, np.nan)


def gallery_data(out: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """Which run each arm shows: one replicate for all arms, and a typical one rather than the best.

    It is the first replicate in which most arms end with their most frequent outcome, of those with anything to show.
    """
    columns = ["run_id", "condition", "label", "replicate", "outcome", "reason", "amp_ssim", "phase_ssim"]
    there = [(out / "runs" / run_id / "reconstruction.npz").is_file() for run_id in runs["run_id"]]
    usual = runs.groupby(["condition", "label"])["outcome"].transform(lambda words: words.mode().iloc[0])
    candidates = runs[columns].assign(reconstruction=there, usual=runs["outcome"] == usual)
    per_replicate = candidates.groupby(["condition", "replicate"], as_index=False)
    count: pd.DataFrame = per_replicate.agg({"usual": "sum", "reconstruction": "any"})
    best = count[count["reconstruction"]].sort_values(["usual", "replicate"], ascending=[False, True], kind="stable")
    chosen = best.drop_duplicates("condition")[["condition", "replicate"]]
    return candidates.merge(chosen, on=["condition", "replicate"]).drop_duplicates(["condition", "label"])


@styled
def gallery(data: pd.DataFrame, out: Path) -> Figure:
    """Amplitude above phase, the truth first where it is known, then an arm a column."""
    records = data.to_dict("records")
    pictures = [
        read_picture(out / "runs" / str(run["run_id"]) / "reconstruction.npz") if run["reconstruction"] else None
        for run in records
    ]
    columns = [
        (_gallery_title(run), None if picture is None else for_display(picture))
        for run, picture in zip(records, pictures, strict=True)
    ]
    truth = next((p.truth for p in pictures if p is not None and p.truth is not None), None)
    if truth is not None:
        columns.insert(0, ("truth", truth))
    return _draw(columns, truth)


def _draw(columns: Sequence[tuple[str, np.ndarray | None]], truth: np.ndarray | None) -> Figure:
    """``columns``: a title and a picture each; the truth, where there is one, sets the grey scale."""
    side = min(3.2, max(1.55, 6.4 / len(columns)))
    figure = Figure(figsize=(side * len(columns) + 0.7, 2 * side + 0.4), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False)
    for row, (name, part) in zip(axes, PARTS.items(), strict=True):
        images = [None if image is None else part(image) for _, image in columns]
        low, high = _limits([part(truth)] if truth is not None else [i for i in images if i is not None])
        for ax, image in zip(row, images, strict=True):
            _panel(ax, image, low, high)
        row[0].set_ylabel(name)
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(low, high), "gray")
        figure.colorbar(scale, ax=list(row), shrink=0.9, pad=0.01)
    for ax, (title, _) in zip(axes[0], columns, strict=True):
        ax.set_title(title, fontsize=7)
    return figure


def _panel(ax: Axes, image: np.ndarray | None, low: float, high: float) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    if image is None:
        ax.text(0.5, 0.5, "nothing to show", ha="center", va="center", fontsize=7, transform=ax.transAxes)
        ax.set_box_aspect(1)
    else:
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")


def _gallery_title(run: Mapping[Any, Any]) -> str:
    scores = [f"{run[key]:.2f}" for key in ("amp_ssim", "phase_ssim") if np.isfinite(run[key])]
    return f"{plain(run['label'], 20)}\n{run['outcome']}" + (f", SSIM {' / '.join(scores)}" if scores else "")


def _limits(images: Sequence[np.ndarray]) -> tuple[float, float]:
    """One scale for all: the median over the images of their 1st and 99th percentile."""
    bounds = [np.percentile(i[np.isfinite(i)], (1, 99)) for i in images if np.isfinite(i).any()]
    low, high = np.median(bounds, axis=0) if bounds else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0
