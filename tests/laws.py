"""The algorithms under test, and the kit's comparison with the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_corr import ALGORITHMS, Algorithm, Problem, Unfold
from torch_corr.testing import Componentwise, ErrorModel, declared, require_close, require_right

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex128, torch.complex64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

# Every algorithm of the library, and unfold with so little room that it works in many blocks.
UNDER_TEST = (*ALGORITHMS, Unfold(workspace_limit=40_000))


def algorithm_id(algorithm: Algorithm | str) -> str:
    return repr(algorithm) if algorithm not in (*ALGORITHMS, "auto") else name_of(algorithm)


def name_of(algorithm: Algorithm | str) -> str:
    return algorithm if isinstance(algorithm, str) else algorithm.name


each_algorithm = pytest.mark.parametrize("algorithm", UNDER_TEST, ids=algorithm_id)

# What most people run is none of them by name.
each_choice = pytest.mark.parametrize("algorithm", ["auto", *UNDER_TEST], ids=algorithm_id)


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN"
)


def promise(algorithm: Algorithm | str) -> ErrorModel:
    """What an algorithm promises; problems here are too small for ``auto`` to take transforms."""
    return Componentwise() if isinstance(algorithm, str) else declared(algorithm)


def assert_right(
    result: Tensor,
    problem: Problem,
    input: Tensor | None = None,
    weight: Tensor | None = None,
    output: Tensor | None = None,
    *,
    algorithm: Algorithm | str,
) -> None:
    """``result`` is the open slot of the form, within the error that its algorithm declares."""
    slots = input, weight, output
    require_right("result", result, problem, slots, errors=promise(algorithm))


def assert_close(result: Tensor, expected: Tensor, bound: Tensor) -> None:
    """|result - expected| <= bound, everywhere; equality modulo 2**bits for integers."""
    require_close("result", result, expected, bound)
