"""A form: all of a map but its tensors' addresses, ready to run again and again.

Triton, which need not be there, is imported when something is first asked of it.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .configs import Config, Product

FUSION = {"enable_fp_fusion": True}
"""Products and sums are fused, as Triton does by default up to 3.9, which warns of a change."""


class Fresh(NamedTuple):
    """A tensor of a form that is allocated, of this shape and these strides."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def make(self, tensors: list[Tensor]) -> Tensor:
        """On the operands' device."""
        return tensors[0].new_empty_strided(self.shape, self.strides, dtype=self.dtype)


class Packed(NamedTuple):
    """A tensor of a form that is a copy: of the one at ``place``, seen in this shape and these
    strides, in the order of ``layout``."""

    place: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    layout: torch.memory_format

    def make(self, tensors: list[Tensor]) -> Tensor:
        """From those that were made before."""
        view = tensors[self.place].as_strided(self.shape, self.strides)
        return view.contiguous(memory_format=self.layout)


@dataclass(frozen=True, eq=False)
class Launch:
    """One kernel, where it runs and with what.

    Attributes:
        kernel: its name in ``kernels.py``.
        config: the configuration that it runs in.
        grid: programs.
        arguments: in the kernel's order; tensors, which come first, as stand-ins on ``meta``.
        constants: what it is compiled for.
        places: where its tensors are among those of its form.
        compiled: what has been compiled, for what :meth:`run` tells apart.
    """

    kernel: str
    config: Config
    grid: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    places: tuple[int, ...]
    compiled: dict[tuple[Any, ...], tuple[Any, ...]] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, int]:
        """Warps and stages, for the compiler."""
        stages = self.config.stages if isinstance(self.config, Product) else 1
        return {"num_warps": self.config.warps, "num_stages": stages}

    def run(self, tensors: list[Tensor]) -> None:
        """On the current stream of the current device, which is that of the form's tensors."""
        pointers = [tensors[place].data_ptr() for place in self.places]
        # Triton compiles for numbers, dtypes, alignment and these settings; a module belongs to
        # a device.  What of it a form does not fix is the key.
        knobs = _knobs()
        key = (
            tensors[0].get_device(),
            *(pointer % 16 == 0 for pointer in pointers),
            knobs.runtime.debug,
            knobs.compilation.instrumentation_mode,
        )
        if found := self.compiled.get(key):
            # As Triton's own launch ends, with its hooks; all before that, which finds out again
            # what to launch, takes three times as long.
            launch, numbers = found
            launch(*pointers, *numbers)
            return
        kernel = getattr(_kernels(), self.kernel)
        count = len(self.places)
        arguments = (*(tensors[place] for place in self.places), *self.arguments[count:])
        options = {**self.options, **FUSION}
        made = kernel[(self.grid,)](*arguments, **self.constants, **options)
        if hasattr(made, "result"):  # Under triton.AsyncCompileMode.
            made = made.result()
        if made is not None:  # The interpreter compiles nothing.
            constants = (self.constants[name] for name in kernel.arg_names[len(arguments) :])
            self.compiled[key] = made[(self.grid, 1, 1)], (*arguments[count:], *constants)


@dataclass(frozen=True, eq=False)
class Form:
    """A map of operands of given sizes, strides and dtype: all of it but the addresses.

    Attributes:
        config: the configuration that it runs in.
        made: the tensors that it takes beside its operands, each made of those before it.
        launches: in their order.
        result: the place of the tensor that they fill, among operands and ``made``.
    """

    config: Config
    made: tuple[Fresh | Packed, ...]
    launches: tuple[Launch, ...]
    result: int

    def run(self, first: Tensor, *others: Tensor) -> Tensor:
        """On the current stream of the operands' device."""
        tensors = [first, *others]
        for each in self.made:
            tensors.append(each.make(tensors))
        device = first.get_device()
        # The guard takes a microsecond, and is needed where there are several devices.
        elsewhere = first.is_cuda and device != torch.cuda.current_device()
        with torch.cuda.device(device) if elsewhere else _HERE:
            for launch in self.launches:
                launch.run(tensors)
        return tensors[self.result]


_HERE = nullcontext()


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU: ``TRITON_INTERPRET=1``."""
    knobs = _knobs()
    return knobs is not None and bool(knobs.runtime.interpret)


def first_line(error: Exception) -> str:
    """Of what an error says: some of Triton's go on for pages."""
    return str(error).strip().partition("\n")[0]


@lru_cache(maxsize=1)
def missing() -> str:
    """Why there is no Triton here that could compile, a sentence; empty where there is one."""
    if find_spec("triton") is None:
        return (
            "Triton is not installed; PyTorch's builds for CUDA bring it, or "
            'pip install "torch_corr[triton]"'
        )
    try:
        triton = import_module("triton")
    except (ImportError, OSError) as error:
        return f"Triton is installed, but cannot be imported ({first_line(error)})"
    if not hasattr(triton, "knobs"):
        version = getattr(triton, "__version__", "of no version")
        return f"what is installed as Triton ({version}) has no triton.knobs; it needs 3.5 or later"
    return ""


@lru_cache(maxsize=1)
def _knobs() -> Any:
    """Triton's settings, which read the environment whenever they are asked; None without it."""
    return None if missing() else import_module("triton").knobs


def _kernels() -> Any:
    return import_module(".kernels", __package__)
