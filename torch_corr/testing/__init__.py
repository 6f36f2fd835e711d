"""The conformance kit: test any 2-D cross-correlation against its definition.

    from torch_corr.testing import check_corr2d
    check_corr2d(my_conv2d, device="cuda", dtypes=[torch.float16]).raise_if_failed()

It contains an independent oracle, error bounds, the laws of correlation, and strategies that draw
problems and operands.  It needs hypothesis: ``pip install "torch_corr[kit]"``.
"""

from __future__ import annotations

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        "torch_corr.testing draws its examples with hypothesis, which is not installed; run: "
        'pip install "torch_corr[kit]"'
    ) from error

from .bounds import TF32_READING, Componentwise, ErrorModel, error_bound, gamma, unit_roundoff
from .check import Trial, check_corr2d, recheck, select_laws, try_law
from .data import DATA, LAYOUTS, Operands, in_layout, make_operands
from .laws import CLAIMS, LAWS, Law, find_law
from .normwise import Checked, Either, Fourier, Normwise, Winograd, declared
from .oracle import Reference, oracle
from .poison import litter, poisoned
from .pytest_function import conformance_tests
from .report import Counterexample, NonConformance, Report, Verdict
from .strategies import operands, problems, tensors_for
from .subject import Case, Refusal, Subject, Violation, require_close, require_right

__all__ = [
    "CLAIMS",
    "DATA",
    "LAWS",
    "LAYOUTS",
    "TF32_READING",
    "Case",
    "Checked",
    "Componentwise",
    "Counterexample",
    "Either",
    "ErrorModel",
    "Fourier",
    "Law",
    "NonConformance",
    "Normwise",
    "Operands",
    "Reference",
    "Refusal",
    "Report",
    "Subject",
    "Trial",
    "Verdict",
    "Violation",
    "Winograd",
    "check_corr2d",
    "conformance_tests",
    "declared",
    "error_bound",
    "find_law",
    "gamma",
    "in_layout",
    "litter",
    "make_operands",
    "operands",
    "oracle",
    "poisoned",
    "problems",
    "recheck",
    "require_close",
    "require_right",
    "select_laws",
    "tensors_for",
    "try_law",
    "unit_roundoff",
]
