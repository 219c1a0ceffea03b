"""Bad input is refused in one clear line; the library needs torch alone."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptycho.errors import InputError
from ptycho_torch.train_utils import ALGORITHMS, GradientClipper, adaptive_gradient_clip_, clip_gradients_


def parameter() -> nn.Parameter:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.full((3,), 5.0)
    return p


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
@pytest.mark.parametrize("threshold", [-1.0, -1e-9, math.nan, math.inf, -math.inf])
def test_thresholds_that_mean_nothing(algorithm: str, threshold: float) -> None:
    p = parameter()
    with pytest.raises(ValueError, match=rf"^threshold: {threshold} is out of range; allowed: finite numbers from 0$"):
        clip_gradients_([p], algorithm=algorithm, threshold=threshold)
    assert p.grad.tolist() == [5.0] * 3


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_the_training_step_refuses_them_too_but_takes_0_and_below_as_off(threshold: float) -> None:
    with pytest.raises(InputError, match=rf"^threshold: {threshold} is out of range"):
        GradientClipper([parameter()], algorithm="norm", threshold=threshold)


OUT = "is out of range; allowed:"
BAD: list[tuple[dict[str, Any], str]] = [
    (
        dict(algorithm="autoclip", threshold=100.1),
        "threshold: 100.1 is out of range; allowed for autoclip: percentiles from 0 to 100",
    ),
    (dict(algorithm="agc", threshold=0.01, eps=0.0), f"eps: 0.0 {OUT} finite numbers above 0"),
    (dict(algorithm="agc", threshold=0.01, eps=-1e-3), f"eps: -0.001 {OUT} finite numbers above 0"),
    (dict(algorithm="agc", threshold=0.01, eps=math.nan), f"eps: nan {OUT} finite numbers above 0"),
    (
        dict(algorithm="agc_units", threshold=0.01),
        f"algorithm: unknown value 'agc_units'; known: {', '.join(ALGORITHMS)} (did you mean 'agc_unit'?)",
    ),
    (
        dict(algorithm="norm", threshold=1.0, nonfinite="skp"),
        "nonfinite: unknown value 'skp'; known: propagate, skip (did you mean 'skip'?)",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_settings_name_themselves_their_value_and_what_is_allowed(options: dict[str, Any], message: str) -> None:
    for call in (clip_gradients_, GradientClipper):
        with pytest.raises(ValueError) as caught:  # noqa: PT011, the whole message is compared below
            call([parameter()], **options)
        assert str(caught.value) == message


@pytest.mark.parametrize("clip_factor", [-0.01, math.nan, math.inf])
def test_adaptive_clipping_names_its_own_setting(clip_factor: float) -> None:
    with pytest.raises(ValueError, match=rf"^clip_factor: {clip_factor} is out of range"):
        adaptive_gradient_clip_([parameter()], clip_factor=clip_factor)
    with pytest.raises(ValueError, match=r"^eps: 0 is out of range"):
        adaptive_gradient_clip_([parameter()], eps=0)


def test_a_bound_of_0_is_taken_at_its_word() -> None:
    for algorithm in ("norm", "value", "agc", "agc_unit"):
        p, still = parameter(), nn.Parameter(torch.ones(2))
        still.grad = torch.zeros(2)
        clip_gradients_([p, still], algorithm=algorithm, threshold=0.0)
        assert p.grad.tolist() == [0.0] * 3
        assert still.grad.tolist() == [0.0] * 2


def test_what_is_no_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters: 1 is a str; allowed: tensors or"):
        clip_gradients_([parameter(), "weight"], algorithm="norm", threshold=1.0)  # type: ignore[list-item]


def test_a_state_of_something_else_is_refused() -> None:
    clipper = GradientClipper([parameter()], algorithm="zclip", threshold=2.5)
    with pytest.raises(InputError, match="clipper state: of algorithm 'skip'; allowed here: 'zclip'"):
        clipper.load_state_dict(GradientClipper([parameter()], algorithm="skip", threshold=5.0).state_dict())
    one, two = (GradientClipper([parameter() for _ in range(n)], algorithm="adagc", threshold=1.05) for n in (1, 2))
    with pytest.raises(InputError, match=r"clipper state: .*'averages': \(1,\).*allowed for 'adagc' here: .*\(2,\)"):
        two.load_state_dict(one.state_dict())


def test_the_state_in_a_checkpoint_is_a_copy() -> None:
    p = parameter()
    clipper = GradientClipper([p], algorithm="autoclip", threshold=50.0)
    saved = clipper.state_dict()
    clipper()
    assert saved["state"]["calls"] == 0
    assert bool(saved["state"]["ring"].isnan().all())


def test_torch_is_all_it_needs() -> None:
    """Nothing beyond torch's own needs is imported, so the library works where nothing else is installed."""
    script = """
import sys
import torch
before = set(sys.modules)
import ptycho_torch.train_utils
new = {name.partition('.')[0] for name in set(sys.modules) - before}
foreign = new - set(sys.stdlib_module_names) - {'torch', 'ptycho', 'ptycho_torch'}
sys.exit(', '.join(sorted(foreign)) or 0)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
