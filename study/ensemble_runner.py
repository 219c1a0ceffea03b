"""Runs of one shape as one ensemble: each run's folder gets what it would get from the run alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study.grid_lines_torch_runner import score_training
from study.memory import freed_memory_kept
from study.records import write_results
from study.result import identity_row
from study.run_config import TorchRunnerConfig
from study.run_frames import cached_baselines, load_splits
from study.run_training import Trained, prepare_training
from study.seeds import seeds_of


def run_ensemble(configs: Sequence[TorchRunnerConfig], identities: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Train together on this machine's processor, then reconstruct and score one after the other; the results.

    The time of a run is its share of the ensemble's.

    Args:
        configs: runs that ``study.ensembles`` has found to be of one shape.
        identities: what the study calls them.

    Raises:
        InputError: settings or files that cannot be used; nothing was trained.
    """
    import torch

    from ptycho_torch.ensemble import EnsembleTrainer, Member

    splits = [load_splits(cfg) for cfg in configs]
    baselines = [cached_baselines(cfg, own) for cfg, own in zip(configs, splits, strict=True)]
    runs = [
        prepare_training(cfg, own, base, seeds_of(cfg.seed), Path(cfg.output_dir))
        for cfg, own, base in zip(configs, splits, baselines, strict=True)
    ]
    torch.set_num_threads(configs[0].threads)
    start = time.perf_counter()
    with freed_memory_kept():
        EnsembleTrainer([Member(run.module, run.steps, run.validation) for run in runs]).fit()
    share_s = (time.perf_counter() - start) / len(runs)
    results = []
    for cfg, own, base, run, identity in zip(configs, splits, baselines, runs, identities, strict=True):
        row = score_training(cfg, own, base, Trained(run.module, run.recorder, share_s, own.train.about))
        results.append({**identity_row(identity), **row, "ensemble_size": len(runs)})
    write_results([Path(cfg.output_dir) for cfg in configs], results)
    return results
