"""The compiled part of the package, where it was built: its module, or why there is none.

The C++ sources beside this file know nothing of torch: addresses and sizes cross, checked on both
sides. ``direct`` runs its kernels; the check of ``fft`` runs its passes over planes.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

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
