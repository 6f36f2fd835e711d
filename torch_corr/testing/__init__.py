"""Hold a correlation against the definition: strategies, an independent oracle, bounds, laws.

    from torch_corr.testing import check_corr2d
    check_corr2d(my_conv2d, device="cuda", dtypes=[torch.float16]).raise_if_failed()

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

from .bounds import Componentwise, ErrorModel, Fourier, error_bound, gamma, unit_roundoff
from .check import Trial, check_corr2d, recheck, select_laws, try_law
from .data import DATA, LAYOUTS, Operands, in_layout, make_operands
from .laws import CLAIMS, LAWS, Law, find_law
from .oracle import Reference, oracle
from .poison import poisoned
from .pytest_face import conformance_tests
from .report import Counterexample, NonConformance, Report, Verdict
from .strategies import operands, problems, tensors_for
from .subject import Case, Refusal, Subject, Violation, require_close, require_right

__all__ = [
    "CLAIMS",
    "DATA",
    "LAWS",
    "LAYOUTS",
    "Case",
    "Componentwise",
    "Counterexample",
    "ErrorModel",
    "Fourier",
    "Law",
    "NonConformance",
    "Operands",
    "Reference",
    "Refusal",
    "Report",
    "Subject",
    "Trial",
    "Verdict",
    "Violation",
    "check_corr2d",
    "conformance_tests",
    "error_bound",
    "find_law",
    "gamma",
    "in_layout",
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
