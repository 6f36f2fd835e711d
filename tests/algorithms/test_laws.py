"""Each algorithm, and ``auto``, keeps each law of the kit, in every dtype that it supports."""

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
    IN_BLOCKS,
    INTEGERS,
    algorithm_id,
    assert_right,
    each_choice,
    name_of,
    promise,
)
from support.maps import OPERANDS, request
from torch_corr import ALGORITHMS, MAPS, Problem, corr2d
from torch_corr.testing import LAWS, check_corr2d, operands, problems

# No algorithm claims bitwise batch invariance: matrix products block by size.
each_law = pytest.mark.parametrize(
    "law",
    [law for law in LAWS if law.name not in ("batch_invariance", "opcheck")],
    ids=lambda law: law.name,
)


def check(law, algorithm, device, dtypes):
    """Try a law on corr2d with the algorithm named, for problems with any padding."""
    profile = settings()

    def able(problem, device, dtype):
        torchs = name_of(algorithm) in ("aten", "auto")
        if law == "non_finite" and torchs and onednn_spreads_nan(problem, device, dtype):
            return False
        return isinstance(algorithm, str) or not algorithm.refusals(
            request(problem, device=device, dtype=dtype)
        )

    report = check_corr2d(
        partial(corr2d, algorithm=algorithm),
        device=device,
        dtypes=dtypes,
        laws=[law],
        problems=problems(max_one=30, allow_empty=False),
        able=able,
        errors=promise(algorithm),
        examples=profile.max_examples // 4,
        seed=0 if profile.derandomize else random.randrange(2**32),
    )
    if law == "non_finite" and name_of(algorithm) == "fft":
        # A transform mixes a whole tile: its error class says so, and is tested.
        assert report.failed_laws() == ("non_finite",)
    else:
        report.raise_if_failed()


# One of each kind, for laws that test code which does not depend on the dtype.
SOME_DTYPES = torch.float32, torch.bfloat16, torch.complex128, torch.int8
OF_CALLS = "remembers_nothing", "invalid_arguments", "spellings", "threads"


@each_choice
@each_law
def test_laws(law, algorithm, device):
    every = FLOATS + COMPLEX + INTEGERS
    check(law.name, algorithm, device, SOME_DTYPES if law.name in OF_CALLS else every)


# The limit changes only how a map is computed: in strips of rows, whose lengths depend on the
# size of an element.  The laws of derivatives and of calls do not depend on it.
@pytest.mark.parametrize(
    "law", ["values", "gradients", "memory_formats", "zero_sizes", "non_finite", "stale_memory"]
)
def test_laws_of_values_in_many_blocks(law, device):
    check(law, IN_BLOCKS, device, SOME_DTYPES)


def onednn_spreads_nan(problem, device, dtype):
    """Whether ``aten``, and so ``auto``, lets NaN reach outputs whose windows do not contain it.

    In bfloat16 oneDNN multiplies pairs, whose second may be another pixel, by a zero of its own.
    A strided gradient of the input multiplies taps by outputs that do not exist (float16 goes
    through float32 there).  See docs/what-the-kit-finds.md.
    """
    if device.type != "cpu" or dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    return dtype == torch.bfloat16 or problem.stride[1] > 1


def test_fresh_memory_is_poisoned():
    """Otherwise the laws above could pass on memory that no algorithm wrote."""
    assert torch.empty(3).isnan().all()
    assert torch.ones(1).new_empty(3, dtype=torch.complex64).isnan().all()
    assert (torch.empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, IN_BLOCKS], ids=algorithm_id)
@settings(max_examples=10)
@given(data=st.data())
def test_conjugated_and_negated_views(data, algorithm, device):
    """Operands whose conjugation or sign is a flag on the tensor, not yet in memory."""
    problem = Problem.parse("n2c4-x5x6-o6-k3x2-s2x1-p1,0x2,1-g2")
    if algorithm.refusals(request(problem, device=device, dtype=torch.complex128)):
        return
    conjugated = [value.conj() for value in data.draw(operands(problem, torch.complex128, device))]
    negated = [value.imag for value in conjugated]
    assert negated[0].is_neg()
    for values in (conjugated, negated):
        named = dict(zip(("input", "weight", "output"), values))
        for map in MAPS:
            slots = {slot: named[slot] for slot in OPERANDS[map]}
            result = getattr(algorithm, map)(problem, *slots.values())
            assert_right(result, problem, **slots, algorithm=algorithm)
