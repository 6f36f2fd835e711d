"""What operands must be, and their shapes as numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch_compat import get_tracing_state, set_tracing_state
from ..operators import skip_dynamo
from ..problem import Problem, Sides, as_sides, require, same_shape, shape_str


@skip_dynamo
def check_operands(input: Any, weight: Any, bias: Any) -> None:
    """That input, weight and bias are strided tensors of fitting rank, one dtype, one device."""
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
                f"{name} is quantized ({value.dtype}), and no algorithm computes with that; call "
                f"{name}.dequantize(). In a model that torch.ao quantizes, write nn.Conv2d, the "
                f"only class that it replaces, instead of Corr2d; torch_corr.convert then gives "
                f"layers an algorithm and keeps their class"
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
        for what, mend in (("dtype", ".to(input.dtype)"), ("device", ".to(input.device)")):
            theirs, ours = getattr(value, what), getattr(input, what)
            if theirs != ours:
                raise RuntimeError(
                    f"input and {name} must share one {what}, got {ours} and {theirs}; convert "
                    f"one of them, e.g. {name}{mend}"
                )
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if value is not None and value.layout != torch.strided:
            raise RuntimeError(
                f"{name} has layout {value.layout}; correlation needs a dense (strided) tensor, "
                f"e.g. {name}.to_dense()"
            )


@skip_dynamo
def check_bias(bias: Tensor, weight: Tensor, problem: Problem) -> None:
    require(
        same_shape(plain_shape(bias), (problem.out_channels,)),
        lambda: (
            f"bias must have shape ({problem.out_channels},), one number for each output channel "
            f"of weight {shape_str(weight.shape)}, got {shape_str(plain_shape(bias))}"
        ),
    )


@skip_dynamo
def with_all_axes(value: Tensor) -> Tensor:
    """A 3-D or 2-D operand with the axes of length 1 that it leaves out."""
    return value if value.dim() == 4 else value[(None,) * (4 - value.dim())]


@skip_dynamo
def plain_shape(value: Tensor) -> tuple[int, ...]:
    """The shape in numbers, or in symbols; under ``torch.jit.trace`` it would be of tensors."""
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
    return padding if isinstance(padding, str) else as_sides(padding)
