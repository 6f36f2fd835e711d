"""The problems that the kit draws: every kind, often enough."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from torch_corr import Problem
from torch_corr.testing import problems, tensors_for
from torch_corr.testing.check import callers_problems, draw, rounds
from torch_corr.testing.laws.gradients import cut


def kinds(p):
    """Geometries that need special code, or that special code forgets."""
    dense, padded = p.stride == p.dilation == (1, 1), p.padding != ((0, 0), (0, 0))
    depthwise = p.group_in == 1 < p.groups
    for name, so in (
        ("3x3, dense", p.kernel == (3, 3) and dense),
        ("1x1", p.kernel == (1, 1)),
        ("a side of more than 8 taps", max(p.kernel) > 8),
        ("oblong kernel", p.kernel[0] != p.kernel[1]),
        ("stride alone", p.stride != (1, 1) == p.dilation),
        ("dilation alone", p.dilation != (1, 1) == p.stride),
        ("stride and dilation", p.stride != (1, 1) != p.dilation),
        ("no padding", not padded),
        ("padding, dense", padded and dense),
        ("asymmetric padding", any(first != last for first, last in p.padding)),
        ("depthwise", depthwise and p.group_out == 1),
        ("depthwise, several filters a channel", depthwise and p.group_out > 1),
        ("depthwise, many channels", depthwise and p.groups > 16),
        ("groups", p.groups > 1 < p.group_in),
        ("one image", p.batch == 1),
        ("many images", p.batch > 16),
        ("one channel", p.in_channels == 1),
        ("many input channels", p.group_in > 16),
        ("more than 128 input channels", p.group_in > 128),
        ("many output channels", p.group_out > 16),
        ("more than 64 output channels", p.group_out > 64),
        ("tall", p.output_size[0] > 64),
        ("wide", p.output_size[1] > 64),
        ("one output pixel", p.output_size == (1, 1)),
        ("one output pixel of a larger image", p.output_size == (1, 1) != p.size),
        ("one input pixel", p.size == (1, 1)),
        ("one column", p.size[1] == 1 < p.size[0]),
        ("pixels behind the last window", _unseen(p)),
        ("nothing", 0 in p.input_shape),
        ("a wide row in two steps, stride, dilation, half a window of padding", _in_steps(p, 1)),
        ("the same along rows", _in_steps(p, 0)),
        ("padding longer than the window, wide", p.output_size[1] >= 20 and _beyond(p, 1)),
        ("padding longer than the window, tall", p.output_size[0] >= 20 and _beyond(p, 0)),
        ("wide rows of groups under a dilation", _dilated_rows(p)),
        ("one column of several rows", p.output_size[1] == 1 < p.output_size[0]),
        ("one row of several columns", p.output_size[0] == 1 < p.output_size[1]),
        ("one column of a gray image, stride across alone", _gray_column(p)),
    ):
        if so:
            yield name


def _in_steps(p, axis):
    sparse = min(p.stride[axis], p.dilation[axis]) > 1
    return sparse and 28 < p.output_size[axis] < 57 and p.padding[axis][0] >= p.span[axis] // 2


def _beyond(p, axis):
    return p.padding[axis][0] >= p.span[axis] > 1


def _dilated_rows(p):
    return p.groups > 1 and p.output_size[1] > 28 and p.dilation[0] > 1 and p.stride[0] == 1


def _gray_column(p):
    alone = p.stride[0] == 1 < p.stride[1]
    return alone and p.in_channels == 1 < p.batch and p.output_size[1] == 1 < p.output_size[0]


def _unseen(p):
    """Whether the last windows end before the padded image does."""
    return any((n - span) % step for n, span, step in zip(p.padded_size, p.span, p.stride))


@pytest.mark.parametrize("seed", range(3))
def test_every_kind_of_problem_is_drawn(seed):
    """At least 3 of 300, the examples of ``values``.

    Callers' problems exclude what ``F.conv2d`` refuses or another law tests.
    """
    seen = _drawn_kinds(callers_problems(), 300, seed)
    beyond = {"asymmetric padding", "nothing"}
    assert not beyond & set(seen)
    rare = {name: count for name, count in seen.items() if count < 3}
    assert len(seen) == ALL_KINDS - len(beyond), seen
    assert not rare, seen
    seen = _drawn_kinds(problems(), 200, seed)
    for name in beyond:
        assert seen[name] >= 10, seen


ALL_KINDS = 37


def _drawn_kinds(strategy, examples, seed):
    """How often each kind is among this many problems, drawn as the kit draws them."""
    seen: set[Problem] = set()
    for number, size in enumerate(rounds(examples)):
        draw(lambda data: seen.add(data.draw(strategy)), size, (seed, number))()
    assert len(seen) > 0.95 * examples
    return Counter(kind for problem in seen for kind in kinds(problem))


@given(problem=callers_problems())
def test_gradcheck_problems_are_small(problem):
    """The Jacobian of a whole image takes minutes."""
    small = cut(problem)
    assert max(small.output_size) <= 24  # a window of 40 pixels over its padding, in steps of 2
    assert prod(small.input_shape) * prod(small.output_shape) < 3 * 10**6
    assert (small.kernel, small.stride) == (problem.kernel, problem.stride)
    for side, before, span in zip(small.padding, problem.padding, problem.span):
        assert min(side[0], span - 1) == min(before[0], span - 1)


@given(
    problem=problems(
        max_batch=1,
        max_channels=2,
        max_groups=1,
        max_size=6,
        max_kernel=2,
        max_stride=1,
        max_padding=0,
        max_dilation=1,
        allow_empty=False,
    )
)
def test_problems_can_be_narrowed(problem):
    p = problem
    assert (p.batch, p.groups, p.stride, p.dilation) == (1, 1, (1, 1), (1, 1))
    assert p.padding == ((0, 0), (0, 0))
    assert 1 <= p.in_channels <= 2
    assert 1 <= p.out_channels <= 2
    assert max(p.kernel) <= 2
    assert max(p.size) <= 6


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_stride": 0}, "max_stride must be an integer of at least 1, got 0"),
        ({"max_padding": -1}, "max_padding must be an integer of at least 0, got -1"),
        ({"max_batch": 0, "allow_empty": False}, "max_batch must be an integer of at least 1"),
        ({"max_kernel": 2.5}, "max_kernel must be an integer of at least 1, got 2.5"),
    ],
)
def test_invalid_limits_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        problems(**limits)


def test_counterexample_prints_a_problem_to_paste():
    smallest = find(problems(allow_empty=False), lambda p: p.stride[0] > 1 and p.groups == 2)
    assert eval(repr(smallest)) == smallest
    assert Problem.parse(str(smallest)) == smallest

    @settings(database=None, derandomize=True, print_blob=False)
    @given(problem=problems(allow_empty=False), data=st.data())
    def law(problem, data):
        x, _, _ = data.draw(tensors_for(problem, torch.float32))
        assert x.shape[1] < 2

    with pytest.raises(AssertionError) as caught:
        law()
    message = " ".join("\n".join(caught.value.__notes__).split())
    assert "problem=Problem(batch=1, in_channels=2, size=" in message
