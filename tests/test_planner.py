"""A plan says which algorithm runs each map, and that one runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from support.maps import request
from torch_corr import ALGORITHMS, MAPS, Naive, Plan, Problem, Unfold, corr2d, explain, plan
from torch_corr.planning.plan import make_plan

CPU = torch.device("cpu")
PROBLEM = Problem.parse("n1c2-x5x5-o2-k3x3")


class Loud(Naive):
    """Naive, and tells who called."""

    name = "loud"
    heard: list[tuple[str, str]] = []  # noqa: RUF012 - shared on purpose

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        self.heard.append(("forward", str(problem)))
        return super().forward(problem, input, weight)

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        self.heard.append(("grad_input", str(problem)))
        return super().grad_input(problem, output, weight)

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        self.heard.append(("grad_weight", str(problem)))
        return super().grad_weight(problem, input, output)


def test_the_algorithm_that_is_asked_for_runs() -> None:
    """All three maps of it, once each: an instance of one's own, no registration."""
    Loud.heard.clear()
    x = torch.randn(PROBLEM.input_shape, requires_grad=True)
    w = torch.randn(PROBLEM.weight_shape, requires_grad=True)
    corr2d(x, w, algorithm=Loud()).sum().backward()
    assert sorted(Loud.heard) == [(map, str(PROBLEM)) for map in sorted(MAPS)]


def test_each_map_may_have_its_own() -> None:
    mixed = Plan(PROBLEM, CPU, torch.float64, "auto", Unfold(), Naive(), Loud())
    Loud.heard.clear()
    x, w, y = (
        torch.randn(shape, dtype=torch.float64)
        for shape in (PROBLEM.input_shape, PROBLEM.weight_shape, PROBLEM.output_shape)
    )
    assert torch.equal(mixed.run(x, w, None), Unfold().forward(PROBLEM, x, w))
    assert torch.equal(mixed.run(None, w, y), Naive().grad_input(PROBLEM, y, w))
    assert torch.equal(mixed.run(x, None, y), Naive().grad_weight(PROBLEM, x, y))
    assert Loud.heard == [("grad_weight", str(PROBLEM))]


def test_auto_takes_the_first_that_is_able_of_small_problems() -> None:
    assert make_plan(PROBLEM, CPU, torch.float32, "auto").forward == ALGORITHMS[0]
    dilated = Problem.parse("n1c2-x5x5-o2-k2x2-d2")
    chosen = make_plan(dilated, CPU, torch.int8, "auto").forward
    here = request(dilated, dtype=torch.int8)
    assert chosen == next(a for a in ALGORITHMS if not a.refusals(here))


def test_nobody_able_says_why_each_is_not() -> None:
    with pytest.raises(NotImplementedError) as caught:
        make_plan(PROBLEM, CPU, torch.bool, "auto")
    for algorithm in ALGORITHMS:
        assert f"- {algorithm.name}: no bool here; it does float32" in str(caught.value)


def test_a_plan_explains_itself() -> None:
    """Every algorithm has a line in each map: what it takes, or why it refuses."""
    x = torch.ones(1, 2, 5, 5, dtype=torch.int8)
    text = str(plan(x, torch.ones(2, 2, 2, 2, dtype=torch.int8), dilation=2))
    head, *lines = text.splitlines()
    assert head.endswith("-d2x2-g1 on cpu/int8, algorithm=auto")
    for algorithm in ALGORITHMS:
        # One at least: who refuses may do so for several reasons.
        assert sum(line[4:].startswith(f"{algorithm.name} ") for line in lines) >= len(MAPS)
    assert sum("> unfold" in line for line in lines) == len(MAPS)
    assert "aten      refuses: PyTorch has no dilated convolution in int8" in text


def test_explain_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    x, w = torch.ones(1, 1, 6, 8), torch.ones(1, 1, 1, 2)
    explain(x, w, algorithm="naive")
    assert capsys.readouterr().out == f"{plan(x, w, algorithm='naive')}\n"


def test_plans_are_made_once() -> None:
    arguments = PROBLEM, CPU, torch.float32, "auto"
    assert make_plan(*arguments) is make_plan(*arguments)


def test_the_registry_is_one_ordered_tuple_with_the_reference_last() -> None:
    assert isinstance(ALGORITHMS, tuple)
    assert ALGORITHMS[-1] == Naive()
    assert len({algorithm.name for algorithm in ALGORITHMS}) == len(ALGORITHMS)


def test_importing_the_package_needs_torch_alone() -> None:
    """No hypothesis, no numpy, no matplotlib."""
    code = (
        "import sys\n"
        "for name in ('hypothesis', 'numpy', 'matplotlib', 'PIL', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import torch, torch_corr\n"
        "print(torch_corr.corr2d(torch.ones(3, 3), torch.ones(2, 2)).tolist())\n"
        "try:\n"
        "    import torch_corr.testing\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[0] == "[[4.0, 4.0], [4.0, 4.0]]"
    assert 'pip install "torch_corr[kit]"' in run.stdout
