"""Hypothesis strategies for problems and operands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from ..problem import Pair, Problem, window_span
from .data import DATA, LAYOUTS, Operands, make_operands


class Limits(NamedTuple):
    """The arguments of :func:`problems`."""

    max_batch: int
    max_channels: int
    max_groups: int
    max_size: int
    max_kernel: int
    max_stride: int
    max_padding: int
    max_dilation: int
    max_one: int
    allow_empty: bool
    asymmetric_padding: bool


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
    """A strategy for small problems of every kind that ``conv2d`` accepts.

    About half of the problems are ordinary; the others belong to the other ``REGIMES``.  Limit the
    problems to those that a callable supports: ``problems(max_dilation=1, max_groups=1)``.

    Args:
        max_batch: the largest number of images.
        max_channels: the largest number of input or output channels of a group.
        max_groups: the largest number of groups.
        max_size: the largest number of rows or columns of an image.
        max_kernel: the largest number of taps along an axis.  If it is above 5, some ordinary
            problems have more than 5 taps and a larger image; only these have a stride or
            padding above 4.
        max_stride: the largest stride.
        max_padding: the largest padding of a side.  If ``max_kernel`` is above 5, padding above 8
            and dilations above 3 occur only in wide and tall problems.
        max_dilation: the largest dilation.
        max_one: unless 0, one of batch, channels (or groups of a depthwise layer), rows or
            columns often exceeds its own limit, up to this length, to reach the tails of blocked
            loops.  Half of these lengths are a power of two or one more.  Wide and tall problems
            need at least 20.
        allow_empty: whether the batch or a number of channels may be 0; then the image may also
            have no pixels, if the batch or the input channels are 0.
        asymmetric_padding: whether the two sides of an axis may have different padding.

    Raises:
        ValueError: a limit is not an integer or too small.

    Example:
        >>> from hypothesis import given
        >>> @given(problem=problems(max_groups=1))
        ... def test_one_group(problem):
        ...     assert problem.groups == 1
        >>> test_one_group()
    """
    limits = Limits(**locals())
    for name, limit in limits._asdict().items():
        sizes = ("max_batch", "max_channels", "max_size")
        least = 0 if name in ("max_padding", "max_one") or (allow_empty and name in sizes) else 1
        if not isinstance(limit, int) or limit < (least if name.startswith("max_") else 0):
            raise ValueError(f"{name} must be an integer of at least {least}, got {limit}")
    return _problems(limits)


# The number of problems of each regime among 32; docs/conformance.md describes them.
REGIMES = {"ordinary": 15, "wide": 8, "tall": 2, "one column": 5, "one row": 2}


@st.composite
def _problems(draw: st.DrawFn, limits: Limits) -> Problem:
    long = limits.max_one >= _WIDE[0]
    regimes = [each for each in REGIMES if long or each not in ("wide", "tall")]
    regime = draw(_weighted({each: REGIMES[each] for each in regimes}), label="regime")
    if regime == "ordinary" or 0 in (limits.max_batch, limits.max_channels, limits.max_size):
        return draw(_ordinary(limits))
    if regime in ("wide", "tall"):
        return draw(_wide(limits, turned=regime == "tall"))
    return draw(_one_column(limits, turned=regime == "one row"))


def _weighted(weights: dict[str, int]) -> st.SearchStrategy[str]:
    return st.sampled_from([name for name, weight in weights.items() for _ in range(weight)])


# --- ordinary problems


@st.composite
def _ordinary(draw: st.DrawFn, limits: Limits) -> Problem:
    least = 0 if limits.allow_empty else 1
    kernels = limits.max_kernel > _SMALL["kernel"]
    axes = (_LONG if limits.max_one else ("",)) + ("kernel",) * kernels
    long = draw(st.sampled_from(axes), label="long axis")

    def length(axis: str, smallest: int, most: int) -> int:
        if axis != long or limits.max_one <= most:
            return draw(st.integers(smallest, max(smallest, most)), label=axis)
        smallest = max(smallest, most + 1)
        lengths = st.integers(smallest, max(smallest, limits.max_one))
        if tails := [n for n in _BLOCKS if smallest <= n <= limits.max_one]:
            lengths = st.one_of(lengths, st.sampled_from(tails))
        return draw(lengths, label=axis)

    batch = length("batch", least, limits.max_batch)
    # Draw often what has special code: one group, depthwise layers, dense windows, 3x3 and square
    # kernels, and a single window.
    several = limits.max_groups > 1
    grouping = draw(st.sampled_from(_GROUPINGS), label="grouping") if several else "one"
    if grouping == "depthwise":
        long = "groups" if "channels" in long else long
        groups, group_in = length("groups", 2, limits.max_groups), 1
        group_out = draw(st.integers(1, min(2, limits.max_channels)), label="filters of a channel")
    else:
        many = st.integers(2, limits.max_groups)
        groups = draw(many, label="groups") if grouping == "several" else 1
        group_in = length("input channels of a group", least, limits.max_channels)
        group_out = length("output channels of a group", least, limits.max_channels)
    large = long == "kernel"
    most = limits._asdict()
    for name, limit in (_LARGE if large else _SMALL).items() if kernels else ():
        most[f"max_{name}"] = min(limit, most[f"max_{name}"])
    taps = st.integers(1, most["max_kernel"])
    if limits.max_kernel >= 3:
        favourite = 7 if large and limits.max_kernel >= 7 else 3
        taps = st.one_of(taps, taps, st.just(favourite))
    tall = draw(taps, label="kernel rows")
    kernel = tall, draw(st.one_of(taps, st.just(tall)), label="kernel columns")
    sparse = draw(st.sampled_from(_SPARSE), label="sparse")
    stride, dilation = (
        (draw(st.integers(1, limit)), draw(st.integers(1, limit))) if name in sparse else (1, 1)
        for name, limit in (("stride", most["max_stride"]), ("dilation", most["max_dilation"]))
    )
    side = st.integers(0, most["max_padding"])
    top, left = draw(side), draw(side)
    bottom, right = (draw(side), draw(side)) if limits.asymmetric_padding else (top, left)
    padding = (top, bottom), (left, right)
    smallest = 0 if batch == 0 or group_in == 0 else 1
    single = draw(st.sampled_from(_SINGLE), label="single window")
    rows, columns = (
        length(
            axis,
            max(smallest, span - sum(sides)),
            0 if single else limits.max_size + large * max(0, span - sum(sides)),
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


# If max_kernel is above 5, limits for the problems with small kernels and with large ones.
_SMALL = {"kernel": 5, "stride": 4, "padding": 4, "dilation": 3}
_LARGE = {"padding": 8, "dilation": 3}

_GROUPINGS = ("one", "one", "several", "depthwise")
_SINGLE = (False,) * 7 + (True,)
_SPARSE = ("", "", "stride", "stride", "dilation", "stride and dilation")

# Loops are blocked by powers of two and often fail for one more.  Smaller powers of two occur often
# without this list.
_BLOCKS = tuple(2**power + rest for power in range(6, 13) for rest in (1, 1, 0))

# Most loops are blocked along the columns or the input channels.
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


# --- problems with one long or one short axis, whose other sizes are small


class _Axis(NamedTuple):
    """The geometry of one axis of a problem."""

    taps: int
    stride: int
    dilation: int
    padding: Pair
    size: int


# Kernels with vectors of 8 or 16 columns keep up to 28 columns in registers and process a wider row
# in several steps.
_WIDE, _TWO_STEPS = (20, 80), (29, 56)


@st.composite
def _wide(draw: st.DrawFn, limits: Limits, turned: bool) -> Problem:
    """20 to 80 output columns, in three quarters 29 to 56, and up to five rows.

    There are three kinds: sparse columns with long padding (4 of 8); dense columns in several
    groups, with a dilation of the rows (3 of 8); a mixture (1 of 8).
    """
    kind = draw(_weighted({"sparse": 4, "dense": 3, "mixed": 1}), label="kind of wide")
    outputs = draw(st.sampled_from((_TWO_STEPS, _TWO_STEPS, _TWO_STEPS, _WIDE)))
    columns = draw(st.integers(*outputs), label="output columns")
    sparse = kind == "sparse" or (kind == "mixed" and draw(st.booleans()))
    across = draw(_sparse_axis(limits, columns) if sparse else _dense_axis(limits, columns))
    sparse = kind == "dense" or (kind == "mixed" and draw(st.booleans()))
    down = draw(_short_axis(limits, dilations=(2, 2, 3, 1) if sparse else (1,)))
    groupings = {"sparse": (7, 1), "dense": (2, 6), "mixed": (4, 4)}[kind]
    return draw(_assembled(limits, groupings, across, down, turned))


@st.composite
def _sparse_axis(draw: st.DrawFn, limits: Limits, outputs: int) -> _Axis:
    """A stride, a dilation, and padding from half a window to two windows.

    Within the limits, stride and dilation are at least 2 and the window spans 24 to 44 pixels.
    Three fifths of the paddings are at most three quarters of the window, and one fifth is at
    most the window.  One fifth is longer, so that some windows contain only padding.
    """
    stride = draw(st.sampled_from(_up_to(limits.max_stride, (2, 2, 3, 4))), label="stride")
    taps = draw(st.sampled_from(_up_to(limits.max_kernel, (3, 3, 4, 5, 6, 7, 8, 2))), label="taps")
    span = draw(st.integers(24, 44), label="span")
    span = min(span, limits.max_one)
    dilation = max(1, min((span - 1) // max(1, taps - 1), limits.max_dilation))
    span = dilation * (taps - 1) + 1
    half, most = span // 2, max(1, span - 1)
    part, whole = st.integers(half, max(half, 3 * span // 4)), st.integers(half, most)
    beyond = st.integers(span, 2 * span)
    longest = draw(st.one_of(part, part, part, whole, beyond), label="padding")
    longest = min(longest, limits.max_padding)
    padding = longest, longest
    if limits.asymmetric_padding:
        other = draw(st.sampled_from((longest, 0, span // 2)), label="padding of the other side")
        other = min(other, limits.max_padding)
        padding = (other, longest) if draw(st.booleans()) else (longest, other)
    return _axis(draw, limits.max_one, taps, stride, dilation, padding, outputs)


@st.composite
def _dense_axis(draw: st.DrawFn, limits: Limits, outputs: int) -> _Axis:
    """Stride 1 (in a quarter 2), up to 3 taps and padding up to 1."""
    stride = draw(st.sampled_from(_up_to(limits.max_stride, (1, 1, 1, 2))), label="stride")
    taps = draw(st.sampled_from(_up_to(limits.max_kernel, (1, 2, 3))), label="taps")
    padding = draw(_sides(limits, 1))
    return _axis(draw, limits.max_one, taps, stride, 1, padding, outputs)


@st.composite
def _short_axis(
    draw: st.DrawFn,
    limits: Limits,
    dilations: tuple[int, ...] = (1,),
    strides: tuple[int, ...] = (1, 1, 1, 2),
    outputs: Pair = (1, 5),
) -> _Axis:
    """Up to three taps and, by default, up to five outputs."""
    stride = draw(st.sampled_from(_up_to(limits.max_stride, strides)), label="stride")
    taps = draw(st.sampled_from(_up_to(limits.max_kernel, (1, 2, 3))), label="taps")
    dilation = draw(st.sampled_from(_up_to(limits.max_dilation, dilations)), label="dilation")
    padding = draw(_sides(limits, 1))
    count = draw(st.integers(*outputs), label="outputs")
    return _axis(draw, limits.max_size, taps, stride, dilation, padding, count)


@st.composite
def _one_column(draw: st.DrawFn, limits: Limits, turned: bool) -> Problem:
    """One output column and two to six rows; in 5 of 8, only the columns have a stride.

    7 of 8 have one input channel, so that their strides do not determine the layout.  Padding is
    as large as one output column permits.
    """
    down_stride, strides = draw(
        st.sampled_from((((1,), (2, 2, 3, 4)),) * 5 + (((1, 2), (1, 2, 3)),) * 3),
        label="strides",
    )
    taps = draw(st.integers(1, min(8, limits.max_kernel)), label="taps")
    stride = draw(st.sampled_from(_up_to(limits.max_stride, strides)), label="stride")
    dilation = draw(st.sampled_from(_up_to(limits.max_dilation, (1, 1, 1, 2))), label="dilation")
    (span, _), unused = window_span((taps, 1), (dilation, 1)), draw(st.integers(0, stride - 1))
    side = min(limits.max_padding, (span - 1 + unused) // 2)
    first = draw(st.integers(0, side), label="padding")
    last = draw(st.integers(0, side)) if limits.asymmetric_padding else first
    least = span - first - last
    size = max(least, min(limits.max_size, least + unused))
    across = _Axis(taps, stride, dilation, (first, last), size)
    down = draw(_short_axis(limits, (1, 1, 1, 2), down_stride, outputs=(2, 6)))
    gray = draw(st.sampled_from((True,) * 7 + (False,)), label="gray")
    return draw(_assembled(limits, (4, 0) if gray else (4, 4), across, down, turned, gray))


def _up_to(most: int, values: tuple[int, ...]) -> tuple[int, ...]:
    """The values, limited to ``most``."""
    return tuple(min(most, value) for value in values)


@st.composite
def _sides(draw: st.DrawFn, limits: Limits, most: int) -> Pair:
    side = st.integers(0, min(most, limits.max_padding))
    first = draw(side, label="padding")
    return first, draw(side) if limits.asymmetric_padding else first


def _axis(
    draw: st.DrawFn,
    most: int,
    taps: int,
    stride: int,
    dilation: int,
    padding: Pair,
    outputs: int,
) -> _Axis:
    """An axis with the given number of outputs, or fewer if its size would exceed ``most``."""
    (span, _) = window_span((taps, 1), (dilation, 1))
    least = max(1, span - sum(padding))
    size = (outputs - 1) * stride + span - sum(padding)
    size += draw(st.integers(0, stride - 1), label="pixels after the last window")
    return _Axis(taps, stride, dilation, padding, max(least, min(most, size)))


@st.composite
def _assembled(
    draw: st.DrawFn,
    limits: Limits,
    groupings: tuple[int, int],
    across: _Axis,
    down: _Axis,
    turned: bool,
    gray: bool = False,
) -> Problem:
    """The problem of two axes, with one to three images and few channels, sometimes 16.

    Args:
        groupings: the weights of one group and of several groups.
        across: the columns.
        down: the rows.
        turned: whether to swap rows and columns.
        gray: whether there is one input channel.
    """
    few = _up_to(max(limits.max_channels, min(16, limits.max_one)), (1, 1, 1, 2, 2, 3, 3, 16))
    batch = draw(st.sampled_from(_up_to(limits.max_batch, (1, 2, 2, 2, 3))), label="batch")
    alone, several = groupings
    groups, group_in = 1, 1 if gray else 0
    if draw(st.sampled_from((True,) * alone + (False,) * several), label="one group"):
        group_in = group_in or draw(st.sampled_from(few), label="input channels")
        group_out = draw(st.sampled_from(few), label="output channels")
    else:
        groups = draw(st.sampled_from(_up_to(limits.max_groups, (2, 2, 3))), label="groups")
        group_in = draw(st.integers(1, min(2, limits.max_channels)), label="input channels")
        group_out = draw(st.integers(1, min(2, limits.max_channels)), label="output channels")
    rows, columns = (across, down) if turned else (down, across)
    pairs: dict[str, Any] = {
        name: (getattr(rows, each), getattr(columns, each))
        for name, each in (
            ("kernel", "taps"),
            *((name, name) for name in ("stride", "dilation", "padding", "size")),
        )
    }
    return Problem(
        batch=batch,
        in_channels=groups * group_in,
        out_channels=groups * group_out,
        groups=groups,
        **pairs,
    )


# --- operands


def layouts_of_three(layouts: Sequence[str]) -> st.SearchStrategy[tuple[str, str, str]]:
    """A strategy for the layouts of input, weight and output.

    If contiguous and channels_last are among the layouts, half of the triples contain only these
    two, and not contiguous three times.
    """
    each = st.sampled_from(tuple(layouts))
    free = st.tuples(each, each, each)
    if not {"contiguous", "channels_last"} <= set(layouts) or len(layouts) == 2:
        return free
    return st.one_of(free, st.sampled_from(_COMMON_LAYOUTS))


# All except three times contiguous, which comes first.
_COMMON_LAYOUTS = tuple(product(("contiguous", "channels_last"), repeat=3))[1:]


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
    """A strategy for input, weight and output of a problem.

    Args:
        problem: the geometry.
        dtype: of the operands.
        device: of the operands.
        data: the kinds of numbers, from ``DATA`` (see :func:`make_operands`).
        layouts: the memory layouts, from ``LAYOUTS`` (see :func:`in_layout`).
    """
    seed = draw(st.integers(0, 2**32 - 1), label="seed")
    kind = draw(st.sampled_from(tuple(data)), label="data")
    drawn = draw(layouts_of_three(layouts), label="layouts")
    return make_operands(problem, dtype, device, kind, drawn, seed)


def operands(
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    layouts: Sequence[str] = LAYOUTS,
) -> st.SearchStrategy[Operands]:
    """:func:`tensors_for` with normal numbers, or small integers for integer dtypes."""
    integral = not (dtype.is_floating_point or dtype.is_complex)
    kinds = ("integers",) if integral else ("normal",)
    return tensors_for(problem, dtype, device, data=kinds, layouts=layouts)
