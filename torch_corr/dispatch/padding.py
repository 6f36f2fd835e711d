"""Padding modes other than zeros: the border is added to the input before the correlation.

:func:`torch_corr.problem.resolve_padding` turns ``padding="same"`` into numbers, for every mode.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..operators import skip_dynamo
from ..problem import (
    Pair,
    Sides,
    as_pair,
    holds_always,
    is_known_zero,
    require,
    resolve_padding,
    shape_str,
)
from ..suggest import did_you_mean

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@skip_dynamo
def fill_padding(
    input: Tensor,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    stride: Pair,
    padding: str | Sides,
    dilation: Pair,
    mode: str,
) -> tuple[Tensor, tuple[tuple[int, ...], tuple[int, ...]], tuple[Pair, Sides, Pair]]:
    """Add the border to the input.

    Args:
        input: (N, C, H, W).
        shapes: the shapes of input and weight.
        stride, padding, dilation: as in ``corr2d``.
        mode: one of ``PADDING_MODES``, except ``"zeros"``.

    Returns:
        The larger input, the new shapes, and (stride, no padding, dilation).
    """
    if mode not in PADDING_MODES:
        raise ValueError(
            f"unknown padding_mode {mode!r}{did_you_mean(str(mode), PADDING_MODES)}; use one of "
            f"{', '.join(map(repr, PADDING_MODES))}"
        )
    (batch, channels, height, width), (_, _, *kernel) = shapes
    sides = resolve_padding(padding, (height, width), as_pair("kernel", kernel), stride, dilation)
    for axis, size, side in zip("HW", (height, width), sides):
        most = size - 1 if mode == "reflect" else size
        for pixels in side:
            require(pixels >= 0, lambda: f"padding must be at least 0 on every side, got {sides}")
            if is_known_zero(pixels):
                continue
            require(
                pixels <= most if mode == "reflect" else size >= 1,
                lambda: (
                    f"padding {side} along {axis} is more than padding_mode={mode!r} can fill "  # noqa: B023
                    f"from {size} pixels (at most {most}), in an input of shape "  # noqa: B023
                    f"{shape_str(shapes[0])}; pad less, or with zeros"
                ),
            )
    (top, bottom), (left, right) = sides
    if is_known_zero(channels):
        mode = "constant"  # PyTorch's other modes refuse an input without channels
    if mode == "circular" and not _wraps_once(sides, (height, width)):
        for dim, side in enumerate(sides, start=-2):
            if not all(map(is_known_zero, side)):
                input = wrap(input, dim, *side)
    elif not all(map(is_known_zero, (top, bottom, left, right))):
        input = pad(input, (left, right, top, bottom), mode=mode)
    padded = batch, channels, height + top + bottom, width + left + right
    return input, (padded, shapes[1]), (stride, ((0, 0), (0, 0)), dilation)


def _wraps_once(sides: Sides, sizes: Pair) -> bool:
    """Whether no side is larger than the image, which ``F.pad`` requires for circular padding."""
    return all(holds_always(pixels <= size) for size, side in zip(sizes, sides) for pixels in side)


def wrap(input: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Pad an axis circularly, repeating it as often as needed."""
    size = input.size(dim)
    indices = torch.arange(-before, size + after, device=input.device)
    # A tensor with one element, because ONNX has no remainder by a symbolic integer.
    period = torch.full((1,), size, dtype=torch.int64, device=input.device)
    return input.index_select(dim, indices % period)
