"""Autocast: converts the operands to its dtype, before they are validated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..operators import skip_dynamo
from ..planning.plan import autocasts

_AUTOCAST = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that autocast converts."""


@skip_dynamo
def cast_as_autocast(input: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    """The operands, converted to the dtype of autocast if that is enabled."""
    if not isinstance(input, Tensor) or not autocasts(input.device):
        return input, weight, bias
    input, weight, bias = (
        value.to(dtype_under_autocast(value)) if isinstance(value, Tensor) else value
        for value in (input, weight, bias)
    )
    return input, weight, bias


@skip_dynamo
def dtype_under_autocast(value: Tensor) -> torch.dtype:
    """The operand's dtype after autocast, if that is enabled; float64 stays, as in conv2d."""
    cast = value.dtype in _AUTOCAST and autocasts(value.device)
    return torch.get_autocast_dtype(value.device.type) if cast else value.dtype
