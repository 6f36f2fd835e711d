"""Padding modes, also where the image repeats more than once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from support.laws import each_algorithm
from torch_corr import Corr2d, LazyCorr2d, Problem, convert, corr2d


@each_algorithm
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@settings(max_examples=25)
@given(data=st.data())
def test_padding_modes_equal_f_pad(data, mode, algorithm, device):
    """Asymmetric padding in each mode is F.pad in that mode, then no padding."""
    sides = tuple((data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in range(2))
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    w = torch.randn(4, 1, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    (top, bottom), (left, right) = sides
    padded = F.pad(x, (left, right, top, bottom), "constant" if mode == "zeros" else mode)
    expected = F.conv2d(padded, w, None, 2, 0, 1, 2)
    y = corr2d(x, w, None, 2, sides, 1, 2, padding_mode=mode, algorithm=algorithm)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    ours, theirs = (torch.autograd.grad(each.square().sum(), (x, w)) for each in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def tiled(x, sides):
    """Circular padding by hand: a cut-out of the repeated image."""
    times = [(max(side) - 1) // n + 1 for side, n in zip(sides, x.shape[-2:])]
    many = x.repeat(1, 1, *(2 * t + 1 for t in times))
    cut = [
        slice(t * n - before, (t + 1) * n + after)
        for t, n, (before, after) in zip(times, x.shape[-2:], sides)
    ]
    return many[..., cut[0], cut[1]]


@each_algorithm
@settings(max_examples=15)
@given(data=st.data())
def test_circular_padding_wraps_more_than_once(algorithm, device, data):
    """``F.pad`` repeats the image only once."""
    sides = tuple((data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))) for _ in range(2))
    x, w = (
        torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
        for shape in ((2, 2, data.draw(st.integers(1, 3)), 2), (4, 1, 1, 2))
    )
    expected = F.conv2d(tiled(x, sides), w, None, (1, 2), 0, 1, 2)
    y = corr2d(x, w, None, (1, 2), sides, 1, 2, padding_mode="circular", algorithm=algorithm)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(each.square().sum(), (x, w)) for each in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_derivatives_of_multiple_wraps():
    """Second order, forward mode and vmap."""
    x, w = torch.randn(1, 1, 2, 1).double(), torch.randn(1, 1, 2, 3).double()

    def function(x, w):
        return corr2d(x, w, padding=((5, 2), (3, 4)), padding_mode="circular", algorithm="naive")

    x.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradcheck(function, (x, w), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, w))
    xs = torch.randn(3, 1, 1, 2, 1).double()
    expected = torch.stack([function(each, w) for each in xs])
    torch.testing.assert_close(torch.func.vmap(function, (0, None))(xs, w), expected)


def test_layers_with_circular_padding_wrap_more_than_once():
    """nn.Conv2d refuses unless it is converted."""
    arguments = {"padding": (3, 7), "padding_mode": "circular"}
    theirs = torch.nn.Conv2d(2, 3, (2, 4), **arguments)
    x = torch.randn(2, 2, 2, 3)
    with pytest.raises(RuntimeError, match="wrapping around more than once"):
        theirs(x)
    expected = F.conv2d(tiled(x, ((3, 3), (7, 7))), theirs.weight, theirs.bias)
    ours, lazy = Corr2d(2, 3, (2, 4), **arguments), LazyCorr2d(3, (2, 4), **arguments)
    lazy(x)
    for layer in (ours, lazy):
        layer.load_state_dict(theirs.state_dict())
    convert(theirs)
    for layer in (ours, lazy, theirs):
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x[0]), expected[0])


@pytest.mark.parametrize("padding", ["same", "valid", "full"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_named_padding_in_every_mode(padding, mode):
    x, w = torch.randn(1, 1, 7, 8), torch.randn(1, 1, 3, 4)
    sides = Problem.of(x.shape, w.shape, 2, padding).padding
    named = corr2d(x, w, None, 2, padding, padding_mode=mode)
    assert torch.equal(named, corr2d(x, w, None, 2, sides, padding_mode=mode))
