"""A user's clipping algorithm keeps the contract of the project's own: records, state, what is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ptycho.config import plugins
from ptycho.errors import InputError
from ptycho_torch.plugins import Seen, State, register_clipping, register_entrywise
from ptycho_torch.train_utils import ALGORITHMS, GradientClipper, clip_gradients_

MINE = ("halved", "counted", "soft")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    @register_clipping("halved", threshold="", default=1.0, low=1.0, high=1.0, per_unit=True, weights=True)
    def halved(seen: Seen, state: State) -> Tensor:
        assert seen.weights is not None
        return torch.where(seen.norms > seen.weights, 0.5, 1.0).double()

    @register_clipping(
        "counted", threshold="", default=2.0, low=1.0, high=9.0, start=lambda n: {"step": torch.ones(()).double()}
    )
    def counted(seen: Seen, state: State) -> Tensor:
        state["step"] = state["step"] + 1
        return 1 / torch.as_tensor(state["step"])

    @register_entrywise("soft", threshold="", default=0.5, low=0.1, high=1.0)
    def soft(gradient: Tensor, threshold: float) -> Tensor:
        return threshold * torch.tanh(gradient / threshold)

    yield
    for name in MINE:
        del ALGORITHMS[name], plugins.ORIGINS["algorithm", name]


def model(fill: float = 1.0) -> nn.Linear:
    made = nn.Linear(3, 2)
    with torch.no_grad():
        made.weight.fill_(1.0)
        made.bias.fill_(1.0)
    made.weight.grad = torch.tensor([[fill, 0.0, 0.0], [3.0, 4.0, 0.0]])
    made.bias.grad = torch.tensor([0.5, 0.25])
    return made


def test_a_rule_sees_units_and_weights_and_its_factors_act() -> None:
    made = model()
    report = clip_gradients_(made, algorithm="halved", threshold=1.0)
    assert made.weight.grad is not None
    assert made.weight.grad.tolist() == [[1.0, 0.0, 0.0], [1.5, 2.0, 0.0]]  # norm 5 beside a weight norm of sqrt(3)
    after = math.sqrt(1 + 2.5**2 + 0.5**2 + 0.25**2)
    assert float(report.norm_after) == pytest.approx(after, rel=1e-6)
    assert 0 < float(report.clipped_fraction) < 1


def test_a_state_goes_on_from_a_checkpoint() -> None:
    made = model()
    clipper = GradientClipper(made, algorithm="counted", threshold=2.0)
    assert [float(clipper().smallest_scale) for _ in range(2)] == [1 / 2, 1 / 3]
    again = GradientClipper(model(), algorithm="counted", threshold=2.0)
    again.load_state_dict(clipper.state_dict())
    assert float(again().smallest_scale) == 1 / 4
    with pytest.raises(InputError, match="clipper state"):
        GradientClipper(model(), algorithm="counted", threshold=1.0).load_state_dict(
            {"algorithm": "counted", "state": {}}
        )
    assert ALGORITHMS["counted"].stateful
    assert not ALGORITHMS["halved"].stateful


def test_entries_are_changed_and_the_report_says_by_how_much() -> None:
    made = model()
    report = clip_gradients_(made, algorithm="soft", threshold=0.5)
    assert made.weight.grad is not None
    torch.testing.assert_close(
        made.weight.grad, 0.5 * torch.tanh(torch.tensor([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0]]) / 0.5)
    )
    total = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in made.parameters() if p.grad is not None))
    assert float(report.norm_after) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("algorithm", ["soft", "halved"])
@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_what_is_not_finite_stays_what_it_is(algorithm: str, broken: float) -> None:
    made = model(fill=broken)
    report = clip_gradients_(made, algorithm=algorithm, threshold=1.0)
    assert not bool(report.finite)
    assert made.weight.grad is not None
    entry = float(made.weight.grad[0, 0])
    assert math.isnan(entry) if math.isnan(broken) else math.isinf(entry)


def test_off_is_off_and_a_name_can_be_registered_again_from_its_own_file() -> None:
    made = model()
    clipper = GradientClipper(made, algorithm="soft", threshold=0.0)
    clipper()
    assert clipper.algorithm == "none"
    assert made.weight.grad is not None
    assert made.weight.grad.tolist() == [[1.0, 0.0, 0.0], [3.0, 4.0, 0.0]]
    register_entrywise("soft", threshold="", default=0.5, low=0.1, high=1.0)(_doubled)
    clip_gradients_(made, algorithm="soft", threshold=1.0)
    assert made.weight.grad.tolist() == [[2.0, 0.0, 0.0], [6.0, 8.0, 0.0]]


def _doubled(gradient: Tensor, threshold: float) -> Tensor:
    return 2 * gradient
