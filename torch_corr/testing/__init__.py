"""Hold a correlation against the definition: strategies, an independent oracle, bounds.

The one part of the package that needs hypothesis: ``pip install "torch_corr[test]"``.
"""

from __future__ import annotations

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        "torch_corr.testing draws its examples with hypothesis, which is not installed; run: "
        'pip install "torch_corr[test]"'
    ) from error

from .bounds import error_bound, gamma, unit_roundoff
from .oracle import Reference, oracle
from .strategies import LAYOUTS, in_layout, operands, problems

__all__ = [
    "LAYOUTS",
    "Reference",
    "error_bound",
    "gamma",
    "in_layout",
    "operands",
    "oracle",
    "problems",
    "unit_roundoff",
]
