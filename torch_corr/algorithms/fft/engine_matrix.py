"""Short transforms as matrix products: spectra ordered for the sums over channels.

The transform of a tile x (rows by columns) is ``D x D'`` with ``D[f, p] = exp(-2 pi i f p / n)``.
As matrix products, the transforms cost O(n) per pixel instead of O(log n), yet for tiles up to
about 64 and many channels they are faster:

* they run at the rate of the matrix product (175 GFLOP/s against the FFT's 40 on two Zen 5
  cores, float32);
* only existing samples are read, and only needed ones are written: a kernel's zero padding, an
  output's stride and a weight's dilation are missing columns (rows) of ``D`` and cost nothing;
* images, tiles and channels stay innermost, so a spectrum comes out as (frequency, tile,
  channel), ready for one batched product, where an FFT would need a transposition (4 to 13
  GB/s);
* a block of frequencies is a block of rows of ``D``: processing the spectrum in blocks bounds the
  memory without repeated arithmetic.

Planning: the operands stay in memory for a slab, in the order of the products; spectra exist only
for a block of row frequencies.  Slabs are halved until one frequency fits, and the block uses the
remaining memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...request import SLOTS, Slot
from ..base import Cost
from .plans import DeviceRates, Task, TransformPlan, block_of, frequencies, halved, select
from .tiling import Window, Windows, complex_of, dft_matrix, overlap_add, read_span, write

BLOCK = 96 * 2**20
"""Bytes of spectra that the matrix engine makes at a time.  Larger blocks leave the cache without
benefit; smaller ones make thin products, which read the operands again for every few row
frequencies. On two Zen 4 cores, 128 to 128 channels of 256x256, 32x32: 807 ms with 24 MiB, 644 with
48, 518 with 96, 523 with 180; 64 to 64 of 4x128x128, 8x8: 76, 69, 65, 79."""

LONGEST = 256
"""Above this length a transform by matrix product takes at least 5 times as long as the FFT."""


def make_plan(task: Task, limit: int, rates: DeviceRates) -> TransformPlan | None:
    """The plan with the largest slabs, and then blocks, that fit; None for lengths that are too
    slow."""
    problem = task.problem
    if max(task.lengths) > LONGEST or 0 in (problem.group_in, problem.group_out):
        return None
    memory = _Memory(task, task.at_once)
    while memory.peak(1) > limit and memory.per_slab != (1, 1):
        memory = _Memory(task, halved(memory.per_slab))
    frequencies = task.frequencies(0)
    room = min(limit - memory.fixed, BLOCK)
    block = block_of(frequencies, room // max(memory.per_frequency, 1))
    workspace = memory.peak(block)
    weight = (
        problem.group_out * problem.group_in * task.lengths[1] * frequencies * task.complex_itemsize
    )
    again = memory.per_slab != task.at_once and task.map != "grad_weight"
    hold = again and workspace + weight <= limit
    if hold:
        workspace += weight
    slabs, blocks = task.slabs(memory.per_slab), -(-frequencies // block)
    cost = _cost(task, 1 if hold else slabs)
    # Every block reads the operands and the sums again.
    read = problem.groups * slabs * blocks * memory.operand_bytes * rates.out_of_cache
    calls = problem.groups * slabs * (20 + 40 * blocks)
    cost = cost._replace(bytes=cost.bytes + read, calls=calls)
    outs = problem.group_out
    return TransformPlan("matrix", task, memory.per_slab, block, outs, hold, workspace, cost)


@dataclass(frozen=True)
class _Memory:
    """Bytes that :func:`run` uses."""

    task: Task
    per_slab: tuple[int, int]

    def peak(self, block: int) -> int:
        """The peak with this many row frequencies at a time."""
        return self.fixed + max(self.copies, block * self.per_frequency)

    @property
    def fixed(self) -> int:
        """Bytes in use during the whole run."""
        outs = self.task.problem.group_out
        sums = self.task.sums("matrix", self.per_slab[1], outs)
        return self.matrices + self.operand_bytes + sums

    @property
    def matrices(self) -> int:
        """The matrices of three operands, at most complex128, and the angles of one."""
        return 2**16 + 16 * 5 * (self.task.lengths[0] ** 2 + self.task.lengths[1] ** 2)

    @cached_property
    def operand_bytes(self) -> int:
        """The operands and the sums, in the order of the products."""
        return sum(self._operand_bytes(slot) for slot in SLOTS[self.task.map])

    @property
    def copies(self) -> int:
        """The largest temporary while an operand is transposed or the tiles are merged."""
        first, second, target = (self._operand_bytes(slot) for slot in SLOTS[self.task.map])
        # Operands are transposed before the conversion to the dtype to compute in.
        return max(
            max(first, second) * self.task.operand_itemsize // self.task.itemsize, 2 * target
        )

    @cached_property
    def per_frequency(self) -> int:
        """Bytes per row frequency: three spectra, and the largest temporary for one."""
        total = work = 0
        for slot in SLOTS[self.task.map]:
            size = self.task.sizes(slot, self.per_slab)
            down, across = self.task.windows(slot, range(self.per_slab[1]))
            halfway = size.padded // down.samples * down.tiles
            columns = size.number * across.count
            channels = self.task.channels(slot) * self.task.complex_itemsize
            total += size.number * self.task.lengths[1] * channels
            work = max(work, (halfway + columns) * channels, 2 * columns * channels)
        return total + work

    def _operand_bytes(self, slot: Slot) -> int:
        size = self.task.sizes(slot, self.per_slab)
        samples = size.cut if slot == SLOTS[self.task.map][2] else size.padded
        return samples * self.task.channels(slot) * self.task.itemsize


def _cost(task: Task, repeats: int) -> Cost:
    """The work of all groups; the weight is transformed ``repeats`` times."""
    problem, frequencies, width = task.problem, task.frequencies(0), task.lengths[1]
    flops = traffic = 0.0
    for slot in SLOTS[task.map]:
        size, (down, across) = task.sizes(slot), task.windows(slot)
        channels = task.channels(slot) * (repeats if slot == "weight" else 1)
        first = (8 if task.is_complex else 4) * frequencies * down.count * across.count
        second = 8 * frequencies * width * across.count
        flops += size.number * channels * (first + second)
        traffic += channels * (
            4 * size.padded * task.itemsize
            + size.number * frequencies * (3 * across.count + 2 * width) * task.complex_itemsize
        )
    products = 8.0 * frequencies * width * task.tiles * problem.group_in * problem.group_out
    # Memory bandwidth limits thin matrix products.
    thin = max(1.0, 24 / max(min(task.tiles, problem.group_in, problem.group_out), 1))
    return Cost(
        matmul_flops=problem.groups * task.dtype_slowdown * (flops + products * thin),
        bytes=problem.groups * traffic,
    )


# -- running -------------------------------------------------------------------------------------


def run(plan: TransformPlan, first: Tensor, second: Tensor, result: Tensor, like: Tensor) -> None:
    """Run a plan of this engine, group by group; see :mod:`.algorithm`."""
    task = plan.task
    outs = range(task.problem.group_out)
    for group in range(task.problem.groups):
        a, b, c = (
            select(task.problem, slot, tensor, range(group, group + 1), outs)
            for slot, tensor in zip(SLOTS[task.map], (first, second, result))
        )
        if task.map == "grad_weight":
            _weight_of_group(plan, a, b, c, like)
        else:
            _tiles_of_group(plan, a, b, c, like)


def _tiles_of_group(
    plan: TransformPlan,
    first: Tensor,
    weight: Tensor,
    result: Tensor,
    like: Tensor,
) -> None:
    task = plan.task
    source, _, target = SLOTS[task.map]
    of_first = dft_matrices(task.windows(source), task.lengths, False, like)
    of_weight = dft_matrices(task.windows("weight"), task.lengths, task.map == "forward", like)
    inverse = inverse_dft_matrices(task.windows(target), task.lengths, like)
    taps = to_samples_first(weight, task.windows("weight"), like.dtype)
    held: dict[range, Tensor] = {}
    for images, rows in plan.slabs():
        part, windows = slice(images.start, images.stop), task.windows(target, rows)
        tiles = to_samples_first(first[part], task.windows(source, rows), like.dtype)
        number = len(images) * windows[0].tiles * windows[1].tiles
        sums = like.new_zeros(windows[0].count, windows[1].count * number * result.shape[1])
        for block in plan.blocks(0):
            w = held[block] if block in held else forward_dft(taps, of_weight, block)
            if plan.hold:
                held[block] = w
            spectrum = torch.bmm(
                forward_dft(tiles, of_first, block), w.mT if task.map == "forward" else w
            )
            del w
            inverse_dft(spectrum, sums, inverse, block)
            del spectrum
        del tiles
        samples = merge_tiles(sums, windows, len(images))
        write(samples, windows, result[part], add=plan.accumulates)


def _weight_of_group(
    plan: TransformPlan, input: Tensor, output: Tensor, result: Tensor, like: Tensor
) -> None:
    task = plan.task
    of_input = dft_matrices(task.windows("input"), task.lengths, False, like)
    of_output = dft_matrices(task.windows("output"), task.lengths, True, like)
    windows = task.windows("weight")
    inverse = inverse_dft_matrices(windows, task.lengths, like)
    sums = like.new_zeros(windows[0].count, result.numel() // windows[0].count)
    for images, rows in plan.slabs():
        part = slice(images.start, images.stop)
        x = to_samples_first(input[part], task.windows("input", rows), like.dtype)
        y = to_samples_first(output[part], task.windows("output", rows), like.dtype)
        for block in plan.blocks(0):
            spectrum = torch.bmm(
                forward_dft(y, of_output, block).mT, forward_dft(x, of_input, block)
            )
            inverse_dft(spectrum, sums, inverse, block)
            del spectrum
        del x, y
    result.copy_(merge_tiles(sums, windows, result.shape[0]))


class Tiles(NamedTuple):
    """One operand under its tiles, as (rows, columns, images, channels)."""

    samples: Tensor
    windows: Windows


class DFTMatrices(NamedTuple):
    """The matrices of one operand's transform: (frequencies, samples) for rows and for columns."""

    rows: Tensor
    columns: Tensor


def dft_matrices(
    windows: Windows, lengths: tuple[int, int], reverse: bool, like: Tensor
) -> DFTMatrices:
    """The DFT matrices ``exp(-+ 2 pi i f p / n)`` for the samples p of the windows.

    They have all column frequencies and all row frequencies, or half of the row frequencies for
    real operands. ``reverse`` selects the lower sign.
    """
    rows = frequencies(lengths[0], like.is_complex())
    return DFTMatrices(
        _axis_matrix(lengths[0], windows[0], rows, reverse, like),
        _axis_matrix(lengths[1], windows[1], lengths[1], reverse, like),
    )


def to_samples_first(tensor: Tensor, windows: Windows, dtype: torch.dtype) -> Tiles:
    """The samples of (images, channels, H, W) under its tiles, padded with zeros."""
    images, channels, height, width = tensor.shape
    (rows, to_rows), (columns, to_columns) = (
        read_span(window, size) for window, size in zip(windows, (height, width))
    )
    part = tensor[:, :, rows, columns]
    # A 2-D transposition is twice as fast as the 4-D permutation in PyTorch's copy.
    flat = part.reshape(images * channels, -1).t().contiguous()
    shape = (part.shape[2], part.shape[3], images, channels)
    samples = (windows[0].samples, windows[1].samples)
    if samples == shape[:2]:
        return Tiles(flat.to(dtype).view(shape), windows)
    padded = tensor.new_zeros(*samples, images, channels, dtype=dtype)
    padded[to_rows, to_columns] = flat.view(shape)
    return Tiles(padded, windows)


def forward_dft(tiles: Tiles, matrices: DFTMatrices, block: range) -> Tensor:
    """A block of the spectra of all tiles, as (frequency, tile and image, channel).

    ``X[f, g] = sum_{p,q} D[f, p] x[p, q] D'[g, q]`` for row frequencies f in ``block`` and all
    column frequencies g, where D and D' are the ``matrices`` for rows and columns.
    """
    samples, (down, across) = tiles
    _, width, images, channels = samples.shape
    row = width * images * channels
    windows = samples.as_strided((down.tiles, down.count, row), (down.hop * row, row, 1))
    rows = matrices.rows[block.start : block.stop]
    if not samples.is_complex():
        rows = torch.cat((rows.real, rows.imag))
    halfway = torch.bmm(rows.expand(down.tiles, -1, -1), windows)
    columns = _cut_columns(halfway.view(down.tiles, -1, width, images * channels), across)
    del halfway
    along = matrices.columns.expand(len(block), -1, -1)
    spectrum = torch.bmm(along, columns.view(len(block), across.count, -1))
    return spectrum.view(len(block) * along.shape[1], -1, channels)


def _cut_columns(halfway: Tensor, across: Window) -> Tensor:
    """Cut the columns into tiles: (T, f, W, e) to complex (f, column, T, U, e), in one pass.

    For a real operand the second axis of ``halfway`` contains real parts, then imaginary parts.
    """
    if across.tiles == 1:
        cut = halfway.unsqueeze(2)
    else:
        cut = halfway.unfold(2, across.count, across.hop).permute(0, 1, 2, 4, 3)
    cut = cut.permute(1, 3, 0, 2, 4)
    if halfway.is_complex():
        return cut.contiguous()
    half = cut.shape[0] // 2
    columns = halfway.new_empty((half, *cut.shape[1:]), dtype=complex_of(halfway.dtype))
    return torch.complex(cut[:half], cut[half:], out=columns)


def inverse_dft(spectrum: Tensor, sums: Tensor, matrices: DFTMatrices, block: range) -> None:
    """Add the contribution of a block of a spectrum to the samples of its tiles.

    ``x[p, q] = 1/(n m) sum_{f,g} D[f, p] X[f, g] D'[g, q]`` with the reverse ``matrices``; for a
    real operand ``block`` is part of the half spectrum, and X[-f, -g] = conj X[f, g] is included.

    Args:
        spectrum: (frequency, tile and image, channel), as :func:`forward_dft` returns it.
        sums: (samples down a tile, everything else), added to in place.
        matrices: from :func:`inverse_dft_matrices`.
        block: the row frequencies of ``spectrum``.
    """
    width = matrices.columns.shape[0]
    along = matrices.columns.mT.expand(len(block), -1, -1)
    columns = torch.bmm(along, spectrum.view(len(block), width, -1)).view(len(block), -1)
    rows = matrices.rows[block.start : block.stop].mT
    if sums.is_complex():
        sums.addmm_(rows, columns)
        return
    planes = torch.view_as_real(columns).permute(2, 0, 1).contiguous()
    del columns
    sums.addmm_(torch.cat((rows.real, -rows.imag), 1), planes.view(2 * len(block), -1))


def inverse_dft_matrices(windows: Windows, lengths: tuple[int, int], like: Tensor) -> DFTMatrices:
    """The matrices for :func:`inverse_dft`: reverse, divided by the lengths, and for a real result
    with a weight of 2 at frequencies whose mirror image is left out."""
    rows, columns = dft_matrices(windows, lengths, True, like)
    if not like.is_complex():
        rows[1 : (lengths[0] + 1) // 2] *= 2
    return DFTMatrices(rows / lengths[0], columns / lengths[1])


def merge_tiles(sums: Tensor, windows: Windows, images: int) -> Tensor:
    """Merge the samples of all tiles into (images, channels, rows, columns) under the tiles."""
    down, across = windows
    tiles = sums.view(down.count, across.count, down.tiles, across.tiles, images, -1)
    tiles = tiles.permute(2, 0, 3, 1, 4, 5)
    samples = overlap_add(overlap_add(tiles, 0, down.hop), 1, across.hop)
    return samples.permute(2, 3, 0, 1)


def _axis_matrix(length: int, window: Window, number: int, reverse: bool, like: Tensor) -> Tensor:
    """The first ``number`` rows of a DFT matrix, with the columns of a window's samples."""
    positions, rows = (
        torch.arange(count, dtype=torch.float64, device=like.device)
        for count in (window.count, number)
    )
    return dft_matrix(length, rows, positions.mul_(window.spacing), like.dtype, reverse)
