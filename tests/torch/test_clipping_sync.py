"""No look at a number: nothing that would stall an accelerator."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ptycho_torch.train_utils import ALGORITHMS, ClipReport, GradientClipper

EVERY = pytest.mark.parametrize("algorithm", list(ALGORITHMS))
FIELDS = ("norm_before", "norm_after", "clipped_fraction", "smallest_scale", "finite", "keep", "layer_norms")


def network(device: str) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 4, 2), nn.Linear(300, 300), nn.Linear(3, 2))
    model.register_parameter("spectral", nn.Parameter(torch.ones(3, 2, 4, dtype=torch.complex64)))
    model = model.to(device)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model


def read_all(report: ClipReport) -> list[torch.Tensor]:
    return [getattr(report, name) for name in FIELDS]


class Reads(TorchDispatchMode):
    """Counts what copies a number to the host, and what depends on one for its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(
            word in name for word in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default", "_to_copy.cpu")
        ):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@EVERY
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_clipping_works_on_tensors_that_hold_no_numbers(algorithm: str, nonfinite: str) -> None:
    """On the meta device any look at a value fails."""
    model = network("meta")
    clipper = GradientClipper(model, algorithm=algorithm, threshold=1.0, skip_last=True, nonfinite=nonfinite)
    for _ in range(3):
        report = clipper()
    assert all(value.device.type == "meta" for value in read_all(report))
    assert [value.ndim for value in read_all(report)] == [0, 0, 0, 0, 0, 0, 1]


@EVERY
def test_no_number_is_copied_to_the_host(algorithm: str) -> None:
    model = network("cpu")
    clipper = GradientClipper(model, algorithm=algorithm, threshold=1.0, skip_last=True, nonfinite="skip")
    with Reads() as reads:
        for _ in range(3):
            read_all(clipper())
        assert not reads.found
        float(model[0].weight.grad.norm())  # and a look would have been seen
    assert sum(reads.found.values()) == 1


@EVERY
def test_the_record_is_made_of_numbers_on_the_device(algorithm: str) -> None:
    report = GradientClipper(network("cpu"), algorithm=algorithm, threshold=1.0)()
    for name in FIELDS[:-1]:
        value = getattr(report, name)
        assert value.ndim == 0
        assert value.dtype == (torch.bool if name in ("finite", "keep") else torch.float64)
        assert not value.requires_grad
