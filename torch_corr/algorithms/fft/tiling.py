"""Overlap-save along one axis: a correlation as cyclic correlations of a short length.

A tile reads ``extent`` pixels and computes ``outputs`` outputs, whose windows are ``stride`` apart:

    y[j] = sum_u x[j*s + u*d] * w[u],   0 <= j < J,   extent = (J-1)*s + d*(k-1) + 1 <= length.

No index exceeds ``length``, so every sum may be taken modulo ``length``: the tile is a cyclic
correlation, which the discrete Fourier transform of that length turns into a product. The same
holds for both adjoints, over the same tiles: ``x`` is read in overlapping windows (overlap-save)
and, transposed, added in them (overlap-add).

A tile that covers the whole axis may be shorter than its extent.  Its pixels are zero before ``p``,
the padding, and after ``p + h``.  So an index at or past ``length >= p + h``, taken modulo
``length``, still reads a zero if the result is below ``p``: the padding before and after the image
overlap.

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
        offset: padding samples before the operand's first sample.
        start: index of the first sample inside the transform; later ones wrap around.
    """

    count: int
    spacing: int
    hop: int
    tiles: int
    offset: int
    start: int = 0

    @property
    def samples(self) -> int:
        """Samples under all tiles together, including padding."""
        return (self.tiles - 1) * self.hop + self.count

    @property
    def side_by_side(self) -> bool:
        """Whether tiles do not overlap, and the first sample of a tile is not padding."""
        return self.count == self.hop and self.offset <= 0


Windows = tuple[Window, Window]
"""The windows of one operand along rows and columns."""


@dataclass(frozen=True)
class TiledAxis:
    """One axis of a problem: ``tiles`` of ``outputs`` each, with transforms of ``length``
    samples."""

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
        """The maximum number of tiles that contain one input pixel."""
        return -(-self.extent // self.input.hop)

    @cached_property
    def input(self) -> Window:
        """The input's overlapping windows."""
        hop = self.outputs * self.stride
        count = min(self.extent, self.length)
        return Window(count, 1, hop, self.tiles, self.padding - self.first * hop)

    @cached_property
    def output(self) -> Window:
        """The output's windows, without overlap; ``stride`` apart inside the transform."""
        hop = self.outputs
        return Window(hop, self.stride, hop, self.tiles, -self.first * hop)

    @cached_property
    def weight(self) -> Window:
        """The weight's single window; taps are ``dilation`` apart."""
        return Window(self.kernel, self.dilation, 0, 1, 0)

    def run(self, tiles: range) -> TiledAxis:
        """The axis restricted to some successive tiles."""
        if (tiles.start, len(tiles)) == (self.first, self.tiles):
            return self
        # Faster than ``dataclasses.replace``: the search for a plan calls this thousands of times.
        sizes = self.kernel, self.stride, self.dilation, self.padding, self.length, self.outputs
        return type(self)(*sizes, len(tiles), tiles.start)


@dataclass(frozen=True)
class GradInputAxis(TiledAxis):
    """The axis of an input's gradient when it uses overlap-save too, for stride 1.

        x[h] = sum_u y[h - u*d] w[u]

    This is a correlation of ``y``, with a padding of d(k-1) minus the original one, with the
    flipped kernel.  The axis describes that correlation: its input is ``y`` and its output is
    ``x``.  The kernel itself is not flipped, so a tile's first pixel is d(k-1) samples later.
    """

    @classmethod
    def of(cls, axis: TiledAxis) -> GradInputAxis:
        """The same axis, taken from the problem of :func:`grad_input_as_forward`."""
        return cls(*astuple(axis))

    @property
    def overlap(self) -> int:
        """One: tiles do not overlap."""
        return 1

    @cached_property
    def input(self) -> Window:
        """The input's windows, without overlap."""
        hop = self.outputs
        return Window(hop, 1, hop, self.tiles, -self.first * hop, self.dilation * (self.kernel - 1))

    @cached_property
    def output(self) -> Window:
        """The output's overlapping windows."""
        count, hop = min(self.extent, self.length), self.outputs
        return Window(count, 1, hop, self.tiles, self.padding - self.first * hop)


def grad_input_as_forward(problem: Problem) -> Problem | None:
    """The correlation that computes a problem's ``grad_input`` with the flipped kernel; None unless
    the stride is 1, the padding is less than the kernel's span, and there are channels."""
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
    """Axis ``dim`` of a problem in ``tiles`` equal tiles (or fewer), at a fast length.

    Args:
        problem: the geometry.
        dim: 0 for rows, 1 for columns.
        tiles: the number of tiles.
        fast: rounds a length up to a fast one.
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
        problem.effective_dilation[dim],
        before,
        fast(length),
        outputs,
        -(-problem.output_size[dim] // outputs),
    )


def axis_of_length(
    problem: Problem, dim: int, length: int, fast: Callable[[int], int]
) -> TiledAxis:
    """Axis ``dim`` of a problem in as few tiles of ``length`` samples as possible."""
    outputs = max((length - problem.span[dim]) // problem.stride[dim] + 1, 1)
    return axis_of(problem, dim, -(-problem.output_size[dim] // outputs), fast)


def aligned_length(at_least: int) -> int:
    """The next multiple of 4, so that rows of matrices are aligned to 16 bytes."""
    return -(-at_least // 4) * 4


@lru_cache(maxsize=4096)
def fast_length(at_least: int) -> int:
    """The even length >= ``at_least``, without prime factors above 7, of least predicted time.

    MKL 2024.2 on two Zen 4 cores, float32, ``rfft2`` and ``irfft2`` of n x n, ns per pixel: 64:
    2.7, 72: 3.6, 80: 2.9, 84: 3.1, 90: 3.8, 96: 2.8, 98: 3.9, 100: 3.5, 112: 3.1, 126: 3.7, 128:
    2.4, 140: 2.7, 144: 2.3, 150: 3.0.  Odd lengths cannot use the real transform's halving, and
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
    """Time per sample along one axis, relative to lengths with many factors of 2."""
    twos = min(factors.count(2), 4)
    return (1.0, 1.18, 1.1, 1.04, 1.0)[twos] * (1.06 if factors[-1] == 7 else 1.0)


def prime_factors(number: int) -> list[int]:
    """Prime factors in ascending order, with multiplicity: [2, 2, 3] for 12."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


class Slab(NamedTuple):
    """A range of images and of tile rows that is in memory at a time."""

    images: range
    rows: range


def slabs(images: int, rows: int, per_slab: tuple[int, int]) -> Iterator[Slab]:
    """All images and tile rows, ``per_slab`` at a time."""
    for n in range(0, images, per_slab[0]):
        for t in range(0, rows, per_slab[1]):
            yield Slab(range(n, min(n + per_slab[0], images)), range(t, min(t + per_slab[1], rows)))


def read_span(window: Window, size: int) -> tuple[slice, slice]:
    """The samples of an axis of length ``size`` that lie under the tiles.

    Returns:
        a slice of the axis, and the matching slice of the ``window.samples`` under the tiles.
    """
    start = min(max(-window.offset, 0), size)
    stop = max(min(window.samples - window.offset, size), start)
    return slice(start, stop), slice(start + window.offset, stop + window.offset)


def padded(tensor: Tensor, windows: Windows, dtype: torch.dtype) -> Tensor:
    """The samples of (images, channels, H, W) under the tiles, padded with zeros.

    Args:
        tensor: the operand.
        windows: of the tiles.
        dtype: of the result.
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
    """Copy the samples under the tiles to their place in (..., H, W), or add them."""
    (rows, from_rows), (columns, from_columns) = (
        read_span(window, size) for window, size in zip(windows, result.shape[-2:])
    )
    store(result[..., rows, columns], values[..., from_rows, from_columns], add)


def store(place: Tensor, values: Tensor, add: bool) -> None:
    """Copy values to a view, or add them to it."""
    if add:
        place.add_(values)
    else:
        place.copy_(values)


def overlap_add(tiles: Tensor, dim: int, hop: int) -> Tensor:
    """Sum overlapping tiles into one axis: the adjoint of cutting them.

    Args:
        tiles: a tensor with T tiles along ``dim`` and their samples along ``dim + 1``.
        dim: the axis of the tiles.
        hop: samples from one tile's first to the next one's.

    Returns:
        the tensor with those two axes merged into one of (T - 1) * hop + count samples.
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
    """Copy tiles (..., T, U, rows, columns) to the (..., H, W) that they cover, cropping the last
    ones."""
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
    """The slice of complete tiles with their length, and that of the last, partial one with its
    length."""
    if whole := size // hop:
        yield slice(0, whole), hop
    if rest := size % hop:
        yield slice(whole, whole + 1), rest


def dft_matrix(
    length: int, frequencies: Tensor, positions: Tensor, dtype: torch.dtype, reverse: bool = False
) -> Tensor:
    """``exp(-+ 2 pi i f p / n)`` for all f and p, which are in float64; ``reverse`` selects the
    lower sign.  Angles are reduced modulo n exactly, and rounded once."""
    steps = torch.outer(frequencies, positions).remainder_(length)
    angles = steps.mul_((2 if reverse else -2) * math.pi / length)
    return torch.polar(torch.ones_like(angles), angles).to(complex_of(dtype))


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a spectrum: complex64 for float32, complex128 for float64."""
    return torch.complex64 if dtype in (torch.float32, torch.complex64) else torch.complex128
