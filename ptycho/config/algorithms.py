"""The gradient clipping algorithms by name: what each does, where it comes from, its threshold.

Only the standard library is imported here, so that a command line can list the algorithms without
loading torch. The functions themselves stand in ``ptycho_torch.train_utils``, one for each entry.
"""

from __future__ import annotations

import dataclasses

ClipAlgorithm = str
"""A name of :data:`ALGORITHMS`, to which users can add theirs."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmInfo:
    """One clipping algorithm.

    Attributes:
        summary: what it does, in a sentence.
        reference: paper or library it comes from.
        threshold: what the threshold means.
        default: threshold used by a study when none is given.
        low, high: sensible range of the threshold, both inclusive.
        stateful: whether it keeps a history of the gradient, which belongs into a checkpoint.
        can_skip: whether it can leave an optimizer step out.
    """

    summary: str
    reference: str
    threshold: str
    default: float
    low: float
    high: float
    stateful: bool = False
    can_skip: bool = False


ALGORITHMS: dict[ClipAlgorithm, AlgorithmInfo] = {
    "none": AlgorithmInfo(
        summary="The gradient as it is.",
        reference="",
        threshold="not used",
        default=0.0,
        low=0.0,
        high=0.0,
    ),
    "norm": AlgorithmInfo(
        summary="The whole gradient is scaled down until its L2 norm is at most the threshold.",
        reference="Pascanu et al. 2013, Algorithm 1",
        threshold="largest global L2 norm of the gradient",
        default=1.0,
        low=1e-3,
        high=100.0,
    ),
    "value": AlgorithmInfo(
        summary="Each entry is clamped; real and imaginary parts of a complex entry each on their own.",
        reference="torch.nn.utils.clip_grad_value_",
        threshold="largest magnitude of one entry of the gradient",
        default=0.01,
        low=1e-5,
        high=10.0,
    ),
    "agc": AlgorithmInfo(
        summary="Each tensor's gradient norm is bounded by a fraction of that tensor's weight norm.",
        reference="Brock et al. 2021, Algorithm 2, with whole tensors as units",
        threshold="largest ratio of gradient norm to weight norm, per tensor",
        default=0.01,
        low=1e-4,
        high=1.0,
    ),
    "agc_unit": AlgorithmInfo(
        summary="Each output unit's gradient norm is bounded by a fraction of that unit's weight norm.",
        reference="Brock et al. 2021, Algorithm 2",
        threshold="largest ratio of gradient norm to weight norm, per output unit",
        default=0.01,
        low=1e-4,
        high=1.0,
    ),
    "autoclip": AlgorithmInfo(
        summary="The global norm is bounded by a percentile of all global norms seen so far.",
        reference="Seetharaman et al. 2020",
        threshold="percentile of the history of global norms",
        default=10.0,
        low=1.0,
        high=100.0,
        stateful=True,
    ),
    "zclip": AlgorithmInfo(
        summary="The global norm is pulled back when it lies too many standard deviations above its moving average.",
        reference="Kumar et al. 2025, z-score with adaptive scaling",
        threshold="z-score of the global norm above which it counts as a spike",
        default=2.5,
        low=1.0,
        high=6.0,
        stateful=True,
    ),
    "adagc": AlgorithmInfo(
        summary="Each tensor's gradient norm is bounded by a multiple of the moving average of that tensor's own norm.",
        reference="Wang et al. 2025, Algorithm 1",
        threshold="largest ratio of a tensor's gradient norm to its moving average",
        default=1.05,
        low=1.0,
        high=10.0,
        stateful=True,
    ),
    "skip": AlgorithmInfo(
        summary="The step is left out when the gradient is not finite or far above the running median of its norms.",
        reference="common practice in large-scale training",
        threshold="largest ratio of the global norm to its running median",
        default=10.0,
        low=1.5,
        high=100.0,
        stateful=True,
        can_skip=True,
    ),
}
