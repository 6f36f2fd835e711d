"""The algorithms under test, and the kit's comparison with the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from torch_corr import ALGORITHMS, Algorithm, Problem, Unfold
from torch_corr.planning.plan import able_algorithms
from torch_corr.testing import Componentwise, ErrorModel, declared, require_right

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex128, torch.complex64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

# So little room that unfold computes 60% of the kit's problems in several blocks of images, rows or
# columns, and refuses 8%.  With 40,000 bytes it would split 5%, and hardly any along columns.
IN_BLOCKS = Unfold(workspace_limit=2_500)


def algorithm_id(algorithm: Algorithm | str) -> str:
    return repr(algorithm) if algorithm not in (*ALGORITHMS, "auto") else name_of(algorithm)


def name_of(algorithm: Algorithm | str) -> str:
    return algorithm if isinstance(algorithm, str) else algorithm.name


each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=algorithm_id)

# Most callers name no algorithm.
each_choice = pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS], ids=algorithm_id)

# Those that run on the CPU of this machine.
ABLE = able_algorithms(Problem.parse("n1c1-x1-o1-k1"), torch.device("cpu"), torch.float64)
ON_CPU = ("auto", *ABLE)
each_on_cpu = pytest.mark.parametrize("algorithm", ON_CPU, ids=algorithm_id)


def conv2d_is_sound(problem: Problem, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether F.conv2d on the CPU is right and does not crash, in any layout of the operands.

    docs/what-the-kit-finds.md describes the other problems.
    """
    p, across = problem, problem.stride[1]
    step = max(across, p.dilation[1])
    crashes = p.size[1] == 1 < step or (p.kernel == (1, 1) and p.stride != (1, 1))
    one_column = p.output_size[1] == 1 < across
    wide = p.output_size[1] > 28
    skips_padding = wide and across > 1 and p.dilation[1] > 1
    dilated_rows = dtype == torch.bfloat16 and wide and p.dilation[0] > 1 and p.groups > 1
    one_row = p.groups > 1 and 1 in p.size
    return not (crashes or one_column or skips_padding or dilated_rows or one_row)


def promise(algorithm: Algorithm | str) -> ErrorModel:
    """An algorithm's error model; problems here are too small for ``auto`` to choose ``fft``."""
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
    """``result`` is right for the missing slot, within the algorithm's error model."""
    slots = input, weight, output
    require_right("result", result, problem, slots, errors=promise(algorithm))


def assert_all_right(
    results: Sequence[Tensor],
    problem: Problem,
    x: Tensor,
    w: Tensor,
    y: Tensor,
    *,
    algorithm: Algorithm | str,
) -> None:
    """The three results are the output, grad_input and grad_weight."""
    slots = (x, w, None), (None, w, y), (x, None, y)
    for result, (input, weight, output) in zip(results, slots):
        assert_right(result, problem, input, weight, output, algorithm=algorithm)
