"""The look at whether a transform's result may stand, on the device: see :mod:`._contrast`.

Nobody waits for what it finds: it is a number on the device, which the launches of a map read
before they do anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem
from ._contrast import KEPT, View, views
from ._triton_configs import Taps
from ._triton_draft import MOST, Draft, strides_of
from ._triton_form import Form, Launch
from .base import MapName

SMALL = Taps("look", lanes=256, height=1, chunk=1)
LARGE = Taps("look-large", lanes=4096, height=1, chunk=1, warps=32)
"""How many numbers of a plane are looked at side by side.  Large is for large planes that are so
few that a program has a multiprocessor for itself, which one of few warps would leave idle."""

FEW, MUCH = 264, 2**14
"""Planes up to which they are few, two for each multiprocessor of an H100; and what is large."""

PIECE, PIECES = 2**12, 2**11
"""Numbers of a result that a program looks at, or more so that there are no more programs."""

WIDEST = 32
"""Rows and columns of a block at most, wherever a half window is larger: more is as good."""


def look_form(
    draft: Draft, map: MapName, problem: Problem, first: Tensor, second: Tensor, result: Tensor
) -> Form:
    """Launches that set the draft's ``doubt`` unless ``result``, of the operands, may stand.

    As :meth:`.fft.FFT.stands`, but for two things that make it stricter by little: a block is a
    power of two long, at most half a window, and all of its numbers are looked at.
    """
    assert draft.doubt is not None
    looked_at = [
        _launch(draft, operand, view, torch.finfo(operand.dtype).eps / KEPT)
        for operand, view in zip((first, second), views(problem, map))
        if view is not None
    ]
    return draft.form(draft.doubt, *looked_at, _finite_launch(draft, result))


def _launch(draft: Draft, operand: Tensor, view: View, contrast: float) -> Launch:
    images, channels, *size = operand.shape
    steps = tuple(min(step, length) for step, length in zip(view.steps, size))
    down, across = (
        _power_of_two(min((seen + 1) // 2, length // step, WIDEST))
        for seen, length, step in zip(view.lengths, size, steps)
    )
    reach = sum(length * stride for length, stride in zip(operand.shape, operand.stride()))
    config = LARGE if images * channels <= FEW and size[0] * size[1] >= MUCH else SMALL
    return draft.launch(
        "look",
        config,
        images * channels,
        (operand, strides_of(operand), channels, *size, steps, contrast),
        {"LANES": config.lanes, "DOWN": down, "ACROSS": across, "WIDE": reach > MOST},
    )


def _finite_launch(draft: Draft, result: Tensor) -> Launch:
    """Of a result, contiguous, it is asked only whether it is finite: so in pieces of its memory.

    By planes a single image would be one program's, on one multiprocessor of all.
    """
    assert result.is_contiguous()
    length = result.numel()
    pieces = min(max(length // PIECE, 1), PIECES)
    step = length // pieces
    # Each goes on into the next, by less than there are pieces, for the last to end with the last.
    piece = length - (pieces - 1) * step
    return draft.launch(
        "look",
        SMALL,
        pieces,
        (result, (step, 0, 0, 1), 1, 1, piece, (1, 1), 0.0),
        {"LANES": SMALL.lanes, "DOWN": 1, "ACROSS": 1, "WIDE": length > MOST},
    )


def _power_of_two(number: int) -> int:
    """The largest that is not above a number."""
    return 1 << (number.bit_length() - 1)
