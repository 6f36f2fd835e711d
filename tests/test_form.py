"""The maps are one trilinear form: equal inner products, linear in each slot, translated alike."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import assert_close, each_algorithm
from torch import Tensor

from torch_corr import Algorithm, Problem
from torch_corr.testing import error_bound, operands, oracle, problems, unit_roundoff


@each_algorithm
@given(data=st.data(), problem=problems())
def test_three_maps_share_one_form(
    data: st.DataObject, problem: Problem, algorithm: Algorithm, device: torch.device
) -> None:
    """<y, forward(x, w)> = <x, grad_input(y, w)> = <w, grad_weight(x, y)>.

    Each inner product is off by at most its map's errors, weighted, and its own rounding.
    """
    x, w, y = data.draw(operands(problem, torch.float64, device))
    slots = {"input": x, "weight": w, "output": y}
    results = {
        "output": algorithm.forward(problem, x, w),
        "input": algorithm.grad_input(problem, y, w),
        "weight": algorithm.grad_weight(problem, x, y),
    }
    products, errors = [], []
    for opened, result in results.items():
        filled = {name: value for name, value in slots.items() if name != opened}
        reference = oracle(problem, **filled)
        other = slots[opened].cpu()
        products.append((other * result.cpu()).sum())
        map_errors = (other.abs() * error_bound(reference, torch.float64)).sum()
        summed = other.numel() * unit_roundoff(torch.float64)
        errors.append(map_errors + summed * (other.abs() * reference.magnitude).sum())
    for i, j in ((0, 1), (1, 2)):
        assert (products[i] - products[j]).abs() <= 1.01 * (errors[i] + errors[j])


def small_integers(data: st.DataObject, problem: Problem, device: torch.device) -> list[Tensor]:
    """Operands whose products and sums float64 holds exactly, so that laws hold exactly."""
    values = data.draw(operands(problem, torch.int64, device))
    return [value.to(torch.float64) for value in values]


@each_algorithm
@given(data=st.data(), problem=problems())
def test_linear_in_each_slot(
    data: st.DataObject, problem: Problem, algorithm: Algorithm, device: torch.device
) -> None:
    """map(2a - 3b, c) = 2 map(a, c) - 3 map(b, c), exactly, in either operand."""
    x, w, y = small_integers(data, problem, device)
    x_, w_, y_ = small_integers(data, problem, device)
    for map, (a, a_), (b, b_) in (
        (algorithm.forward, (x, x_), (w, w_)),
        (algorithm.grad_input, (y, y_), (w, w_)),
        (algorithm.grad_weight, (x, x_), (y, y_)),
    ):
        left = map(problem, 2 * a - 3 * a_, b)
        assert torch.equal(left, 2 * map(problem, a, b) - 3 * map(problem, a_, b))
        right = map(problem, a, 2 * b - 3 * b_)
        assert torch.equal(right, 2 * map(problem, a, b) - 3 * map(problem, a, b_))


@each_algorithm
@given(data=st.data(), problem=problems(allow_empty=False))
def test_a_moved_image_moves_the_output(
    data: st.DataObject, problem: Problem, algorithm: Algorithm, device: torch.device
) -> None:
    """Moving the image by one stride, within padding wide enough, moves the output by one."""
    (top, bottom), (left, right) = problem.padding
    down, across = problem.stride
    before = replace(problem, padding=((top, bottom + down), (left, right + across)))
    after = replace(problem, padding=((top + down, bottom), (left + across, right)))
    x, w, _ = small_integers(data, problem, device)
    y, moved = algorithm.forward(before, x, w), algorithm.forward(after, x, w)
    assert torch.equal(moved[..., 1:, 1:], y[..., :-1, :-1])


@each_algorithm
@given(data=st.data(), problem=problems(max_batch=2, max_groups=2))
def test_batch_and_groups_are_separate_problems(
    data: st.DataObject, problem: Problem, algorithm: Algorithm, device: torch.device
) -> None:
    """Each image with each group alone gives its part of the whole."""
    x, w, _ = small_integers(data, problem, device)
    whole = algorithm.forward(problem, x, w)
    alone = (
        replace(
            problem,
            batch=1,
            groups=1,
            in_channels=problem.group_in,
            out_channels=problem.group_out,
        )
        if problem.batch
        else problem
    )
    for n in range(problem.batch):
        for g in range(problem.groups):
            ins = slice(g * problem.group_in, (g + 1) * problem.group_in)
            outs = slice(g * problem.group_out, (g + 1) * problem.group_out)
            part = algorithm.forward(alone, x[n : n + 1, ins], w[outs])
            assert torch.equal(part, whole[n : n + 1, outs])


@each_algorithm
@given(data=st.data(), problem=problems(max_size=8))
def test_non_finite_numbers_stay_in_their_windows(
    data: st.DataObject, problem: Problem, algorithm: Algorithm, device: torch.device
) -> None:
    """A NaN in the input reaches the outputs whose windows cover it, and no other."""
    x, w, _ = small_integers(data, problem, device)
    if x.numel() == 0:
        return
    x = x.contiguous()
    where = data.draw(st.integers(0, x.numel() - 1))
    mark = torch.zeros_like(x)
    mark.view(-1)[where] = 1
    x.view(-1)[where] = float("nan")
    covered = oracle(problem, input=mark, weight=torch.ones_like(w)).value > 0
    y = algorithm.forward(problem, x, w).cpu()
    assert y[covered].isnan().all()
    clean = oracle(problem, input=x.nan_to_num(0.0), weight=w)
    assert_close(y[~covered], clean.value[~covered], torch.zeros_like(y[~covered]))
