"""When a transform may stand: no window so faint that it drowns in the rounding of others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fft import operands_of, some

from torch_corr import FFT, MAPS, Aten, Problem
from torch_corr.algorithms import MapName
from torch_corr.algorithms._contrast import KEPT, View, even, views
from torch_corr.algorithms._plans import SLOTS

DTYPES = (torch.float32, torch.float64, torch.complex64)
TEXT = "n2c2-x20x18-o2-k5x4-p2"


def stands(problem: Problem, map: str, operands: list[torch.Tensor]) -> bool:
    return FFT().stands(problem, map, *operands, getattr(FFT(), map)(problem, *operands))


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "text", [TEXT, "n1c2-x30-o2-k5-s2-p1", "n1c1-x31-o1-k5-d2", "n1c1-x8-o3-k3"]
)
def test_usual_images_stand(map: str, dtype: torch.dtype, text: str) -> None:
    problem = Problem.parse(text)
    operands = some(problem, map, dtype)
    assert stands(problem, map, operands)
    operands[0][:, :, ::2] = 0
    operands[0][:, 0] = 0
    assert stands(problem, map, operands)
    assert stands(problem, map, [torch.zeros_like(operand) for operand in operands])


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_one_wild_number_anywhere_does_not_stand(map: str, which: int, bad: float) -> None:
    problem = Problem.parse(TEXT)
    operands = some(problem, map, torch.float32)
    for place in ((0, 0, 0, 0), (-1, -1, -1, -1), (0, 1, 2, 1)):
        wild = [operand.clone() for operand in operands]
        wild[which][place] = bad
        assert not stands(problem, map, wild)


@pytest.mark.parametrize("map", ["forward", "grad_input"])
def test_faint_beside_bright_does_not_stand(map: str) -> None:
    """1e30 beside 1e-30, though every number by itself is what it should be.

    Of the taps of grad_weight each sees both.
    """
    problem = Problem.parse(TEXT)
    for which in (0, 1):
        operands = some(problem, map, torch.float64)
        operands[which] *= 1e-30
        assert stands(problem, map, operands)
        operands[which][..., operands[which].shape[3] // 2 :] *= 1e60
        assert not stands(problem, map, operands)


def test_what_is_bright_between_the_taps_does_not_light_them() -> None:
    for text, map, which, step in (
        ("n1c1-x31-o1-k5-d2", "forward", 0, 2),
        ("n1c1-x31-o1-k5-s2", "grad_input", 1, 2),
        ("n1c1-x31-o1-k5-s2", "grad_weight", 0, 2),
    ):
        problem = Problem.parse(text)
        operands = some(problem, map, torch.float64)
        operands[which][..., ::step, ::step] *= 1e30
        assert not stands(problem, map, operands), text
    many = Problem.parse("n1c1-x99-o1-k3-d9")
    assert not stands(many, "forward", some(many, "forward", torch.float32))


@given(
    seed=st.integers(0, 999),
    kernel=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    faintness=st.floats(0, 12),
)
def test_in_what_is_even_no_window_is_fainter_than_allowed(
    seed: int, kernel: tuple[int, int], dilation: tuple[int, int], faintness: float
) -> None:
    """By the definition: the numbers that a window sees, window by window."""
    torch.manual_seed(seed)
    x = torch.randn(1, 2, 24, 27, dtype=torch.float64).float()
    x[:, :, seed % 20 :, seed % 7 :] *= 10**-faintness
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    windows = x.unfold(2, spans[0], 1).unfold(3, spans[1], 1)[..., :: dilation[0], :: dilation[1]]
    seen = windows.abs().amax((4, 5))
    allowed = KEPT / torch.finfo(torch.float32).eps
    if even(x, View(kernel, dilation)):
        assert (x.abs().amax((2, 3), keepdim=True) <= allowed * seen).all()
    else:
        assert faintness > 2


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("text", ["n1c1-x64-o1-k6-s2-d4", "n1c1-x64-o1-k6-s4-d2", "n1c1-x24-o1-k7"])
def test_views_are_the_numbers_that_one_result_sees(text: str, map: MapName) -> None:
    """Found by the adjoint, which takes a one in the result to all numbers that it depends on."""
    problem = Problem.parse(text)
    shapes = {slot: getattr(problem, f"{slot}_shape") for slot in ("input", "weight", "output")}
    for operand, view in zip(operands_of(map), views(problem, map)):
        back = next(other for other in MAPS if SLOTS[other][2] == operand)
        if view is None:
            assert (map, operand) in (("forward", "weight"), ("grad_weight", "output"))
            continue
        longest = 0
        for row in range(shapes[SLOTS[map][2]][2]):
            given = {slot: torch.ones(shape) for slot, shape in shapes.items()}
            given[SLOTS[map][2]].zero_()[0, 0, row, :] = 1
            seen = getattr(Aten(), back)(problem, *(given[slot] for slot in SLOTS[back][:2]))
            rows = seen[0, 0].any(1).nonzero().flatten()
            assert len(rows) <= view.lengths[0]
            assert (rows.diff() == view.steps[0]).all()
            longest = max(longest, len(rows))
        assert longest == min(view.lengths[0], shapes[operand][2])
