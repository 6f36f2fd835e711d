"""The algorithms under test, and the kit's comparison with the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_corr import ALGORITHMS, FFT, Algorithm, Problem, Unfold
from torch_corr.testing import Reference, error_bound, oracle, require_close, require_right
from torch_corr.testing.bounds import Slots

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


class Declared:
    """The error bound that an algorithm declares for itself; an ``ErrorModel`` of the kit."""

    def __init__(self, algorithm: Algorithm | str) -> None:
        self.algorithm = algorithm

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        if not isinstance(self.algorithm, FFT):
            return error_bound(reference, dtype)
        opened = next(slot for slot, value in enumerate(slots) if value is None)
        map = ("grad_input", "grad_weight", "forward")[opened]
        # sum_c ||x_c|| ||w_oc|| is the same form of 1x1 planes that hold the planes' norms.
        norms = [None if value is None else _plane_norms(value) for value in slots]
        planes = Problem(
            problem.batch,
            problem.in_channels,
            (1, 1),
            problem.out_channels,
            (1, 1),
            groups=problem.groups,
        )
        factor = self.algorithm.error_constant(problem, map, dtype)
        # The constant is of first order in u; the hundredth part stands for the rest.
        own = error_bound(reference, torch.complex128 if dtype.is_complex else torch.float64)
        pixels = sum(value.numel() for value in slots if value is not None)
        underflow = 3 * pixels * torch.finfo(dtype).tiny
        return 1.01 * factor * oracle(planes, *norms).value + own + underflow


def _plane_norms(value: Tensor) -> Tensor:
    """The 2-norm of each plane, as a 1x1 plane."""
    wide = value.detach().cpu().to(torch.complex128 if value.is_complex() else torch.float64)
    norms: Tensor = torch.linalg.vector_norm(wide.flatten(2), dim=2)
    return norms[..., None, None]


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
    require_right("result", result, problem, slots, errors=Declared(algorithm))


def assert_close(result: Tensor, expected: Tensor, bound: Tensor) -> None:
    """|result - expected| <= bound, everywhere; equality modulo 2**bits for integers."""
    require_close("result", result, expected, bound)
