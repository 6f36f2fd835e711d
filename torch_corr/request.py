"""A request: one map of a problem, on a device, in a dtype.

It is all that an algorithm needs to know before it sees operands: whether it can compute the map,
what that takes in memory and what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .problem import Problem

MapName: TypeAlias = Literal["forward", "grad_input", "grad_weight"]
MAPS: tuple[MapName, ...] = ("forward", "grad_input", "grad_weight")

Slot = Literal["input", "weight", "output"]
SLOTS: dict[MapName, tuple[Slot, Slot, Slot]] = {
    "forward": ("input", "weight", "output"),
    "grad_input": ("output", "weight", "input"),
    "grad_weight": ("input", "output", "weight"),
}
"""The slots of the form that each map reads, in the order of its operands, and the one it fills."""

HALVES = (torch.float16, torch.bfloat16)

Shape: TypeAlias = tuple[int, int, int, int]


def shape_of(problem: Problem, slot: Slot) -> Shape:
    """The shape of one slot of a problem."""
    shape: Shape = getattr(problem, f"{slot}_shape")
    return shape


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to sum products in: float32 for float16 and bfloat16, else the dtype itself."""
    return torch.float32 if dtype in HALVES else dtype


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Request:
    """One map of a problem on a device in a dtype.

    No :class:`~torch_corr.value.Value`, which must have a hash: the sizes of a problem may be
    symbols, which have none.

    Attributes:
        problem: the geometry.
        map: which of the three maps.
        device: where it runs.
        dtype: of the operands and the result.
        channels_last: whether images are in channels_last, the result too.
    """

    problem: Problem
    map: MapName
    device: torch.device
    dtype: torch.dtype
    channels_last: bool = False

    @classmethod
    def of(cls, problem: Problem, map: MapName, operand: Tensor) -> Request:
        """The request of a map whose operands have the device and the dtype of this one."""
        return cls(problem, map, operand.device, operand.dtype)

    @classmethod
    def of_each_map(
        cls, problem: Problem, device: torch.device, dtype: torch.dtype, channels_last: bool = False
    ) -> tuple[Request, ...]:
        """One request for each of :data:`MAPS`, in that order."""
        return tuple(cls(problem, map, device, dtype, channels_last) for map in MAPS)

    def with_map(self, map: MapName) -> Request:
        """The same request for another map."""
        return replace(self, map=map)

    def in_accumulation_dtype(self) -> Request:
        """The same request in float32 if it is in half precision."""
        return replace(self, dtype=accumulation_dtype(self.dtype))

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """The shapes of both operands and of the result."""
        first, second, result = SLOTS[self.map]
        problem = self.problem
        return shape_of(problem, first), shape_of(problem, second), shape_of(problem, result)

    def __str__(self) -> str:
        layout = " in channels_last" if self.channels_last else ""
        return f"{self.problem} on {self.device}/{dtype_name(self.dtype)}{layout}"
