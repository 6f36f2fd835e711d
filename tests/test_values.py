"""Each algorithm, and ``auto``, keeps each law of the kit, in every dtype that it does."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.laws import (
    COMPLEX,
    FLOATS,
    INTEGERS,
    assert_right,
    each_algorithm,
    each_choice,
    name_of,
    promise,
)
from support.maps import request
from torch_corr import Algorithm, Problem, corr2d
from torch_corr.testing import LAWS, Law, check_corr2d, operands, problems

# Bitwise batch invariance is claimed by none: matrix products block by size.
each_law = pytest.mark.parametrize(
    "law",
    [law for law in LAWS if law.name not in ("batch_invariance", "opcheck")],
    ids=lambda law: law.name,
)


@each_choice
@each_law
def test_laws(law: Law, algorithm: Algorithm | str, device: torch.device) -> None:
    """As corr2d with the algorithm named, for problems with any padding."""
    profile = settings()

    def able(problem: Problem, device: torch.device, dtype: torch.dtype) -> bool:
        torchs = name_of(algorithm) in ("aten", "auto")
        if law.name == "non_finite" and torchs and onednn_spreads_nan(problem, device, dtype):
            return False
        here = request(problem, device=device, dtype=dtype)
        return isinstance(algorithm, str) or not algorithm.refusals(here)

    report = check_corr2d(
        partial(corr2d, algorithm=algorithm),
        device=device,
        dtypes=FLOATS + COMPLEX + INTEGERS,
        laws=[law.name],
        problems=problems(max_one=30, allow_empty=False),
        able=able,
        errors=promise(algorithm),
        examples=profile.max_examples // 4,
        seed=0 if profile.derandomize else random.randrange(2**32),
    )
    if law.name == "non_finite" and name_of(algorithm) == "fft":
        # A transform mixes a whole tile: that is what the error class says, and is tested.
        assert report.failed_laws() == ("non_finite",)
    else:
        report.raise_if_failed()


def onednn_spreads_nan(problem: Problem, device: torch.device, dtype: torch.dtype) -> bool:
    """Where ``aten``, and ``auto`` with it, lets NaN reach what does not meet it.

    In bfloat16 oneDNN multiplies pairs, of which the second may be another pixel, by a zero of
    its own; and a strided gradient of the input multiplies taps by outputs that do not exist
    (float16 goes through float32 there).  See docs/what-the-kit-finds.md.
    """
    if device.type != "cpu" or dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    return dtype == torch.bfloat16 or problem.stride[1] > 1


def test_fresh_memory_is_poisoned() -> None:
    """Else the laws above could pass on memory that no algorithm wrote."""
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
    if algorithm.refusals(request(problem, device=device, dtype=torch.complex128)):
        return
    x, w, y = (value.conj() for value in data.draw(operands(problem, torch.complex128, device)))
    assert_right(algorithm.forward(problem, x, w), problem, input=x, weight=w, algorithm=algorithm)
    assert_right(
        algorithm.grad_input(problem, y, w), problem, output=y, weight=w, algorithm=algorithm
    )
    assert_right(
        algorithm.grad_weight(problem, x, y), problem, input=x, output=y, algorithm=algorithm
    )
    x, w, y = x.imag, w.imag, y.imag
    assert x.is_neg()
    assert_right(algorithm.forward(problem, x, w), problem, input=x, weight=w, algorithm=algorithm)
    assert_right(
        algorithm.grad_input(problem, y, w), problem, output=y, weight=w, algorithm=algorithm
    )
    assert_right(
        algorithm.grad_weight(problem, x, y), problem, input=x, output=y, algorithm=algorithm
    )
