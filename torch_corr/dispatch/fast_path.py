"""The fast path: call ``torch.conv2d`` directly if ``auto`` chooses it for all needed maps.

The steps of :mod:`.pipeline` take four microseconds, which would double the time of the smallest
layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch_compat import are_functorch_transforms_active, is_any_autocast
from ..algorithms.aten import are_misread
from ..operators import skip_dynamo
from ..planning.plan import cached_plan, make_plan
from ..problem import Problem
from ..sharding import is_distributed
from .autocast import dtype_under_autocast
from .capture import is_exporting_or_tracing
from .layout import are_channels_last
from .validation import check_bias, check_operands


@skip_dynamo
def conv2d_if_chosen(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Tensor | None:
    """The result of ``torch.conv2d`` if ``auto`` chooses it for all three maps, or for the forward
    of operands that need no gradient; else None.

    PyTorch's derivatives then apply.  If PyTorch refuses the arguments, this raises the error
    message of this library.
    """
    if are_functorch_transforms_active():
        return None  # conv2d returns a wrong shape for a vmap over an empty axis
    if type(input) is not Tensor and is_distributed((input, weight)):
        return None  # conv2d's second derivative of DTensors is silently wrong
    try:
        differentiated = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
        if differentiated and input.requires_grad != weight.requires_grad:
            # Only one operand needs a gradient.  conv2d saves this operand unnecessarily; that
            # costs no memory only if it is a leaf, such as a weight.
            trained = input if input.requires_grad else weight
            if not trained.is_leaf:
                return None
        device, dtype = input.device, input.dtype
        if is_any_autocast():
            dtype = dtype_under_autocast(input)
        shapes = input.shape, weight.shape
        requested = *shapes, stride, padding, dilation, groups, device, dtype
        contiguous = input.is_contiguous() and weight.is_contiguous()
        last = not contiguous and are_channels_last(input, weight)
        if not _is_conv2d(*requested, last, differentiated):
            return None
        if not contiguous and are_misread(input, weight):
            return None
        # PyTorch accepts operands on cpu and meta together, and other layouts.
        if weight.device != device or input.layout is not torch.strided:
            return None
        if bias is not None and bias.device != device:
            return None
    except TypeError:
        # A list cannot be hashed.  Other errors are reported by the checks of the pipeline.
        numbers = stride, padding, dilation
        if not any(isinstance(each, list) for each in numbers):
            return None
        stride, padding, dilation = (
            tuple(each) if isinstance(each, list) else each for each in numbers
        )
        return conv2d_if_chosen(input, weight, bias, stride, padding, dilation, groups)
    except (AttributeError, RuntimeError, ValueError):
        return None  # the pipeline reports the error, or handles these arguments
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
    channels_last: bool,
    differentiated: bool,
) -> bool:
    if is_exporting_or_tracing():
        raise TypeError("shapes hold tensors under jit.trace, and must not be cached")
    numbers = stride, padding, dilation, groups
    if any(isinstance(each, Tensor) for each in numbers):
        return False  # a Tensor may change after it is cached
    if device.type == "meta":
        return False  # conv2d on meta does not check the shape of the bias
    flat = not isinstance(padding, tuple) or all(isinstance(each, int) for each in padding)
    if isinstance(padding, str) or not flat or len(input_shape) != 4 or len(weight_shape) != 4:
        return False
    problem = Problem.of(input_shape, weight_shape, stride, padding, dilation, groups)
    return make_plan(problem, device, dtype, "auto", channels_last).is_conv2d(differentiated)
