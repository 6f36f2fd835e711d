"""The algorithms under test, and the kit's comparison with the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_corr import ALGORITHMS, Algorithm, Problem, Unfold
from torch_corr.testing import require_close, require_right

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
    require_right("result", result, problem, (input, weight, output))


def assert_close(result: Tensor, expected: Tensor, bound: Tensor) -> None:
    """|result - expected| <= bound, everywhere; equality modulo 2**bits for integers."""
    require_close("result", result, expected, bound)
