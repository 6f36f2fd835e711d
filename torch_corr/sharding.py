"""DTensors: each process computes on its part, and nothing is gathered.

``T(x, w, y)`` sums over four axes besides the images' own: batch, groups, and the channels of
a group on either side.  Where both slots that have an axis are split along it, every process
runs the same map on its part.  The third slot, which lacks the axis, is whole in every process
if it is an operand, and a sum that is still partial if it is the result.  So does PyTorch with
its own convolution along the batch; here it holds for every algorithm, and along channels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from .request import MAPS, MapName

# For batch, input channels and output channels in turn: the dimension of the first operand, of
# the second and of the result that is split along the axis.
_SPLITS: dict[MapName, tuple[tuple[int | None, int | None, int | None], ...]] = {
    "forward": ((0, None, 0), (1, 1, None), (None, 0, 1)),
    "grad_input": ((0, None, 0), (None, 1, 1), (1, 0, None)),
    "grad_weight": ((0, 0, None), (1, None, 1), (None, 1, 0)),
}


def is_distributed(slots: Sequence[Tensor | None]) -> bool:
    """Whether any slot holds a DTensor."""
    # Who has not imported that has none, and importing it takes half a second.
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    return any(isinstance(value, kind) for value in slots)


@cache
def register_splits() -> None:
    """Tell DTensor how our operators may be split; once."""
    from torch.distributed.tensor.experimental import register_sharding

    for map in MAPS:
        register_sharding(getattr(torch.ops.torch_corr, map).default)(partial(_placements, map))


def _placements(map: MapName, first: Any, second: Any, groups: int, *others: Any) -> list[Any]:
    """What result and operands may be along one axis of the mesh, as DTensor wants it told."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    unplaced = [None] * (1 + len(others))
    found: list[Any] = [([Replicate()], [Replicate(), Replicate(), *unplaced])]
    # Channels of several groups would leave another number of groups to each process.
    for *operands, result in _SPLITS[map] if groups == 1 else _SPLITS[map][:1]:
        given = [Replicate() if each is None else Shard(each) for each in operands]
        made = Partial() if result is None else Shard(result)
        found.append(([made], [*given, *unplaced]))
    return found
