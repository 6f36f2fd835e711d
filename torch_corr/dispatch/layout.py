"""Chooses another algorithm where the memory layout of the operands, or a capture, requires it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._torch_compat import are_functorch_transforms_active
from ..algorithms.base import is_channels_last
from ..operators import skip_dynamo
from ..planning.auto import Auto
from ..planning.plan import AlgorithmLike, find_algorithm
from ..problem import is_data_dependent
from .capture import is_exporting_or_tracing

IN_CHANNELS_LAST = Auto(channels_last=True)


@skip_dynamo
def resolve_algorithm(algorithm: AlgorithmLike, input: Tensor, weight: Tensor) -> AlgorithmLike:
    """The algorithm to plan with; differs from ``algorithm`` for meta, export and channels_last."""
    if input.is_meta:
        return "auto"
    if is_exporting_or_tracing():
        return "aten"
    return (resolve_for_layout(input, weight) or "auto") if algorithm == "auto" else algorithm


def resolve_for_layout(input: Tensor, weight: Tensor) -> AlgorithmLike | None:
    """The algorithm that replaces ``auto`` if an operand is channels_last, else None."""
    if not any(map(is_channels_last_image, (input, weight))):
        return None
    # On a CPU, Auto(channels_last=True) always chooses aten, which compilers can trace.  A plan
    # for data-dependent sizes is made later, so it must contain the layout.
    deferred = is_data_dependent((*input.shape, *weight.shape))
    return IN_CHANNELS_LAST if input.is_cuda or deferred else "aten"


def is_channels_last_image(operand: Tensor) -> bool:
    """Whether an operand is channels_last, so that the result is channels_last too.

    False for integers, because PyTorch refuses some problems in channels_last.
    """
    return (
        (operand.is_floating_point() or operand.is_complex())
        and not are_functorch_transforms_active()  # the layout of a mapped tensor is unknown
        and is_channels_last(operand)
    )


@skip_dynamo
def is_left_to_pytorch(input: Any, algorithm: AlgorithmLike) -> bool:
    """Whether the input is from ``to_mkldnn()``; only PyTorch's convolution reads its layout."""
    if not getattr(input, "is_mkldnn", False):
        return False
    found = find_algorithm(algorithm)
    return isinstance(found, Auto) or found.is_pytorch
