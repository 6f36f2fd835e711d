"""The algorithms that ``torch_corr`` carries, in one explicit order: the reference last."""

from __future__ import annotations

from ..request import MAPS, MapName, accumulation_dtype, dtype_name
from .aten import Aten
from .base import (
    DEFAULT_WORKSPACE,
    Algorithm,
    Cost,
    ErrorClass,
    may_use_tf32,
)
from .direct import Direct
from .fft.algorithm import FFT
from .fft.checked import CheckedFFT
from .naive import Naive
from .triton.algorithm import Triton
from .unfold.algorithm import Unfold

ALGORITHMS: tuple[Algorithm, ...] = (Aten(), Direct(), Triton(), FFT(), Unfold(), Naive())

__all__ = [
    "ALGORITHMS",
    "DEFAULT_WORKSPACE",
    "FFT",
    "MAPS",
    "Algorithm",
    "Aten",
    "CheckedFFT",
    "Cost",
    "Direct",
    "ErrorClass",
    "MapName",
    "Naive",
    "Triton",
    "Unfold",
    "accumulation_dtype",
    "dtype_name",
    "may_use_tf32",
]
