"""Strips: a copy of an image's rows for every tap along a kernel row.

    strips(x)[(c, v), (h, j)] = x[c, h, j*s + v*d - p]      row of pixels h, output column j

Strips hold kW copies of each image, whereas the windows hold kH*kW.  Row u of the kernel reads the
rows h = i*s + u*d - p, which are s apart.  Strips therefore store rows of equal h modulo s next to
each other, in runs.  Then all pixels that u reads, for successive i, are contiguous, and a matrix
product reads them in place.

Source: Cho & Brand, MEC: memory-efficient convolution for deep neural networks, ICML 2017; here
with strides, dilations and blocks that stay in the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from torch import Tensor

from ...problem import Problem


class Block(NamedTuple):
    """A range of images, rows and columns of pixels."""

    images: range
    rows: range
    columns: range

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.images), len(self.rows), len(self.columns)

    def of(self, tensor: Tensor) -> Tensor:
        """The block of an (N, channels, rows, columns) tensor: a view."""
        images, rows, columns = (slice(axis.start, axis.stop) for axis in self)
        return tensor[images, :, rows, columns]

    def split(self, lengths: tuple[int, int, int]) -> Iterator[Block]:
        """Blocks of at most these lengths that cover this one."""
        starts = (range(axis.start, axis.stop, length) for axis, length in zip(self, lengths))
        for corner in product(*starts):
            yield Block(
                *(
                    range(start, min(start + length, axis.stop))
                    for start, length, axis in zip(corner, lengths, self)
                )
            )


class Rows(NamedTuple):
    """The image rows that strips hold, and how each row of the kernel uses them.

    Attributes:
        runs: the rows in storage order; those of a run are a stride apart.
        outputs: for each row of the kernel, the output rows that it contributes to.
        starts: for each row of the kernel, the storage index of the first row that it reads.
    """

    runs: tuple[range, ...]
    outputs: tuple[range, ...]
    starts: tuple[int, ...]

    @property
    def held(self) -> int:
        """The number of rows."""
        return sum(map(len, self.runs))

    @property
    def windows(self) -> range:
        """The output rows that any row of the kernel contributes to."""
        some = [each for each in self.outputs if each]
        return range(
            min((each.start for each in some), default=0),
            max((each.stop for each in some), default=0),
        )

    def slices(self, columns: int) -> Iterator[slice]:
        """For each row of the kernel, the pixels it reads in strips whose rows and columns are
        flattened."""
        for start, outputs in zip(self.starts, self.outputs):
            yield slice(start * columns, (start + len(outputs)) * columns)


def rows_read(problem: Problem, outputs: range) -> Rows:
    """The rows, padding included, in the windows of some output rows."""
    return _row_runs(problem, (outputs,) * problem.kernel[0])


def rows_written(problem: Problem, pixels: range) -> Rows:
    """The rows among some input rows that lie in any window."""
    outputs = []
    for u in range(problem.kernel[0]):
        shift = u * problem.dilation[0] - problem.padding[0][0]
        first = -((shift - pixels.start) // problem.stride[0])
        last = (pixels.stop - 1 - shift) // problem.stride[0]
        outputs.append(range(max(first, 0), max(min(last + 1, problem.output_size[0]), first, 0)))
    return _row_runs(problem, tuple(outputs))


def _row_runs(problem: Problem, outputs: tuple[range, ...]) -> Rows:
    stride = problem.stride[0]
    read = [_pixels_read(problem, 0, each, u) for u, each in enumerate(outputs)]
    runs: list[range] = []
    starts = [0] * len(read)
    held = 0
    for u in sorted(range(len(read)), key=lambda u: (read[u].start % stride, read[u].start)):
        rows = read[u]
        if not rows:
            continue
        if runs and rows.start in range(runs[-1].start, runs[-1].stop + 1, stride):
            joined = range(runs[-1].start, max(runs[-1].stop, rows.stop), stride)
            held += len(joined) - len(runs[-1])
            runs[-1] = joined
        else:
            runs.append(rows)
            held += len(rows)
        starts[u] = held - len(runs[-1]) + (rows.start - runs[-1].start) // stride
    return Rows(tuple(runs), outputs, tuple(starts))


def _pixels_read(problem: Problem, axis: int, outputs: range, tap: int) -> range:
    """The pixels along an axis, padding included, that a tap reads for some outputs.

    The range ends a stride after the last pixel, so that runs can be joined.
    """
    stride = problem.stride[axis]
    start = outputs.start * stride + tap * problem.dilation[axis] - problem.padding[axis][0]
    return range(start, start + len(outputs) * stride, stride)


def columns_touching(problem: Problem, pixels: range) -> range:
    """The output columns whose windows may contain some input columns."""
    (stride, before), span = (problem.stride[1], problem.padding[1][0]), problem.span[1]
    first = max(-((span - 1 - before - pixels.start) // stride), 0)
    last = (pixels.stop - 1 + before) // stride
    return range(first, max(min(last + 1, problem.output_size[1]), first))


def fill_strips(problem: Problem, input: Tensor, block: Block, rows: Rows, strips: Tensor) -> None:
    """Fill the strips of a block of output pixels; zeros outside of the image.

    Args:
        problem: the geometry.
        input: (N, C, H, W).
        block: of output pixels.
        rows: the rows in the strips.
        strips: (images, C, kW, rows held, columns), of any dtype.
    """
    images = input[block.images.start : block.images.stop]
    taps = [_pixels_read(problem, 1, block.columns, v) for v in range(problem.kernel[1])]
    for run, held in _runs(rows):
        down, rows_here = _clip(run, problem.size[0])
        for v, pixels in enumerate(taps):
            across, columns_here = _clip(pixels, problem.size[1])
            strip = strips[:, :, v, held]
            inside = strip[:, :, rows_here]
            inside[..., columns_here] = images[:, :, down, across]
            for zeros in (
                strip[:, :, : rows_here.start],
                strip[:, :, rows_here.stop :],
                inside[..., : columns_here.start],
                inside[..., columns_here.stop :],
            ):
                if zeros.numel():
                    zeros.zero_()


def fold_strips(
    problem: Problem, strips: Tensor, block: Block, rows: Rows, outputs: range, sums: Tensor
) -> None:
    """Add strips to the pixels that they are copies of: the adjoint of :func:`fill_strips`.

    Args:
        problem: the geometry.
        strips: (images, C, kW, rows held, columns of output).
        block: of input pixels.
        rows: the rows in the strips, all in the block.
        outputs: the columns of output.
        sums: (images, C, rows, columns), the block's pixels.
    """
    taps = [_pixels_read(problem, 1, outputs, v) for v in range(problem.kernel[1])]
    for run, held in _runs(rows):
        down, rows_here = _clip(_relative_to(block.rows, run), len(block.rows))
        for v, pixels in enumerate(taps):
            across, here = _clip(_relative_to(block.columns, pixels), len(block.columns))
            sums[:, :, down, across] += strips[:, :, v, held][:, :, rows_here, here]


def _runs(rows: Rows) -> Iterator[tuple[range, slice]]:
    """Each run of rows and its place in the strips."""
    start = 0
    for run in rows.runs:
        yield run, slice(start, start + len(run))
        start += len(run)


def _relative_to(axis: range, pixels: range) -> range:
    return range(pixels.start - axis.start, pixels.stop - axis.start, pixels.step)


def _clip(pixels: range, size: int) -> tuple[slice, slice]:
    """The pixels that lie on an axis of length ``size``, as a slice of the axis and one of
    ``pixels``."""
    first = min(max(-(pixels.start // pixels.step), 0), len(pixels))
    stop = max(min((size - 1 - pixels.start) // pixels.step + 1, len(pixels)), first)
    inside = pixels[first:stop]
    # The step of a single pixel is unused, and may be larger than PyTorch can multiply.
    step = inside.step if len(inside) > 1 else 1
    return slice(*(inside.start, inside[-1] + 1, step) if inside else (0, 0)), slice(first, stop)
