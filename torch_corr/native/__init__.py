"""The compiled part of the package, where it was built: its module, or why there is none.

The C++ sources beside this file know nothing of torch: they take addresses and sizes, which are
checked on both sides. ``direct`` runs the kernels; the check of ``fft`` runs scans.cpp.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from ..problem import Problem

compiled: Any
why_missing: str
try:
    compiled, why_missing = import_module("torch_corr.native._compiled"), ""
except ImportError as error:
    compiled, why_missing = None, str(error)

ISA_VARIABLE = "TORCH_CORR_ISA"
"""Environment variable that names the instruction set, for tests and measurements."""


def requested_isa() -> str:
    """The instruction set that the environment names; empty for the best one."""
    return os.environ.get(ISA_VARIABLE, "")


def sizes(problem: Problem) -> tuple[int, ...]:
    """The sizes of a problem in the order in which the compiled functions take them."""
    (top, bottom), (left, right) = problem.padding
    return (
        problem.batch,
        problem.in_channels,
        *problem.size,
        problem.out_channels,
        *problem.kernel,
        *problem.stride,
        top,
        bottom,
        left,
        right,
        *problem.dilation,
        problem.groups,
    )
