"""The geometry of one correlation, as a checked value.

A :class:`Problem` holds every size of a 2-D cross-correlation, but no tensor, dtype or device.
The constructor checks it.  Sizes may be symbols (``torch.SymInt``), as in a graph that is captured
for many shapes; such a problem is checked when the graph runs.  ``str(problem)`` is the notation
for problems in error messages, test names, files and command lines, and :meth:`Problem.parse`
reads it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias, cast

import torch

from ._torch_compat import check
from .suggest import did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Self

Pair: TypeAlias = tuple[int, int]
Sides: TypeAlias = tuple[Pair, Pair]
"""Padding as ``((top, bottom), (left, right))``."""

SizeLike: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
PaddingLike: TypeAlias = str | SizeLike | Sequence[Sequence[SupportsIndex]]

PADDING_NAMES = ("valid", "same", "full")
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Problem:
    """Sizes, stride, padding, dilation and groups of one 2-D cross-correlation.

    ``y[n,o,i,j] = sum_{c,u,v} x[n, c, i*s + u*d - p, j*s + v*d - p] * w[o,c,u,v]``

    ``c`` runs over the channels of ``o``'s group, ``p`` is the padding at the top (left), and
    pixels outside the image are zero.

    Attributes:
        batch: number of images N >= 0.
        in_channels: channels C >= 0 of the input, a multiple of ``groups``.
        size: (H, W) of the input; at least 1x1 unless ``batch`` or ``in_channels`` is 0.
        out_channels: channels O >= 0 of the output, a multiple of ``groups``.
        kernel: (kH, kW) of the weight, at least 1x1.
        stride: pixels between windows, at least 1.
        padding: ((top, bottom), (left, right)) zeros around the image, at least 0.
        dilation: pixels between taps, at least 1.
        groups: number of independent channel groups, at least 1.

    Raises:
        TypeError: a field is not an integer, or not a pair of integers.
        ValueError: an integer does not fit in 64 bits.
        RuntimeError: a number is out of range, or the sizes do not match (as in ``F.conv2d``).

    Example:
        >>> problem = Problem(batch=1, in_channels=3, size=(8, 9), out_channels=4, kernel=(3, 3))
        >>> problem.output_shape, str(problem)
        ((1, 4, 6, 7), 'n1c3-x8x9-o4-k3x3-s1x1-p0,0x0,0-d1x1-g1')
        >>> Problem.parse("n1c3-x8x9-o4-k3") == problem
        True
    """

    batch: int
    in_channels: int
    size: Pair
    out_channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Sides = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "in_channels", "out_channels", "groups"):
            object.__setattr__(self, name, as_int(name, getattr(self, name)))
        for name in ("size", "kernel", "stride", "dilation"):
            object.__setattr__(self, name, as_pair(name, getattr(self, name)))
        object.__setattr__(self, "padding", as_sides(self.padding))
        if not self.is_symbolic:
            self._check()

    @classmethod
    def of(
        cls,
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        stride: SizeLike = 1,
        padding: PaddingLike = 0,
        dilation: SizeLike = 1,
        groups: int = 1,
    ) -> Self:
        """The problem of the arguments of ``corr2d``, with shapes instead of tensors.

        Args:
            input_shape: (N, C, H, W).
            weight_shape: (O, C/groups, kH, kW).
            stride: an integer or a pair.
            padding: an integer, a pair, pairs ((top, bottom), (left, right)), or one
                of ``"valid"``, ``"same"``, ``"full"`` (see :func:`resolve_padding`).
            dilation: an integer or a pair.
            groups: number of channel groups.

        Raises:
            RuntimeError: the weight's channels are not C/groups.
            RuntimeError, TypeError, ValueError: as :class:`Problem`.
        """
        batch, in_channels, *size = input_shape
        out_channels, group_channels, *kernel = weight_shape
        groups = as_int("groups", groups)
        if groups < 1:
            raise RuntimeError(f"groups must be at least 1, got {groups}")
        require(
            in_channels == group_channels * groups,
            lambda: (
                f"input of shape {shape_str(input_shape)} has {in_channels} channels, but weight "
                f"of shape {shape_str(weight_shape)} with groups={groups} reads "
                f"{group_channels} * {groups} = {group_channels * groups}; make the weight's "
                f"second size in_channels / groups"
            ),
        )
        stride_pair, dilation_pair = as_pair("stride", stride), as_pair("dilation", dilation)
        kernel_pair, size_pair = as_pair("kernel", kernel), as_pair("size", size)
        sides = resolve_padding(padding, size_pair, kernel_pair, stride_pair, dilation_pair)
        return cls(
            batch=batch,
            in_channels=in_channels,
            size=size_pair,
            out_channels=out_channels,
            kernel=kernel_pair,
            stride=stride_pair,
            padding=sides,
            dilation=dilation_pair,
            groups=groups,
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a problem such as ``n8c64-x56x56-o64-k3x3-s1x1-p1,1x1,1-d1x1-g1``.

        This is the inverse of ``str``.  Shorter forms: one number for both axes (``k3``), one
        padding for both sides (``p1x2``), a name for the padding (``psame``).  ``s``, ``p``, ``d``
        and ``g`` are optional.

        Raises:
            ValueError: the text does not have this form.
            RuntimeError: a number is out of range, or the sizes do not match.
        """
        match = _SPELLING.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"{text!r} does not spell a problem; write it as "
                f"n8c64-x56x56-o64-k3x3-s1x1-p1,1x1,1-d1x1-g1 "
                f"(batch, in_channels, size, out_channels, kernel; then, each optional, "
                f"stride, padding top,bottom x left,right, dilation, groups)"
            )
        part = match.groupdict()
        stride, dilation = _parse_pair(part["s"] or "1"), _parse_pair(part["d"] or "1")
        size, kernel = _parse_pair(part["x"]), _parse_pair(part["k"])
        padding = _parse_padding(part["p"] or "0")
        return cls(
            batch=int(part["n"]),
            in_channels=int(part["c"]),
            size=size,
            out_channels=int(part["o"]),
            kernel=kernel,
            stride=stride,
            padding=resolve_padding(padding, size, kernel, stride, dilation),
            dilation=dilation,
            groups=int(part["g"] or "1"),
        )

    def __str__(self) -> str:
        (top, bottom), (left, right) = self.padding
        return (
            f"n{self.batch}c{self.in_channels}-x{_x(self.size)}-o{self.out_channels}"
            f"-k{_x(self.kernel)}-s{_x(self.stride)}-p{top},{bottom}x{left},{right}"
            f"-d{_x(self.dilation)}-g{self.groups}"
        )

    @property
    def is_symbolic(self) -> bool:
        """Whether a number is symbolic (``torch.SymInt``)."""
        return any(isinstance(each, torch.SymInt) for each in self.numbers)

    @property
    def is_data_dependent(self) -> bool:
        """Whether a size depends on data, so that it is unknown until the graph runs."""
        return is_data_dependent(self.numbers)

    @property
    def numbers(self) -> tuple[int, ...]:
        """All fields as one tuple, in the order in which the compiled functions take them."""
        first = (self.batch, self.in_channels, *self.size, self.out_channels, *self.kernel)
        sides = (*self.padding[0], *self.padding[1])
        return (*first, *self.stride, *sides, *self.dilation, self.groups)

    @property
    def group_in(self) -> int:
        """The number of input channels of a group, C / groups."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """The number of output channels of a group, O / groups."""
        return self.out_channels // self.groups

    @property
    def padded_size(self) -> Pair:
        """The size of the padded input, (H + top + bottom, W + left + right)."""
        (top, bottom), (left, right) = self.padding
        return self.size[0] + top + bottom, self.size[1] + left + right

    @property
    def span(self) -> Pair:
        """Pixels from the first to the last tap of a window, d(k-1) + 1 along each axis."""
        return window_span(self.kernel, self.dilation)

    @property
    def effective_dilation(self) -> Pair:
        """The dilation, with 1 along an axis of one tap, where any dilation gives the same."""
        rows, columns = (d if taps > 1 else 1 for d, taps in zip(self.dilation, self.kernel))
        return rows, columns

    @property
    def output_size(self) -> Pair:
        """The output's (H', W'), with H' = (H + top + bottom - d(kH-1) - 1) // s + 1."""
        (height, width), (rows, columns) = self.padded_size, self.span
        return (height - rows) // self.stride[0] + 1, (width - columns) // self.stride[1] + 1

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """The shape of the input, (N, C, H, W)."""
        return (self.batch, self.in_channels, *self.size)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """The shape of the weight, (O, C / groups, kH, kW)."""
        return (self.out_channels, self.group_in, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """The shape of the output, (N, O, H', W')."""
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to multiply, because a size or a number of channels is 0."""
        return 0 in self.input_shape or self.out_channels == 0

    @property
    def multiplications(self) -> int:
        """The number of products of each map, including those with padding."""
        return prod(self.output_shape) * self.group_in * prod(self.kernel)

    def _check(self) -> None:
        for name in ("batch", "in_channels", "out_channels", "size"):
            _at_least(self, name, 0)
        for name in ("groups", "kernel", "stride", "dilation"):
            _at_least(self, name, 1)
        if min(*self.padding[0], *self.padding[1]) < 0:
            raise RuntimeError(
                f"padding must be at least 0 on every side, got {self.padding} as "
                f"((top, bottom), (left, right)); to crop, slice the input"
            )
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise RuntimeError(
                    f"{name}={getattr(self, name)} is not divisible by groups={self.groups}; all "
                    f"groups need the same number of channels"
                )
        if 0 in self.size and self.batch and self.in_channels:
            raise RuntimeError(
                f"input of shape {shape_str(self.input_shape)} has images without pixels; only "
                f"the batch or the channels may be empty"
            )
        for axis, padded, span, kernel, dilation in zip(
            "HW", self.padded_size, self.span, self.kernel, self.dilation
        ):
            if span > padded:
                raise RuntimeError(
                    f"kernel does not fit: along {axis} it spans {span} pixels (size {kernel}, "
                    f"dilation {dilation}), the padded input has {padded}: input of shape "
                    f"{shape_str(self.input_shape)} with padding {self.padding}; add padding, or "
                    f"use a smaller kernel or dilation"
                )
        if max(self.padded_size) > _INT64_MAX:
            raise RuntimeError(
                f"padding {self.padding} makes the input's size {self.padded_size}, which does not "
                f"fit in 64 bits"
            )
        for what, shape in (("input", self.input_shape), ("output", self.output_shape)):
            if prod(shape) > _INT64_MAX:
                raise RuntimeError(
                    f"{what} of shape {shape_str(shape)} has more elements than 64 bits can count"
                )


def resolve_padding(
    padding: PaddingLike, size: Pair, kernel: Pair, stride: Pair, dilation: Pair
) -> Sides:
    """Padding as ((top, bottom), (left, right)), from a number, pairs or a name.

    ``"valid"`` is no padding.  ``"full"`` is d(k-1) pixels on every side, so that every overlap of
    image and kernel gives an output.  ``"same"`` gives ceil(size / stride) outputs; an odd pixel
    goes to the bottom (right), as in TensorFlow and JAX, and in PyTorch for stride 1.

    Raises:
        TypeError: the padding is not an integer, a pair, a pair of pairs or a string.
        RuntimeError: the name is unknown, or a number is out of range.
    """
    for name, pair in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        for number in pair:
            require(number >= 1, lambda: f"{name} must be at least 1, got {pair}")  # noqa: B023
    if not isinstance(padding, str):
        return as_sides(padding)
    if padding == "valid":
        return (0, 0), (0, 0)
    span = window_span(kernel, dilation)
    if padding == "full":
        down, across = span[0] - 1, span[1] - 1
        return (down, down), (across, across)
    if padding == "same":
        rows, columns = (_same(*axis) for axis in zip(size, span, stride))
        return rows, columns
    raise RuntimeError(
        f"unknown padding {padding!r}{did_you_mean(padding, PADDING_NAMES)}; use one of "
        f"{', '.join(map(repr, PADDING_NAMES))}, an integer, a pair, or "
        f"((top, bottom), (left, right))"
    )


def window_span(kernel: Pair, dilation: Pair) -> Pair:
    """Pixels from the first to the last tap of a window, d(k-1) + 1 along each axis."""
    return dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1


def as_int(name: str, value: Any) -> int:
    """``value`` as an integer of 64 bits.  Raises TypeError for a bool or a float."""
    if type(value) is int and -_INT64_MAX <= value <= _INT64_MAX:
        return value
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got the bool {value}")
    if isinstance(value, torch.SymInt):
        # operator.index would replace the symbol by its present value.
        return cast(int, value)
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {value!r} of type {type(value).__name__}"
        ) from None
    if abs(number) > _INT64_MAX:
        raise ValueError(f"{name}={number} does not fit in 64 bits")
    return number


def as_pair(name: str, value: Any) -> Pair:
    """``value``, an integer or a pair, as two integers (rows, columns)."""
    items = _items(value)
    if items is None:
        number = as_int(name, value)
        return number, number
    if len(items) not in (1, 2):
        raise RuntimeError(
            f"{name} must be one integer or two, for rows and columns, got {len(items)}: {value!r}"
        )
    return as_int(name, items[0]), as_int(name, items[-1])


def as_sides(padding: Any) -> Sides:
    """``padding``, an integer, a pair or two pairs, as ((top, bottom), (left, right))."""
    items = _items(padding)
    if items is None or all(_items(item) is None for item in items):
        rows, columns = as_pair("padding", padding)
        return (rows, rows), (columns, columns)
    if len(items) != 2:
        raise RuntimeError(
            f"padding must be ((top, bottom), (left, right)), got {len(items)} items: {padding!r}"
        )
    return as_pair("padding", items[0]), as_pair("padding", items[1])


def require(condition: bool, message: Callable[[], str]) -> None:
    """Raise RuntimeError unless the condition holds; if it depends on data, when the graph runs."""
    check(condition, message)


def is_data_dependent(sizes: Iterable[int]) -> bool:
    """Whether one of the sizes depends on data, so that the code must not branch on it."""
    if not any(isinstance(each, torch.SymInt) for each in sizes):
        return False
    # The import takes 200 ms, but if there are symbols, the module is already imported.
    from torch.fx.experimental.symbolic_shapes import has_free_unbacked_symbols

    return has_free_unbacked_symbols(tuple(sizes))


def is_known_zero(size: int) -> bool:
    """Whether a size is zero; False if that depends on data."""
    if not isinstance(size, torch.SymInt):
        return size == 0
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(size == 0)


def holds_always(condition: bool) -> bool:
    """Whether a condition holds; for symbols, whether it holds for all their values."""
    if not isinstance(condition, torch.SymBool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def same_shape(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two shapes are equal; a condition for :func:`require` if sizes depend on data."""
    if not is_data_dependent((*first, *second)):
        return tuple(first) == tuple(second)
    from torch.fx.experimental.symbolic_shapes import sym_and

    if len(first) != len(second):
        return False
    return cast(bool, sym_and(*(a == b for a, b in zip(first, second))))


def shape_str(shape: Iterable[int]) -> str:
    """A shape for messages: ``(2, 4, 7, 8)``."""
    return str(tuple(shape))


def _items(value: Any) -> list[Any] | None:
    """The items of a list or tuple; None for anything else, strings included."""
    return list(value) if isinstance(value, (list, tuple)) else None


def _same(size: int, span: int, stride: int) -> Pair:
    if stride == 1:
        total = span - 1  # independent of the size, which may be a symbol
    else:
        outputs = (size + stride - 1) // stride  # not -(-size // stride): ONNX rounds to zero
        total = (outputs - 1) * stride + span - size
        if span < stride:  # otherwise never negative, and each max makes symbolic formulas longer
            total = torch.sym_max(total, 0)  # type: ignore[no-untyped-call]
    return total // 2, total - total // 2


def _at_least(problem: Problem, name: str, bound: int) -> None:
    value = getattr(problem, name)
    if min(value if isinstance(value, tuple) else (value,)) < bound:
        raise RuntimeError(f"{name} must be at least {bound}, got {value}")


_NUMBERS = r"\d+(?:x\d+)?"
_SPELLING = re.compile(
    rf"n(?P<n>\d+)c(?P<c>\d+)-x(?P<x>{_NUMBERS})-o(?P<o>\d+)-k(?P<k>{_NUMBERS})"
    rf"(?:-s(?P<s>{_NUMBERS}))?"
    r"(?:-p(?P<p>[a-z]+|\d+(?:,\d+)?(?:x\d+(?:,\d+)?)?))?"
    rf"(?:-d(?P<d>{_NUMBERS}))?"
    r"(?:-g(?P<g>\d+))?"
)


def _x(pair: Pair) -> str:
    return f"{pair[0]}x{pair[1]}"


def _parse_pair(text: str) -> Pair:
    numbers = [int(number) for number in text.split("x")]
    return numbers[0], numbers[-1]


def _parse_padding(text: str) -> str | Sides:
    if text.isalpha():
        return text
    sides = [[int(number) for number in axis.split(",")] for axis in text.split("x")]
    return (sides[0][0], sides[0][-1]), (sides[-1][0], sides[-1][-1])
