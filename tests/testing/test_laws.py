"""The laws: correct correlations keep them, and each planted bug breaks the law that names it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from support import detection
from support.laws import conv2d_is_sound
from support.planted import BUGS, right
from torch_corr import corr2d
from torch_corr.testing import (
    LAWS,
    NonConformance,
    Violation,
    check,
    check_corr2d,
    conformance_tests,
    recheck,
)

# What F.conv2d on the CPU does break; docs/what-the-kit-finds.md.
KNOWN = ("zero_sizes", "non_finite")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_each_planted_bug_is_caught_by_its_law(bug, monkeypatch):
    """The counterexample need not be the smallest; shrinking it would take most of the time."""
    monkeypatch.setattr(check, "SHRINKING_SECONDS", 0.5)
    report = check_corr2d(bug.fn, dtypes=[bug.dtype], laws=[bug.law], errors=bug.errors)
    assert report.failed_laws() == (bug.law,)
    (failure,) = report.failures
    assert failure.counterexample is not None
    with pytest.raises(Violation):
        _recheck_often(bug, failure.counterexample.case)


def _recheck_often(bug, case):
    """Races and randomness need not show at every call."""
    for _ in range(50 if bug.law in ("determinism", "threads") else 1):
        recheck(bug.law, bug.fn, case, errors=bug.errors)


def test_every_law_has_a_planted_bug():
    assert len(BUGS) >= 25
    assert {bug.law for bug in BUGS} == {law.name for law in LAWS}


def test_tables_in_docs_are_current():
    """The cells that do not depend on a run; ``python -m support.detection`` writes them."""
    page = detection.PAGE.read_text()
    for law in LAWS:
        assert detection.row(*detection.spoken(law)) in page, law.name
    rows = [line for line in page.splitlines() if " of 3 | " in line]
    assert len(rows) == len(BUGS)
    for bug, row in zip(BUGS, rows):
        assert row.startswith(f"| {' | '.join(detection.described(bug))} | "), bug.name
        assert "| 3 of 3 |" in row, bug.name
    readme = (detection.PAGE.parents[1] / "README.md").read_text()
    assert f"against {len(LAWS)} named laws" in readme
    assert f"{len(BUGS)} bugs planted" in readme


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int8], ids=str
)
def test_correct_correlation_passes(dtype):
    check_corr2d(right, dtypes=[dtype], claims=["forward_mode"], examples=15).raise_if_failed()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_conv2d_passes(dtype):
    if torch.__version__ < "2.11" and dtype is torch.float32:
        pytest.skip("PyTorch 2.10 returns zeros for large numbers in a layer of two groups")
    report = check_corr2d(
        F.conv2d,
        dtypes=[dtype],
        claims=["forward_mode"],
        without=KNOWN,
        examples=15,
        able=conv2d_is_sound,
    )
    report.raise_if_failed()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fft_passes_as_normwise(dtype):
    fourier = next(bug.fn for bug in BUGS if bug.name == "fourier_that_claims_to_be_direct")
    report = check_corr2d(
        fourier,
        dtypes=[dtype],
        errors="normwise",
        without=["non_finite", "zero_sizes", "invalid_arguments"],
        examples=15,
    )
    report.raise_if_failed()


def test_zero_filters_may_be_refused_but_not_wrong():
    def refuses(input, weight, *others, **more):
        if weight.shape[0] == 0:
            raise RuntimeError("expected weight to be at least 1 at dimension 0")
        return corr2d(input, weight, *others, **more)

    def invents(input, weight, *others, **more):
        if weight.shape[0] == 0:
            weight = weight.new_zeros(more.get("groups", 1), *weight.shape[1:])
        return corr2d(input, weight, *others, **more)

    for function in (corr2d, refuses):
        check_corr2d(function, laws=["zero_sizes"], examples=5).raise_if_failed()
    with pytest.raises(NonConformance, match="output with no filters has shape"):
        check_corr2d(invents, laws=["zero_sizes"], examples=5).raise_if_failed()


def test_gradient_that_needs_both_operands_is_found():
    def fn(x, w, *args, **keywords):
        y = F.conv2d(x, w, *args, **keywords)
        return y if x.requires_grad and w.requires_grad else y.detach()

    report = check_corr2d(fn, laws=["frozen_operands"], examples=4)
    (failure,) = report.failures
    assert failure.counterexample is not None
    assert "grad_input alone raises gradient: RuntimeError" in failure.counterexample.message


test_conv2d_in_three_lines = conformance_tests(
    F.conv2d, without=KNOWN, examples=3, able=conv2d_is_sound
)
