"""``check_corr2d`` and its reports."""

from __future__ import annotations

import json
from time import monotonic

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from support.processes import run_python
from torch_corr.testing import (
    CLAIMS,
    LAWS,
    Case,
    NonConformance,
    Violation,
    check,
    check_corr2d,
    problems,
)


def test_report_as_table_and_json():
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


def test_counterexample_is_a_failing_program():
    report = check_corr2d(F.conv2d, laws=["zero_sizes"], examples=5)
    (failure,) = report.failures
    assert failure.counterexample is not None
    assert "n1c1-x1x1-o1-k1x1" in failure.counterexample.snippet
    with pytest.raises(Violation, match=r"has shape \(1, 0, 1, 1\), not \(1, 1, 1, 1\)"):
        exec(failure.counterexample.snippet, {})


def test_trace_keeps_the_case_of_a_crash(tmp_path):
    program = (
        "import os; from pathlib import Path; from torch_corr.testing import check_corr2d\n"
        f"trace = Path({str(tmp_path / 'x')!r})\n"
        "check_corr2d(lambda *a, **k: os._exit(3), examples=1, trace=trace)"
    )
    assert run_python("-c", program).returncode == 3
    assert "recheck('accepts', fn, case)" in (tmp_path / "x").read_text()


def test_case_repr_round_trips():
    case = Case(
        "n1c2-x5x4-o2-k3x2-s2x1-p1,1x0,0-d1x2-g2", "float16", layouts=("offset",) * 3, seed=7
    )
    assert eval(repr(case)) == case


def test_refusals_are_not_passes():
    def nothing(*_, **__):
        raise NotImplementedError("not today")

    report = check_corr2d(nothing, laws=["accepts", "values"], examples=5)
    accepts, values = report.verdicts
    assert accepts.outcome == "failed"
    assert values.outcome == "refused"
    assert "not today" in values.reason


@pytest.mark.parametrize(
    ("spoil", "message"),
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
def test_wrong_return_values_are_failures(spoil, message, monkeypatch):
    """Every law has a verdict, and the first failure says what came back."""
    monkeypatch.setattr(check, "SHRINKING_SECONDS", 0.2)

    def fn(*args, **keywords):
        return spoil(F.conv2d(*args, **keywords))

    report = check_corr2d(fn, claims=CLAIMS, examples=2, budget=1)
    assert len(report.verdicts) == len(LAWS)
    first = report.failures[0]
    assert first.law == "accepts"
    assert first.counterexample is not None
    assert first.counterexample.message == message
    assert {"values", "gradients", "batch", "threads"} - set(report.failed_laws()) <= {"threads"}


def test_error_without_printable_message_is_a_refusal():
    class Mute(Exception):  # noqa: N818
        def __str__(self):
            raise ValueError("no words")

    def fn(*_, **__):
        raise Mute

    report = check_corr2d(fn, laws=["values"], examples=2)
    assert report.verdicts[0].outcome == "refused"
    assert report.verdicts[0].reason == "Mute: its message cannot be printed"


def test_budget_holds_when_everything_fails():
    began = monotonic()
    report = check_corr2d(lambda *_, **__: None, budget=2, examples=10**6)
    assert monotonic() - began < 60  # 3 on an idle machine; 130 if shrinking has no limit
    assert "values" in report.failed_laws()


@pytest.mark.parametrize(
    "limit", [{"problems": st.none().filter(lambda _: False)}, {"able": lambda *_: False}], ids=list
)
def test_report_without_a_case_does_not_pass(limit):
    report = check_corr2d(F.conv2d, laws=["values"], examples=3, **limit)
    (verdict,) = report.verdicts
    assert verdict.outcome == "refused"
    assert verdict.reason == "no case was drawn that the callable supports"
    assert not report.passed
    assert "nothing was tried" in str(report)
    with pytest.raises(NonConformance, match="nothing was tried"):
        report.raise_if_failed()


def test_narrower_callable_passes_with_limits():
    """Without groups and stride, which the kit then never passes."""

    def narrow(x, w, bias=None, padding=0):
        return F.conv2d(x, w, bias, 1, padding)

    narrowed = problems(
        max_groups=1, max_stride=1, max_dilation=1, allow_empty=False, asymmetric_padding=False
    )
    laws = [law.name for law in LAWS if law.name != "zero_sizes" and law.name not in CLAIMS]
    check_corr2d(narrow, laws=laws, problems=narrowed, examples=10).raise_if_failed()
