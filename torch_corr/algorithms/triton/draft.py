"""A form in the making, and what launches of every map are told by the same rules."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..base import may_use_tf32
from .axes import Axis
from .configs import Config, Product
from .form import Form, Fresh, Launch, Packed, interpreted

MOST = 2**31 - 1
"""Programs of a grid's first axis; and positions that 32 bits count."""


class Draft:
    """A form in the making: stand-ins for its tensors, on ``meta``, and how each is made.

    Args:
        doubt: the last operand, where there is one: nothing is launched in earnest unless that
            number is other than 0.
    """

    def __init__(self, config: Config, *operands: Tensor, doubt: Tensor | None = None) -> None:
        self.config = config
        self.doubt = doubt
        operands = operands if doubt is None else (*operands, doubt)
        self.operands = len(operands)
        self.made: list[Fresh | Packed] = []
        # By what a stand-in is, not what it holds; with the stand-in, or another might be it.
        self.places = {id(each): (place, each) for place, each in enumerate(operands)}

    def fresh(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """One that is allocated."""
        made = torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
        return self._add(made, Fresh(tuple(made.shape), made.stride(), dtype))

    def packed(
        self,
        of: Tensor,
        view: Tensor,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """A ``view`` of another one in the order of ``layout``: a copy, but where it lies so."""
        place = self.places[id(of)][0]
        if view.is_contiguous(memory_format=layout):
            self.places[id(view)] = place, view
            return view
        made = view.contiguous(memory_format=layout)
        return self._add(made, Packed(place, tuple(view.shape), view.stride(), layout))

    def _add(self, made: Tensor, how: Fresh | Packed) -> Tensor:
        self.made.append(how)
        self.places[id(made)] = self.operands + len(self.made) - 1, made
        return made

    def launch(
        self,
        kernel: str,
        config: Config,
        grid: int,
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
    ) -> Launch:
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        rest = arguments[len(tensors) :]
        # Where every kernel wants it: after its other tensors, though it be none.
        arguments = (*tensors, self.doubt, *rest)
        if self.doubt is not None:
            tensors.append(self.doubt)
        places = tuple(self.places[id(each)][0] for each in tensors)
        return Launch(kernel, config, grid, arguments, constants, places)

    def form(self, result: Tensor, *launches: Launch) -> Form:
        return Form(self.config, tuple(self.made), launches, self.places[id(result)][0])


def dot_constants(config: Product, source: Tensor) -> dict[str, Any]:
    """What a matrix product is compiled for, in either map."""
    return {
        "M": config.m,
        "N": config.n,
        "K": config.k,
        "SUM": sums_in(source.dtype),
        "PRECISION": "tf32" if may_use_tf32(source.dtype) else "ieee",
        "UPCAST": interpreted() and source.dtype in (torch.float16, torch.bfloat16),
    }


def sums_in(dtype: torch.dtype) -> Any:
    """Triton's dtype that products of a dtype are summed in."""
    language = import_module("triton.language")
    return language.float64 if dtype == torch.float64 else language.float32


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """Strides, 0 along axes of one element: they carry no position there."""
    return tuple(
        step if size > 1 else min(step, 1) for size, step in zip(tensor.shape, tensor.stride())
    )


def passes_32_bits(both: tuple[Axis, Axis], *tensors: Tensor | int) -> bool:
    """Whether any position may pass 32 bits."""
    reach = max(axis.reach for axis in both)
    for each in tensors:
        if isinstance(each, int):
            reach = max(reach, each)
        else:
            steps = each.stride()
            # Taps outside of an image have positions too, though nothing is read there.
            outside = sum(axis.reach * step for axis, step in zip(both, steps[2:4]))
            reach = max(reach, outside + sum(n * s for n, s in zip(each.shape, steps)))
    return reach > MOST - 2**12
