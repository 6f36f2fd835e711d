"""Sharding rules for DTensors: each process computes its own part, without communication.

``T(x, w, y)`` sums over the batch, the groups, and the input and output channels of a group.  Two
of the three slots have each of the axes batch, input channels and output channels.  If both are
sharded along the axis, every process runs the same map on its shard.  The third slot is replicated
if it is an operand, and a partial sum if it is the result.  These rules hold for every algorithm.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from .request import MAPS, MapName

# For batch, input channels and output channels: the dimension along which the first operand, the
# second operand and the result are sharded.
_SPLITS: dict[MapName, tuple[tuple[int | None, int | None, int | None], ...]] = {
    "forward": ((0, None, 0), (1, 1, None), (None, 0, 1)),
    "grad_input": ((0, None, 0), (None, 1, 1), (1, 0, None)),
    "grad_weight": ((0, 0, None), (1, None, 1), (None, 1, 0)),
}


def is_distributed(slots: Sequence[Tensor | None]) -> bool:
    """Whether any slot holds a DTensor."""
    # If the module is not imported, there are no DTensors.  Importing it takes half a second.
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    return any(isinstance(value, kind) for value in slots)


@cache
def register_splits() -> None:
    """Register the sharding rules of the three operators, once."""
    from torch.distributed.tensor.experimental import register_sharding

    for map in MAPS:
        register_sharding(getattr(torch.ops.torch_corr, map).default)(partial(_placements, map))


def _placements(map: MapName, first: Any, second: Any, groups: int, *others: Any) -> list[Any]:
    """The allowed placements of result and operands along one mesh axis, for DTensor."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    unplaced = [None] * (1 + len(others))
    found: list[Any] = [([Replicate()], [Replicate(), Replicate(), *unplaced])]
    # With several groups, shards of the channels would have fewer groups.
    for *operands, result in _SPLITS[map] if groups == 1 else _SPLITS[map][:1]:
        given = [Replicate() if each is None else Shard(each) for each in operands]
        made = Partial() if result is None else Shard(result)
        found.append(([made], [*given, *unplaced]))
    return found
