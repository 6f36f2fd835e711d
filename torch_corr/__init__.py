"""2-D cross-correlation for PyTorch, with a choice of algorithms.

:func:`corr2d` takes the arguments of ``torch.nn.functional.conv2d``, :class:`Corr2d` is a subclass
of ``nn.Conv2d``, and :func:`convert` changes the algorithm of an existing model's layers.
"""

from __future__ import annotations

from ._version import __version__
from .algorithms import ALGORITHMS, FFT, Algorithm, Aten, Direct, Naive, Triton, Unfold
from .conversion import Conversion, convert
from .functional import convolve2d, corr2d, explain, plan
from .interception import intercept
from .modules import Corr2d, LazyCorr2d
from .planning import wisdom
from .planning.auto import Auto
from .planning.plan import Plan
from .problem import Problem
from .request import MAPS, Request
from .tuning import Tuning, tune

__all__ = [
    "ALGORITHMS",
    "FFT",
    "MAPS",
    "Algorithm",
    "Aten",
    "Auto",
    "Conversion",
    "Corr2d",
    "Direct",
    "LazyCorr2d",
    "Naive",
    "Plan",
    "Problem",
    "Request",
    "Triton",
    "Tuning",
    "Unfold",
    "__version__",
    "convert",
    "convolve2d",
    "corr2d",
    "explain",
    "intercept",
    "plan",
    "tune",
    "wisdom",
]
