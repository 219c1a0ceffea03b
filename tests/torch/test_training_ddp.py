"""Two processes with half of each step's frames each, against one process with all of them.

DistributedDataParallel averages the gradients of both processes, complex ones too (gloo), before the
clipper sees them: it clips once, by the norm of the joined gradient, and every process clips alike.
What each process records as its loss is that of its own frames.

As a script, this file is one of the processes: ``python test_training_ddp.py FILE``.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ptycho.arrays import PtychoArrays
from ptycho.simulate import diffraction_intensity
from ptycho_torch.config_params import ModelConfig, TrainingConfig
from ptycho_torch.dataset import BatchRequest, Frames, SeededBatches, evaluation_loader
from ptycho_torch.losses import LossScale
from ptycho_torch.model import PtychoPINN_Lightning, build_model

STEPS, FRAMES_PER_STEP = 4, 12
ARMS: dict[str, float | None] = {"none": None, "norm": 0.1, "value": 1e-3, "agc_unit": 0.01, "adagc": 1.05}
TIMEOUT_S = 300


def frames() -> PtychoArrays:
    rng = np.random.default_rng(0)
    patches = 1 + 0.3 * rng.normal(size=(48, 1, 8, 8)) + 0.2j
    probe = (rng.normal(size=(1, 8, 8)) + 1j * rng.normal(size=(1, 8, 8))).astype(np.complex64)
    return PtychoArrays(
        amplitude=np.sqrt(diffraction_intensity(patches, probe)).astype(np.float32),
        positions_px=np.zeros((48, 1, 2), np.float32),
        probe=probe,
        photons_per_intensity=100.0,
    )


class Norms:
    """A sink that keeps the norms before and after the clip, and the validation's loss behind them."""

    def __init__(self) -> None:
        self.norms: list[tuple[float, float]] = []
        self.val_loss = 0.0

    def on_steps(self, records: Any) -> bool:
        self.norms.extend((record.grad_norm_preclip, record.grad_norm_postclip) for record in records)
        return False

    def on_eval(self, record: Any) -> bool:
        self.val_loss = record.val_loss
        return False


def train(algorithm: str, rank: int, world: int) -> dict[str, Any]:
    """A few steps of one arm with this process's share of the frames, in two accumulated batches a step."""
    arrays, sink = frames(), Norms()
    config = TrainingConfig(
        max_steps=STEPS,
        batch_size=FRAMES_PER_STEP // world // 2,
        accumulate_grad_batches=2,
        optimizer="sgd",
        learning_rate=0.1,
        gradient_clip_algorithm=algorithm,  # type: ignore[arg-type]
        gradient_clip_val=ARMS[algorithm],
    )
    model = build_model(ModelConfig(N=8, fno_width=4, fno_modes=2, fno_blocks=2), arrays.probe, 0)
    module = PtychoPINN_Lightning(model, config, LossScale.of(arrays), STEPS, sink)  # type: ignore[arg-type]
    requests = [BatchRequest(r.frames[rank::world], r.step) for r in SeededBatches(48, FRAMES_PER_STEP, 0)]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=-1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    steps = DataLoader(Frames(arrays), sampler=requests, batch_size=None)
    trainer.fit(module, steps, evaluation_loader(arrays, 48))
    return {"norms": sink.norms, "val_loss": sink.val_loss, "weights": [p.detach() for p in model.parameters()]}


def in_two_processes(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes ends with, by algorithm."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"},
        **{"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    }
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder / f"{rank}.pt")],
            env={**os.environ, **common, "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=TIMEOUT_S)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.* is deprecated")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch knows no distributed training")
def test_two_processes_clip_the_joined_gradient_as_one_would(tmp_path: Path) -> None:
    first, second = in_two_processes(tmp_path)
    for algorithm in ARMS:
        alone = train(algorithm, 0, 1)
        assert any(w.is_complex() for w in alone["weights"])
        assert first[algorithm]["norms"] == second[algorithm]["norms"]
        assert all(map(torch.equal, first[algorithm]["weights"], second[algorithm]["weights"]))
        assert (
            first[algorithm]["val_loss"] == second[algorithm]["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-5)
        )
        np.testing.assert_allclose(first[algorithm]["norms"], alone["norms"], rtol=1e-5)
        for one, other in zip(first[algorithm]["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        before, after = np.array(alone["norms"]).T
        assert (after < before).any() == (algorithm != "none")


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.save({algorithm: train(algorithm, int(os.environ["LOCAL_RANK"]), 2) for algorithm in ARMS}, sys.argv[1])
