"""The operands of each map by name, random ones, and their exact result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_corr import Problem
from torch_corr.request import SLOTS, MapName, Request
from torch_corr.testing import Reference, oracle

OPERANDS: dict[str, tuple[str, ...]] = {map: slots[:2] for map, slots in SLOTS.items()}


def request(
    problem: Problem,
    map: MapName = "forward",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Request:
    """A request, by default of the output in float32 on the CPU."""
    return Request(problem, map, torch.device(device), dtype)


def all_operands(
    problem: Problem, dtype: torch.dtype = torch.float32, **options: Any
) -> list[Tensor]:
    """Normally distributed input, weight and output."""
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    return [torch.randn(shape, dtype=dtype, **options) for shape in shapes]


def some(problem: Problem, map: str, dtype: torch.dtype) -> list[Tensor]:
    """Normally distributed operands of a map, in its order."""
    return [torch.randn(getattr(problem, f"{slot}_shape"), dtype=dtype) for slot in OPERANDS[map]]


def reference(problem: Problem, map: str, operands: list[Tensor]) -> Reference:
    """The exact result of a map, with the sum of the magnitudes of its products."""
    return oracle(problem, **dict(zip(OPERANDS[map], operands)))
