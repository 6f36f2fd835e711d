"""The fast path runs known plans, and leaves all other calls to the pipeline."""

from __future__ import annotations

import pytest
import torch

import torch_corr
from support.needs import KERNELS, needs
from torch_corr import Aten, Auto, Unfold, corr2d, functional
from torch_corr.planning.plan import clear_plans

WEIGHT = torch.full((32, 1, 7, 7), 0.5)


@pytest.fixture
def pipeline(monkeypatch):
    """Lists the calls that take the pipeline."""
    calls = []
    correlate = functional.correlate
    monkeypatch.setattr(
        functional, "correlate", lambda *args: (calls.append(1), correlate(*args))[1]
    )
    return calls


def images(**options):
    return torch.ones(1, 32, 16, 16, **options)


def filtered(x, w=WEIGHT, b=None, **options):
    return corr2d(x, w, b, 1, 3, 1, 32, **options)


@needs(KERNELS)
@pytest.mark.parametrize("bias", [None, torch.ones(32)])
@pytest.mark.parametrize("needed", [False, True])
def test_known_plan_takes_the_fast_path(pipeline, bias, needed):
    x = images(requires_grad=needed)
    assert torch_corr.plan(x, WEIGHT, 1, 3, 1, 32).forward.name == "direct"
    y = filtered(x, b=bias)
    assert not pipeline
    assert y.requires_grad == needed
    assert torch.allclose(y, filtered(x, b=bias, algorithm="naive"))


@needs(KERNELS)
def test_autocast_converts_operands_on_the_fast_path(pipeline):
    x, b = images(), torch.ones(32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = filtered(x, b=b)
    assert not pipeline
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, filtered(x.bfloat16(), WEIGHT.bfloat16(), b.bfloat16()))


@pytest.mark.parametrize(
    ("w", "b", "message"),
    [
        (WEIGHT.double(), None, "share one dtype"),
        (WEIGHT, torch.ones(32).double(), "share one dtype"),
        (WEIGHT, torch.ones(31), r"bias must have shape \(32,\)"),
        (WEIGHT.to_sparse(), None, "sparse"),
        (WEIGHT, torch.ones(32, device="meta"), "share one device"),
    ],
)
def test_operands_that_do_not_match_are_refused(pipeline, w, b, message):
    with pytest.raises(RuntimeError, match=message):
        filtered(images(), w, b)
    assert pipeline


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize("position", range(3))
def test_tensor_subclasses_take_the_pipeline(pipeline, position):
    operands = [images(), WEIGHT, torch.ones(32)]
    operands[position] = operands[position].as_subclass(Tagged)
    assert isinstance(filtered(*operands), Tagged)


def test_layer_of_an_image_without_gradient_is_conv2d_if_its_other_maps_are(monkeypatch):
    """As the first layer of a network: its grad_input is planned, and never runs."""
    x, w = torch.ones(2, 3, 24, 24), torch.ones(8, 3, 3, 3, requires_grad=True)
    monkeypatch.setattr(Auto, "choose_each", lambda *_: [Aten(), Unfold(), Aten()])
    clear_plans()
    y, z = corr2d(x, w), corr2d(x.requires_grad_(), w)
    clear_plans()
    assert [each.grad_fn.name() for each in (y, z)] == [
        "ConvolutionBackward0",
        "CorrelationBackward",
    ]


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("wrong", [float, lambda number: (float(number), float(number))])
def test_numbers_that_equal_integers_are_refused(position, wrong):
    """They find the cached plan of the integers."""
    numbers = [1, 3, 1, 32]
    corr2d(images(), WEIGHT, None, *numbers)
    numbers[position] = wrong(numbers[position])
    with pytest.raises(TypeError):
        corr2d(images(), WEIGHT, None, *numbers)
