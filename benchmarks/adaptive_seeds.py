"""Error rate, power and cost of adding replicates while a comparison is open, by simulation.

``python benchmarks/adaptive_seeds.py [--studies 4000] [--csv FILE]`` plays whole studies of one condition: a control
and its rivals, paired replicates, rounds as ``study.rounds`` has them, Holm's correction at the end. Beside it stand
the exact McNemar test with 8 replicates, with 24, and what comes of looking at it after every round.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from study.adaptive import BATCH, FIRST, MOST, Pairs, decide, mcnemar_sequential
from study.statistics import ALPHA, holm, mcnemar_exact

decision = functools.cache(decide)
sequential, exact = functools.cache(mcnemar_sequential), functools.cache(mcnemar_exact)


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """The truth: probabilities of not ok. ``tied`` is the share of replicates whose fate is the same in all arms."""

    name: str
    control: float
    rivals: tuple[float, ...]
    tied: float = 0.0

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(R,) control and (A, R) rivals: which replicates are not ok."""
        common, own = rng.random(MOST), rng.random((1 + len(self.rivals), MOST))
        luck = np.where(rng.random(MOST) < self.tied, common, own)
        return luck[0] < self.control, luck[1:] < np.array(self.rivals)[:, np.newaxis]


WORLDS = (
    World(name="no difference, rare failures", control=0.05, rivals=(0.05,) * 4),
    World(name="no difference, even odds", control=0.5, rivals=(0.5,) * 4),
    World(name="no difference, even odds, one rival", control=0.5, rivals=(0.5,)),
    World(name="no difference, even odds, tied", control=0.5, rivals=(0.5,) * 4, tied=0.5),
    World(name="clear: 0.9 against 0.1", control=0.9, rivals=(0.1,) * 4),
    World(name="clear, one rival", control=0.9, rivals=(0.1,)),
    World(name="moderate: 0.6 against 0.1", control=0.6, rivals=(0.1,) * 4),
    World(name="moderate, one rival", control=0.6, rivals=(0.1,)),
    World(name="two help, two do not", control=0.9, rivals=(0.1, 0.1, 0.9, 0.9)),
)


def pairs_of(control: np.ndarray, rival: np.ndarray, n: int) -> Pairs:
    """What the first ``n`` replicates say."""
    a, b = rival[:n], control[:n]
    return Pairs(n, int((b & ~a).sum()), int((a & ~b).sum()))


def adaptive(control: np.ndarray, rivals: np.ndarray) -> tuple[np.ndarray, int]:
    """Which arms are told apart from the control, and how many runs that took."""
    counts = []
    for rival in rivals:
        n = FIRST
        while n < MOST and decision(pairs_of(control, rival, n), len(rivals)) == "open":
            n += BATCH
        counts.append(n)
    found = [pairs_of(control, rival, n) for rival, n in zip(rivals, counts, strict=True)]
    return holm([sequential(p.better, p.worse) for p in found]) <= ALPHA, sum(counts) + max(counts)


def fixed(control: np.ndarray, rivals: np.ndarray, n: int) -> np.ndarray:
    """Which arms the exact McNemar test tells apart with ``n`` replicates."""
    found = [pairs_of(control, rival, n) for rival in rivals]
    return np.asarray(holm([exact(p.better, p.worse) for p in found]) <= ALPHA)


def peeking(control: np.ndarray, rivals: np.ndarray) -> np.ndarray:
    """Which arms the exact McNemar test tells apart at any of the looks: what must not be done."""
    looks = [fixed(control, rivals, n) for n in range(FIRST, MOST + 1, BATCH)]
    return np.asarray(np.any(looks, axis=0))


def row(world: World, studies: int, seed: int) -> dict[str, Any]:
    """One line of the table: shares of studies with a false claim, shares of true differences found, runs."""
    rng = np.random.default_rng(seed)
    true = np.array(world.rivals) != world.control
    claims: dict[str, list[np.ndarray]] = {"adaptive": [], "fixed 8": [], "fixed 24": [], "peeking": []}
    runs = []
    for _ in range(studies):
        control, rivals = world.draw(rng)
        found, spent = adaptive(control, rivals)
        claims["adaptive"].append(found)
        claims["fixed 8"].append(fixed(control, rivals, 8))
        claims["fixed 24"].append(fixed(control, rivals, MOST))
        claims["peeking"].append(peeking(control, rivals))
        runs.append(spent)
    line: dict[str, Any] = {"world": world.name, "runs": f"{np.mean(runs) / (1 + len(true)):.1f}"}
    for name, found in claims.items():
        made = np.array(found)
        line[f"false, {name}"] = f"{np.mean(made[:, ~true].any(axis=1)):.4f}" if (~true).any() else ""
        line[f"found, {name}"] = f"{np.mean(made[:, true]):.3f}" if true.any() else ""
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as Markdown, or write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    rows = [row(world, options.studies, options.seed) for world in WORLDS]
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(v) for v in line.values()] for line in rows)]
    sys.stdout.write("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
