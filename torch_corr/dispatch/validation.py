"""Checks of the operands and of the bias; shapes and padding in the form that plans need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch_compat import get_tracing_state, set_tracing_state
from ..operators import skip_dynamo
from ..problem import Problem, Sides, as_sides, require, same_shape, shape_str


@skip_dynamo
def check_operands(input: Any, weight: Any, bias: Any) -> None:
    """Raise unless the operands are dense tensors of valid ranks, on one device, of one dtype."""
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and (name != "bias" or value is not None):
            raise TypeError(
                f"{name} must be a torch.Tensor{' or None' if name == 'bias' else ''}, got "
                f"{type(value).__name__}; make one with torch.as_tensor"
            )
    for name, value in (("input", input), ("weight", weight)):
        if value.is_nested:
            raise NotImplementedError(
                f"{name} is a nested tensor, of many shapes; correlate them one by one (unbind), "
                f"or pad to one shape with torch.nested.to_padded_tensor"
            )
        if value.is_quantized:
            raise NotImplementedError(
                f"{name} is quantized ({value.dtype}), which no algorithm supports; call "
                f"{name}.dequantize(). In a model that torch.ao quantizes, write nn.Conv2d instead "
                f"of Corr2d, because torch.ao replaces only nn.Conv2d; torch_corr.convert then "
                f"gives layers an algorithm and keeps their class"
            )
    ranks = input.dim(), weight.dim()
    if ranks not in ((4, 4), (3, 4), (2, 2)):
        raise RuntimeError(
            f"input of shape {shape_str(input.shape)} and weight of shape "
            f"{shape_str(weight.shape)} have ranks {ranks[0]} and {ranks[1]}; expected input "
            f"(N, C, H, W) or (C, H, W) with weight (O, C/groups, kH, kW), or input (H, W) "
            f"with weight (kH, kW)"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        for what, fix in (("dtype", ".to(input.dtype)"), ("device", ".to(input.device)")):
            theirs, ours = getattr(value, what), getattr(input, what)
            if theirs != ours:
                raise RuntimeError(
                    f"input and {name} must share one {what}, got {ours} and {theirs}; convert "
                    f"one of them, e.g. {name}{fix}"
                )
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if value is not None and value.layout != torch.strided:
            raise RuntimeError(
                f"{name} has layout {value.layout}; correlation needs a dense (strided) tensor, "
                f"e.g. {name}.to_dense()"
            )


@skip_dynamo
def check_bias(bias: Tensor, weight: Tensor, problem: Problem) -> None:
    """Raise RuntimeError unless the bias has one element for each output channel."""
    require(
        same_shape(plain_shape(bias), (problem.out_channels,)),
        lambda: (
            f"bias must have shape ({problem.out_channels},), one number for each output channel "
            f"of weight {shape_str(weight.shape)}, got {shape_str(plain_shape(bias))}"
        ),
    )


@skip_dynamo
def with_all_axes(value: Tensor) -> Tensor:
    """A 2-D or 3-D operand as 4-D, with leading axes of length 1."""
    return value if value.dim() == 4 else value[(None,) * (4 - value.dim())]


@skip_dynamo
def plain_shape(value: Tensor) -> tuple[int, ...]:
    """The shape as numbers or symbols; ``value.shape`` holds tensors under ``torch.jit.trace``."""
    state = get_tracing_state()
    if state is None:
        return value.shape
    set_tracing_state(None)
    try:
        return value.shape
    finally:
        set_tracing_state(state)


@skip_dynamo
def hashable_padding(padding: Any) -> str | Sides:
    """The padding as a name or as tuples."""
    return padding if isinstance(padding, str) else as_sides(padding)
