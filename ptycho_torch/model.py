"""The physics-informed network, and its training under Lightning's manual optimization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_torch.config_params import ModelConfig, TrainingConfig
from ptycho_torch.dataset import PtychoBatch, SeededBatches
from ptycho_torch.generators import Generator, build_generator
from ptycho_torch.losses import LOSSES, LossScale
from ptycho_torch.optimizers import make_optimizer, make_scheduler
from ptycho_torch.physics import diffract
from ptycho_torch.telemetry import EvalRecord, NoSink, Sink, StepBuffer, UpdateMeter
from ptycho_torch.train_utils import ClipReport, GradientClipper


class Prediction(NamedTuple):
    """patches (B, C, N, N) complex object patches, intensity (B, C, N, N) they would diffract."""

    patches: Tensor
    intensity: Tensor


class PtychoPINN(nn.Module):
    """A generator followed by the experiment it has to explain."""

    probe: Tensor

    def __init__(self, generator: Generator, probe: NDArray[np.complex64]) -> None:
        """Args: generator; probe (P, N, N) complex64 in model units, kept fixed."""
        super().__init__()
        self.generator = generator
        self.register_buffer("probe", torch.from_numpy(np.ascontiguousarray(probe)))

    @property
    def final_layer(self) -> nn.Module:
        """The generator's output layer."""
        return self.generator.final_layer

    def forward(self, amplitude: Tensor) -> Prediction:
        """(B, C, N, N) measured amplitudes -> the object patches that explain them."""
        patches = self.generator(amplitude)
        with torch.autocast(amplitude.device.type, enabled=False):
            return Prediction(patches, diffract(patches, self.probe))


def build_model(config: ModelConfig, probe: NDArray[np.complex64], seed: int) -> PtychoPINN:
    """A freshly initialised model; its weights are a function of (config, seed) alone.

    Raises:
        InputError: the architecture does not fit the frame size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PtychoPINN(build_generator(config), probe)


class PtychoPINN_Lightning(L.LightningModule):
    """Wiring: loss, backward, clip, step, record. One training step is one optimizer step.

    Its checkpoints hold tensors and plain numbers only: load them with ``weights_only=True``.

    Args:
        model: the network with its physics.
        training_config: every training setting.
        loss_scale: averages of the training set that the loss is divided by.
        total_steps: optimizer steps planned, for schedules and the step budget.
        sink: where records go.
    """

    clipper: GradientClipper
    meter: UpdateMeter

    def __init__(
        self,
        model: PtychoPINN,
        training_config: TrainingConfig,
        loss_scale: LossScale,
        total_steps: int,
        sink: Sink | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.training_config = training_config
        self.gradient_clip_val = training_config.gradient_clip_val
        self.loss_scale = loss_scale
        self.total_steps = total_steps
        self.sink: Sink = NoSink() if sink is None else sink
        self.steps_done = 0
        self._buffer = StepBuffer()
        self._evaluation: list[Tensor] = []
        self._clipper_state: dict[str, Any] = {}

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.model.parameters(), self.training_config)
        scheduler = make_scheduler(optimizer, self.training_config, self.total_steps)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def frame_losses(self, batch: PtychoBatch, prediction: Prediction) -> Tensor:
        """(b,) loss of each frame of a batch."""
        loss = LOSSES[self.training_config.torch_loss_mode]
        return loss(prediction.intensity, batch.amplitude, self.loss_scale)

    # training -----------------------------------------------------------------------------------

    def make_clipper(self) -> GradientClipper:
        """The configured clipper of the model's gradients."""
        config = self.training_config
        return GradientClipper(
            self.model,
            algorithm=config.gradient_clip_algorithm,
            threshold=self.gradient_clip_val,
            eps=config.gradient_clip_eps,
            skip_last=config.gradient_clip_skip_last,
            nonfinite=config.gradient_clip_nonfinite,
        )

    def on_fit_start(self) -> None:
        self.clipper = self.make_clipper()
        if self._clipper_state:
            self.clipper.load_state_dict(self._clipper_state)
        flat = [p for group in self.optimizers().param_groups for p in group["params"]]  # type: ignore[union-attr]
        self.meter = UpdateMeter(flat)  # few arrays that hold all weights
        self.trainer.should_stop = self.steps_done >= self.total_steps  # resumed where the budget was spent

    def on_train_start(self) -> None:
        """Serve the next step's frames; the Trainer restores a loader's place within an epoch only."""
        sampler = getattr(self.trainer.train_dataloader, "sampler", None)
        if isinstance(sampler, SeededBatches):
            sampler.position = self.steps_done

    def training_step(self, batch: PtychoBatch, batch_idx: int) -> None:
        """One optimizer step on all frames of ``batch``, each of the same weight, however they are split."""
        parts = batch.split(self.training_config.batch_size)
        losses = [self._backward(part, part_of=len(batch.frames)) for part in parts]
        self._optimizer_step(torch.stack(losses).sum())

    def _backward(self, batch: PtychoBatch, part_of: int) -> Tensor:
        """Add a batch's gradient; return its part of the mean loss over ``part_of`` frames."""
        loss = self.frame_losses(batch, self.model(batch.amplitude)).sum() / part_of
        self.manual_backward(loss)
        return loss.detach()

    def _optimizer_step(self, loss: Tensor) -> None:
        optimizer = self.optimizers()
        rate = float(optimizer.param_groups[0]["lr"])  # type: ignore[union-attr]
        report = self.clipper()
        self.meter.mark()
        if not self.clipper.can_skip or bool(report.keep):
            optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        self._record(loss, report, rate)
        self.steps_done += 1
        if self.training_config.scheduler == "warmup_cosine":
            self.lr_schedulers().step()  # type: ignore[union-attr]
        if self.steps_done >= self.total_steps:
            self.trainer.should_stop = True

    def _record(self, loss: Tensor, report: ClipReport, rate: float) -> None:
        update_ratio, weight_norm = self.meter.measure()
        row = (loss, report.norm_before, report.norm_after, report.clipped_fraction, update_ratio, weight_norm)
        self._buffer.add(self.steps_done, row, rate)
        config = self.training_config
        if config.log_grad_norm and self.steps_done % config.grad_norm_log_freq == 0:
            self.sink.on_layer_norms(self.steps_done, self.clipper.layer_norms())
        if self._buffer.full:
            self._flush()

    def _flush(self) -> None:
        records = self._buffer.flush()
        if records and self.sink.on_steps(records):
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        self._flush()

    # validation ---------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._evaluation = []

    def validation_step(self, batch: PtychoBatch, batch_idx: int) -> None:
        prediction = self.model(batch.amplitude)
        losses = self.frame_losses(batch, prediction)
        count = losses.new_tensor(losses.numel())
        self._evaluation.append(torch.cat((torch.stack((losses.sum(), count)), spread_sums(prediction.patches))))

    def on_validation_epoch_end(self) -> None:
        self._flush()
        record = evaluation_record(self.steps_done, self._evaluation)
        if self.sink.on_eval(record):
            self.trainer.should_stop = True
        if self.training_config.scheduler == "plateau" and self.trainer.state.fn == TrainerFn.FITTING:
            self.lr_schedulers().step(record.val_loss)  # type: ignore[union-attr, arg-type]

    def predict_step(self, batch: PtychoBatch, batch_idx: int) -> Tensor:
        return self.model(batch.amplitude).patches

    # checkpoints --------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._flush()  # a resumed training goes on behind these records
        checkpoint["clipper"] = self.clipper.state_dict()
        checkpoint["steps_done"] = self.steps_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._clipper_state = checkpoint["clipper"]
        self.steps_done = checkpoint["steps_done"]


def spread_sums(patches: Tensor) -> Tensor:
    """(5,) sums over object patches (B, C, N, N): pixels, amplitude, its square, and the unit phasor's parts."""
    amplitude = patches.abs().double()
    phasor = patches / patches.abs().clamp(min=1e-30)
    return torch.stack(
        (
            torch.tensor(float(amplitude.numel()), dtype=torch.float64, device=patches.device),
            amplitude.sum(),
            (amplitude**2).sum(),
            phasor.real.double().sum(),
            phasor.imag.double().sum(),
        )
    )


def evaluation_record(step: int, sums: Sequence[Tensor]) -> EvalRecord:
    """The validation that per-batch sums (loss, frames, then :func:`spread_sums`) add up to."""
    loss, n_frames, pixels, amplitude, square, real, imag = torch.stack(list(sums)).sum(0).tolist()
    mean = amplitude / pixels
    variance = max(0.0, square / pixels - mean**2) if math.isfinite(square) else math.nan
    resultant = math.hypot(real, imag) / pixels
    return EvalRecord(
        step=step,
        val_loss=loss / n_frames,
        amp_spread=math.sqrt(variance) / mean if mean != 0 else 0.0,
        phase_spread=math.sqrt(-2 * math.log(min(1.0, resultant))) if resultant > 0 else math.nan,
    )
