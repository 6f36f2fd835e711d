"""Builds launch plans; and the kernel arguments that follow the same rules in every map."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..base import may_use_tf32
from .axes import Axis
from .configs import Config, Product
from .launch_plan import Allocation, Copy, Launch, LaunchPlan
from .runtime import is_interpreted

INT32_MAX = 2**31 - 1
"""The most programs along the first axis of a grid, and the largest 32-bit position."""


class LaunchPlanBuilder:
    """Collects the temporaries of a launch plan.  All tensors are on ``meta``.

    Args:
        config: the configuration of the kernels.
        operands: the operands of the map.
        recompute_flag: the last operand of a plan whose kernels return at once if this number
            is 0; None for a plan that always computes.
    """

    def __init__(
        self, config: Config, *operands: Tensor, recompute_flag: Tensor | None = None
    ) -> None:
        self.config = config
        self.recompute_flag = recompute_flag
        operands = operands if recompute_flag is None else (*operands, recompute_flag)
        self.operands = len(operands)
        self.temporaries: list[Allocation | Copy] = []
        # By identity.  Each entry keeps its tensor, so that no other tensor gets its id.
        self.indices = {id(tensor): (index, tensor) for index, tensor in enumerate(operands)}

    def allocate(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """A new temporary."""
        made = torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
        return self._add(made, Allocation(tuple(made.shape), made.stride(), dtype))

    def contiguous(
        self,
        tensor: Tensor,
        view: Tensor | None = None,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """``tensor`` in a memory format, or a view of it; copied only if its layout differs."""
        view = tensor if view is None else view
        index = self.indices[id(tensor)][0]
        if view.is_contiguous(memory_format=layout):
            self.indices[id(view)] = index, view
            return view
        made = view.contiguous(memory_format=layout)
        return self._add(made, Copy(index, tuple(view.shape), view.stride(), layout))

    def _add(self, made: Tensor, temporary: Allocation | Copy) -> Tensor:
        self.temporaries.append(temporary)
        self.indices[id(made)] = self.operands + len(self.temporaries) - 1, made
        return made

    def launch(
        self,
        kernel: str,
        grid: int,
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
        config: Config | None = None,
    ) -> Launch:
        """A launch with these arguments; tensors come first.  The flag is added after them."""
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        arguments = (*tensors, self.recompute_flag, *arguments[len(tensors) :])
        if self.recompute_flag is not None:
            tensors.append(self.recompute_flag)
        indices = tuple(self.indices[id(each)][0] for each in tensors)
        return Launch(kernel, config or self.config, grid, arguments, constants, indices)

    def build(self, result: Tensor, *launches: Launch) -> LaunchPlan:
        """The plan whose launches fill ``result``."""
        index = self.indices[id(result)][0]
        return LaunchPlan(self.config, tuple(self.temporaries), launches, index)


def dot_constants(config: Product, source: Tensor) -> dict[str, Any]:
    """Compile-time arguments of both matrix product kernels."""
    return {
        "M": config.m,
        "N": config.n,
        "K": config.k,
        "SUM": sum_dtype(source.dtype),
        "PRECISION": "tf32" if may_use_tf32(source.dtype) else "ieee",
        "UPCAST": is_interpreted() and source.dtype in (torch.float16, torch.bfloat16),
    }


def sum_dtype(dtype: torch.dtype) -> Any:
    """Triton's dtype for sums of products of a dtype."""
    language = import_module("triton.language")
    return language.float64 if dtype == torch.float64 else language.float32


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """Strides, at most 1 along axes of one element, where they do not matter."""
    return tuple(
        step if size > 1 else min(step, 1) for size, step in zip(tensor.shape, tensor.stride())
    )


def needs_int64(axes: tuple[Axis, Axis], *tensors: Tensor | int) -> bool:
    """Whether a position in one of the tensors, or below one of the numbers, exceeds 32 bits.

    Taps outside the image have positions too, though nothing is read there.
    """
    largest = max(axis.max_position for axis in axes)
    for each in tensors:
        if isinstance(each, int):
            largest = max(largest, each)
        else:
            steps = each.stride()
            outside = sum(axis.max_position * step for axis, step in zip(axes, steps[2:4]))
            largest = max(largest, outside + sum(n * s for n, s in zip(each.shape, steps)))
    return largest > INT32_MAX - 2**12
