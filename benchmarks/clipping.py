"""What clipping costs: this library beside others, on the same gradients, in the same process, in turns.

    python -m benchmarks.clipping [--set hybrid_17m] [--rounds 15] [--device cuda]

Only ratios of medians mean anything: the machine may be busy, and every contender runs once in
every round, in an order drawn anew, on freshly restored gradients that all need clipping. Times are
those of the one thread (wall-clock with more threads), and device events on an accelerator. ``timm``
and ``pytorch_optimizer`` take part where they are installed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ptycho.config.algorithms import ALGORITHMS
from ptycho.config.config import ModelConfig
from ptycho_torch.clipping.norms import as_real
from ptycho_torch.generators import build_generator
from ptycho_torch.generators.spectral import SpectralConv2d
from ptycho_torch.train_utils import ClipReport, GradientClipper

Contender = Callable[[], object]
Times = dict[str, list[float]]


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


# the contenders ---------------------------------------------------------------------------------


def seed_agc(parameters: Sequence[Tensor], clip_factor: float = 0.01, eps: float = 1e-3) -> None:
    """The loop this project started from: one tensor after the other, with a look at every norm."""
    for p in parameters:
        bound = p.data.norm(2).clamp(min=eps) * clip_factor
        norm = p.grad.data.norm(2)  # type: ignore[union-attr]
        if norm > bound:
            p.grad.data.mul_(bound / norm)  # type: ignore[union-attr]


def global_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Norm of the tensors' norms."""
    return torch.stack([p.grad.norm(2) for p in parameters]).norm(2)  # type: ignore[union-attr]


def seed_logged(parameters: Sequence[Tensor]) -> None:
    """Clip and log in the plain way: the norm of each tensor and of all before, clip, the norm of all after."""
    for p in parameters:
        float(p.grad.norm(2))  # type: ignore[union-attr]
    float(global_norm(parameters))
    seed_agc(parameters)
    float(global_norm(parameters))


def floor(gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Two passes over the memory and nothing else: what adaptive clipping has to read and to write.

    The first reads weights and gradients, the second reads and writes the gradients; each is one
    call on one flat array.
    """
    for flat in (*weights, *gradients):
        torch.linalg.vector_norm(flat)
    for flat in gradients:
        flat.mul_(1.0)


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
        "seed agc loop": lambda: seed_agc(parameters),
        "seed agc + norms logged": lambda: seed_logged(parameters),
        "clip_grad_norm_ foreach": lambda: clip_norm(parameters, 1.0, foreach=True),
        "clip_grad_norm_ loop": lambda: clip_norm(parameters, 1.0, foreach=False),
        "floor": lambda: floor(flat_gradients, flat_weights),
    }
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


def measure(model: nn.Module, rounds: int) -> Times:
    """Milliseconds of every contender, one entry per round."""
    parameters: list[Tensor] = list(model.parameters())
    saved = [torch.randn_like(p) for p in parameters]
    for p in parameters:
        p.grad = torch.empty_like(p)
    contenders = others(parameters) | ours(model)
    times: Times = {name: [] for name in contenders}
    clock = _event_ms if parameters[0].is_cuda else _host_ms
    for round_ in range(-3, rounds):
        for name, run in random.sample(list(contenders.items()), len(contenders)):
            for p, gradient in zip(parameters, saved, strict=True):
                p.grad.copy_(gradient)  # type: ignore[union-attr]
            elapsed_ms = clock(run)
            if round_ >= 0:
                times[name].append(elapsed_ms)
    return times


def _host_ms(run: Contender) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return (clock() - start) * 1e3


def _event_ms(run: Contender) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


# the tables -------------------------------------------------------------------------------------

BASES = ("seed agc loop", "timm adaptive_clip_grad", "clip_grad_norm_ foreach", "floor")

Target = tuple[str, str, str, float, bool]
"""Contender, what it is held against, the goal's wording, the goal, and whether more is better."""

LARGE: list[Target] = [
    (f"ours {a}", base, text, goal, faster)
    for a in ("agc", "agc_unit")
    for base, text, goal, faster in (
        ("seed agc loop", "times faster, at least", 20, True),
        ("timm adaptive_clip_grad", "times faster, at least", 25, True),
        ("clip_grad_norm_ foreach", "of its time, at most", 0.12, False),
        ("floor", "of its time, at most", 1.3, False),
    )
]
LARGE += [
    (f"ours {a}", "clip_grad_norm_ foreach", "of its time, at most", 0.08, False)
    for a in ("norm", "autoclip", "zclip", "adagc")
]
LARGE += [
    ("ours agc, layers too", "seed agc + norms logged", "times faster, at least", 45, True),
    ("ours agc, record read", "ours agc", "of its time, at most", 1.01, False),
    ("ours agc_unit, record read", "ours agc_unit", "of its time, at most", 1.01, False),
]
SMALL: list[Target] = [
    ("ours agc", "clip_grad_norm_ foreach", "of its time, at most", 0.5, False),
    ("ours agc_unit", "clip_grad_norm_ foreach", "of its time, at most", 1.0, False),
    ("ours agc, layers too", "seed agc + norms logged", "times faster, at least", 7, True),
    ("ours agc, record read", "ours agc", "of its time, at most", 1.03, False),
    ("ours agc_unit, record read", "ours agc_unit", "of its time, at most", 1.03, False),
]
TARGETS: dict[str, list[Target]] = {"hybrid_17m": LARGE, "small_200": SMALL, "default": []}


def table(times: Times) -> str:
    """Median, spread (half the interquartile range over the median) and the medians' ratios, as Markdown."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    bases = [base for base in BASES if base in medians]
    head = ["contender", "median ms", "spread", *[f"/ {base}" for base in bases]]
    rows = [head, ["---"] * len(head)]
    for name, values in times.items():
        lower, _, upper = statistics.quantiles(values, n=4)
        spread = f"{(upper - lower) / 2 / medians[name]:.0%}"
        rows.append([name, f"{medians[name]:.3f}", spread, *[f"{medians[name] / medians[b]:.3f}" for b in bases]])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def verdicts(times: Times, targets: Sequence[Target]) -> str:
    """One line for each target: what was reached, what was wanted."""
    lines = ["| target | goal | reached | |", "| --- | --- | --- | --- |"]
    for name, base, text, goal, faster in targets:
        if base not in times:
            continue
        ratio = statistics.median(times[name]) / statistics.median(times[base])
        reached = 1 / ratio if faster else ratio
        met = reached >= goal if faster else reached <= goal
        lines.append(f"| {name} against {base} | {text} {goal:g} | {reached:.3g} | {'met' if met else 'missed'} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the sets that were asked for and write the tables to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="sets", action="append", choices=sorted(SETS), help="tensor set (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each contender (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the host (default: 1)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    for name in options.sets or SETS:
        torch.manual_seed(0)
        model = copy.deepcopy(SETS[name]()).to(options.device)
        count = sum(p.numel() for p in model.parameters())
        times = measure(model, options.rounds)
        sys.stdout.write(
            f"\n## {name}: {len(list(model.parameters()))} tensors, {count:,} parameters, {options.device}, "
            f"{options.threads} thread(s), {options.rounds} rounds, torch {torch.__version__}\n\n"
            f"{table(times)}\n\n{verdicts(times, TARGETS[name]) if TARGETS[name] else ''}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
