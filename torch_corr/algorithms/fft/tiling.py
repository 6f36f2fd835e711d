"""Overlap-save along one axis: how a correlation becomes cyclic ones of a short length.

A tile reads ``extent`` pixels and gives ``outputs`` of them, ``stride`` apart:

    y[j] = sum_u x[j*s + u*d] * w[u],   0 <= j < J,   extent = (J-1)*s + d*(k-1) + 1 <= length.

No index passes ``length``, so every sum may be taken modulo ``length``: the tile is a
cyclic correlation, which the discrete Fourier transform of that length makes a product.
The same holds for both adjoints, over the same tiles: ``x`` is read in overlapping
windows (overlap-save) and, transposed, added in them (overlap-add).

A tile of the whole axis may be shorter than its extent.  Its pixels are zero before ``p``,
the padding, and after ``p + h``; so an index at or past ``length >= p + h``, taken modulo
``length``, still meets a zero if that leaves it below ``p``: the padding after the image and
that before it are one and the same.

Source: Oppenheim & Schafer, Discrete-Time Signal Processing, section 8.7.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import Problem


@dataclass(frozen=True)
class Window:
    """Where one operand lies inside the tiles of an axis.

    Attributes:
        count: its samples in a tile.
        spacing: distance of those samples inside the transform.
        hop: samples from a tile's first to the next tile's first.
        tiles: number of tiles.
        offset: padding, in samples, before the operand's own first one.
        start: where the first sample lies inside the transform, and others after it modulo its
            length.
    """

    count: int
    spacing: int
    hop: int
    tiles: int
    offset: int
    start: int = 0

    @property
    def samples(self) -> int:
        """Samples under all tiles together, the padding counted."""
        return (self.tiles - 1) * self.hop + self.count

    @property
    def side_by_side(self) -> bool:
        """Whether each sample is in one tile, and the first of a tile is not padding."""
        return self.count == self.hop and self.offset <= 0


Windows = tuple[Window, Window]
"""One operand's place along the rows and along the columns."""


@dataclass(frozen=True)
class TiledAxis:
    """One axis of a problem, cut into ``tiles`` of ``outputs`` each, transformed at ``length``."""

    kernel: int
    stride: int
    dilation: int
    padding: int
    length: int
    outputs: int
    tiles: int
    first: int = 0

    @property
    def extent(self) -> int:
        """Input pixels that one tile reads."""
        return (self.outputs - 1) * self.stride + self.dilation * (self.kernel - 1) + 1

    @property
    def overlap(self) -> int:
        """Tiles at most that one pixel of the input is in."""
        return -(-self.extent // self.input.hop)

    @cached_property
    def input(self) -> Window:
        """Where the input lies: overlapping windows."""
        hop = self.outputs * self.stride
        count = min(self.extent, self.length)
        return Window(count, 1, hop, self.tiles, self.padding - self.first * hop)

    @cached_property
    def output(self) -> Window:
        """Where the output lies: side by side, ``stride`` apart inside the transform."""
        hop = self.outputs
        return Window(hop, self.stride, hop, self.tiles, -self.first * hop)

    @cached_property
    def weight(self) -> Window:
        """Where the weight lies: once, ``dilation`` apart."""
        return Window(self.kernel, self.dilation, 0, 1, 0)

    def run(self, tiles: range) -> TiledAxis:
        """A run of this axis's tiles."""
        if (tiles.start, len(tiles)) == (self.first, self.tiles):
            return self
        # Not ``dataclasses.replace``: a search for a plan comes here some thousand times.
        sizes = self.kernel, self.stride, self.dilation, self.padding, self.length, self.outputs
        return type(self)(*sizes, len(tiles), tiles.start)


@dataclass(frozen=True)
class GradInputAxis(TiledAxis):
    """The axis of an input's gradient as overlap-save too, for stride 1.

        x[h] = sum_u y[h - u*d] w[u]

    correlates ``y``, padded by d(k-1) less than the padding, with the kernel turned round: of that
    correlation this is the axis, its input ``y`` and its output ``x``.  The kernel itself is left
    as it is, so a tile's first pixel is found d(k-1) samples after it.
    """

    @classmethod
    def of(cls, axis: TiledAxis) -> GradInputAxis:
        """An axis of :func:`grad_input_as_forward`, as one of the gradient."""
        return cls(*astuple(axis))

    @property
    def overlap(self) -> int:
        """No pixel is in two tiles."""
        return 1

    @cached_property
    def input(self) -> Window:
        """Where the input lies: side by side."""
        hop = self.outputs
        return Window(hop, 1, hop, self.tiles, -self.first * hop, self.dilation * (self.kernel - 1))

    @cached_property
    def output(self) -> Window:
        """Where the output lies: overlapping windows."""
        count, hop = min(self.extent, self.length), self.outputs
        return Window(count, 1, hop, self.tiles, self.padding - self.first * hop)


def grad_input_as_forward(problem: Problem) -> Problem | None:
    """The correlation that is another's ``grad_input``, but for the kernel's turn; of stride 1, no
    padding wider than the kernel, and some channels."""
    rows, columns = (
        (span - 1 - before, span - 1 - after)
        for span, (before, after) in zip(problem.span, problem.padding)
    )
    if problem.stride != (1, 1) or min(*rows, *columns) < 0 or problem.in_channels == 0:
        return None
    return replace(
        problem,
        in_channels=problem.out_channels,
        size=problem.output_size,
        out_channels=problem.in_channels,
        padding=(rows, columns),
    )


def axis_of(problem: Problem, dim: int, tiles: int, fast: Callable[[int], int]) -> TiledAxis:
    """TiledAxis ``dim`` of a problem in ``tiles`` equal tiles (or fewer), at a fast length.

    Args:
        fast: the length to take for one that would do.
    """
    outputs = -(-problem.output_size[dim] // tiles)
    stride, span, before = problem.stride[dim], problem.span[dim], problem.padding[dim][0]
    extent = (outputs - 1) * stride + span
    length = extent
    if outputs == problem.output_size[dim]:
        read = min(before + problem.size[dim], extent)
        length = max(read, extent - before, span, (outputs - 1) * stride + 1)
    return TiledAxis(
        problem.kernel[dim],
        stride,
        problem.dilation[dim],
        before,
        fast(length),
        outputs,
        -(-problem.output_size[dim] // outputs),
    )


def axis_of_length(
    problem: Problem, dim: int, length: int, fast: Callable[[int], int]
) -> TiledAxis:
    """TiledAxis ``dim`` of a problem in as few tiles of ``length`` samples as will do."""
    outputs = max((length - problem.span[dim]) // problem.stride[dim] + 1, 1)
    return axis_of(problem, dim, -(-problem.output_size[dim] // outputs), fast)


def aligned_length(at_least: int) -> int:
    """The multiple of 4 >= ``at_least``: matrices whose rows begin at 16 bytes."""
    return -(-at_least // 4) * 4


@lru_cache(maxsize=4096)
def fast_length(at_least: int) -> int:
    """The even length >= ``at_least``, without prime factors above 7, that takes least time.

    MKL 2024.2 on two Zen 4 cores, float32, ``rfft2`` and ``irfft2`` of n x n, ns per pixel:
    64: 2.7, 72: 3.6, 80: 2.9, 84: 3.1, 90: 3.8, 96: 2.8, 98: 3.9, 100: 3.5, 112: 3.1, 126: 3.7,
    128: 2.4, 140: 2.7, 144: 2.3, 150: 3.0.  Odd lengths lose the real transform's halving, and
    larger factors cost more (512: 0.9 for ``rfft2``, 612: 2.3, 616: 1.3, 640: 1.0).
    """
    length = max(at_least + at_least % 2, 2)
    best, least = 0, math.inf
    while length < least:
        factors = prime_factors(length)
        if factors[-1] <= 7 and (cost := length * _slowness(factors)) < least:
            best, least = length, cost
        length += 2
    return best


def _slowness(factors: list[int]) -> float:
    """Time per sample along one axis, against lengths of many factors 2."""
    twos = min(factors.count(2), 4)
    return (1.0, 1.18, 1.1, 1.04, 1.0)[twos] * (1.06 if factors[-1] == 7 else 1.0)


def prime_factors(number: int) -> list[int]:
    """Prime factors in rising order, each as often as it divides: [2, 2, 3] for 12."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


class Slab(NamedTuple):
    """Some images, some rows of tiles: what is in memory at one time."""

    images: range
    rows: range


def slabs(images: int, rows: int, per_slab: tuple[int, int]) -> Iterator[Slab]:
    """Every (image, row of tiles), ``per_slab`` images by rows at a time."""
    for n in range(0, images, per_slab[0]):
        for t in range(0, rows, per_slab[1]):
            yield Slab(range(n, min(n + per_slab[0], images)), range(t, min(t + per_slab[1], rows)))


def read_span(window: Window, size: int) -> tuple[slice, slice]:
    """Which samples of a ``size`` long axis lie under the tiles, and where there.

    Returns:
        the slice of the axis, and the slice of the ``window.samples`` under the tiles.
    """
    start = min(max(-window.offset, 0), size)
    stop = max(min(window.samples - window.offset, size), start)
    return slice(start, stop), slice(start + window.offset, stop + window.offset)


def padded(tensor: Tensor, windows: Windows, dtype: torch.dtype) -> Tensor:
    """What lies under the tiles of (images, channels, H, W), zeros around it where it ends.

    Args:
        dtype: of what is returned.
    """
    (rows, to_rows), (columns, to_columns) = (
        read_span(window, size) for window, size in zip(windows, tensor.shape[2:])
    )
    part = tensor[:, :, rows, columns]
    samples = windows[0].samples, windows[1].samples
    if tuple(part.shape[2:]) == samples:
        return part.to(dtype)
    whole = tensor.new_zeros(*tensor.shape[:2], *samples, dtype=dtype)
    whole[:, :, to_rows, to_columns] = part
    return whole


def write(values: Tensor, windows: Windows, result: Tensor, add: bool) -> None:
    """Copy what lies under the tiles to where it belongs in (..., H, W), or add it there."""
    (rows, from_rows), (columns, from_columns) = (
        read_span(window, size) for window, size in zip(windows, result.shape[-2:])
    )
    place, values = result[..., rows, columns], values[..., from_rows, from_columns]
    if add:
        place.add_(values)
    else:
        place.copy_(values)


def overlap_add(tiles: Tensor, dim: int, hop: int) -> Tensor:
    """Sum overlapping tiles into one axis: the transpose of cutting them.

    Args:
        tiles: a tensor with T tiles along ``dim`` and their samples along ``dim + 1``.
        hop: samples from one tile's first to the next one's.
    Returns:
        the tensor with those two axes made one of (T - 1) * hop + count samples.
    """
    count, number = tiles.shape[dim + 1], tiles.shape[dim]
    if number == 1:
        return tiles.squeeze(dim)
    overlap = -(-count // hop)
    shape = (*tiles.shape[:dim], number + overlap - 1, hop, *tiles.shape[dim + 2 :])
    sums = tiles.new_zeros(shape)
    for shift in range(overlap):
        piece = tiles.narrow(dim + 1, shift * hop, min(hop, count - shift * hop))
        sums.narrow(dim, shift, number).narrow(dim + 1, 0, piece.shape[dim + 1]).add_(piece)
    return sums.flatten(dim, dim + 1).narrow(dim, 0, (number - 1) * hop + count)


def copy_side_by_side(tiles: Tensor, place: Tensor) -> None:
    """Copy tiles (..., T, U, rows, columns) to (..., H, W) that they cover, the last ones cut."""
    height, width = tiles.shape[-2:]
    for rows, high in _whole_and_rest(place.shape[-2], height):
        for columns, wide in _whole_and_rest(place.shape[-1], width):
            part = tiles[..., rows, columns, :high, :wide].transpose(-3, -2)
            down, across = rows.start * height, columns.start * width
            target = place[
                ..., down : down + part.shape[-4] * high, across : across + part.shape[-2] * wide
            ]
            target = torch.unflatten(torch.unflatten(target, -1, (-1, wide)), -3, (-1, high))
            target.copy_(part)


def _whole_and_rest(size: int, hop: int) -> Iterator[tuple[slice, int]]:
    """Tiles that lie whole on an axis and the one that does not, and how much of each does."""
    if whole := size // hop:
        yield slice(0, whole), hop
    if rest := size % hop:
        yield slice(whole, whole + 1), rest


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a spectrum: complex64 for float32, complex128 for float64."""
    return torch.complex64 if dtype in (torch.float32, torch.complex64) else torch.complex128
