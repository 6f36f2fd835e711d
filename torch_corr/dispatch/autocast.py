"""Autocast: operands take its dtype before anything looks at them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..operators import skip_dynamo
from ..planning.plan import autocasts

_AUTOCAST = (torch.float32, torch.float16, torch.bfloat16)
"""What autocast casts."""


@skip_dynamo
def cast_as_autocast(input: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    """Operands in the dtype of autocast where that is on."""
    if not isinstance(input, Tensor) or not autocasts(input.device):
        return input, weight, bias
    input, weight, bias = (
        value.to(dtype_under_autocast(value)) if isinstance(value, Tensor) else value
        for value in (input, weight, bias)
    )
    return input, weight, bias


@skip_dynamo
def dtype_under_autocast(value: Tensor) -> torch.dtype:
    """The dtype in which autocast, if on, has an operand computed; float64 stays, as in conv2d."""
    cast = value.dtype in _AUTOCAST and autocasts(value.device)
    return torch.get_autocast_dtype(value.device.type) if cast else value.dtype
