"""Corr2d has the arguments, weights, state and results of nn.Conv2d, and more padding."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from support.laws import ABLE, algorithm_id, each_algorithm
from support.layers import twins
from torch_corr import Corr2d, LazyCorr2d, Unfold, corr2d

MODES = ("zeros", "reflect", "replicate", "circular")


@each_algorithm
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [0, (2, 1), "same", "valid"], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_corr2d_replaces_nn_conv2d(bias, padding, mode, algorithm, device):
    ours, theirs = twins(
        algorithm,
        device=device,
        kernel_size=(3, 2),
        padding=padding,
        padding_mode=mode,
        bias=bias,
        dilation=(1, 2),
        stride=1 if padding == "same" else (2, 1),
    )
    assert isinstance(ours, nn.Conv2d)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64, device=device)
    for input in (x, x[0]):
        y, expected = ours(input), theirs(input)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        ours.zero_grad()
        theirs.zero_grad()
        y.square().sum().backward()
        expected.square().sum().backward()
        for mine, other in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_state_dict_works_both_ways(device):
    ours, theirs = twins("auto", device=device)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), assign=True)
    assert ours.weight.data_ptr() == theirs.weight.data_ptr()


@pytest.mark.parametrize("padding", [((1, 0), (2, 3)), ((2, 2), (1, 1)), "full", "same"], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_padding_beyond_nn_conv2d(padding, mode):
    layer = Corr2d(4, 6, 3, stride=2, padding=padding, padding_mode=mode)
    x = torch.randint(-8, 9, (1, 4, 7, 8)).float()
    with torch.no_grad():  # sums of integers are the same in every order, the bias first or last
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-8, 9, parameter.shape))
    expected = corr2d(x, layer.weight, layer.bias, 2, padding, padding_mode=mode)
    assert torch.equal(layer(x), expected)
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(x), expected)


def test_padding_attributes_equal_nn_conv2d():
    for padding in (0, 1, (1, 2), "same", "valid"):
        theirs = nn.Conv2d(2, 2, 4, padding=padding, dilation=(1, 3))
        ours = Corr2d(2, 2, 4, padding=padding, dilation=(1, 3))
        for name in ("padding", "stride", "dilation"):
            assert getattr(ours, name) == getattr(theirs, name)
        both = (list(each._reversed_padding_repeated_twice) for each in (ours, theirs))
        assert next(both) == next(both)
    assert Corr2d(2, 2, 3, padding=((1, 1), (2, 2))).padding == (1, 2)


@pytest.mark.parametrize("algorithm", [*ABLE, Unfold(workspace_limit=40_000)], ids=algorithm_id)
def test_copies_and_pickles(algorithm):
    layer = Corr2d(2, 2, 3, algorithm=algorithm)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    x = torch.randn(1, 2, 5, 5)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False), copy.copy(layer)):
        assert twin.algorithm == algorithm
        ours, theirs = (
            torch.autograd.grad(each(x).square().sum(), each.weight) for each in (twin, layer)
        )
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(twin(x), layer(x))
    assert twin.weight is layer.weight


def test_assigning_class_turns_conv2d_into_corr2d():
    """Its algorithm is ``auto``."""
    layer = nn.Conv2d(2, 3, 3)
    x = torch.randn(1, 2, 5, 5)
    expected = layer(x)
    layer.__class__ = Corr2d
    torch.testing.assert_close(layer(x), expected)
    assert layer.algorithm == "auto"


def test_repr_names_the_algorithm():
    plain = "(2, 3, kernel_size=(3, 3), stride=(1, 1)"
    assert repr(Corr2d(2, 3, 3)) == f"Corr2d{plain})"
    assert repr(Corr2d(2, 3, 3, algorithm="unfold")) == f"Corr2d{plain}, algorithm='unfold')"
    assert "padding=full" in repr(Corr2d(2, 3, 3, padding="full"))
    limited = Corr2d(2, 3, 3, algorithm=Unfold(workspace_limit=9))
    assert "algorithm=Unfold(workspace_limit=9)" in repr(limited)


@pytest.mark.parametrize("bias", [True, False])
def test_lazy_layer_becomes_corr2d(bias):
    arguments = {"padding": ((1, 0), (0, 1)), "groups": 2, "bias": bias, "algorithm": "unfold"}
    lazy = LazyCorr2d(6, 3, **arguments)
    assert isinstance(lazy, nn.Conv2d)
    assert lazy.has_uninitialized_params()
    x = torch.randn(2, 4, 5, 6)
    torch.manual_seed(3)
    y = lazy(x)
    torch.manual_seed(3)
    eager = Corr2d(4, 6, 3, **arguments)
    assert type(lazy) is Corr2d
    assert lazy.in_channels == 4
    assert lazy.algorithm == "unfold"
    assert torch.equal(y, eager(x))
    assert lazy.state_dict().keys() == eager.state_dict().keys()


def test_lazy_layer_respects_dtype_and_device():
    lazy = LazyCorr2d(2, 3, dtype=torch.float64)
    lazy(torch.ones(1, 1, 3, 3, dtype=torch.float64))
    assert lazy.weight.dtype == lazy.bias.dtype == torch.float64
    assert LazyCorr2d(2, 3, device="meta").weight.device.type == "meta"
    assert LazyCorr2d(2, 3, device="meta").bias.device.type == "meta"


def test_lazy_layer_refuses_invalid_input():
    with pytest.raises(ValueError, match="divisible by groups"):
        LazyCorr2d(6, 3, groups=2)(torch.ones(1, 3, 5, 5))
    with pytest.raises(RuntimeError, match="Expected 3D"):
        LazyCorr2d(6, 3)(torch.ones(5, 5))
