"""How operands lie in memory, and which algorithm their layout asks for."""

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
    """What is planned with, where nothing is computed or a layout is to be handed on."""
    if input.is_meta:
        return "auto"
    if is_exporting_or_tracing():
        return "aten"
    return (resolve_for_layout(input, weight) or "auto") if algorithm == "auto" else algorithm


def resolve_for_layout(input: Tensor, weight: Tensor) -> AlgorithmLike | None:
    """What stands for ``auto`` where an operand lies in channels_last, else None."""
    if not any(map(is_channels_last_image, (input, weight))):
        return None
    # On a CPU nothing else is ever chosen, and of PyTorch's own compilers make more.
    # A plan that waits for the sizes must say itself that it does so.
    waits = is_data_dependent((*input.shape, *weight.shape))
    return IN_CHANNELS_LAST if input.is_cuda or waits else "aten"


def is_channels_last_image(operand: Tensor) -> bool:
    """Whether an operand has PyTorch's channels_last layout, which goes on to the result.

    Not of integers, of which it refuses some problems.
    """
    return (
        (operand.is_floating_point() or operand.is_complex())
        and not are_functorch_transforms_active()  # a mapped tensor cannot tell
        and is_channels_last(operand)
    )


@skip_dynamo
def is_left_to_pytorch(input: Any, algorithm: AlgorithmLike) -> bool:
    """Whether images lie as oneDNN likes them, which PyTorch's own convolution alone reads.

    What it takes and what it refuses there is its own affair.
    """
    opaque = getattr(input, "is_mkldnn", False)
    if not opaque:
        return False
    found = find_algorithm(algorithm)
    return isinstance(found, Auto) or found.is_pytorch
