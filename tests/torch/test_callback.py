"""The Lightning callback clips as ``clip_gradients_`` does by hand, in a real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ptycho.errors import InputError
from ptycho_torch.callback import ClipGradients
from ptycho_torch.train_utils import clip_gradients_

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated.*"),
    pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before.*"),
]
STEPS = 8
RATE = 0.1


class Line(L.LightningModule):
    """Anyone's module: nothing in it knows of clipping."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD, spike_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.optimizer, self.spike_at = optimizer, spike_at
        self.seen: list[dict[str, float]] = []

    def loss(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        loss = 10 * (self.net(x) - y).square().mean()
        return loss * float("inf") if step == self.spike_at else loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch[0], batch[1], self.global_step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append({k: float(v) for k, v in self.trainer.callback_metrics.items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=RATE)  # type: ignore[call-arg]


def batches(different: int = STEPS) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * different, 3, generator=generator).repeat(STEPS // different, 1)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=2)


def trainer(folder: Path, *callbacks: L.Callback, **more: Any) -> L.Trainer:
    options = dict(max_steps=STEPS, accelerator="cpu", logger=False, enable_progress_bar=False)
    return L.Trainer(
        **{**options, **more}, default_root_dir=folder, callbacks=list(callbacks),
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip


def by_hand(algorithm: str, threshold: float | None, spike_at: int | None = None) -> tuple[Line, list[float]]:
    module, state, norms = Line(spike_at=spike_at), {}, []  # type: ignore[var-annotated]
    optimizer = module.configure_optimizers()
    for step, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        module.loss(x, y, step).backward()
        report = clip_gradients_(module, algorithm=algorithm, threshold=threshold, state=state)
        norms.append(float(report.norm_before))
        if bool(report.keep):
            optimizer.step()
    return module, norms


@pytest.mark.parametrize(
    ("algorithm", "threshold"), [("norm", 0.5), ("agc_unit", 0.05), ("autoclip", 30.0), ("norm", None)]
)
def test_weights_and_records_are_those_of_clipping_by_hand(
    algorithm: str, threshold: float | None, tmp_path: Path
) -> None:
    module, (expected, norms) = Line(), by_hand(algorithm, threshold)
    trainer(tmp_path, ClipGradients(algorithm, threshold)).fit(module, batches())
    for ours, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert [seen["grad_norm/preclip"] for seen in module.seen] == pytest.approx(norms, rel=1e-6)
    clipped = [seen["grad_norm/clipped_fraction"] for seen in module.seen]
    assert (max(clipped) > 0) == (threshold is not None)
    assert all(seen["grad_norm/postclip"] <= seen["grad_norm/preclip"] * (1 + 1e-6) for seen in module.seen)
    unclipped, _ = by_hand("none", None)
    same = all(torch.equal(a, b) for a, b in zip(unclipped.parameters(), module.parameters(), strict=True))
    assert same == (threshold is None)


def test_a_step_left_out_changes_nothing_at_all(tmp_path: Path) -> None:
    class Watch(L.Callback):
        weights: list[Tensor]

        def __init__(self) -> None:
            self.weights = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.weights.append(nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone())

    watch = Watch()
    module = Line(torch.optim.Adam, spike_at=3)
    trainer(tmp_path, ClipGradients("norm", 1.0, nonfinite="skip"), watch).fit(module, batches())
    assert torch.equal(watch.weights[3], watch.weights[2])
    assert not torch.equal(watch.weights[4], watch.weights[3])
    assert all(w.isfinite().all() for w in watch.weights)
    assert module.seen[3]["grad_norm/clipped_fraction"] == 1


@pytest.mark.parametrize("algorithm", ["autoclip", "zclip"])
def test_a_resumed_training_is_the_same_bit_for_bit(algorithm: str, tmp_path: Path) -> None:
    whole = Line()
    trainer(tmp_path, ClipGradients(algorithm, 2.5)).fit(whole, batches(1))  # all alike: a Trainer may begin an epoch
    first = trainer(tmp_path, ClipGradients(algorithm, 2.5), max_steps=4)
    first.fit(Line(), batches(1))
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed, callback = Line(), ClipGradients(algorithm, 2.5)
    again = trainer(tmp_path, callback)
    again.fit(resumed, batches(1), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert again.global_step == STEPS
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert callback.last_report is not None


def test_accumulated_gradients_are_clipped_once_a_step(tmp_path: Path) -> None:
    module = Line()
    trainer(tmp_path, ClipGradients("norm", 0.5), max_steps=-1, max_epochs=1, accumulate_grad_batches=4).fit(
        module, batches()
    )
    expected = Line()
    optimizer = expected.configure_optimizers()
    for step, (x, y) in enumerate(batches()):
        (expected.loss(x, y, step) / 4).backward()
        if step % 4 == 3:
            clip_gradients_(expected, algorithm="norm", threshold=0.5)
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class Manual(Line):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_trainings_that_it_cannot_clip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gradient_clip_val: the Trainer clips too, at 1\.0"):
        trainer(tmp_path, ClipGradients("norm", 1.0), gradient_clip_val=1.0).fit(Line(), batches())
    with pytest.raises(InputError, match="automatic_optimization: Manual makes its steps by itself"):
        trainer(tmp_path, ClipGradients("norm", 1.0)).fit(Manual(), batches())
    with pytest.raises(InputError, match=r"algorithm: unknown value 'agd'.*did you mean 'agc'"):
        ClipGradients("agd", 1.0)
