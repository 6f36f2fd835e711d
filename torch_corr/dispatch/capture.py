"""Captured programs: when one is being made, and what ``torch.export`` and ``torch.jit.trace`` get.

:mod:`torch_corr.operators` defines the operators that the graphs of ``torch.compile`` contain.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from .._torch_compat import TracingContext, dispatch_stack_depth, is_tracing
from ..algorithms import Aten
from ..algorithms.aten import conv2d
from ..operators import skip_dynamo
from ..problem import Problem, is_known_zero


@skip_dynamo
def is_compiling() -> bool:
    """Whether a compiler is making a graph of operators from fake tensors."""
    return dispatch_stack_depth() > 0 and TracingContext.try_get() is not None


@skip_dynamo
def is_exporting_or_tracing() -> bool:
    """Whether ``torch.export`` or ``torch.jit.trace`` is making a program."""
    return torch.compiler.is_exporting() or is_tracing()


@skip_dynamo
def standard_conv2d(problem: Problem, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's convolution, so that the program runs without this library."""
    if is_known_zero(problem.in_channels) or is_known_zero(problem.out_channels):
        return Aten().forward(problem, input, weight) + (0 if bias is None else bias[:, None, None])
    return conv2d(problem, input, weight, bias)


def warn_of_one_size(problem: Problem) -> None:
    """Warn that a traced program is correct only for images of one size."""
    warnings.warn(
        f"padding='same' with stride {problem.stride} depends on the input's size; torch.jit.trace "
        f"stores the padding for {problem.size[0]}x{problem.size[1]} pixels and uses it for other "
        f"sizes too; use torch.export, which stores the formula",
        TracerWarning,
        stacklevel=4,
    )
