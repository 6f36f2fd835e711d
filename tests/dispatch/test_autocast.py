"""Autocast, with the dtypes of ``F.conv2d``."""

from __future__ import annotations

import pytest
import torch

from support.laws import each_on_cpu
from support.layers import images, step, twins
from torch_corr import corr2d, plan


def test_autocast_casts_float32_but_not_float64():
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert corr2d(x.double(), w.double(), algorithm="unfold").dtype == torch.float64
        y = corr2d(x, w, algorithm="unfold")
    rounded = corr2d(x.bfloat16(), w.bfloat16(), algorithm="unfold")
    assert torch.equal(y, rounded)


def test_plan_under_autocast_has_computed_dtype():
    """Also for an input that is in bfloat16 already, as in a network's second layer."""
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plan(x, w).dtype == plan(x.bfloat16(), w).dtype == torch.bfloat16
        assert plan(x.double(), w.double()).dtype == torch.float64
    assert plan(x, w).dtype == torch.float32


@pytest.mark.parametrize("algorithm", ["auto", "unfold"])
def test_autocast_under_vmap(algorithm):
    """As ``matmul``; conv2d stays in float32 there."""
    xs, w = torch.randn(3, 1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.func.vmap(lambda x: corr2d(x, w, algorithm=algorithm))(xs)
        product = torch.func.vmap(lambda x: x @ w[0, 0, 0, :1].expand(6, 1))(xs)
    assert y.dtype == product.dtype == torch.bfloat16


@each_on_cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layer_dtypes_under_autocast_equal_conv2d(dtype, algorithm):
    """Weights in float32 get gradients in float32, also under images that are cast already."""
    for own, given in (
        (torch.float32, torch.float32),
        (torch.float32, dtype),
        (torch.float64,) * 2,
    ):
        ours, theirs = twins(algorithm, dtype=own)
        with torch.autocast("cpu", dtype=dtype):
            got, expected = step(ours, images(given)), step(theirs, images(given))
        for mine, other in zip(got, expected):
            assert mine.dtype == other.dtype
            largest = float(other.detach().abs().max())
            bound = 1e-9 if own == torch.float64 else 8 * torch.finfo(dtype).eps
            torch.testing.assert_close(mine, other, rtol=0, atol=bound * largest)
