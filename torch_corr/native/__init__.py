"""The compiled part of the package, where it was built: its module, or why there is none.

The C++ sources beside this file know nothing of torch: they take addresses and sizes, which are
checked on both sides. ``direct`` runs the kernels; the check of ``fft`` runs scans.cpp.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ..problem import Problem

compiled: Any
why_missing: str
try:
    compiled, why_missing = import_module("torch_corr.native._compiled"), ""
except ImportError as error:
    compiled, why_missing = None, str(error)

ISA_VARIABLE = "TORCH_CORR_ISA"
"""Environment variable that names the instruction set, for tests and measurements."""

LARGEST_STEP = 2**48
"""The largest stride, dilation and padding of the compiled functions: ``kLargest`` in
``geometry.cpp``."""

LARGEST_SPAN = 1024
"""The most columns from the first tap of a window to the last in channels_last: ``kLastSpan`` in
``kernels.hpp``."""


def can_count(problem: Problem) -> bool:
    """Whether the compiled functions count so far as a problem's strides, dilations and padding."""
    return max(*problem.stride, *problem.dilation, *map(max, problem.padding)) <= LARGEST_STEP


def can_address(values: Tensor, layout: torch.memory_format = torch.contiguous_format) -> bool:
    """Whether the compiled functions can read a tensor in place: dense in this layout, and at a
    multiple of its dtype's size, which a tensor from ``torch.frombuffer`` may miss."""
    aligned = values.data_ptr() % values.element_size() == 0
    return values.is_contiguous(memory_format=layout) and not values.is_neg() and aligned


@cache
def requested_isa() -> str:
    """The instruction set that the environment names, read once; empty for the best one."""
    return os.environ.get(ISA_VARIABLE, "")


def used_isa() -> str:
    """The instruction set of the kernels that run; empty without kernels."""
    return requested_isa() or (compiled.isas()[0] if compiled else "")


sizes: Callable[[Problem], tuple[int, ...]] = attrgetter("numbers")
"""The sizes of a problem in the order in which the compiled functions take them."""
