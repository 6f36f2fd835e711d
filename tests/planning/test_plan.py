"""A plan names the algorithm of each map, runs it and is cached."""

from __future__ import annotations

import pytest
import torch

from support.maps import all_operands, request
from support.spies import Spy
from torch_corr import ALGORITHMS, MAPS, Naive, Plan, Problem, Unfold, corr2d
from torch_corr.planning import plan as planner_module
from torch_corr.planning.plan import clear_plans, make_plan

CPU = torch.device("cpu")


PROBLEM = Problem.parse("n1c2-x5x5-o2-k3x3")


def test_requested_algorithm_computes_all_maps():
    """Each map once, by an instance that is not registered."""
    spy = Spy()
    x = torch.randn(PROBLEM.input_shape, requires_grad=True)
    w = torch.randn(PROBLEM.weight_shape, requires_grad=True)
    corr2d(x, w, algorithm=spy).sum().backward()
    assert sorted(spy.requested) == sorted(MAPS)


def test_plan_with_one_algorithm_for_each_map():
    spy = Spy()
    mixed = Plan(PROBLEM, CPU, torch.float64, "auto", Unfold(), Naive(), spy)
    x, w, y = all_operands(PROBLEM, torch.float64)
    assert torch.equal(mixed.run(x, w, None), Unfold().forward(PROBLEM, x, w))
    assert torch.equal(mixed.run(None, w, y), Naive().grad_input(PROBLEM, y, w))
    assert torch.equal(mixed.run(x, None, y), Unfold().grad_weight(PROBLEM, x, y))
    assert spy.requested == ["grad_weight"]


def test_auto_takes_first_able_algorithm_for_small_problems():
    assert make_plan(PROBLEM, CPU, torch.float32, "auto").forward == ALGORITHMS[0]
    dilated = Problem.parse("n1c2-x5x5-o2-k2x2-d2")
    chosen = make_plan(dilated, CPU, torch.int8, "auto").forward
    assert chosen == next(
        a for a in ALGORITHMS if not a.refusals(request(dilated, dtype=torch.int8))
    )


def test_no_able_algorithm_lists_all_refusals():
    with pytest.raises(NotImplementedError) as caught:
        make_plan(PROBLEM, CPU, torch.bool, "auto")
    for algorithm in ALGORITHMS:
        assert f"- {algorithm.name}: no bool here; it does float32" in str(caught.value)


def test_plans_are_cached():
    arguments = PROBLEM, CPU, torch.float32, "auto"
    assert make_plan(*arguments) is make_plan(*arguments)


def test_cached_plan_depends_on_tf32_setting(monkeypatch):
    monkeypatch.setattr(planner_module, "_MAY_BE_CUDA", True)
    made = []
    planned = planner_module.cached_plan(lambda: made.append(True))
    for allowed in (True, False, True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        planned()
    assert len(made) == 2


def test_plan_made_while_caches_are_cleared_is_not_cached():
    """Another thread may measure meanwhile."""

    def plan_slowly():
        clear_plans()
        made.append(len(made))
        return made[-1]

    made: list[int] = []
    planned = planner_module.cached_plan(plan_slowly)
    assert [planned(), planned()] == [0, 1]
