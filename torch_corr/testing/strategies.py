"""What to try: Hypothesis strategies for problems, and operands for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from ..problem import Problem, window_span
from .data import DATA, LAYOUTS, Operands, make_operands


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    max_batch: int = 3,
    max_channels: int = 3,
    max_groups: int = 3,
    max_size: int = 12,
    max_kernel: int = 5,
    max_stride: int = 4,
    max_padding: int = 4,
    max_dilation: int = 3,
    max_one: int = 0,
    allow_empty: bool = True,
    asymmetric_padding: bool = True,
) -> Problem:
    """Problems of every kind that conv2d takes, small enough to try thousands.

    Narrow it to what a callable is for: ``problems(max_dilation=1, max_groups=1)``.

    Args:
        max_channels: most channels of one group, on either side.
        max_one: unless 0, one of batch, channels, rows or columns is often longer than its
            own limit and up to this long, to reach the tails of blocked loops.
        allow_empty: whether the batch, or the channels, or then the image may be empty.
        asymmetric_padding: whether the two sides of an axis may be padded differently.
    """
    least = 0 if allow_empty else 1
    long = draw(st.sampled_from(_LONG), label="long axis") if max_one else ""

    def length(axis: str, smallest: int, most: int) -> int:
        least, most = (most + 1, max_one) if axis == long and max_one > most else (0, most)
        smallest = max(smallest, least)
        return draw(st.integers(smallest, max(smallest, most)), label=axis)

    batch = length("batch", least, max_batch)
    # One group, and dense windows, are what special code is written for: half the problems.
    grouped = draw(st.booleans(), label="groups?")
    groups = draw(st.integers(1, max_groups), label="groups") if grouped else 1
    group_in = length("input channels of a group", least, max_channels)
    group_out = length("output channels of a group", 1, max_channels)
    kernel = draw(st.integers(1, max_kernel)), draw(st.integers(1, max_kernel))
    sparse = draw(st.booleans(), label="stride or dilation")
    stride, dilation = (
        (draw(st.integers(1, most)), draw(st.integers(1, most))) if sparse else (1, 1)
        for most in (max_stride, max_dilation)
    )
    side = st.integers(0, max_padding)
    top, left = draw(side), draw(side)
    bottom, right = (draw(side), draw(side)) if asymmetric_padding else (top, left)
    padding = (top, bottom), (left, right)
    smallest = 0 if batch == 0 or group_in == 0 else 1
    rows, columns = (
        length(axis, max(smallest, span - sum(sides)), max_size)
        for axis, span, sides in zip(("rows", "columns"), window_span(kernel, dilation), padding)
    )
    return Problem(
        batch=batch,
        in_channels=groups * group_in,
        size=(rows, columns),
        out_channels=groups * group_out,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


# Rows and columns are what loops are blocked along most.
_LONG = (
    "",
    "rows",
    "columns",
    "rows",
    "columns",
    "batch",
    "input channels of a group",
    "output channels of a group",
)


@st.composite
def tensors_for(
    draw: st.DrawFn,
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    data: Sequence[str] = DATA,
    layouts: Sequence[str] = LAYOUTS,
) -> Operands:
    """Operands for all three slots of a problem, of any kind of data in any layout.

    Args:
        data: kinds to draw from, of ``DATA`` (see :func:`make_operands`).
        layouts: layouts to draw from, of ``LAYOUTS`` (see :func:`in_layout`).
    """
    seed = draw(st.integers(0, 2**32 - 1), label="seed")
    kind = draw(st.sampled_from(tuple(data)), label="data")
    drawn = tuple(draw(st.sampled_from(tuple(layouts))) for _ in range(3))
    return make_operands(problem, dtype, device, kind, drawn, seed)


def operands(
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    layouts: Sequence[str] = LAYOUTS,
) -> st.SearchStrategy[Operands]:
    """:func:`tensors_for` with normal numbers (small integers for integer dtypes) alone."""
    integral = not (dtype.is_floating_point or dtype.is_complex)
    kinds = ("integers",) if integral else ("normal",)
    return tensors_for(problem, dtype, device, data=kinds, layouts=layouts)
