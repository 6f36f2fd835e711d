"""The layout of the images, and the algorithms for other kinds of tensors and for captures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._torch_compat import are_functorch_transforms_active
from ..algorithms.base import is_channels_last
from ..operators import skip_dynamo
from ..planning.auto import Auto
from ..planning.plan import AlgorithmLike, find_algorithm
from .capture import is_exporting_or_tracing


@skip_dynamo
def resolve_algorithm(algorithm: AlgorithmLike, input: Tensor) -> AlgorithmLike:
    """The algorithm to plan with; differs from ``algorithm`` for meta tensors and export."""
    if input.is_meta:
        return "auto"
    return "aten" if is_exporting_or_tracing() else algorithm


@skip_dynamo
def are_channels_last(input: Tensor, weight: Tensor) -> bool:
    """Whether an operand is in channels_last, so that the result is too, as in ``conv2d``.

    False for integers, because PyTorch refuses some problems in channels_last.
    """
    return (
        not are_functorch_transforms_active()  # the layout of a mapped tensor is unknown
        and (is_channels_last(input) or is_channels_last(weight))
        and (input.is_floating_point() or input.is_complex())
    )


@skip_dynamo
def is_left_to_pytorch(input: Any, algorithm: AlgorithmLike) -> bool:
    """Whether the input is from ``to_mkldnn()``; only PyTorch's convolution reads its layout."""
    if not getattr(input, "is_mkldnn", False):
        return False
    found = find_algorithm(algorithm)
    return isinstance(found, Auto) or found.is_pytorch
