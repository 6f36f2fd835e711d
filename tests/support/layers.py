"""A layer of PyTorch's and one of ours with the same weights, and what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_corr import Algorithm, Corr2d


def twins(algorithm: Algorithm | str, **arguments: Any) -> tuple[Corr2d, nn.Conv2d]:
    """Ours and PyTorch's, with the same weights."""
    defaults = {"kernel_size": 3, "padding": 1, "groups": 2, "dtype": torch.float64}
    arguments = {**defaults, **arguments}
    torch.manual_seed(0)
    ours = Corr2d(4, 6, **arguments, algorithm=algorithm)
    torch.manual_seed(0)
    return ours, nn.Conv2d(4, 6, **arguments)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 4, 7, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def step(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Output, and the gradients of the input and of the parameters."""
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y.pow(2).sum(), (x, *layer.parameters()))
    return y, *gradients
