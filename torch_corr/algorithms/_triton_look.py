"""The look at whether a transform's result may stand, on the device: see :mod:`._contrast`.

Nobody waits for what it finds: it is a number on the device, which the launches of a map read
before they do anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem
from ._contrast import KEPT, View, views
from ._triton_configs import by_name
from ._triton_draft import MOST, Draft, strides_of
from ._triton_form import Form, Launch
from .base import MapName

LANES = 256
"""Numbers of a plane that are looked at side by side."""

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
    whole = View((1, 1), (1, 1))
    looked_at = [
        _launch(draft, operand, view, torch.finfo(operand.dtype).eps / KEPT)
        for operand, view in zip((first, second), views(problem, map))
        if view is not None
    ]
    # Of the result it is asked only whether it is finite.
    return draft.form(draft.doubt, *looked_at, _launch(draft, result, whole, 0.0))


def _launch(draft: Draft, operand: Tensor, view: View, contrast: float) -> Launch:
    images, channels, *size = operand.shape
    steps = tuple(min(step, length) for step, length in zip(view.steps, size))
    down, across = (
        _power_of_two(min((seen + 1) // 2, length // step, WIDEST))
        for seen, length, step in zip(view.lengths, size, steps)
    )
    reach = sum(length * stride for length, stride in zip(operand.shape, operand.stride()))
    return draft.launch(
        "look",
        by_name("taps-1"),
        images * channels,
        (operand, strides_of(operand), channels, *size, steps, contrast),
        {"LANES": LANES, "DOWN": down, "ACROSS": across, "WIDE": reach > MOST},
    )


def _power_of_two(number: int) -> int:
    """The largest that is not above a number."""
    return 1 << (number.bit_length() - 1)
