"""Every shared setting, declared once: the data, the network, the training.

Flags, MLflow parameters and the documentation are derived from these declarations; see
``ptycho.config.settings``. Only the standard library is imported.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ptycho.config.algorithms import ALGORITHMS, ClipAlgorithm
from ptycho.config.settings import setting, validate
from ptycho.errors import InputError

Optimizer = Literal["adam", "adamw", "sgd"]
Scheduler = Literal["none", "warmup_cosine", "plateau"]
LossMode = Literal["mae", "poisson"]
ScanAxes = Literal["keep", "flip_y", "flip_x", "flip_both", "swap", "swap_flip_y", "swap_flip_x", "swap_flip_both"]

ARCHITECTURES: dict[str, str] = {
    "cnn": "A U-Net of plain convolutions",
    "fno": "Fourier neural operator, then convolutional blocks",
    "fno_vanilla": "Fourier neural operator alone",
    "hybrid": "A U-Net of spectral and convolutional blocks",
    "stable_hybrid": "hybrid with normalisation and LayerScale in each block",
}
U_SHAPED = ("cnn", "hybrid", "stable_hybrid")
SMALLEST_LEVEL_PX = 2


def largest_depth(size: int) -> int:
    """The most levels a U-shaped network can have on frames of ``size`` px: each halves the one before.

    >>> largest_depth(64), largest_depth(96)
    (6, 6)
    """
    depth = 1
    while size % 2 == 0 and size // 2 >= SMALLEST_LEVEL_PX:
        size, depth = size // 2, depth + 1
    return depth


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """What is wrong with the training frames, on purpose."""

    fault: tuple[str, ...] = setting(
        (), "Fault put into the training frames, as name:rate=...,size=...,onset=... (repeatable)"
    )

    def __post_init__(self) -> None:
        validate(self)

    def check_together(self) -> None:
        """Refuse a fault that cannot be read."""
        if self.fault:
            from ptycho.faults import parse_fault  # NumPy is loaded only where there is a fault to read

            for text in self.fault:
                parse_fault(text)


def beam_centre(text: str) -> str | tuple[float, float]:
    """Where a frame has its zero frequency: the word ``auto``, ``corner`` or ``centre``, or (row, column) in px.

    >>> beam_centre("corner"), beam_centre("255.5,260")
    ('corner', (255.5, 260.0))

    Raises:
        InputError: anything else.
    """
    if text in ("auto", "corner", "centre"):
        return text
    try:
        row, column = (float(part) for part in text.split(","))
    except ValueError:
        allowed = "auto, corner, centre, or ROW,COLUMN in px of the whole frame"
        raise InputError(f"zero_frequency: {text!r} is no place in a frame; allowed: {allowed}") from None
    return row, column


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """How a real scan's file is understood: what it does not say, and what part of it is used."""

    energy_kev: float | None = setting(None, "Photon energy; by default as the scan's file says", unit="keV", above=0)
    distance_m: float | None = setting(
        None, "From the sample to the detector; by default as the scan's file says", unit="m", above=0
    )
    pixel_size_um: float | None = setting(
        None, "Side of a detector pixel; by default as the scan's file says", unit="um", above=0
    )
    scan_crop: int | None = setting(
        None,
        "Side of the part of each frame that is used: fewer pixels make those of the object larger",
        unit="px",
        low=8,
    )
    scan_bin: int = setting(
        1, "Detector pixels along each side that are added to one: more make the field of view smaller", low=1
    )
    scan_probe: str | None = setting(
        None, "File with the probe of a real scan; by default the scan's own, or one estimated from its frames"
    )
    scan_positions: str | None = setting(
        None, "File with the positions (and probe) of a scan of /dp frames; by default the one beside it"
    )
    scan_axes: ScanAxes = setting("keep", "Change of the (y, x) that a scan's file gives as positions")
    zero_frequency: str = setting(
        "auto", "Where a real frame has its zero frequency: auto, corner, centre, or ROW,COLUMN in px"
    )
    mask_hot: bool = setting(False, "Mask pixels of a real detector that look hot or dead")
    drop_nan: bool = setting(False, "Leave out frames of a real scan that hold values that are not finite")
    clip_negative: bool = setting(False, "Take negative values, as a dark subtraction leaves them, for zero")

    def __post_init__(self) -> None:
        validate(self)

    def check_together(self) -> None:
        """Refuse a zero frequency that is no place in a frame, and a crop that cannot be binned."""
        beam_centre(self.zero_frequency)
        if self.scan_crop is not None and self.scan_crop % self.scan_bin:
            raise InputError(
                f"scan_bin: {self.scan_bin} does not divide scan_crop {self.scan_crop}; allowed: a divisor of it"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(ScanConfig, FaultConfig):
    """Where the diffraction patterns come from: a file, or the grid-lines simulation."""

    data: str | None = setting(None, "Real scan to train on; without it, grid-lines objects are simulated")
    object_size: int = setting(392, "Side of the simulated object", unit="px", low=16)
    n_lines: int = setting(400, "Random line segments on the simulated canvas of twice the side", low=1)
    set_phi: bool = setting(True, "Give the simulated object a phase")
    outer_offset_train: int = setting(8, "Twice the raster step of the training scan", unit="px", low=2)
    outer_offset_test: int = setting(20, "Twice the raster step of the test scan", unit="px", low=2)
    nphotons: float = setting(1e9, "Mean number of photons per simulated frame", unit="photons", above=0)
    probe: str = setting("disk", "Simulated probe: disk, gaussian, or an NPZ file with probeGuess")
    probe_diameter: float = setting(0.5, "Diameter of the simulated probe as a fraction of the frame", above=0, high=1)
    probe_defocus: float = setting(
        0.0, "Quadratic phase of the simulated gaussian probe at its diameter", unit="rad", low=-100, high=100
    )
    validation_fraction: float = setting(0.1, "Part of the training frames kept for validation", above=0, high=0.5)
    test_fraction: float = setting(
        0.1,
        "Part of a real scan's frames kept for the test; a simulation tests on a second object",
        above=0,
        high=0.5,
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: diffraction patterns in, complex object patches out."""

    architecture: str = setting("hybrid", "Generator network", names=ARCHITECTURES)
    N: int = setting(64, "Side of a diffraction pattern and of an object patch", unit="px", low=8)
    gridsize: int = setting(1, "g: g*g neighbouring frames are stacked as channels", low=1, high=4)
    fno_modes: int = setting(12, "Spatial frequencies kept by a spectral layer, each way", low=1)
    fno_width: int = setting(32, "Channels of the first level", low=1)
    fno_blocks: int = setting(4, "Depth: spectral blocks, or levels of a U-shaped network", low=1)
    fno_cnn_blocks: int = setting(2, "Convolutional blocks after the spectral ones (fno) or at each level (cnn)", low=1)
    fno_input_transform: Literal["none", "sqrt", "log1p"] = setting("none", "Transform of the input amplitudes")
    generator_output_mode: Literal["real_imag", "amp_phase"] | None = setting(
        None, "What the two output channels stand for; by default amp_phase for cnn, real_imag for the others"
    )
    layerscale_init: float = setting(1e-3, "Initial LayerScale of stable_hybrid's blocks", low=0, high=10)

    def __post_init__(self) -> None:
        validate(self)

    def check_together(self) -> None:
        """Refuse a U-shaped network that is too deep for its frames."""
        deepest = largest_depth(self.N)
        if self.architecture in U_SHAPED and self.fno_blocks > deepest:
            raise InputError(
                f"fno_blocks: {self.fno_blocks} levels of {self.architecture} do not fit frames of {self.N} px; "
                f"allowed: at most {deepest} (the smallest level keeps {SMALLEST_LEVEL_PX} px)"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The optimisation."""

    seed: int = setting(42, "Replicate: initial weights, data order and data derive from it", low=0)
    epochs: int = setting(50, "Passes over the training frames", low=1)
    max_steps: int | None = setting(None, "Optimizer steps; where given, epochs do not count", low=1)
    batch_size: int = setting(16, "Frames per batch", low=1)
    infer_batch_size: int = setting(64, "Frames per batch when no gradient is needed", low=1)
    learning_rate: float = setting(1e-3, "Peak learning rate", above=0)
    optimizer: Optimizer = setting("adam", "Optimizer")
    momentum: float = setting(0.9, "Momentum of sgd; first-moment decay of adam and adamw", low=0, high=0.999)
    weight_decay: float = setting(0.0, "Weight decay", low=0)
    scheduler: Scheduler = setting("none", "Learning-rate schedule, stepped once per optimizer step")
    warmup_steps: int = setting(0, "Steps of linear warm-up (warmup_cosine)", unit="steps", low=0)
    scheduler_floor: float = setting(0.0, "Lowest rate as a fraction of the peak rate", low=0, high=1)
    plateau_patience: int = setting(5, "Validations without progress before the rate falls (plateau)", low=0)
    plateau_factor: float = setting(0.5, "Factor on the rate at a plateau", above=0, high=0.99)
    gradient_clip_val: float | None = setting(
        1.0, "Clipping threshold; off where it is 'off', 0 or less", flag="--grad-clip"
    )
    gradient_clip_algorithm: ClipAlgorithm = setting("norm", "Gradient clipping algorithm", names=ALGORITHMS)
    gradient_clip_eps: float = setting(1e-3, "Smallest weight norm that adaptive clipping reckons with", above=0)
    gradient_clip_skip_last: bool = setting(False, "Leave the final layer out of the adaptive algorithms")
    gradient_clip_nonfinite: Literal["propagate", "skip"] = setting(
        "propagate", "A gradient that is not finite: step with it, or leave the step out"
    )
    accumulate_grad_batches: int = setting(1, "Batches whose gradients make one optimizer step", low=1)
    torch_loss_mode: LossMode = setting("mae", "Loss: MAE of amplitudes, or Poisson likelihood of counts")
    eval_every: int = setting(50, "Optimizer steps between validations", unit="steps", low=1)

    def __post_init__(self) -> None:
        validate(self)
