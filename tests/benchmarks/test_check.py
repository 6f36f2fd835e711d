"""``check``: the exact values of samples, and the verdicts on results."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cases import Task
from benchmarks.check import COMPUTED, Expected, expected, judge, reference_at, sample
from benchmarks.memory import random_operands
from torch_corr import FFT, Problem
from torch_corr.algorithms import MAPS
from torch_corr.request import shape_of
from torch_corr.testing import Componentwise, Fourier, declared, oracle, problems


@settings(max_examples=30)
@given(problem=problems(), seed=st.integers(0, 2**32), is_complex=st.booleans())
def test_reference_at_agrees_with_the_oracle(problem: Problem, seed: int, is_complex: bool):
    """Value, magnitude and number of terms of elements of each slot."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.complex128 if is_complex else torch.float64
    for map in MAPS:
        operands = random_operands(Task(problem, map, dtype), generator)
        (slot,) = COMPUTED[map]
        if 0 in shape_of(problem, slot):
            continue
        at = sample(problem, slot, random.Random(seed))[:12]
        found = reference_at(problem, slot, operands, at)
        truth = oracle(problem, **operands)
        index = tuple(torch.tensor(axis) for axis in zip(*at))
        for sampled, whole in zip(found[:3], truth[:3]):  # value, magnitude, terms
            torch.testing.assert_close(sampled, whole[index], rtol=1e-12, atol=1e-12)


def test_sample_contains_corners_and_fits_its_budget():
    problem = Problem.parse("n2c1-x2048-o3-k9-p4")
    at = sample(problem, "output", random.Random(0))
    n, o, i, j = zip(*at)
    assert {0, 1} <= set(n)
    assert {0, 2} <= set(o)
    assert {0, 2047} <= set(i) & set(j)
    assert 8 <= len(sample(problem, "weight", random.Random(0))) < len(at)


def test_normwise_bounds_allow_a_transform_but_not_larger_errors():
    problem = Problem.parse("n1c1-x64-o1-k9")
    generator = torch.Generator().manual_seed(0)
    task = Task(problem, "forward")
    operands = random_operands(task, generator)
    truth = expected(task, operands, random.Random(0))
    spectrum = torch.fft.rfft2(operands["input"])
    kernel = torch.fft.rfft2(operands["weight"], s=problem.size)
    result = torch.fft.irfft2(spectrum * kernel.conj(), s=problem.size)[..., :56, :56]
    assert judge(problem, truth, (result,), Fourier(), "ours").verdict == "right"
    assert judge(problem, truth, (result * 1.01,), Fourier(), "ours").verdict == "wrong"
    declares = declared(FFT())
    assert judge(problem, truth, (result,), declares, "ours").verdict == "right"
    assert judge(problem, truth, (result * 1.001,), declares, "ours").verdict == "wrong"


def test_only_peers_may_be_rough():
    problem, value = Problem.parse("n1c1-x1-o1-k1"), torch.ones(1, 1, 1, 1)
    given = {"input": value, "weight": value}
    truth = (Expected("output", given, oracle(problem, **given)),)
    off = (value * (1 + 8 * torch.finfo(torch.float16).eps)).half()
    assert judge(problem, truth, (off,), Componentwise(), "peer").verdict == "rough"
    assert judge(problem, truth, (off,), Componentwise(), "ours").verdict == "wrong"
    assert judge(problem, truth, (off * 2,), Componentwise(), "peer").verdict == "wrong"
