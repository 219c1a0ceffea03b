"""What clipping costs: this library beside others, on the same gradients, in the same process, in turns.

    python -m benchmarks.clipping [--set hybrid_17m] [--rounds 15] [--device cuda]

Every contender runs once in every round, on freshly restored gradients that all need clipping, on one thread.
``timm`` and ``pytorch_optimizer`` take part where they are installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks.command import Effort, run_benchmark
from benchmarks.reference import clip, clip_and_log
from benchmarks.tables import Line, Table, goals
from benchmarks.timing import Contender, Measured, Times, clock_for, in_turns, ratio, threads
from ptycho.config.algorithms import ALGORITHMS
from ptycho.config.config import ModelConfig
from ptycho_torch.clipping import blocks
from ptycho_torch.clipping.norms import as_real
from ptycho_torch.generators import build_generator
from ptycho_torch.generators.spectral import SpectralConv2d
from ptycho_torch.train_utils import ClipReport, GradientClipper

# the tensor sets --------------------------------------------------------------------------------


def hybrid_17m() -> nn.Module:
    """The hybrid network with square spectral weights, (out, in, 12, 12): 17 M, most of them complex."""
    model = build_generator(ModelConfig(architecture="hybrid"))
    for layer in model.modules():
        if isinstance(layer, SpectralConv2d):
            channels = layer.weight.shape[:2]
            side = 6 if layer is model.network.bottleneck.spectral else 12
            layer.weight = nn.Parameter(torch.randn(*channels, side, side, dtype=torch.complex64))
    return model


def small_200() -> nn.Module:
    """200 small real tensors: 50 blocks of a convolution and a linear layer, each with a bias."""
    return nn.Sequential(*[layer for _ in range(50) for layer in (nn.Conv2d(8, 8, 3), nn.Linear(16, 32))])


def default_model() -> nn.Module:
    """The network that this project trains where nothing else is said."""
    return build_generator(ModelConfig())


SETS: dict[str, Callable[[], nn.Module]] = {
    "hybrid_17m": hybrid_17m,
    "small_200": small_200,
    "default": default_model,
}
ROUNDS = {"hybrid_17m": 7, "small_200": 60, "default": 7}


# the contenders ---------------------------------------------------------------------------------


def floor(gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Two passes over the memory and nothing else: what adaptive clipping has to read and to write.

    The first reads weights and gradients, the second reads and writes the gradients; each is one
    call on one flat array.
    """
    for flat in (*weights, *gradients):
        torch.linalg.vector_norm(flat)
    for flat in gradients:
        flat.mul_(1.0)


def bare_calls(parameters: Sequence[Tensor]) -> Contender:
    """What a rule of two norms cannot do without on small tensors, and nothing else.

    Gradients and weights of one shape are stacked, a norm is taken of each, each gradient is multiplied by a number:
    no rule, no record, no look at what is finite.
    """
    alike: dict[torch.Size, list[Tensor]] = {}
    for p in parameters:
        alike.setdefault(p.shape, []).append(p.detach())
    numbers = list(torch.ones(len(parameters)).unbind())

    def run() -> None:
        for group in alike.values():
            torch.linalg.vector_norm(torch.stack(group + group).flatten(1), dim=1)
        torch._foreach_mul_([p.grad for p in parameters], numbers)

    return run


def timm_module() -> ModuleType | None:
    """timm's AGC file by itself: importing timm as a whole would want torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "utils" / "agc.py"
    file_spec = importlib.util.spec_from_file_location("timm_agc", path)
    if file_spec is None or file_spec.loader is None:
        return None
    module = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module)
    return module


def others(parameters: list[Tensor]) -> dict[str, Contender]:
    """Everyone else's clipping on ``parameters``."""
    clip_norm = torch.nn.utils.clip_grad_norm_
    flat_weights = [torch.cat([as_real(p.detach()).reshape(-1) for p in parameters])]
    flat_gradients = [torch.randn_like(flat_weights[0])]
    found: dict[str, Contender] = {
        "plain agc loop": lambda: clip(parameters),
        "plain agc + norms logged": lambda: clip_and_log(parameters),
        "clip_grad_norm_ foreach": lambda: clip_norm(parameters, 1.0, foreach=True),
        "clip_grad_norm_ loop": lambda: clip_norm(parameters, 1.0, foreach=False),
        "floor": lambda: floor(flat_gradients, flat_weights),
    }
    if all(p.numel() <= blocks.SMALL for p in parameters):
        found["bare calls"] = bare_calls(parameters)
    timm = timm_module()
    if timm is not None:
        found["timm adaptive_clip_grad"] = lambda: timm.adaptive_clip_grad(parameters)
    if importlib.util.find_spec("pytorch_optimizer") is not None:
        from pytorch_optimizer import agc

        def optimizer_agc() -> None:
            for p in parameters:
                p.grad.copy_(agc(p.detach(), p.grad))  # type: ignore[union-attr, arg-type]

        found["pytorch_optimizer agc"] = optimizer_agc
    return found


def read(report: ClipReport, layers: bool = False) -> tuple[Tensor, ...]:
    """Everything a training step logs, left on the device."""
    numbers = (report.norm_before, report.norm_after, report.clipped_fraction, report.smallest_scale, report.finite)
    return (*numbers, report.layer_norms) if layers else numbers


def ours(model: nn.Module) -> dict[str, Contender]:
    """This library on ``model``, every algorithm, past its warm-up."""
    found: dict[str, Contender] = {}
    for name, info in ALGORITHMS.items():
        clipper = GradientClipper(model, algorithm=name, threshold=info.default)
        found[f"ours {name}"] = clipper
        if name in ("agc", "agc_unit"):
            found[f"ours {name}, record read"] = lambda clipper=clipper: read(clipper())
            found[f"ours {name}, layers too"] = lambda clipper=clipper: read(clipper(), layers=True)
    return found


# timing -----------------------------------------------------------------------------------------


def time_all(model: nn.Module, rounds: int) -> Times:
    """Milliseconds of every contender, one entry per round."""
    parameters: list[Tensor] = list(model.parameters())
    saved = [torch.randn_like(p) for p in parameters]
    for p in parameters:
        p.grad = torch.empty_like(p)

    def restore() -> None:
        for p, gradient in zip(parameters, saved, strict=True):
            p.grad.copy_(gradient)  # type: ignore[union-attr]

    clock = clock_for(str(parameters[0].device))
    return in_turns(others(parameters) | ours(model), rounds, clock=clock, before=restore)


# the tables -------------------------------------------------------------------------------------

BASES = ("plain agc loop", "timm adaptive_clip_grad", "clip_grad_norm_ foreach", "floor")

Target = tuple[str, str, str, float, bool]
"""Contender, what it is held against, the goal's wording, the goal, and whether more is better."""

LARGE: list[Target] = [
    (f"ours {a}", base, text, goal, faster)
    for a in ("agc", "agc_unit")
    for base, text, goal, faster in (
        ("plain agc loop", "times faster", 20, True),
        ("timm adaptive_clip_grad", "times faster", 25, True),
        ("clip_grad_norm_ foreach", "part of its time", 0.12, False),
        ("floor", "part of its time", 1.3, False),
    )
]
LARGE += [
    (f"ours {a}", "clip_grad_norm_ foreach", "part of its time", 0.08, False)
    for a in ("norm", "autoclip", "zclip", "adagc")
]
LARGE += [
    ("ours agc, layers too", "plain agc + norms logged", "times faster", 45, True),
    ("ours agc, record read", "ours agc", "part of its time", 1.01, False),
    ("ours agc_unit, record read", "ours agc_unit", "part of its time", 1.01, False),
]
SMALL: list[Target] = [
    ("ours agc", "clip_grad_norm_ foreach", "part of its time", 0.5, False),
    ("ours agc_unit", "clip_grad_norm_ foreach", "part of its time", 1.0, False),
    ("ours agc, layers too", "plain agc + norms logged", "times faster", 7, True),
    ("ours agc, record read", "ours agc", "part of its time", 1.03, False),
    ("ours agc_unit, record read", "ours agc_unit", "part of its time", 1.03, False),
]
TARGETS: dict[str, list[Target]] = {"hybrid_17m": LARGE, "small_200": SMALL, "default": []}


def contenders_table(title: str, times: Times) -> Table:
    """Median, spread and the ratios to each base, round by round."""
    bases = [base for base in BASES if base in times]
    rows = []
    for name, values in times.items():
        own = Measured.of(values)
        ratios = [f"{ratio(times, name, base).median:.3f}" for base in bases]
        rows.append([name, f"{own.median:.3f}", f"{own.spread:.0%}", *ratios])
    columns = ["contender", "median ms", "spread", *[f"/ {base}" for base in bases]]
    return Table(title=title, columns=columns, rows=rows)


def verdicts(times: Times, targets: Sequence[Target]) -> list[Line]:
    """What was reached, and what was wanted."""
    lines = []
    for name, base, text, goal, faster in targets:
        if base in times:
            upper, lower = (base, name) if faster else (name, base)
            what = f"{name} against {base}: {text}"
            lines.append(Line(what=what, reached=ratio(times, upper, lower), goal=goal, at_most=not faster))
    return lines


def measure(effort: Effort, sets: Sequence[str] = tuple(SETS), device: str = "cpu") -> Iterator[Table]:
    """Two tables for each set of tensors: the contenders, and the goals where there are any."""
    with threads(1):
        for name in ["small_200"] if effort.toy else sets:
            torch.manual_seed(0)
            model = SETS[name]().to(device)
            count, rounds = sum(p.numel() for p in model.parameters()), effort.rounds_or(ROUNDS[name])
            times = time_all(model, rounds)
            title = f"Clipping, {name}: {len(list(model.parameters()))} tensors, {count:,} parameters"
            yield contenders_table(f"{title}, {device}, {rounds} rounds", times)
            if TARGETS[name]:
                yield goals(f"Clipping, {name}: goals", verdicts(times, TARGETS[name]))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the sets that were asked for."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--set", dest="sets", action="append", choices=sorted(SETS), help="tensor set (default: all)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    own, rest = parser.parse_known_args(argv)
    chosen = functools.partial(measure, sets=own.sets or tuple(SETS), device=own.device)
    return run_benchmark(chosen, __doc__, rest)


if __name__ == "__main__":
    sys.exit(main())
