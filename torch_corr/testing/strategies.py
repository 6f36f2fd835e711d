"""What to try: Hypothesis strategies for problems, and operands for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from ..problem import Problem, window_span
from .data import DATA, LAYOUTS, Operands, make_operands


def problems(
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
) -> st.SearchStrategy[Problem]:
    """Problems of every kind that conv2d takes, small enough to try thousands.

    Narrow it to what a callable is for: ``problems(max_dilation=1, max_groups=1)``.

    Args:
        max_channels: most channels of one group, on either side.
        max_kernel: most taps of a side.  More than 5 have some problems alone, with an image as
            large as that takes; if so, these alone have strides and padding of more than 4.
        max_one: unless 0, one of batch, channels (or the groups of a depthwise layer), rows or
            columns is often longer than its own limit and up to this long, to reach the tails
            of blocked loops; half of these lengths are a power of two, or one more.
        allow_empty: whether the batch, or the channels on either side, or the image where the
            batch or the input's channels are, may be empty.
        asymmetric_padding: whether the two sides of an axis may be padded differently.

    Raises:
        ValueError: a limit that leaves no problem.
    """
    limits = dict(locals())
    for name, limit in limits.items():
        sizes = ("max_batch", "max_channels", "max_size")
        least = 0 if name in ("max_padding", "max_one") or (allow_empty and name in sizes) else 1
        if not isinstance(limit, int) or limit < (least if name.startswith("max_") else 0):
            raise ValueError(f"{name} must be an integer of at least {least}, got {limit}")
    return _problems(**limits)


@st.composite
def _problems(
    draw: st.DrawFn,
    max_batch: int,
    max_channels: int,
    max_groups: int,
    max_size: int,
    max_kernel: int,
    max_stride: int,
    max_padding: int,
    max_dilation: int,
    max_one: int,
    allow_empty: bool,
    asymmetric_padding: bool,
) -> Problem:
    least = 0 if allow_empty else 1
    axes = (_LONG if max_one else ("",)) + ("kernel",) * (max_kernel > _SMALL["kernel"])
    long = draw(st.sampled_from(axes), label="long axis")

    def length(axis: str, smallest: int, most: int) -> int:
        if axis != long or max_one <= most:
            return draw(st.integers(smallest, max(smallest, most)), label=axis)
        smallest = max(smallest, most + 1)
        lengths = st.integers(smallest, max(smallest, max_one))
        if tails := [n for n in _BLOCKS if smallest <= n <= max_one]:
            lengths = st.one_of(lengths, st.sampled_from(tails))
        return draw(lengths, label=axis)

    batch = length("batch", least, max_batch)
    # What special code is written for is drawn most: one group, depthwise layers, dense windows,
    # 3x3 kernels and square ones, and a single window.
    grouping = draw(st.sampled_from(_GROUPINGS), label="grouping") if max_groups > 1 else "one"
    if grouping == "depthwise":
        long = "groups" if "channels" in long else long
        groups, group_in = length("groups", 2, max_groups), 1
        group_out = draw(st.integers(1, min(2, max_channels)), label="filters of a channel")
    else:
        groups = draw(st.integers(2, max_groups), label="groups") if grouping == "several" else 1
        group_in = length("input channels of a group", least, max_channels)
        group_out = length("output channels of a group", least, max_channels)
    large = long == "kernel"
    small = _SMALL if "kernel" in axes and not large else {}
    most_taps = min(max_kernel, small.get("kernel", max_kernel))
    max_stride = min(max_stride, small.get("stride", max_stride))
    max_padding = min(max_padding, small.get("padding", max_padding))
    taps = st.integers(1, most_taps)
    if max_kernel >= 3:
        favourite = 7 if large and max_kernel >= 7 else 3
        taps = st.one_of(taps, taps, st.just(favourite))
    tall = draw(taps, label="kernel rows")
    kernel = tall, draw(st.one_of(taps, st.just(tall)), label="kernel columns")
    sparse = draw(st.sampled_from(_SPARSE), label="sparse")
    stride, dilation = (
        (draw(st.integers(1, most)), draw(st.integers(1, most))) if name in sparse else (1, 1)
        for name, most in (("stride", max_stride), ("dilation", max_dilation))
    )
    side = st.integers(0, max_padding)
    top, left = draw(side), draw(side)
    bottom, right = (draw(side), draw(side)) if asymmetric_padding else (top, left)
    padding = (top, bottom), (left, right)
    smallest = 0 if batch == 0 or group_in == 0 else 1
    single = draw(st.sampled_from(_SINGLE), label="single window")
    rows, columns = (
        length(
            axis,
            max(smallest, span - sum(sides)),
            0 if single else max_size + large * max(0, span - sum(sides)),
        )
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


# Beyond these, numbers are drawn together with a kernel that may be large.
_SMALL = {"kernel": 5, "stride": 4, "padding": 4}

_GROUPINGS = ("one", "one", "several", "depthwise")
_SINGLE = (False,) * 7 + (True,)
_SPARSE = ("", "", "stride", "stride", "dilation", "stride and dilation")

# Loops are blocked by powers of two, and go wrong one beyond; the shorter ones of these lengths
# are drawn often enough as they are.
_BLOCKS = tuple(2**power + rest for power in range(6, 13) for rest in (1, 1, 0))

# Columns and input channels are what loops are blocked along most.
_LONG = (
    "",
    "rows",
    "columns",
    "columns",
    "batch",
    "input channels of a group",
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
