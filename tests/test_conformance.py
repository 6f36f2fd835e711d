"""The kit itself: right correlations pass, each planted bug is caught by the law that names it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from support import detection
from support.laws import conv2d_is_sound
from support.planted import BUGS, Bug, right
from torch_corr import corr2d
from torch_corr.testing import (
    CLAIMS,
    LAWS,
    Case,
    NonConformance,
    Violation,
    check_corr2d,
    conformance_tests,
    find_law,
    problems,
    recheck,
)

# What F.conv2d on the CPU does break; docs/what-the-kit-finds.md.
KNOWN = ("zero_sizes", "non_finite")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_each_planted_bug_is_caught_by_its_law(bug: Bug) -> None:
    report = check_corr2d(bug.fn, dtypes=[bug.dtype], laws=[bug.law], errors=bug.errors)
    assert report.failed_laws() == (bug.law,)
    (failure,) = report.failures
    assert failure.counterexample is not None
    with pytest.raises(Violation):
        _recheck_often(bug, failure.counterexample.case)


def _recheck_often(bug: Bug, case: Case) -> None:
    """Races and chance need not show at every call; all else must, as a reader tries it once."""
    for _ in range(50 if bug.law in ("determinism", "threads") else 1):
        recheck(bug.law, bug.fn, case, errors=bug.errors)


def test_there_are_bugs_enough_and_one_for_each_law() -> None:
    assert len(BUGS) >= 25
    assert {bug.law for bug in BUGS} == {law.name for law in LAWS}


def test_the_tables_of_the_docs_are_in_step() -> None:
    """As far as they do not depend on a run; ``python -m support.detection`` writes them."""
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
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int8],
    ids=str,
)
def test_no_false_alarm_on_what_the_bugs_are_planted_in(dtype: torch.dtype) -> None:
    check_corr2d(right, dtypes=[dtype], claims=["forward_mode"], examples=15).raise_if_failed()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_false_alarm_on_conv2d(dtype: torch.dtype) -> None:
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
def test_no_false_alarm_on_a_fourier_transform_that_promises_no_more(dtype: torch.dtype) -> None:
    fourier = next(bug.fn for bug in BUGS if bug.name == "fourier_that_claims_to_be_direct")
    report = check_corr2d(
        fourier,
        dtypes=[dtype],
        errors="normwise",
        without=["non_finite", "zero_sizes", "invalid_arguments"],
        examples=15,
    )
    report.raise_if_failed()


def test_no_filters_may_be_refused_but_not_wrong() -> None:
    def refuses(input: Tensor, weight: Tensor, *others: Any, **more: Any) -> Tensor:
        if weight.shape[0] == 0:
            raise RuntimeError("expected weight to be at least 1 at dimension 0")
        return corr2d(input, weight, *others, **more)

    def invents(input: Tensor, weight: Tensor, *others: Any, **more: Any) -> Tensor:
        if weight.shape[0] == 0:
            weight = weight.new_zeros(more.get("groups", 1), *weight.shape[1:])
        return corr2d(input, weight, *others, **more)

    for function in (corr2d, refuses):
        check_corr2d(function, laws=["zero_sizes"], examples=5).raise_if_failed()
    with pytest.raises(NonConformance, match="output with no filters has shape"):
        check_corr2d(invents, laws=["zero_sizes"], examples=5).raise_if_failed()


def test_report_prints_a_table_and_turns_into_json() -> None:
    report = check_corr2d(
        F.conv2d,
        dtypes=[torch.float32, torch.int64],
        laws=["accepts", "gradients", "zero_sizes"],
        without=["accepts"],
        examples=5,
    )
    table = str(report).splitlines()
    assert table[0].startswith("torch.nn.functional.conv2d on cpu (torch ")
    rows = {line.split()[0]: line.split()[1:] for line in table[2:7] if line}
    assert rows["law"] == ["float32", "int64"]
    assert rows["accepts"] == ["excluded", "excluded"]
    assert rows["gradients"] == ["ok", "20", "-"]
    assert rows["zero_sizes"] == ["FAIL", "FAIL"]
    verdicts = json.loads(report.to_json())["verdicts"]
    assert len(verdicts) == 6
    assert verdicts[2]["counterexample"]["case"]["dtype"] == "float32"
    with pytest.raises(NonConformance, match="zero_sizes"):
        report.raise_if_failed()


def test_counterexample_is_a_program_that_fails() -> None:
    report = check_corr2d(F.conv2d, laws=["zero_sizes"], examples=5)
    (failure,) = report.failures
    assert failure.counterexample is not None
    assert "n1c1-x1x1-o1-k1x1" in failure.counterexample.snippet
    run = subprocess.run(
        [sys.executable, "-c", failure.counterexample.snippet],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "has shape (1, 0, 1, 1), not (1, 1, 1, 1)" in run.stderr


def test_a_crash_leaves_the_case_that_it_died_of(tmp_path: Path) -> None:
    program = (
        "import os; from pathlib import Path; from torch_corr.testing import check_corr2d\n"
        f"trace = Path({str(tmp_path / 'x')!r})\n"
        "check_corr2d(lambda *a, **k: os._exit(3), examples=1, trace=trace)"
    )
    run = subprocess.run([sys.executable, "-c", program], check=False)
    assert run.returncode == 3
    assert "recheck('accepts', fn, case)" in (tmp_path / "x").read_text()


def test_a_case_prints_as_itself() -> None:
    case = Case(
        "n1c2-x5x4-o2-k3x2-s2x1-p1,1x0,0-d1x2-g2", "float16", layouts=("offset",) * 3, seed=7
    )
    assert eval(repr(case)) == case


def test_refusals_are_not_passes() -> None:
    def nothing(*_: object, **__: object) -> torch.Tensor:
        raise NotImplementedError("not today")

    report = check_corr2d(nothing, laws=["accepts", "values"], examples=5)
    accepts, values = report.verdicts
    assert accepts.outcome == "failed"
    assert values.outcome == "refused"
    assert "not today" in values.reason


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda y: None, "output is a NoneType, not a tensor"),
        (lambda y: (y,), "output is a tuple, not a tensor"),
        (lambda y: y.detach().numpy(), "output is a ndarray, not a tensor"),
        (lambda y: y.double(), "output has dtype torch.float64, not torch.float32"),
        (lambda y: y.sum(), "output has shape (), not (1, 1, 1, 1)"),
        (lambda y: y[..., 1:], "output has shape (1, 1, 1, 0), not (1, 1, 1, 1)"),
        (lambda y: y.to("meta"), "output has device meta, not cpu"),
        (lambda y: y.to_sparse(), "output has layout torch.sparse_coo, not torch.strided"),
    ],
)
def test_whatever_comes_back_is_a_verdict(spoil: Callable[[Tensor], Any], said: str) -> None:
    """Every law speaks, and the first says what came back."""

    def fn(*args: Any, **keywords: Any) -> Any:
        return spoil(F.conv2d(*args, **keywords))

    report = check_corr2d(fn, claims=CLAIMS, examples=2, budget=1)
    assert len(report.verdicts) == len(LAWS)
    first = report.failures[0]
    assert first.law == "accepts"
    assert first.counterexample is not None
    assert first.counterexample.message == said
    assert {"values", "gradients", "batch", "threads"} - set(report.failed_laws()) <= {"threads"}


def test_an_error_that_cannot_be_printed_is_a_refusal() -> None:
    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise ValueError("no words")

    def fn(*_: Any, **__: Any) -> Tensor:
        raise Mute

    report = check_corr2d(fn, laws=["values"], examples=2)
    assert report.verdicts[0].outcome == "refused"
    assert report.verdicts[0].reason == "Mute: its message cannot be printed"


def test_a_gradient_that_exists_only_beside_the_other_is_found() -> None:
    def fn(x: Tensor, w: Tensor, *args: Any, **keywords: Any) -> Tensor:
        y = F.conv2d(x, w, *args, **keywords)
        return y if x.requires_grad and w.requires_grad else y.detach()

    report = check_corr2d(fn, laws=["frozen_operands"], examples=4)
    (failure,) = report.failures
    assert failure.counterexample is not None
    assert "grad_input alone raises gradient: RuntimeError" in failure.counterexample.message


def test_a_budget_holds_also_where_everything_fails() -> None:
    began = monotonic()
    report = check_corr2d(lambda *_, **__: None, budget=2, examples=10**6)
    assert monotonic() - began < 60  # alone 3; shrinking all without end takes 130
    assert "values" in report.failed_laws()


def test_nothing_to_draw_is_no_pass() -> None:
    nothing = problems().filter(lambda problem: False)
    report = check_corr2d(F.conv2d, laws=["values"], problems=nothing, examples=3)
    (verdict,) = report.verdicts
    assert verdict.outcome == "refused"
    assert verdict.reason == "no case was drawn that the callable supports"
    assert not report.passed
    assert "nothing was tried" in str(report)


def test_a_narrower_callable_is_held_to_what_it_is_for() -> None:
    """No groups and no stride: such arguments are never passed."""

    def narrow(x, w, bias=None, padding=0):
        return F.conv2d(x, w, bias, 1, padding)

    narrowed = problems(
        max_groups=1, max_stride=1, max_dilation=1, allow_empty=False, asymmetric_padding=False
    )
    laws = [law.name for law in LAWS if law.name != "zero_sizes" and law.name not in CLAIMS]
    check_corr2d(narrow, laws=laws, problems=narrowed, examples=10).raise_if_failed()


def test_unknown_laws_are_refused() -> None:
    with pytest.raises(ValueError, match="no law 'vlaues'"):
        check_corr2d(F.conv2d, laws=["vlaues"])
    assert find_law("values").statement.startswith("Every output is the definition's")


test_conv2d_in_three_lines = conformance_tests(
    F.conv2d, without=KNOWN, examples=3, able=conv2d_is_sound
)
