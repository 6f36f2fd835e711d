"""A Problem is valid once it is made, prints and parses, and computes its output size."""

from __future__ import annotations

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from torch_corr import Problem
from torch_corr.problem import as_pair, resolve_padding
from torch_corr.testing import problems

SPELLING = "n8c64-x56x57-o32-k3x4-s1x2-p1,2x3,4-d1x2-g2"


@given(problem=problems())
def test_spelling_parses_back(problem):
    assert Problem.parse(str(problem)) == problem
    assert hash(Problem.parse(str(problem))) == hash(problem)


def test_spelling_contains_every_field():
    problem = Problem(8, 64, (56, 57), 32, (3, 4), (1, 2), ((1, 2), (3, 4)), (1, 2), 2)
    assert str(problem) == SPELLING
    assert Problem.parse(SPELLING) == problem


def test_short_spellings():
    full = Problem.parse("n1c2-x9x9-o4-k3x3-s1x1-p1,1x1,1-d1x1-g1")
    assert Problem.parse("n1c2-x9-o4-k3-p1") == full
    assert Problem.parse("n1c2-x9-o4-k3-psame") == full
    assert Problem.parse("n1c2-x9-o4-k3-pfull").padding == ((2, 2), (2, 2))
    assert Problem.parse("n1c2-x9-o4-k3-p1x2").padding == ((1, 1), (2, 2))
    assert Problem.parse("n1c2-x9-o4-k3").padding == ((0, 0), (0, 0))


@pytest.mark.parametrize(
    "text", ["", "n1", "n1c1-x4x4-o1", "n1c1-x4x4-o1-k3x3-z1", "n-1c1-x4-o1-k1", SPELLING + "x"]
)
def test_parse_refuses_invalid_spellings(text):
    with pytest.raises(ValueError, match="does not spell a problem; write it as n8c64"):
        Problem.parse(text)


@given(problem=problems(allow_empty=False))
def test_output_size_equals_conv2d(problem):
    (top, bottom), (left, right) = problem.padding
    padded = F.pad(torch.zeros(problem.input_shape), (left, right, top, bottom))
    y = F.conv2d(
        padded,
        torch.zeros(problem.weight_shape),
        None,
        problem.stride,
        0,
        problem.dilation,
        problem.groups,
    )
    assert problem.output_shape == tuple(y.shape)


axis = st.tuples(st.integers(1, 40), st.integers(1, 7), st.integers(1, 5), st.integers(1, 3))


@given(rows=axis, columns=axis)
def test_same_gives_ceil_of_size_over_stride(rows, columns):
    """The odd pixel comes last."""
    size, kernel, stride, dilation = zip(rows, columns)
    sides = resolve_padding("same", size, kernel, stride, dilation)
    problem = Problem(1, 1, size, 1, kernel, stride, sides, dilation)
    assert problem.output_size == tuple(ceil(n / s) for n, s in zip(size, stride))
    for (before, after), span, n, s in zip(sides, problem.span, size, stride):
        assert 0 <= after - before <= 1
        # TensorFlow's rule, https://www.tensorflow.org/api_docs/python/tf/nn#same_padding
        total = span - s if n % s == 0 else span - n % s
        assert before + after == max(total, 0)


@pytest.mark.parametrize(
    ("padding", "sides"),
    [
        (2, ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        ([1], ((1, 1), (1, 1))),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))),
        (([1], 2), ((1, 1), (2, 2))),
        (torch.tensor(3), ((3, 3), (3, 3))),
        ("valid", ((0, 0), (0, 0))),
    ],
)
def test_spellings_of_padding(padding, sides):
    assert Problem.of((1, 1, 9, 9), (1, 1, 1, 1), padding=padding).padding == sides


def test_as_pair_accepts_tensors_but_no_bools():
    assert as_pair("stride", torch.tensor(2)) == (2, 2)
    with pytest.raises(TypeError, match="stride must be an integer, got the bool True"):
        as_pair("stride", True)


def valid(**changes):
    fields = {"batch": 1, "in_channels": 4, "size": (5, 6), "out_channels": 6, "kernel": (3, 2)}
    return Problem(**{**fields, **changes})


# tests/dispatch/test_validation.py has more.
REFUSED = [
    ({"batch": -1}, RuntimeError, "batch must be at least 0, got -1"),
    ({"in_channels": -4}, RuntimeError, "in_channels must be at least 0"),
    ({"out_channels": -6}, RuntimeError, "out_channels must be at least 0"),
    ({"size": (-1, 5)}, RuntimeError, r"size must be at least 0, got \(-1, 5\)"),
    ({"size": (0, 5), "padding": 3}, RuntimeError, "images without pixels"),
    ({"padding": ((0, -1), (0, 0))}, RuntimeError, "padding must be at least 0.*slice the input"),
    ({"padding": ((1, 2), (3, 4), (5, 6))}, RuntimeError, r"\(\(top, bottom\), \(left, right\)\)"),
    ({"groups": 3}, RuntimeError, "in_channels=4 is not divisible by groups=3"),
    ({"groups": 4}, RuntimeError, "out_channels=6 is not divisible by groups=4"),
    ({"kernel": (3, 4), "dilation": 2}, RuntimeError, "along W it spans 7 pixels.*dilation 2"),
    ({"stride": 2**63}, ValueError, "stride=9223372036854775808 does not fit in 64 bits"),
    ({"size": (2**62, 4)}, RuntimeError, "more elements than 64 bits can count"),
    ({"padding": 2**40}, RuntimeError, "output of shape .* more elements than 64 bits"),
    ({"groups": None}, TypeError, "groups must be an integer"),
    ({"kernel": (3, 2, 1)}, RuntimeError, "kernel must be one integer or two"),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_invalid_problems_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        valid(**changes)


def test_problem_is_an_immutable_value():
    problem = valid()
    with pytest.raises(AttributeError):
        problem.batch = 2
    assert problem == valid(stride=[1, 1], padding=0)
    assert problem.multiplications == 6 * 3 * 5 * 4 * 3 * 2
