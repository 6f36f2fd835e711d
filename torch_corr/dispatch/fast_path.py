"""The fast path of ``auto``: if the plan is known, a call skips the steps of :mod:`.pipeline`.

Those take ten microseconds, as long as the smallest layers.  If the plan is ``torch.conv2d`` for
all maps that are needed, the fast path calls it, and PyTorch's derivatives apply.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._torch_compat import (
    are_functorch_transforms_active,
    dispatch_stack_depth,
    is_any_autocast,
)
from ..algorithms.aten import are_misread
from ..autograd import forward_with_bias, trilinear
from ..operators import PLAIN, skip_dynamo
from ..planning.plan import Plan, cached_plan, make_plan
from ..problem import Problem
from ..sharding import is_distributed
from .autocast import cast_as_autocast, dtype_under_autocast
from .capture import is_exporting_or_tracing
from .layout import are_channels_last
from .validation import check_bias, check_operands


@skip_dynamo
def run_if_known(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Tensor | None:
    """The result of ``corr2d`` with ``auto`` and padding by zeros, or None to take the pipeline.

    If PyTorch refuses the arguments, this raises the error message of this library.
    """
    if are_functorch_transforms_active():
        return None  # conv2d returns a wrong shape for a vmap over an empty axis
    if type(input) is not Tensor and is_distributed((input, weight)):
        return None  # conv2d's second derivative of DTensors is silently wrong
    try:
        device, dtype = input.device, input.dtype
        if is_any_autocast():
            dtype = dtype_under_autocast(input)
        shapes = input.shape, weight.shape
        contiguous = input.is_contiguous() and weight.is_contiguous()
        last = not contiguous and are_channels_last(input, weight)
        known = _known(*shapes, stride, padding, dilation, groups, device, dtype, last)
        # PyTorch accepts operands on cpu and meta together, and other layouts.
        if known is None or weight.device != device or input.layout is not torch.strided:
            return None
        if bias is not None and bias.device != device:
            return None
        grad = torch.is_grad_enabled()
        needs = grad and input.requires_grad, grad and weight.requires_grad
        is_conv2d = known.is_conv2d[needs]
        if needs[0] != needs[1]:
            # conv2d saves the only operand that needs a gradient, unnecessarily.  That costs no
            # memory only if this operand is a leaf, such as a weight.
            is_conv2d = is_conv2d and (input if needs[0] else weight).is_leaf
        if is_conv2d and not contiguous and are_misread(input, weight):
            return None
    except TypeError:
        # A list cannot be hashed.  Other errors are reported by the checks of the pipeline.
        numbers = stride, padding, dilation
        if not any(isinstance(each, list) for each in numbers):
            return None
        stride, padding, dilation = (
            tuple(each) if isinstance(each, list) else each for each in numbers
        )
        return run_if_known(input, weight, bias, stride, padding, dilation, groups)
    except (AttributeError, RuntimeError, ValueError):
        return None  # the pipeline reports the error, or handles these arguments
    if not is_conv2d:
        # 3.0 finds the plan of 3, and conv2d would refuse it.
        if not _are_integers(stride, padding, dilation, groups):
            return None
        return _run_plan(known.plan, input, weight, bias)
    try:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    except (RuntimeError, TypeError, ValueError):
        check_operands(input, weight, bias)
        problem = Problem.of(input.shape, weight.shape, stride, padding, dilation, groups)
        if bias is not None:
            check_bias(bias, weight, problem)
        raise


def _are_integers(*numbers: Any) -> bool:
    for each in numbers:
        for number in each if type(each) is tuple else (each,):
            if type(number) is not int:
                return False
    return True


@skip_dynamo
def _run_plan(plan: Plan, input: Any, weight: Any, bias: Any) -> Tensor | None:
    """Run a plan on operands for which no check can fail; None for all others."""
    if dispatch_stack_depth() > 0:
        return None
    if is_any_autocast():
        input, weight, bias = cast_as_autocast(input, weight, bias)
    for operand in (input, weight) if bias is None else (input, weight, bias):
        plain = type(operand) in PLAIN and operand.layout is torch.strided
        if not plain or operand.dtype is not plan.dtype:
            return None
    if bias is None:
        return trilinear(plan, input, weight)
    if bias.shape != (plan.problem.out_channels,):
        return None
    return forward_with_bias(plan, input, weight, bias)


class _Known(NamedTuple):
    """A plan, and whether ``torch.conv2d`` is equivalent to it, by whether input and weight need
    gradients."""

    plan: Plan
    is_conv2d: dict[tuple[bool, bool], bool]


@cached_plan
def _known(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
) -> _Known | None:
    if is_exporting_or_tracing():
        raise TypeError("shapes hold tensors under jit.trace, and must not be cached")
    numbers = stride, padding, dilation, groups
    if any(isinstance(each, Tensor) for each in numbers):
        return None  # a Tensor may change after it is cached
    if device.type == "meta":
        return None  # conv2d on meta does not check the shape of the bias
    flat = not isinstance(padding, tuple) or all(isinstance(each, int) for each in padding)
    if isinstance(padding, str) or not flat or len(input_shape) != 4 or len(weight_shape) != 4:
        return None
    problem = Problem.of(input_shape, weight_shape, stride, padding, dilation, groups)
    plan = make_plan(problem, device, dtype, "auto", channels_last)
    each = (False, False), (False, True), (True, False), (True, True)
    return _Known(plan, {needs: plan.is_conv2d(*needs) for needs in each})
