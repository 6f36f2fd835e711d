"""A launch plan: everything about a map except the addresses of its tensors, for repeated calls."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import runtime
from .configs import Config, Product

FUSION = {"enable_fp_fusion": True}
"""Multiply and add are fused, Triton's default up to 3.9; that version warns of a change."""


class Allocation(NamedTuple):
    """A temporary tensor with this shape and these strides."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def make(self, tensors: list[Tensor]) -> Tensor:
        """Allocate it on the device of the operands."""
        return tensors[0].new_empty_strided(self.shape, self.strides, dtype=self.dtype)


class Copy(NamedTuple):
    """A temporary tensor: a view of tensor number ``source``, copied to a memory format."""

    source: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    layout: torch.memory_format

    def make(self, tensors: list[Tensor]) -> Tensor:
        """Copy one of the tensors made so far."""
        view = tensors[self.source].as_strided(self.shape, self.strides)
        return view.contiguous(memory_format=self.layout)


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch of one kernel.

    Attributes:
        kernel: its name in ``kernels.py``.
        config: determines warps and stages.
        grid: number of programs.
        arguments: in the kernel's order; tensors come first, as tensors on ``meta``.
        constants: the compile-time arguments.
        indices: the numbers of the kernel's tensors in the plan.
        compiled: the compiled kernels, by the conditions that :meth:`run` checks.
    """

    kernel: str
    config: Config
    grid: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    indices: tuple[int, ...]
    compiled: dict[tuple[Any, ...], tuple[Any, ...]] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, int]:
        """Warps and stages, for the compiler."""
        stages = self.config.stages if isinstance(self.config, Product) else 1
        return {"num_warps": self.config.warps, "num_stages": stages}

    def run(self, tensors: list[Tensor]) -> None:
        """Launch on the current stream of the current device, which must be the tensors' device."""
        pointers = [tensors[index].data_ptr() for index in self.indices]
        # A compiled kernel depends on numbers, dtypes, alignment and these settings, and belongs
        # to one device.  The plan fixes the numbers and dtypes; the key holds the rest.
        knobs = runtime.knobs()
        key = (
            tensors[0].get_device(),
            *(pointer % 16 == 0 for pointer in pointers),
            knobs.runtime.debug,
            knobs.compilation.instrumentation_mode,
        )
        if found := self.compiled.get(key):
            # The last step of Triton's own launch, with its hooks.  The steps before it find the
            # compiled kernel and take three times as long.
            launch, numbers = found
            launch(*pointers, *numbers)
            return
        kernel = getattr(runtime.kernels(), self.kernel)
        count = len(self.indices)
        arguments = (*(tensors[index] for index in self.indices), *self.arguments[count:])
        options = {**self.options, **FUSION}
        made = kernel[(self.grid,)](*arguments, **self.constants, **options)
        if hasattr(made, "result"):  # under triton.AsyncCompileMode
            made = made.result()
        if made is not None:  # the interpreter compiles nothing
            constants = (self.constants[name] for name in kernel.arg_names[len(arguments) :])
            self.compiled[key] = made[(self.grid, 1, 1)], (*arguments[count:], *constants)


@dataclass(frozen=True, eq=False)
class LaunchPlan:
    """The launches of a map for operands of given sizes, strides and dtype.

    The tensors of a plan are numbered: first the operands, then the temporaries.

    Attributes:
        config: the configuration of the kernels.
        temporaries: how to make the tensors beside the operands, each from those before it.
        launches: in order.
        result: the number of the tensor that the launches fill.
    """

    config: Config
    temporaries: tuple[Allocation | Copy, ...]
    launches: tuple[Launch, ...]
    result: int

    def run(self, first: Tensor, *others: Tensor) -> Tensor:
        """Compute the map of these operands on the current stream of their device."""
        tensors = [first, *others]
        for temporary in self.temporaries:
            tensors.append(temporary.make(tensors))
        device = first.get_device()
        # torch.cuda.device takes a microsecond, so it is used only for another device.
        is_elsewhere = first.is_cuda and device != torch.cuda.current_device()
        with torch.cuda.device(device) if is_elsewhere else _SAME_DEVICE:
            for launch in self.launches:
                launch.run(tensors)
        return tensors[self.result]


_SAME_DEVICE = nullcontext()
