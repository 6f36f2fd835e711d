"""Correlation by matrix products: one product per kernel row over strips of copied pixels.

Per group, with strips as in :mod:`.strips` and w_u the row u of the kernel as a matrix of (output
channels) x (input channels, taps along the row):

    forward      y   = sum_u w_u @ strips(x)[rows that u reads]
    grad_input   x   = fold(sum_u w_u^T @ y)      fold adds every strip back to its pixels
    grad_weight  w_u = y @ strips(x)[rows that u reads]^T

The maps run block by block, where a block is a range of images, rows and columns of pixels. Its
strips fit in the caches, and everything it needs fits in the workspace.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod
from typing import TypeAlias

import torch
from torch import Tensor

from ...problem import Pair, Problem
from ...request import MAPS, Request, accumulation_dtype
from ..base import (
    COMPLEX,
    DEFAULT_WORKSPACE,
    FLOATS,
    INTEGERS,
    Cost,
    check_workspace_limit,
    definition_flops,
    dtype_refusal,
)
from ..cost import Fitted, Work, round_up_ratio, traffic_bytes
from .strips import Block, Rows, columns_touching, fill_strips, fold_strips, rows_read, rows_written

CACHED_STRIP_BYTES = 4 * 2**20
"""Bytes of strips in a block on a CPU.  Dense 3x3 in float64, 4x64x56x56, forward on two Zen 4
cores (1 MiB of L2 each, 32 MiB of L3): 14.3 ms at 1 MiB, 12.9 at 2, 12.5 at 4, 13.0 at 8."""

MAX_OVERLAP_RATIO = 3
"""A block may exceed :data:`CACHED_STRIP_BYTES` up to this multiple of what one output row needs,
because neighbouring blocks both copy the rows that they share."""

MIN_IMAGES_PER_BLOCK = 32
"""Images share a block only if at least this many fit: their small products then run one per
thread."""

Lengths: TypeAlias = tuple[int, int, int]
"""The number of images, rows and columns of a block."""


@dataclass(frozen=True)
class Unfold(Fitted):
    """Correlation by strips and matrix products.

    Attributes:
        workspace_limit: maximum bytes beyond operands and result.
    """

    workspace_limit: int = DEFAULT_WORKSPACE

    name = "unfold"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_workspace_limit(self.workspace_limit)

    def uses_matrix_products(self, request: Request) -> bool:
        """On CUDA, where a setting of PyTorch may allow TF32."""
        return request.device.type == "cuda"

    def refusals(self, request: Request) -> tuple[str, ...]:
        able = FLOATS + COMPLEX + (INTEGERS if request.device.type in ("cpu", "meta") else ())
        refusals = dtype_refusal(request.dtype, able)
        least = max(_bytes(request.with_map(map), (1, 1, 1)) for map in MAPS)
        if least > self.workspace_limit:
            refusals += (
                f"the smallest block takes {least} bytes of workspace, more than the limit of "
                f"{self.workspace_limit}; raise it with Unfold(workspace_limit=...)",
            )
        return refusals

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        kernel = _kernel_rows(problem, weight)
        result = input.new_empty(problem.output_shape)
        for block in self._blocks(Request.of(problem, "forward", input)):
            _forward(problem, block, input, kernel, result)
        return result

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        kernel = _kernel_rows(problem, weight).mT
        result = output.new_zeros(problem.input_shape)
        for block in self._blocks(Request.of(problem, "grad_input", output)):
            _grad_input(problem, block, output, kernel, result)
        return result

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        request = Request.of(problem, "grad_weight", input)
        summing = accumulation_dtype(input.dtype)
        rows, *matrix = _kernel_shape(problem)
        images = self._lengths(request)[0]
        # Each image of a block has separate sums, because a batched product does not add images.
        sums = input.new_zeros((rows, images, *matrix), dtype=summing)
        for block in self._blocks(request):
            _grad_weight(problem, block, input, output, sums)
        total = sums.squeeze(1) if images == 1 else sums.sum(1)
        result = input.new_empty(problem.weight_shape)
        taps = _taps_last(problem, result)
        taps.copy_(total.view(taps.shape))
        return result

    def workspace(self, request: Request) -> int:
        """The bytes of the largest block and of the weight as matrices.

        On a CPU blocks are limited to the size of the caches, elsewhere only by
        ``workspace_limit``.
        """
        return _bytes(request, self._lengths(request))

    def _blocks(self, request: Request) -> Iterator[Block]:
        """Blocks of output pixels; of input pixels for ``grad_input``."""
        rows, columns = _pixels(request)
        whole = Block(range(request.problem.batch), range(rows), range(columns))
        return whole.split(self._lengths(request))

    def work(self, request: Request) -> Work:
        """The matrix products and the strips, which hold every pixel up to kW times."""
        problem, dtype = request.problem, request.dtype
        lengths = _block_lengths(request, self.workspace_limit, CACHED_STRIP_BYTES)
        whole = problem.batch, *_pixels(request)
        blocks = prod(ceil(all / each) for all, each in zip(whole, lengths))
        calls = blocks * (problem.kernel[0] + 4 * problem.kernel[1])
        rows, columns = problem.size[0], problem.output_size[1]
        strips = problem.batch * problem.in_channels * rows * columns * problem.kernel[1]
        bytes = float(strips * dtype.itemsize) + traffic_bytes(request)
        flops = definition_flops(problem, dtype) * round_up_ratio(problem.group_out, 8)
        return Work("strips", Cost(flops, 0, bytes, calls))

    def _lengths(self, request: Request) -> Lengths:
        on_host = request.device.type in ("cpu", "meta")
        limit = self.workspace_limit
        return _block_lengths(request, limit, CACHED_STRIP_BYTES if on_host else limit)


def _pixels(request: Request) -> Pair:
    """The rows and columns that blocks divide: of the input for ``grad_input``, else of the
    output."""
    problem = request.problem
    return problem.size if request.map == "grad_input" else problem.output_size


def _forward(problem: Problem, block: Block, input: Tensor, kernel: Tensor, result: Tensor) -> None:
    """Compute a block of output pixels."""
    rows = rows_read(problem, block.rows)
    strips = _strips(problem, input, block, rows)
    pixels = _matrices(problem, result, block)
    sums = pixels if kernel.dtype == result.dtype else kernel.new_empty(pixels.shape)
    for u, pixels_read in enumerate(rows.slices(len(block.columns))):
        taps = _repeated(kernel[u], len(block.images))
        sums.baddbmm_(taps, strips[..., pixels_read], beta=min(u, 1))
    if sums is not pixels:
        pixels.copy_(sums)


def _grad_input(
    problem: Problem, block: Block, output: Tensor, kernel: Tensor, result: Tensor
) -> None:
    """Compute a block of input pixels, which are zero before."""
    rows = rows_written(problem, block.rows)
    windows = Block(block.images, rows.windows, columns_touching(problem, block.columns))
    if 0 in windows.shape:
        return
    images, width = len(windows.images), len(windows.columns)
    pixels = _matrices(problem, output, windows).to(kernel.dtype)
    if _pointwise(problem) and kernel.dtype == result.dtype:
        place = _matrices(problem, result, block)
        place.baddbmm_(_repeated(kernel[0], images), pixels, beta=0)
        return
    strips = kernel.new_zeros(_strips_shape(problem, windows, rows))
    matrices = _as_matrices(problem, strips)
    for u, pixels_read in enumerate(rows.slices(width)):
        first = (rows.outputs[u].start - windows.rows.start) * width
        contributing = pixels[..., first : first + pixels_read.stop - pixels_read.start]
        matrices[..., pixels_read].baddbmm_(_repeated(kernel[u], images), contributing)
    place = block.of(result)
    sums = place if kernel.dtype == result.dtype else kernel.new_zeros(place.shape)
    fold_strips(problem, strips, block, rows, windows.columns, sums)
    if sums is not place:
        place.copy_(sums)


def _grad_weight(
    problem: Problem, block: Block, input: Tensor, output: Tensor, sums: Tensor
) -> None:
    """Add the contributions of a block of output pixels to the sums, (kH, images, G, O/G, C/G *
    kW)."""
    rows = rows_read(problem, block.rows)
    strips = _strips(problem, input, block, rows)
    pixels = _matrices(problem, output, block).to(sums.dtype)
    for u, pixels_read in enumerate(rows.slices(len(block.columns))):
        own = sums[u, : len(block.images)].flatten(0, 1)
        own.baddbmm_(pixels, strips[..., pixels_read].mT)


@lru_cache(maxsize=4096)
def _block_lengths(request: Request, limit: int, cached: int) -> Lengths:
    """The largest blocks whose strips fit in the caches, within the limit.

    Blocks have whole rows where the limit allows it, then as many rows as fit, and then, if the
    images are small, several images.
    """
    height, width = _pixels(request)
    columns = _largest(width, lambda n: _bytes(request, (1, 1, n)) <= limit)
    if columns < width:
        return 1, 1, columns
    room = max(cached, MAX_OVERLAP_RATIO * _strips_bytes(request, (1, 1, columns)))

    def fits(lengths: Lengths) -> bool:
        strips = _strips_bytes(request, lengths)
        return strips <= room and _bytes(request, lengths) <= limit

    rows = _largest(height, lambda n: fits((1, n, columns)))
    if rows < height:
        return 1, -(-height // -(-height // rows)), columns
    small = MIN_IMAGES_PER_BLOCK * _strips_bytes(request, (1, rows, columns)) <= room
    images = _largest(request.problem.batch, lambda n: fits((n, rows, columns))) if small else 1
    return images, rows, columns


def _largest(length: int, fits: Callable[[int], bool]) -> int:
    """The largest n of 1 to ``length`` that fits, given that all smaller ones then fit; 1 if none
    does."""
    return max(bisect_left(range(1, length + 1), True, key=lambda n: not fits(n)), 1)


def _strips_bytes(request: Request, lengths: Lengths) -> int:
    problem, (images, rows, columns) = request.problem, lengths
    if request.map == "grad_input":
        columns = _windows_touching(problem, 1, columns)
    else:
        rows = rows_read(problem, range(rows)).held
    strips = problem.in_channels * problem.kernel[1] * images * rows * columns
    return strips * accumulation_dtype(request.dtype).itemsize


def _bytes(request: Request, lengths: Lengths) -> int:
    """Maximum bytes of a block: strips, copies of pixels, and the weight as matrices."""
    problem, map, (images, rows, columns) = request.problem, request.map, lengths
    itemsize = accumulation_dtype(request.dtype).itemsize
    rounds = itemsize != request.dtype.itemsize
    repeated = images > 1 and (map == "grad_weight" or problem.groups > 1)
    matrices = images + 1 if repeated else 1
    inputs = outputs = 0
    if map == "grad_input":
        outputs = _windows_touching(problem, 0, rows) * _windows_touching(problem, 1, columns)
        inputs = rows * columns if rounds else 0
    elif map == "grad_weight" or rounds:
        outputs = rows * columns
    copies = images * (problem.in_channels * inputs + problem.out_channels * outputs)
    copies += matrices * prod(problem.weight_shape)
    return _strips_bytes(request, lengths) + copies * itemsize


def _windows_touching(problem: Problem, axis: int, pixels: int) -> int:
    """The maximum number of output rows (columns) whose windows contain any of ``pixels``
    successive input rows (columns)."""
    most = (pixels + problem.span[axis] - 2) // problem.stride[axis] + 1
    return min(most, problem.output_size[axis])


def _pointwise(problem: Problem) -> bool:
    """Whether each output pixel reads exactly one input pixel: 1x1, stride 1, no padding."""
    return problem.kernel == problem.stride == (1, 1) and problem.padding == ((0, 0), (0, 0))


def _kernel_shape(problem: Problem) -> tuple[int, int, int, int]:
    """(kH, G, O/G, C/G * kW): one matrix per kernel row and group."""
    height, width = problem.kernel
    return height, problem.groups, problem.group_out, problem.group_in * width


def _taps_last(problem: Problem, weight: Tensor) -> Tensor:
    """A view of the weight as (kH, G, O/G, C/G, kW)."""
    grouped = torch.unflatten(weight, 0, (problem.groups, problem.group_out))
    return grouped.permute(3, 0, 1, 2, 4)


def _kernel_rows(problem: Problem, weight: Tensor) -> Tensor:
    """The kernel rows as matrices, (kH, G, O/G, C/G * kW), in the accumulation dtype."""
    rows = weight.new_empty(_kernel_shape(problem), dtype=accumulation_dtype(weight.dtype))
    taps = _taps_last(problem, weight)
    rows.view(taps.shape).copy_(taps)
    return rows


def _repeated(matrices: Tensor, images: int) -> Tensor:
    """(G, a, b) repeated for each image, (images * G, a, b); a view for one image or one group."""
    return matrices.expand(images, *matrices.shape).flatten(0, 1)


def _matrices(problem: Problem, tensor: Tensor, block: Block) -> Tensor:
    """A block's pixels as (images * G, channels of a group, rows * columns); a view if the tensor
    is contiguous."""
    images, rows, columns = block.shape
    channels = tensor.shape[1] // problem.groups
    return block.of(tensor).reshape(images * problem.groups, channels, rows * columns)


def _strips(problem: Problem, input: Tensor, block: Block, rows: Rows) -> Tensor:
    """The strips of a block of outputs as (images * G, C/G * kW, rows held * columns)."""
    summing = accumulation_dtype(input.dtype)
    if _pointwise(problem):
        return _matrices(problem, input, block).to(summing)
    strips = input.new_empty(_strips_shape(problem, block, rows), dtype=summing)
    fill_strips(problem, input, block, rows, strips)
    return _as_matrices(problem, strips)


def _strips_shape(problem: Problem, windows: Block, rows: Rows) -> tuple[int, ...]:
    """(images, C, kW, rows held, columns of outputs)."""
    images, _, columns = windows.shape
    return images, problem.in_channels, problem.kernel[1], rows.held, columns


def _as_matrices(problem: Problem, strips: Tensor) -> Tensor:
    images, _, taps, rows, columns = strips.shape
    return strips.view(images * problem.groups, problem.group_in * taps, rows * columns)
