"""The fast path: calls that ``auto`` leaves to ``torch.conv2d`` altogether.

Four microseconds of planning would double the cost of the smallest layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch_compat import are_functorch_transforms_active, is_any_autocast
from ..algorithms.aten import are_misread
from ..operators import skip_dynamo
from ..planning.plan import AlgorithmLike, cached_plan, make_plan
from ..planning.wisdom import WISDOM
from ..problem import Problem
from ..sharding import is_distributed
from .autocast import dtype_under_autocast
from .capture import is_exporting_or_tracing
from .layout import resolve_for_layout
from .validation import check_bias, check_operands


@skip_dynamo
def conv2d_if_chosen(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Tensor | None:
    """``torch.conv2d`` itself, where ``auto`` gives it all three maps; else None.

    It brings PyTorch's own derivatives, which are the same.  The arguments go to PyTorch as
    they are, and what it refuses is refused in our words.
    """
    if are_functorch_transforms_active():
        return None  # conv2d mistakes the shape of a vmap over nothing
    if type(input) is not Tensor and is_distributed((input, weight)):
        return None  # conv2d's second derivative of DTensors is silently wrong
    try:
        if input.requires_grad != weight.requires_grad and torch.is_grad_enabled():
            # One gradient, which does not need the operand that it is of.  conv2d keeps that one
            # too; a leaf the graph holds anyway, as the weight of a network's first layer.
            trained = input if input.requires_grad else weight
            if not trained.is_leaf:
                return None
        device, dtype = input.device, input.dtype
        if is_any_autocast():
            dtype = dtype_under_autocast(input)
        shapes = input.shape, weight.shape
        requested = *shapes, stride, padding, dilation, groups, device, dtype
        chosen = _is_conv2d(*requested, "auto")
        # What was measured is of contiguous images, and says nothing of others.
        if not chosen or (len(WISDOM) and input.device.type == "cuda"):
            if (layout := resolve_for_layout(input, weight)) is not None:
                chosen = _is_conv2d(*requested, layout)
            if not chosen:
                return None
        if are_misread(input, weight):
            return None
        # PyTorch computes on across cpu and meta, and on layouts of its own.
        if weight.device != device or input.layout is not torch.strided:
            return None
        if bias is not None and bias.device != device:
            return None
    except TypeError:
        # Lists have no hash; whatever else it was, the checks that follow say it.
        numbers = stride, padding, dilation
        if not any(isinstance(each, list) for each in numbers):
            return None
        stride, padding, dilation = (
            tuple(each) if isinstance(each, list) else each for each in numbers
        )
        return conv2d_if_chosen(input, weight, bias, stride, padding, dilation, groups)
    except (AttributeError, RuntimeError, ValueError):
        return None  # not to be planned: the checks that follow say why, or spell it anew
    try:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    except (RuntimeError, TypeError, ValueError):
        check_operands(input, weight, bias)
        problem = Problem.of(input.shape, weight.shape, stride, padding, dilation, groups)
        if bias is not None:
            check_bias(bias, weight, problem)
        raise


@cached_plan
def _is_conv2d(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    device: torch.device,
    dtype: torch.dtype,
    algorithm: AlgorithmLike,
) -> bool:
    if is_exporting_or_tracing():
        raise TypeError("shapes are of tensors under jit.trace; an error, so as not to be kept")
    numbers = stride, padding, dilation, groups
    if any(isinstance(each, Tensor) for each in numbers):
        return False  # a Tensor may change, and would be kept here
    if device.type == "meta":
        return False  # conv2d there lets a bias of any shape pass
    flat = not isinstance(padding, tuple) or all(isinstance(each, int) for each in padding)
    if isinstance(padding, str) or not flat or len(input_shape) != 4 or len(weight_shape) != 4:
        return False
    problem = Problem.of(input_shape, weight_shape, stride, padding, dilation, groups)
    return make_plan(problem, device, dtype, algorithm).is_conv2d
