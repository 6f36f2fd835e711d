"""The kit on the command line, in tests of other projects, and as printed programs."""

from __future__ import annotations

import functools
import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_corr
from support import planted
from support.processes import run_python
from torch_corr.testing import Normwise, check, check_corr2d
from torch_corr.testing.subject import spelling
from torch_corr.testing.verify import ProgressBar, main

QUICK = ["--laws", "accepts,values", "--examples", "3"]
CONV2D = "torch.nn.functional:conv2d"


def test_verify_command_writes_report(tmp_path):
    """For a callable in the current folder, with a budget."""
    (tmp_path / "mine.py").write_text(
        "import torch.nn.functional as F\n"
        "def conv2d(*args, **kwargs):\n    return 2 * F.conv2d(*args, **kwargs)\n"
    )
    arguments = "-m torch_corr verify mine:conv2d --device cpu --dtype bfloat16 --budget 1s"
    more = "--laws", "accepts,values", "--json", "report.json"
    run = run_python(*arguments.split(), *more, cwd=tmp_path)
    assert run.returncode == 1, run.stderr
    assert run.stdout.startswith("mine.conv2d on cpu (torch ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["passed"]
    (snippet, *_) = [
        each["counterexample"]["snippet"] for each in report["verdicts"] if each["law"] == "values"
    ]
    shown = run_python("-c", snippet, cwd=tmp_path)
    assert shown.returncode == 1
    assert "Violation: output" in shown.stderr


def test_exit_codes_and_options(capsys):
    assert main([CONV2D, *QUICK, "--dtype", "float32,float64"]) == 0
    assert "values   ok 9     ok 9" in capsys.readouterr().out
    algorithm = "torch_corr:corr2d", "--with", "algorithm=unfold"
    assert main([*algorithm, *QUICK, "--limit", "max_groups=1", "--limit", "max_one=0"]) == 0
    assert "torch_corr.corr2d(algorithm=unfold) on cpu" in capsys.readouterr().out
    assert main([CONV2D, *QUICK, "--without", "accepts,values"]) == 1
    assert "nothing was tried, so this is not a pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torch.nn.functional"], "is not MODULE:NAME, e.g. my_kernels:conv2d"),
        (["no_such_module:conv2d"], "cannot import .*ModuleNotFoundError: No module named"),
        ([f"{CONV2D}d"], "cannot import .*has no attribute 'conv2dd'"),
        (["torch:float32"], "'torch:float32' is not callable"),
        (["raises_on_import:f"], "cannot import .*ZeroDivisionError"),
        ([CONV2D, "--dtype", "flaot32"], "no dtype 'flaot32'; e.g. float32,bfloat16"),
        ([CONV2D, "--device", "cuba"], "device 'cuba' cannot compute here: "),
        ([CONV2D, "--device", "meta"], "device 'meta' cannot compute here: "),
        ([CONV2D, "--laws", "vlaues"], "no 'vlaues'; did you mean 'values'.; use accepts"),
        ([CONV2D, "--claim", "values"], "no 'values'.*use forward_mode"),
        ([CONV2D, "--limit", "max_groop=1"], "no limit 'max_groop'; did you mean 'max_group"),
        ([CONV2D, "--limit", "max_groups=0"], "max_groups is a number of at least 1, not 0"),
        ([CONV2D, "--limit", "max_groups=a"], "max_groups is a number of at least 1, not 'a'"),
        ([CONV2D, "--limit", "allow_empty=1"], "allow_empty is true or false, not 1"),
        ([CONV2D, "--examples", "0"], "'0' is not a number of at least 1"),
        ([CONV2D, "--budget", "soon"], "'soon' is no time; write 60s, 5m or 1h"),
        ([CONV2D, "--json", "/no/such/folder/x"], "cannot write '/no/such/folder/x'"),
        ([CONV2D, "--with", "groups"], "'groups' is not KEY=VALUE"),
        ([CONV2D, "--errors", "none"], "invalid choice: 'none'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_options_are_explained(arguments, message, capsys, tmp_path, monkeypatch):
    (tmp_path / "raises_on_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)


def test_progress_bar_goes_from_0_to_all(capsys):
    bar = ProgressBar()
    check_corr2d(F.conv2d, laws=["accepts", "values"], examples=1, progress=bar)
    lines = [line for line in capsys.readouterr().err.split("\r") if "/2" in line]
    assert lines[0].startswith("\033[K[........................] 0/2")
    assert "accepts float32" in lines[0]
    assert lines[-1].startswith("\033[K[########################] 2/2")


def test_budget_limits_cases(monkeypatch):
    """The clock advances by 0.01 s at each call; each law gets a case."""
    clock = itertools.count()
    monkeypatch.setattr(check, "monotonic", lambda: next(clock) / 100)
    report = check_corr2d(F.conv2d, examples=10**6, budget=2.0, without=["zero_sizes"])
    decided = [each for each in report.verdicts if each.cases]
    assert len(decided) > 15
    assert len(decided) <= sum(each.cases for each in decided) < 300
    assert all(each.outcome != "refused" for each in report.verdicts)


def test_conformance_tests_in_another_project(tmp_path):
    (tmp_path / "my_kernels.py").write_text(
        "import torch.nn.functional as F\n"
        "def conv2d(x, w, **kwargs):\n    return F.conv2d(x, w.flip(-1), **kwargs)\n"
    )
    (tmp_path / "test_conv2d.py").write_text(
        "from torch_corr.testing import conformance_tests\n"
        "from my_kernels import conv2d\n"
        'laws = "accepts", "values", "determinism", "zero_sizes"\n'
        "test_conv2d = conformance_tests(conv2d, laws=laws, examples=4, without=laws[3:])\n"
    )
    run = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert run.returncode == 1
    assert "FAILED test_conv2d.py::test_conv2d[values-float32]" in run.stdout
    assert "1 failed, 2 passed" in run.stdout
    assert "recheck('values', fn, case)" in run.stdout


class Layer(nn.Module):
    """A callable object."""

    def forward(self, x, w, **keywords):
        return F.conv2d(x, w, **keywords)

    @staticmethod
    def twice(x, w, **keywords):
        return 2 * F.conv2d(x, w, **keywords)


@pytest.mark.parametrize(
    ("call", "program"),
    [
        (F.conv2d, "from torch.nn.functional import conv2d as fn"),
        (torch_corr.corr2d, "from torch_corr.functional import corr2d as fn"),
        (
            functools.partial(torch_corr.corr2d, algorithm="fft"),
            "import functools\nfrom torch_corr.functional import corr2d as fn\n"
            "fn = functools.partial(fn, algorithm='fft')",
        ),
        (Layer.twice, "from tests.testing.test_verify import Layer\nfn = Layer.twice"),
        (planted._operator, "from support.planted import _operator as fn"),
        (torch.ops.aten.conv2d.default, "fn = torch.ops.aten.conv2d.default"),
        (torch.ops.aten.conv2d, "fn = torch.ops.aten.conv2d"),
    ],
    ids=["builtin", "function", "partial", "method", "operator", "overload", "packet"],
)
def test_spelling_recreates_the_callable(call, program):
    assert spelling(call).startswith(program)
    names: dict[str, Any] = {"torch": torch}
    exec(spelling(call), names)
    same = names["fn"] == call
    assert same or names["fn"].keywords == call.keywords


def test_spelling_of_unimportable_callable_is_a_comment():
    for call in (lambda x, w: x, Layer(), SimpleNamespace(__call__=len)):
        assert spelling(call).startswith("# fn is the callable: ")


def test_printed_program_keeps_error_model(monkeypatch):
    monkeypatch.setattr(check, "SHRINKING_SECONDS", 0.2)
    report = check_corr2d(
        planted.right, dtypes=torch.float16, errors=Normwise(1e-6), laws=["values"]
    )
    (failure,) = report.failures
    assert failure.counterexample is not None
    snippet = failure.counterexample.snippet
    assert "errors=Normwise(constant=1e-06)" in snippet
    with pytest.raises(AssertionError, match=r"^output"):
        exec(snippet, {})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fn": 3}, TypeError, "fn must be callable, got int"),
        ({"dtypes": ()}, ValueError, "nothing to try: 0 dtypes, 100 examples"),
        ({"examples": 0}, ValueError, "nothing to try: 1 dtypes, 0 examples"),
        ({"errors": "normal"}, ValueError, "unknown error model 'normal'; use one of compo"),
        ({"device": "meta"}, ValueError, "device 'meta' cannot compute here"),
        ({"laws": ["vlaues"]}, ValueError, "no law 'vlaues'"),
        ({"without": ["vlaues"]}, ValueError, "no law 'vlaues'"),
    ],
    ids=str,
)
def test_check_corr2d_refuses_wrong_arguments(change, error, message):
    with pytest.raises(error, match=message):
        check_corr2d(**{"fn": F.conv2d, **change})
