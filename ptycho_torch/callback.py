"""Clipping in anyone's Lightning training: one callback, for modules with automatic optimization."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.optim import Optimizer

from ptycho.errors import InputError
from ptycho_torch.clipping.clipper import Clipper, check_settings
from ptycho_torch.clipping.record import ClipReport

SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class ClipGradients(L.Callback):
    """Clips before every optimizer step, once gradients are accumulated, unscaled and reduced over all processes.

    ``Trainer(callbacks=[ClipGradients("agc_unit", 0.01)])`` is all it takes. Each step logs ``grad_norm/preclip``,
    ``grad_norm/postclip`` and ``grad_norm/clipped_fraction``. An algorithm's history goes into the Trainer's
    checkpoints. A step that is to be left out finds no gradients, so that weights and moments stay as they are.

    Args:
        algorithm: a name of ``ptycho.config.algorithms.ALGORITHMS``.
        threshold: the algorithm's threshold, from 0; None switches clipping off, and norms are still logged.
        eps, skip_last, nonfinite: see :class:`ptycho_torch.clipping.clipper.Clipper`.

    Attributes:
        last_report: what the last step saw; None before the first.

    Raises:
        InputError: a ``ValueError`` with the setting's name, its value and what is allowed.
    """

    def __init__(
        self,
        algorithm: str = "norm",
        threshold: float | None = None,
        *,
        eps: float = 1e-3,
        skip_last: bool = False,
        nonfinite: str = "propagate",
    ) -> None:
        check_settings(algorithm, threshold, eps, nonfinite)
        self._settings: dict[str, Any] = dict(
            algorithm=algorithm, threshold=threshold, eps=eps, skip_last=skip_last, nonfinite=nonfinite
        )
        self._clipper: Clipper | None = None
        self._restored: dict[str, Any] = {}
        self.last_report: ClipReport | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a training in which gradients would be clipped twice, or not at all.

        Raises:
            InputError: the Trainer clips too, the module steps by itself, or no process has whole gradients.
        """
        if trainer.gradient_clip_val is not None:
            raise InputError(
                f"gradient_clip_val: the Trainer clips too, at {trainer.gradient_clip_val}; allowed beside "
                "ClipGradients: None"
            )
        if not pl_module.automatic_optimization:
            raise InputError(
                f"automatic_optimization: {type(pl_module).__name__} makes its steps by itself; allowed with "
                "ClipGradients: True (else call clip_gradients_ in training_step)"
            )
        if isinstance(trainer.strategy, SHARDED):
            raise InputError(f"strategy: {type(trainer.strategy).__name__} shards gradients; allowed: one device, ddp")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clipper = Clipper(pl_module, **self._settings)
        if self._restored:
            self._clipper.load_state_dict(self._restored)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        assert self._clipper is not None
        report = self.last_report = self._clipper()
        if self._clipper.can_skip and not bool(report.keep):
            optimizer.zero_grad(set_to_none=True)
        pl_module.log("grad_norm/preclip", report.norm_before.float())
        pl_module.log("grad_norm/postclip", report.norm_after.float())
        pl_module.log("grad_norm/clipped_fraction", report.clipped_fraction.float())

    def state_dict(self) -> dict[str, Any]:
        return self._restored if self._clipper is None else self._clipper.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
