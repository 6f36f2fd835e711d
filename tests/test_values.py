"""Each map of each algorithm equals the oracle, within the bound of its dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import COMPLEX, FLOATS, INTEGERS, assert_right, each_algorithm

from torch_corr import Algorithm, Problem
from torch_corr.testing import operands, problems

each_dtype = pytest.mark.parametrize("dtype", FLOATS + COMPLEX + INTEGERS, ids=str)


@each_algorithm
@each_dtype
@given(data=st.data(), problem=problems())
def test_maps_equal_the_oracle(
    data: st.DataObject,
    problem: Problem,
    algorithm: Algorithm,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """All three maps (integers have forward alone), any layout, any geometry."""
    refusals = algorithm.refusals(problem, device, dtype)
    if refusals:
        assert dtype in INTEGERS or "workspace" in refusals[0]
        return
    x, w, y = data.draw(operands(problem, dtype, device))
    before = x.clone(), w.clone(), y.clone()
    assert_right(algorithm.forward(problem, x, w), problem, input=x, weight=w)
    if dtype not in INTEGERS:
        assert_right(algorithm.grad_input(problem, y, w), problem, output=y, weight=w)
        assert_right(algorithm.grad_weight(problem, x, y), problem, input=x, output=y)
    assert all(map(torch.equal, (x, w, y), before)), "an operand was written to"


def test_fresh_memory_is_poisoned() -> None:
    """Else the law above could pass on memory that no algorithm wrote."""
    assert torch.empty(3).isnan().all()
    assert torch.ones(1).new_empty(3, dtype=torch.complex64).isnan().all()
    assert (torch.empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


@each_algorithm
@settings(max_examples=10)
@given(data=st.data())
def test_conjugated_and_negated_views(
    data: st.DataObject, algorithm: Algorithm, device: torch.device
) -> None:
    """Operands whose conjugation or sign is a flag on the tensor, not yet in memory."""
    problem = Problem.parse("n2c4-x5x6-o6-k3x2-s2x1-p1,0x2,1-g2")
    x, w, y = (value.conj() for value in data.draw(operands(problem, torch.complex128, device)))
    assert_right(algorithm.forward(problem, x, w), problem, input=x, weight=w)
    assert_right(algorithm.grad_input(problem, y, w), problem, output=y, weight=w)
    assert_right(algorithm.grad_weight(problem, x, y), problem, input=x, output=y)
    x, w, y = x.imag, w.imag, y.imag
    assert x.is_neg()
    assert_right(algorithm.forward(problem, x, w), problem, input=x, weight=w)
    assert_right(algorithm.grad_input(problem, y, w), problem, output=y, weight=w)
    assert_right(algorithm.grad_weight(problem, x, y), problem, input=x, output=y)
