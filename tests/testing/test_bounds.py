"""Error models: correct implementations stay within the bounds, wrong ones do not."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from support.maps import request
from support.planted import assemble, callable_of, tf32, winograd
from torch_corr import FFT, MAPS, Naive, Problem
from torch_corr.testing import (
    TF32_READING,
    Componentwise,
    Either,
    Fourier,
    Normwise,
    Winograd,
    check_corr2d,
    declared,
    oracle,
    problems,
    require_right,
)
from torch_corr.testing.normwise import transforms

THREE_BY_THREE = problems(
    max_stride=1, max_dilation=1, max_size=20, allow_empty=False, asymmetric_padding=False
)


wino = callable_of(winograd)
reads_tf32 = callable_of(lambda p, x, w, b: assemble(p, tf32(x), tf32(w), b))


@pytest.mark.parametrize(("tile", "taps"), [(1, 3), (2, 3), (4, 3), (6, 3), (2, 5), (5, 2)])
def test_winograd_matrices_are_exact(tile, taps):
    A, G, B = transforms(tile, taps)
    x = [Fraction(7 * i * i % 11 - 5) for i in range(tile + taps - 1)]
    w = [Fraction(3 * i - 4) for i in range(taps)]

    def times(matrix, vector):
        return [sum(a * b for a, b in zip(row, vector)) for row in matrix]

    y = times(A, [a * b for a, b in zip(times(G, w), times(B, x))])
    assert y == [sum(x[i + u] * w[u] for u in range(taps)) for i in range(tile)]


@pytest.mark.parametrize(
    ("fn", "errors", "dtype"),
    [
        (wino, "winograd", torch.float32),
        (wino, "winograd", torch.float16),
        (wino, "any", torch.float64),
        (reads_tf32, "tf32", torch.float32),
    ],
    ids=["winograd", "winograd in halves", "any", "tf32"],
)
def test_kept_promise_passes(fn, errors, dtype):
    """Without the laws of exact bits, which only direct sums keep."""
    laws = ["values", "gradients", "second_order", "trilinear", "linearity", "bias", "batch"]
    if fn is reads_tf32:
        laws = ["values", "linearity", "batch"]  # its gradient is not the gradient of its result
    check_corr2d(
        fn, dtypes=dtype, errors=errors, laws=laws, problems=THREE_BY_THREE, examples=12
    ).raise_if_failed()


@pytest.mark.parametrize(
    ("fn", "errors"), [(wino, "componentwise"), (wino, "tf32"), (reads_tf32, "componentwise")]
)
def test_stronger_promise_fails(fn, errors):
    """Small integers distinguish Winograd from TF32."""
    report = check_corr2d(fn, errors=errors, laws=["values"], problems=THREE_BY_THREE)
    assert report.failed_laws() == ("values",)


@pytest.mark.parametrize(
    "errors",
    [Componentwise(), Componentwise(operands=TF32_READING), Fourier(), Winograd(), Normwise(64)],
    ids=repr,
)
@pytest.mark.parametrize("map", MAPS)
def test_bounds_are_tight(errors, map):
    """A bound is far below the largest result, and 2% too much exceeds it."""
    problem = Problem.parse("n2c4-x16x16-o4-k3-p1")
    generator = torch.Generator().manual_seed(0)
    names = {"forward": "output", "grad_input": "input", "grad_weight": "weight"}
    slots = tuple(
        None if name == names[map] else torch.rand(shape, generator=generator)
        for name, shape in zip(
            ("input", "weight", "output"),
            (problem.input_shape, problem.weight_shape, problem.output_shape),
        )
    )
    reference = oracle(problem, *slots)
    bound = errors.bound(problem, reference, slots, torch.float32)
    assert bound.max() < 1e-2 * reference.value.abs().max()
    right = reference.value.float()
    require_right("right", right, problem, slots, errors)
    with pytest.raises(AssertionError, match=r"not .* within"):
        require_right("wrong", 1.02 * right, problem, slots, errors)


def test_either_is_the_larger_of_two():
    problem = Problem.parse("n1c2-x9x9-o2-k3-p1")
    x, w = torch.randn(problem.input_shape), torch.randn(problem.weight_shape)
    slots, reference = (x, w, None), oracle(problem, x, w)
    both = Componentwise(), Winograd(2)
    bounds = [each.bound(problem, reference, slots, x.dtype) for each in (*both, Either(both))]
    assert torch.equal(torch.maximum(*bounds[:2]), bounds[2])


def test_bound_of_selected_elements():
    """``Reference.at`` selects elements of results that are too large to compare whole."""
    problem = Problem.parse("n2c3-x9x8-o4-k3-p1")
    x, w = torch.randn(problem.input_shape), torch.randn(problem.weight_shape)
    whole = oracle(problem, x, w)
    at = torch.tensor([0, 1]), torch.tensor([3, 0]), torch.tensor([8, 2]), torch.tensor([0, 5])
    some = whole._replace(
        value=whole.value[at], magnitude=whole.magnitude[at], terms=whole.terms[at], at=at
    )
    for errors in (Componentwise(), Fourier(), Winograd(), Normwise(9)):
        bound = errors.bound(problem, whole, (x, w, None), x.dtype)
        assert torch.equal(errors.bound(problem, some, (x, w, None), x.dtype), bound[at])


def test_declared_error_models():
    class Rough(Naive):
        error_class = "normwise"

    assert declared(Naive()) == Componentwise()
    states = declared(FFT())
    assert isinstance(states, Normwise)
    assert callable(states.constant)
    problem = Problem.parse("n1c1-x9x9-o1-k3")
    least = torch.finfo(torch.float32).eps
    assert states.constant(request(problem)) > least
    assert declared(Rough()) == Fourier()  # it states no constant
