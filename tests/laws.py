"""What the laws share: the algorithms under test and the comparison with the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_corr import ALGORITHMS, Algorithm, Problem, Unfold
from torch_corr.testing import error_bound, oracle

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex128, torch.complex64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

# Every algorithm of the library, and unfold with so little room that it works in many blocks.
UNDER_TEST = (*ALGORITHMS, Unfold(workspace_limit=40_000))


def algorithm_id(algorithm: Algorithm) -> str:
    return algorithm.name if algorithm in ALGORITHMS else repr(algorithm)


each_algorithm = pytest.mark.parametrize("algorithm", UNDER_TEST, ids=algorithm_id)


def assert_right(
    result: Tensor,
    problem: Problem,
    input: Tensor | None = None,
    weight: Tensor | None = None,
    output: Tensor | None = None,
) -> None:
    """``result`` is the open slot of the form, within the error bound of its dtype."""
    reference = oracle(problem, input, weight, output)
    operand = next(value for value in (input, weight, output) if value is not None)
    assert result.shape == reference.value.shape
    assert result.dtype == operand.dtype
    assert result.device == operand.device
    assert_close(result, reference.value, error_bound(reference, operand.dtype))


def assert_close(result: Tensor, expected: Tensor, bound: Tensor) -> None:
    """|result - expected| <= bound, everywhere; equality modulo 2**bits for integers."""
    result = result.detach().cpu().resolve_conj()
    if not (result.dtype.is_floating_point or result.dtype.is_complex):
        assert torch.equal(result, expected.to(result.dtype))
        return
    error = (result.to(expected.dtype) - expected).abs()
    wrong = ~(error <= bound)
    if wrong.any():
        worst = (error / bound).nan_to_num(float("inf")).argmax()
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} results out of bounds; worst at flat index "
            f"{int(worst)}: got {result.flatten()[worst]}, expected "
            f"{expected.flatten()[worst]} within {bound.flatten()[worst]:.3g}"
        )
