"""Strips: an image's rows, once for every tap along a row of the kernel.

    strips(x)[(c, v), (h, j)] = x[c, h, j*s + v*d - p]      a row h of pixels, a column j of outputs

Of each image they hold kW copies, where the windows themselves hold kH*kW.  A row u of the
kernel meets the rows h = i*s + u*d - p, which are s apart.  Rows of equal h modulo s therefore
lie side by side, in runs: so do all the pixels that u meets as i goes on, and a matrix product
reads them where they are.

Source: Cho & Brand, MEC: memory-efficient convolution for deep neural networks, ICML 2017,
here with strides and dilations, and blocks that stay in the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from torch import Tensor

from ...problem import Problem


class Block(NamedTuple):
    """Some images by some rows by some columns of pixels."""

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
        """Blocks of at most those lengths that make up this one."""
        starts = (range(axis.start, axis.stop, length) for axis, length in zip(self, lengths))
        for corner in product(*starts):
            yield Block(
                *(
                    range(start, min(start + length, axis.stop))
                    for start, length, axis in zip(corner, lengths, self)
                )
            )


class Rows(NamedTuple):
    """Which rows of an image strips hold, and what each row of the kernel does with them.

    Attributes:
        runs: the rows, in the order in which they are held; each run a stride apart.
        outputs: for each row of the kernel, the rows of output that it leads to.
        starts: for each row of the kernel, where the first row that it meets is held.
    """

    runs: tuple[range, ...]
    outputs: tuple[range, ...]
    starts: tuple[int, ...]

    @property
    def held(self) -> int:
        """How many rows that is."""
        return sum(map(len, self.runs))

    @property
    def windows(self) -> range:
        """The rows of output that any row of the kernel leads to."""
        some = [each for each in self.outputs if each]
        return range(
            min((each.start for each in some), default=0),
            max((each.stop for each in some), default=0),
        )

    def slices(self, columns: int) -> Iterator[slice]:
        """For each row of the kernel the pixels it meets, strips held as rows x columns in one."""
        for start, outputs in zip(self.starts, self.outputs):
            yield slice(start * columns, (start + len(outputs)) * columns)


def rows_read(problem: Problem, outputs: range) -> Rows:
    """The rows under the windows of some rows of output; those of the padding included."""
    return _row_runs(problem, (outputs,) * problem.kernel[0])


def rows_written(problem: Problem, pixels: range) -> Rows:
    """Those of some rows of input that lie under any window, and no other."""
    outputs = []
    for u in range(problem.kernel[0]):
        shift = u * problem.dilation[0] - problem.padding[0][0]
        first = -((shift - pixels.start) // problem.stride[0])
        last = (pixels.stop - 1 - shift) // problem.stride[0]
        outputs.append(range(max(first, 0), max(min(last + 1, problem.output_size[0]), first, 0)))
    return _row_runs(problem, tuple(outputs))


def _row_runs(problem: Problem, outputs: tuple[range, ...]) -> Rows:
    stride = problem.stride[0]
    met = [_pixels_read(problem, 0, each, u) for u, each in enumerate(outputs)]
    runs: list[range] = []
    starts = [0] * len(met)
    held = 0
    for u in sorted(range(len(met)), key=lambda u: (met[u].start % stride, met[u].start)):
        rows = met[u]
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
    """The pixels along an axis, padding included, that a tap meets from some outputs.

    It stops a stride after the last one, so that runs of pixels can be joined.
    """
    stride = problem.stride[axis]
    start = outputs.start * stride + tap * problem.dilation[axis] - problem.padding[axis][0]
    return range(start, start + len(outputs) * stride, stride)


def columns_touching(problem: Problem, pixels: range) -> range:
    """The columns of output whose windows may touch some columns of input."""
    (stride, before), span = (problem.stride[1], problem.padding[1][0]), problem.span[1]
    first = max(-((span - 1 - before - pixels.start) // stride), 0)
    last = (pixels.stop - 1 + before) // stride
    return range(first, max(min(last + 1, problem.output_size[1]), first))


def fill_strips(problem: Problem, input: Tensor, block: Block, rows: Rows, strips: Tensor) -> None:
    """Fill the strips under a block of output pixels; zeros outside of the image.

    Args:
        input: (N, C, H, W).
        strips: (images, C, kW, rows held, columns), of any dtype.
    """
    images = input[block.images.start : block.images.stop]
    taps = [_pixels_read(problem, 1, block.columns, v) for v in range(problem.kernel[1])]
    for run, held in _runs(rows):
        down, rows_here = _clip(run, problem.size[0])
        for v, met in enumerate(taps):
            across, columns_here = _clip(met, problem.size[1])
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
        strips: (images, C, kW, rows held, columns of output).
        block: of input pixels.
        rows: that the strips hold, all of the block.
        outputs: the columns of output.
        sums: (images, C, rows, columns), the block's pixels.
    """
    taps = [_pixels_read(problem, 1, outputs, v) for v in range(problem.kernel[1])]
    for run, held in _runs(rows):
        down, rows_here = _clip(_relative_to(block.rows, run), len(block.rows))
        for v, met in enumerate(taps):
            across, here = _clip(_relative_to(block.columns, met), len(block.columns))
            sums[:, :, down, across] += strips[:, :, v, held][:, :, rows_here, here]


def _runs(rows: Rows) -> Iterator[tuple[range, slice]]:
    """Each run of rows, and where it is held."""
    start = 0
    for run in rows.runs:
        yield run, slice(start, start + len(run))
        start += len(run)


def _relative_to(axis: range, pixels: range) -> range:
    return range(pixels.start - axis.start, pixels.stop - axis.start, pixels.step)


def _clip(pixels: range, size: int) -> tuple[slice, slice]:
    """Those of some pixels that lie on an axis of ``size``: as a slice of it, and of them."""
    first = min(max(-(pixels.start // pixels.step), 0), len(pixels))
    stop = max(min((size - 1 - pixels.start) // pixels.step + 1, len(pixels)), first)
    inside = pixels[first:stop]
    # A step that is never taken may be larger than PyTorch can multiply.
    step = inside.step if len(inside) > 1 else 1
    return slice(*(inside.start, inside[-1] + 1, step) if inside else (0, 0)), slice(first, stop)
