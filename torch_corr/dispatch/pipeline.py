"""The steps of ``corr2d``: normalise, validate, plan, run."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._torch_compat import disable_current_modes, dispatch_stack_depth, is_tracing
from ..algorithms.aten import quick_in_channels_last
from ..autograd import forward_with_bias, trilinear
from ..operators import Deferred, planned, skip_dynamo
from ..planning.plan import AlgorithmLike, Plan, cached_plan, make_plan
from ..problem import PaddingLike, Pair, Problem, Sides, SizeLike, as_int, as_pair
from .autocast import cast_as_autocast
from .capture import is_compiling, is_exporting_or_tracing, standard_conv2d, warn_of_one_size
from .layout import are_channels_last, is_left_to_pytorch, resolve_algorithm
from .padding import fill_padding
from .validation import (
    check_bias,
    check_operands,
    hashable_padding,
    plain_shape,
    with_all_axes,
)


class Call(NamedTuple):
    """A checked call: its plan, its operands with four axes, and its bias."""

    plan: Plan | Deferred
    images: Tensor
    filters: Tensor
    bias: Tensor | None


@skip_dynamo
def correlate(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: SizeLike,
    padding: PaddingLike,
    dilation: SizeLike,
    groups: int,
    padding_mode: str,
    algorithm: AlgorithmLike,
) -> Tensor:
    """:func:`~torch_corr.corr2d` without the fast path and without ``__torch_function__``."""
    if padding_mode == "zeros" and is_left_to_pytorch(input, algorithm):
        numbers: Any = stride, padding, dilation, groups
        return torch.conv2d(input, weight, bias, *numbers)
    plan, images, filters, bias = prepare(
        input, weight, bias, stride, padding, dilation, groups, padding_mode, algorithm
    )
    if is_exporting_or_tracing():
        if padding == "same" and max(plan.problem.stride) > 1 and is_tracing():
            warn_of_one_size(plan.problem)
        result = standard_conv2d(plan.problem, images, filters, bias)
    elif bias is None:
        result = trilinear(plan, images, filters)
    else:
        result = forward_with_bias(plan, images, filters, bias)
    return result if input.dim() == 4 else result[(0,) * (4 - input.dim())]


@skip_dynamo
def prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: SizeLike,
    padding: PaddingLike,
    dilation: SizeLike,
    groups: int,
    padding_mode: str,
    algorithm: AlgorithmLike,
) -> Call:
    """Normalise, validate and plan a call."""
    input, weight, bias = cast_as_autocast(input, weight, bias)
    check_operands(input, weight, bias)
    images, filters = with_all_axes(input), with_all_axes(weight)
    shapes = plain_shape(images), plain_shape(filters)
    geometry = as_pair("stride", stride), hashable_padding(padding), as_pair("dilation", dilation)
    if padding_mode != "zeros":
        images, shapes, geometry = fill_padding(images, shapes, *geometry, padding_mode)
    requested, last = resolve_algorithm(algorithm, images), are_channels_last(images, filters)
    where = input.device, input.dtype
    plan = plan_call(*shapes, *geometry, as_int("groups", groups), *where, requested, last)
    if requested == "auto" and is_compiling() and quick_in_channels_last(plan.problem, *where):
        plan = planned(plan.problem, *where, "aten", last)
    if bias is not None:
        check_bias(bias, weight, plan.problem)
    return Call(plan, images, filters, bias)


@skip_dynamo
def plan_call(*arguments: Any) -> Plan | Deferred:
    """:func:`known_plan`, or a deferred plan if sizes are symbols."""
    try:
        if dispatch_stack_depth() == 0:
            return known_plan(*arguments)
        with disable_current_modes():  # measurements need real tensors, not fakes
            return known_plan(*arguments)
    except TypeError:  # a symbol cannot be hashed
        *geometry, device, dtype, algorithm, channels_last = arguments
        return planned(Problem.of(*geometry), device, dtype, algorithm, channels_last)


@cached_plan
def known_plan(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: str | Sides,
    dilation: Pair,
    groups: int,
    device: torch.device,
    dtype: torch.dtype,
    algorithm: AlgorithmLike,
    channels_last: bool,
) -> Plan:
    """The cached plan for sizes that are numbers."""
    problem = Problem.of(input_shape, weight_shape, stride, padding, dilation, groups)
    return make_plan(problem, device, dtype, algorithm, channels_last)
