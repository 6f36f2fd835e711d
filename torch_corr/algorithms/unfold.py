"""Windows laid out as columns, and one matrix product: im2col, in bounded memory.

Per group, with a row for every tap of the kernel and a column for every output pixel:

    forward      y  = weight @ columns(x)
    grad_input   x  = fold(weight^T @ y)      fold adds every column back into its window
    grad_weight  w  = y @ columns(x)^T

The columns repeat each input pixel up to kH*kW times.  They are never made whole when
that exceeds the workspace limit: the maps go block by block, a block being some images
by some rows by some columns of pixels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..problem import Problem, as_int
from .base import (
    COMPLEX,
    DEFAULT_WORKSPACE,
    FLOATS,
    INTEGERS,
    Algorithm,
    MapName,
    accumulation_dtype,
    dtype_refusal,
)


@dataclass(frozen=True)
class Unfold(Algorithm):
    """Columns and matrix products.

    Attributes:
        workspace_limit: bytes to take at most beyond operands and result.
    """

    workspace_limit: int = DEFAULT_WORKSPACE

    name = "unfold"

    def __post_init__(self) -> None:
        as_int("workspace_limit", self.workspace_limit)

    def refusals(
        self, problem: Problem, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        able = FLOATS + COMPLEX + (INTEGERS if device.type in ("cpu", "meta") else ())
        refusals = dtype_refusal(dtype, able)
        least = 2 * max(
            _columns_bytes(problem, dtype, _ONE_PIXEL), _buffer_bytes(problem, dtype, _ONE_PIXEL)
        )
        if least > self.workspace_limit:
            refusals += (
                f"the smallest block takes {least} bytes of workspace, more than the limit of "
                f"{self.workspace_limit}; raise it with Unfold(workspace_limit=...)",
            )
        return refusals

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        kernel = _kernel_matrix(problem, weight)
        result = input.new_empty(problem.output_shape)
        grouped = result.view(_grouped_output_shape(problem))
        for block in self._column_blocks(problem, _whole_output(problem), input.dtype):
            pixels = kernel @ _columns(problem, input, block)
            grouped[block.select] = pixels.view(*pixels.shape[:2], *block.shape).movedim(2, 0)
        return result

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        kernel = _kernel_matrix(problem, weight).mT
        pixels = output.reshape(_grouped_output_shape(problem))
        result = output.new_empty(problem.input_shape)
        grouped = result.view(problem.batch, problem.groups, problem.group_in, *problem.size)
        for block in self._input_blocks(problem, output.dtype):
            windows = _windows_on(problem, block)
            covered = _covered(problem, block, windows)
            buffer = kernel.new_zeros(problem.groups, problem.group_in, *covered.shape)
            for part in self._column_blocks(problem, windows, output.dtype):
                _fold(problem, kernel @ _pixel_matrix(pixels, part), part, buffer, covered)
            inside = block.relative_to(covered).select
            grouped[block.select] = buffer.movedim(2, 0)[inside]
        return result

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        pixels = output.reshape(_grouped_output_shape(problem))
        result = _kernel_matrix(problem, input.new_zeros(problem.weight_shape))
        for block in self._column_blocks(problem, _whole_output(problem), input.dtype):
            result.baddbmm_(_pixel_matrix(pixels, block), _columns(problem, input, block).mT)
        return result.reshape(problem.weight_shape).to(input.dtype)

    def workspace(self, problem: Problem, map: MapName, dtype: torch.dtype) -> int:
        """The bytes of the first and largest block; at most ``workspace_limit``."""
        first, buffer = _whole_output(problem), 0
        if map == "grad_input":
            block = next(self._input_blocks(problem, dtype), _ONE_PIXEL)
            first, buffer = _windows_on(problem, block), _buffer_bytes(problem, dtype, block)
        columns = next(self._column_blocks(problem, first, dtype), None)
        return buffer + (_columns_bytes(problem, dtype, columns) if columns else 0)

    def _column_blocks(self, problem: Problem, whole: Block, dtype: torch.dtype) -> Iterator[Block]:
        """Blocks of output pixels whose columns take at most half the limit."""
        return whole.split(
            self.workspace_limit // 2, lambda block: _columns_bytes(problem, dtype, block)
        )

    def _input_blocks(self, problem: Problem, dtype: torch.dtype) -> Iterator[Block]:
        """Blocks of input pixels whose sums take at most half the limit."""
        whole = Block(range(problem.batch), *map(range, problem.size))
        return whole.split(
            self.workspace_limit // 2, lambda block: _buffer_bytes(problem, dtype, block)
        )


class Block(NamedTuple):
    """Some images by some rows by some columns of pixels."""

    images: range
    rows: range
    columns: range

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.images), len(self.rows), len(self.columns)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        images, rows, columns = (slice(axis.start, axis.stop) for axis in self)
        return images, rows, columns

    @property
    def select(self) -> tuple[slice, ...]:
        """What selects the block in an (N, G, channels, rows, columns) tensor."""
        images, rows, columns = self.slices
        return images, slice(None), slice(None), rows, columns

    def relative_to(self, other: Block) -> Block:
        """The same pixels, counted from the first pixel of ``other``."""
        return Block(
            *(
                range(mine.start - theirs.start, mine.stop - theirs.start)
                for mine, theirs in zip(self, other)
            )
        )

    def split(self, limit: int, bytes_of: Callable[[Block], int]) -> Iterator[Block]:
        """Blocks that make up this one, each of at most ``limit`` bytes or of one pixel.

        Whole images stay together where they fit, then whole rows.
        """
        if 0 in self.shape:
            return
        lengths = [1, 1, 1]
        for axis in (2, 1, 0):

            def cost(length: int, axis: int = axis) -> int:
                trial = [*lengths[:axis], length, *lengths[axis + 1 :]]
                return bytes_of(Block(*map(range, trial)))

            most = self.shape[axis]
            lengths[axis] = max(1, bisect_right(range(1, most + 1), limit, key=cost))
            if lengths[axis] < most:
                break
        starts = (range(axis.start, axis.stop, length) for axis, length in zip(self, lengths))
        for corner in product(*starts):
            yield Block(
                *(
                    range(start, min(start + length, axis.stop))
                    for start, length, axis in zip(corner, lengths, self)
                )
            )


_ONE_PIXEL = Block(range(1), range(1), range(1))


def _whole_output(problem: Problem) -> Block:
    return Block(range(problem.batch), *map(range, problem.output_size))


def _grouped_output_shape(problem: Problem) -> tuple[int, ...]:
    return (problem.batch, problem.groups, problem.group_out, *problem.output_size)


def _kernel_matrix(problem: Problem, weight: Tensor) -> Tensor:
    """(G, O/G, C/G * kH * kW), in the dtype that sums products."""
    taps = problem.group_in * prod(problem.kernel)
    return weight.reshape(problem.groups, problem.group_out, taps).to(
        accumulation_dtype(weight.dtype)
    )


def _pixel_matrix(pixels: Tensor, block: Block) -> Tensor:
    """(G, O/G, pixels of the block), in the dtype that sums products."""
    part = pixels[block.select].movedim(0, 2)
    return part.to(accumulation_dtype(part.dtype)).flatten(2)


def _columns(problem: Problem, input: Tensor, block: Block) -> Tensor:
    """(G, C/G * kH * kW, output pixels of the block): the windows of the padded input."""
    rows, columns = (
        _pixels_read(problem, axis, outputs)
        for axis, outputs in enumerate((block.rows, block.columns))
    )
    image = _padded_cut(input[block.slices[0]], rows, columns)
    image = image.to(accumulation_dtype(image.dtype))
    (span_down, span_across), (dilation_down, dilation_across) = problem.span, problem.dilation
    # (n, C, rows, columns, kH, kW): a view, in which windows overlap.
    # A stride that is never taken may be larger than PyTorch can multiply.
    down, across = (min(pair) for pair in zip(problem.stride, image.shape[2:]))
    windows = image.unfold(2, span_down, down).unfold(3, span_across, across)[
        ..., ::dilation_down, ::dilation_across
    ]
    taps = problem.group_in * prod(problem.kernel)
    windows = windows.reshape(
        len(block.images), problem.groups, problem.group_in, *windows.shape[2:]
    )
    return windows.permute(1, 2, 5, 6, 0, 3, 4).reshape(problem.groups, taps, prod(block.shape))


def _fold(problem: Problem, columns: Tensor, part: Block, buffer: Tensor, covered: Block) -> None:
    """Add the columns of the output pixels ``part`` to the input pixels that they look at."""
    windows = columns.reshape(problem.groups, problem.group_in, *problem.kernel, *part.shape)
    here = slice(part.images.start - covered.images.start, part.images.stop - covered.images.start)
    for u, v in product(*map(range, problem.kernel)):
        rows, columns_ = (
            _every_step(problem, axis, outputs, tap, first)
            for axis, (outputs, tap, first) in enumerate(
                ((part.rows, u, covered.rows.start), (part.columns, v, covered.columns.start))
            )
        )
        buffer[:, :, here, rows, columns_] += windows[:, :, u, v]


def _every_step(problem: Problem, axis: int, outputs: range, tap: int, first: int) -> slice:
    """The pixels, counted from ``first``, that one tap meets as the window moves."""
    stride = problem.stride[axis]
    start = outputs.start * stride + tap * problem.dilation[axis] - problem.padding[axis][0] - first
    last = start + (len(outputs) - 1) * stride
    return slice(start, last + 1, stride if last > start else 1)


def _pixels_read(problem: Problem, axis: int, outputs: range) -> range:
    """Along an axis, the input pixels under the windows of some outputs; padding included."""
    stride, before = problem.stride[axis], problem.padding[axis][0]
    return range(
        outputs.start * stride - before,
        (outputs.stop - 1) * stride - before + problem.span[axis],
    )


def _windows_on(problem: Problem, block: Block) -> Block:
    """The output pixels whose windows may touch a block of input pixels."""
    axes = []
    for axis, pixels in enumerate((block.rows, block.columns)):
        stride, before = problem.stride[axis], problem.padding[axis][0]
        first = -((problem.span[axis] - 1 - before - pixels.start) // stride)
        last = (pixels.stop - 1 + before) // stride
        axes.append(range(max(first, 0), min(last + 1, problem.output_size[axis])))
    return Block(block.images, *axes)


def _covered(problem: Problem, block: Block, windows: Block) -> Block:
    """The block of input pixels, grown to hold every window on it."""
    if 0 in windows.shape:
        return block
    axes = []
    for axis, (pixels, outputs) in enumerate(
        ((block.rows, windows.rows), (block.columns, windows.columns))
    ):
        read = _pixels_read(problem, axis, outputs)
        axes.append(range(min(pixels.start, read.start), max(pixels.stop, read.stop)))
    return Block(block.images, *axes)


def _padded_cut(input: Tensor, rows: range, columns: range) -> Tensor:
    """The given rows and columns of an image that is zero outside of its size."""
    (top, inner_rows, bottom), (left, inner_columns, right) = (
        _inside(axis, size) for axis, size in zip((rows, columns), input.shape[2:])
    )
    return pad(input[:, :, inner_rows, inner_columns], (left, right, top, bottom))


def _inside(pixels: range, size: int) -> tuple[int, slice, int]:
    """How many of the pixels lie before an axis of ``size``, which on it, how many after."""
    start, stop = (min(max(edge, 0), size) for edge in (pixels.start, pixels.stop))
    before = min(max(-pixels.start, 0), len(pixels))
    return before, slice(start, stop), len(pixels) - before - (stop - start)


def _columns_bytes(problem: Problem, dtype: torch.dtype, block: Block) -> int:
    """What a block of output pixels takes: its columns, the pixels they come from or go to."""
    images, rows, columns = block.shape
    taps = problem.in_channels * prod(problem.kernel)
    read = len(_pixels_read(problem, 0, block.rows)) * len(_pixels_read(problem, 1, block.columns))
    elements = rows * columns * (taps + 2 * problem.out_channels) + 2 * problem.in_channels * read
    return images * elements * accumulation_dtype(dtype).itemsize


def _buffer_bytes(problem: Problem, dtype: torch.dtype, block: Block) -> int:
    """What a block of input pixels takes: its sums, and those of its windows' other pixels."""
    images, rows, columns = (
        length + 2 * (span - 1) for length, span in zip(block.shape, (1, *problem.span))
    )
    elements = images * problem.in_channels * rows * columns
    return elements * accumulation_dtype(dtype).itemsize
