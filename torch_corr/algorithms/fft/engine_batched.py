"""Transforms as matrix products for a GPU: few large operators, and no transposing copy.

On a GPU an operator costs as much as moving ten megabytes, matrix products are ten times as fast as
transforms, and transposing copies are the slowest.  So, unlike in :mod:`.engine_matrix`, an operand
is read in its own layout, columns innermost, and matrix products transpose as they compute:

    columns   A[u; g, e] = sum_q D'[g, q] x[e, u*hop + q]     e = (image, group, channel, row)
    a copy    from planes of real and imaginary parts to complex, cut into rows of tiles:
              B[g; v, p],  v = (group, tile, image, channel)
    rows      X[g; f, v] = sum_p D[f, p] B[g; v, p]

X is (g, f, group, tile and image, channel), ready for one batched product over frequencies and
groups.  The inverse of the sums S[g; f, v] of all products is

    rows      C[g; v, p] = sum_f S[g; f, v] D*[f, p]
    a copy    from complex to planes
    columns   z[v, p; q] = sum_g C[g; v, p] D'*[g, q].

A real operand needs half the column frequencies.  One block of them at a time goes through all
these steps and adds its part to z: this bounds the memory, but reads the operands once per block.

Planning: the host launches every operator, so fewer blocks and slabs are faster.  But operands are
read again for every block, and smaller slabs leave memory for larger blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...request import SLOTS, Slot
from ..base import Cost
from .plans import SUMMED, DeviceRates, Sizes, Task, TransformPlan, block_of, halved, rank
from .tiling import (
    Window,
    Windows,
    complex_of,
    copy_side_by_side,
    dft_matrix,
    overlap_add,
    padded,
    read_span,
    write,
)

LONGEST = 512
"""Above this length a transform by matrix product is slower, on a GPU whose matrix products are 9
times as fast as its transforms."""

QUANTUM = 32
"""A GPU's matrix product rounds rows and columns up to this multiple, judged by its time: 2112
complex products of 49 x 128 with 128 x 128 take 381 us on an H200, 35.6 TFLOP/s, and padded to 64
rows 46.5."""

COMPLEX = 4 * 1.11
"""The time of a complex matrix product relative to a real one on a GPU: 4 times the
multiplications, at nine tenths of the rate."""

MOST_PRODUCTS = 2**16 - 1
"""Maximum size of a batch of products: the size of the last dimension of a CUDA grid."""


def make_plan(task: Task, limit: int, rates: DeviceRates) -> TransformPlan | None:
    """The best plan over ever smaller slabs, each with as many frequencies at a time as fit.

    If none fits in the limit, the one of least workspace.  None for lengths that are too slow, and
    if a row has more tiles, one product each, than one batch can have.
    """
    most = MOST_PRODUCTS // (task.lengths[0] * task.problem.groups)
    if most == 0 or task.axes[1].tiles > MOST_PRODUCTS:
        return None
    if max(task.lengths) > LONGEST or 0 in (task.problem.group_in, task.problem.group_out):
        return None
    return min(_plans(task, limit, most), key=lambda made: rank(made, limit, rates))


def _plans(task: Task, limit: int, most: int) -> Iterator[TransformPlan]:
    """Plans for every slab size, with at most ``most`` frequencies at a time."""
    per_slab, frequencies = task.at_once, task.frequencies(1)
    while True:
        again = per_slab != task.at_once and task.map != "grad_weight"
        for hold in (False, True) if again else (False,):
            memory = _Memory(task, per_slab, hold)
            room = (limit - memory.fixed) // max(memory.per_frequency, 1)
            block = block_of(frequencies, min(room, most))
            peak, cost = memory.peak(block), _cost(task, per_slab, block, hold)
            outs = task.problem.group_out
            yield TransformPlan("batched", task, per_slab, block, outs, hold, peak, cost)
        if per_slab == (1, 1):
            return
        per_slab = halved(per_slab)


@dataclass(frozen=True)
class _Memory:
    """Bytes that :func:`run` uses."""

    task: Task
    per_slab: tuple[int, int]
    hold: bool

    def peak(self, block: int) -> int:
        """The peak with this many column frequencies at a time."""
        return self.fixed + max(block * self.per_frequency, self.overlapping)

    @cached_property
    def fixed(self) -> int:
        """The DFT matrices, the padded operands, the samples of the tiles, and a weight spectrum
        that is kept."""
        first, second, target = SLOTS[self.task.map]
        # At most four complex128 matrices per axis.
        total = 2**16 + 64 * sum(length**2 for length in self.task.lengths)
        total += sum(self._sizes(slot).padded for slot in (first, second)) * self.task.itemsize
        total += self.task.sums("batched", self.per_slab[1], self.task.problem.group_out)
        if target != "weight":
            total += self._sizes(target).cut * self.task.itemsize
        return total + (self.task.frequencies(1) * self._spectrum("weight") if self.hold else 0)

    @cached_property
    def per_frequency(self) -> int:
        """The maximum over the steps of a run: the forward transforms of the first and of the
        second operand, the products, and the two steps of the inverse."""
        before, after, target = SLOTS[self.task.map]
        if target == "weight":
            before, after = after, before
        first, second, third = (self._spectrum(slot) for slot in (before, after, target))
        kept = 0 if self.hold else second
        lines = self._lines(target)
        return max(
            self._planes_or_spectrum(before) + self._lines(before),
            first
            + self._lines(after)
            + (self._planes(after) if self.hold else self._planes_or_spectrum(after)),
            first + kept + third,
            third + lines,
            2 * lines,
        )

    @property
    def overlapping(self) -> int:
        """The sums of overlapping tiles, along rows and then along columns."""
        if not self.task.overlapping:
            return 0
        down, across = self.task.windows("input", range(self.per_slab[1]))
        planes = self.per_slab[0] * self.task.problem.in_channels
        rows, columns = _merged_samples(down), _merged_samples(across)
        total = 0 if down.tiles == 1 else planes * rows * across.tiles * across.count
        total += 0 if across.tiles == 1 else planes * down.samples * columns
        return total * self.task.itemsize

    def _planes_or_spectrum(self, slot: Slot) -> int:
        """The larger of an operand's planes and its spectrum; either exists at the same time as its
        lines."""
        return max(self._planes(slot), self._spectrum(slot))

    def _planes(self, slot: Slot) -> int:
        """Bytes of an operand after the transform of its columns."""
        across = self.task.windows(slot)[1]
        return (
            self._sizes(slot).padded // across.samples * across.tiles * self.task.complex_itemsize
        )

    def _lines(self, slot: Slot) -> int:
        """Bytes of the same, cut into rows of tiles."""
        down = self.task.windows(slot)[0]
        return self._sizes(slot).number * down.count * self.task.complex_itemsize

    def _spectrum(self, slot: Slot) -> int:
        """Bytes of a spectrum."""
        return self._sizes(slot).number * self.task.lengths[0] * self.task.complex_itemsize

    def _sizes(self, slot: Slot) -> Sizes:
        """Sizes of all channels in one slab."""
        channels = self.task.problem.groups * self.task.channels(slot)
        return Sizes(*(channels * size for size in self.task.sizes(slot, self.per_slab)))


def _merged_samples(window: Window) -> int:
    """Samples of the axis into which :func:`.tiling.overlap_add` merges tiles."""
    overlap = -(-window.count // window.hop)
    return (window.tiles - 1 + overlap) * window.hop


def _cost(task: Task, per_slab: tuple[int, int], block: int, hold: bool) -> Cost:
    """The work of all slabs and blocks; sizes of products are rounded up to :data:`QUANTUM`."""
    problem, (height, width), target = task.problem, task.lengths, SLOTS[task.map][2]
    itemsize, complex_itemsize = task.itemsize, task.complex_itemsize
    planes, real = (1, COMPLEX) if task.is_complex else (2, 1)
    frequencies, slabs = task.frequencies(1), task.slabs(per_slab)
    blocks = -(-frequencies // block)
    flops = traffic = 0.0
    for slot in SLOTS[task.map]:
        down, across = task.windows(slot)
        # A weight spectrum that is not kept is computed again for every slab.
        again = slot == "weight" and target != "weight" and not hold
        channels = (slabs if again else 1) * problem.groups * task.channels(slot)
        padded, samples, number = (channels * size for size in task.sizes(slot))
        lines, spectrum = number * down.count * frequencies, number * height * frequencies
        traffic += 2 * (spectrum + lines) * complex_itemsize
        if slot == target:
            flops += _product(frequencies, down.count, number, height, COMPLEX)
            flops += _product(1, across.count, number * down.count, planes * frequencies, real)
            # Every block but the first reads the sums; for a weight, all slabs add to them.
            sums = blocks * (slabs if slot == "weight" else 1)
            traffic += (
                2 * lines * (planes - 1) * complex_itemsize + (2 * sums - 1) * samples * itemsize
            )
            if task.overlapping:
                # Zeros, sums and copies: along rows, along columns, and into the result.
                overlapped = samples * min(1, down.hop / down.count)
                traffic += (samples + 6 * overlapped) * itemsize
                traffic += 9 * overlapped * min(1, across.hop / across.count) * itemsize
            elif slot != "weight":
                traffic += 2 * samples * itemsize
        else:
            rows = padded // across.samples
            halfway = rows * across.tiles * frequencies
            flops += _product(blocks * across.tiles, planes * block, rows, across.count, real)
            flops += _product(frequencies, height, number, down.count, COMPLEX)
            copies = 0 if slot == "weight" else 3
            traffic += (copies + blocks) * padded * itemsize + (halfway + lines) * complex_itemsize
    tiles = per_slab[0] * per_slab[1] * task.axes[1].tiles
    counts = {"input": problem.group_in, "output": problem.group_out, "tiles": tiles}
    terms = counts.pop(SUMMED[task.map])
    rows, columns = counts.values()
    flops += _product(slabs * frequencies * height * problem.groups, rows, columns, terms, COMPLEX)
    # Operators: for the DFT matrices, per slab, and per block.
    matrices = 12 if height == width else 19
    calls = matrices + slabs * (6 + (8 if task.overlapping else 0) + 10 * blocks)
    return Cost(matmul_flops=task.dtype_slowdown * flops, bytes=traffic, calls=calls)


def _product(number: int, rows: int, columns: int, terms: int, each: float) -> float:
    """Operations of ``number`` matrix products, ``2 * each`` per multiply-add."""
    return (
        2.0
        * each
        * number
        * _round_up(rows, QUANTUM)
        * _round_up(columns, QUANTUM)
        * _round_up(terms, 8)
    )


def _round_up(size: int, quantum: int) -> int:
    return -(-size // quantum) * quantum


# -- running -------------------------------------------------------------------------------------


def run(plan: TransformPlan, first: Tensor, second: Tensor, result: Tensor, like: Tensor) -> None:
    """Run a plan of this engine, all groups at a time; see :mod:`.algorithm`."""
    if plan.task.map == "grad_weight":
        _weight(plan, first, second, result, like)
    else:
        _tiles(plan, first, second, result, like)


def _tiles(
    plan: TransformPlan,
    first: Tensor,
    weight: Tensor,
    result: Tensor,
    like: Tensor,
) -> None:
    task = plan.task
    source, _, target = SLOTS[task.map]
    groups, matrices = task.problem.groups, dft_matrices(task.lengths, like)
    of_weight = task.windows("weight")
    taps = padded(weight, of_weight, like.dtype).contiguous()
    back = inverse_matrices(matrices, task.windows(target))
    result = torch.unflatten(result, 1, (groups, -1))
    held: dict[range, Tensor] = {}
    for images, rows in plan.slabs():
        part = slice(images.start, images.stop)
        of_first, windows = task.windows(source, rows), task.windows(target, rows)
        samples = padded(first[part], of_first, like.dtype).contiguous()
        order = groups, windows[1].tiles, windows[0].tiles, len(images), result.shape[2]
        count, across = windows[0].count, windows[1].count
        sums = like.new_empty(math.prod(order) * count, across)
        for block in plan.blocks(1):
            left = forward_dft(samples, of_first, matrices, False, groups, block)
            if block in held:
                w = held[block]
            else:
                w = forward_dft(taps, of_weight, matrices, task.map == "forward", 1, block)
                # The outputs are ordered by group.
                w = w.view(len(left), task.problem.group_out, -1)
            if plan.hold:
                held[block] = w
            spectrum = torch.bmm(left, w.mT if task.map == "forward" else w)
            del left, w
            lines = inverse_rows(spectrum, back[0], block)
            del spectrum
            inverse_columns(lines, back[1], block, sums, add=block.start > 0)
            del lines
        del samples
        _write_tiles(plan, sums.view(*order, count, across), windows, result[part])
        del sums


def _write_tiles(plan: TransformPlan, tiles: Tensor, windows: Windows, result: Tensor) -> None:
    """Write (group, U, T, image, channel, rows, columns) to (images, groups, channels, H, W)."""
    if plan.task.map == "forward" or plan.task.is_overlap_save:
        down, across = (read_span(w, size)[0] for w, size in zip(windows, result.shape[-2:]))
        copy_side_by_side(tiles.permute(3, 0, 4, 2, 1, 5, 6), result[..., down, across])
        return
    tiles = overlap_add(tiles.permute(3, 0, 4, 2, 5, 1, 6), 3, windows[0].hop)
    write(overlap_add(tiles, 4, windows[1].hop), windows, result, add=plan.accumulates)


def _weight(
    plan: TransformPlan, input: Tensor, output: Tensor, result: Tensor, like: Tensor
) -> None:
    task = plan.task
    groups, matrices = task.problem.groups, dft_matrices(task.lengths, like)
    of_weight = task.windows("weight")
    back = inverse_matrices(matrices, of_weight)
    sums, add = result.view(-1, result.shape[3]), False
    for images, rows in plan.slabs():
        part = slice(images.start, images.stop)
        of_input, of_output = task.windows("input", rows), task.windows("output", rows)
        x = padded(input[part], of_input, like.dtype).contiguous()
        y = padded(output[part], of_output, like.dtype).contiguous()
        for block in plan.blocks(1):
            spectrum = torch.bmm(
                forward_dft(y, of_output, matrices, True, groups, block).mT,
                forward_dft(x, of_input, matrices, False, groups, block),
            )
            lines = inverse_rows(spectrum, back[0], block)
            del spectrum
            inverse_columns(lines, back[1], block, sums, add)
            add = True
            del lines
        del x, y


class DFTMatrices(NamedTuple):
    """The matrices of all transforms of a plan.

    Attributes:
        rows: ``exp(-2 pi i f p / n)`` as (f, p), and its conjugate.
        columns: the same as (g, q).  For real operands half the frequencies, with the real and
            imaginary parts of each g as successive rows: (2 g, q).
        inverse: for the columns: conjugate and divided by both lengths.  For real operands it
            includes the signs of the imaginary parts, and a weight of 2 at frequencies whose mirror
            image is left out.
    """

    rows: tuple[Tensor, Tensor]
    columns: tuple[Tensor, Tensor]
    inverse: Tensor


def dft_matrices(lengths: tuple[int, int], like: Tensor) -> DFTMatrices:
    """The matrices for operands with the dtype and device of ``like``, from a dozen operators."""
    down = _square_matrix(lengths[0], like)
    across = down if lengths[0] == lengths[1] else _square_matrix(lengths[1], like)
    rows = down, down.conj().resolve_conj()
    columns = rows if across is down else (across, across.conj().resolve_conj())
    points = lengths[0] * lengths[1]
    if like.is_complex():
        return DFTMatrices(rows, columns, columns[1] / points)
    half = lengths[1] // 2 + 1
    planes, reverse = (
        torch.view_as_real(each[:half]).mT.reshape(2 * half, lengths[1]) for each in columns
    )
    # Re((a + ib) exp(it)) = a cos t - b sin t, with the same signs as exp(-it).
    inverse = planes / points
    inverse[2 : 2 * ((lengths[1] + 1) // 2)] *= 2
    return DFTMatrices(rows, (planes, reverse), inverse)


def _square_matrix(length: int, like: Tensor) -> Tensor:
    numbers = torch.arange(length, dtype=torch.float64, device=like.device)
    return dft_matrix(length, numbers, numbers, like.dtype)


def forward_dft(
    samples: Tensor,
    windows: Windows,
    matrices: DFTMatrices,
    reverse: bool,
    groups: int,
    block: range,
) -> Tensor:
    """Spectra (g, f, group, tile and image, channel) of contiguous, padded samples.

    Args:
        samples: (images, channels, H, W), from :func:`.tiling.padded`.
        windows: of the tiles.
        matrices: of the plan.
        reverse: compute the spectrum at (-f, -g).
        groups: of the channels; 1 for a weight, whose images are ordered by group.
        block: the column frequencies g.
    """
    down, across = windows
    images, channels, height, width = samples.shape
    real = not samples.is_complex()
    planes = 2 if real else 1
    columns = _sampled(
        matrices.columns[reverse][planes * block.start : planes * block.stop], across
    )
    # A view of all windows of a row: (U, samples, image and channel and row).
    cut = samples.view(-1, width).unfold(1, across.count, max(across.hop, 1)).permute(1, 2, 0)
    halfway = torch.bmm(columns.expand(across.tiles, -1, -1), cut)
    halfway = halfway.view(across.tiles, len(block), planes, images, groups, -1, height)
    tiles = halfway.unfold(-1, down.count, max(down.hop, 1)).permute(2, 1, 4, 0, 6, 3, 5, 7)
    del halfway
    if real:
        # With ``out``, the result has this order, which the view below needs.
        lines = tiles.new_empty(tiles.shape[1:], dtype=complex_of(tiles.dtype))
        torch.complex(tiles[0], tiles[1], out=lines)
    else:
        lines = tiles[0].contiguous()
    del tiles
    rows = _sampled(matrices.rows[reverse], down).expand(len(block), -1, -1)
    spectrum = torch.bmm(rows, lines.view(len(block), -1, down.count).mT)
    return spectrum.view(len(block) * rows.shape[1] * groups, -1, channels // groups)


def inverse_matrices(matrices: DFTMatrices, windows: Windows) -> tuple[Tensor, Tensor]:
    """The inverse's matrices for rows and columns, at the needed samples."""
    return _sampled(matrices.rows[1], windows[0]), _sampled(matrices.inverse, windows[1])


def inverse_rows(spectrum: Tensor, rows: Tensor, block: range) -> Tensor:
    """The samples down a tile, (g, v, p), from a block of a spectrum, (g, f, v)."""
    lines = spectrum.view(len(block), rows.shape[0], -1)
    return torch.bmm(lines.mT, rows.expand(len(block), -1, -1))


def inverse_columns(lines: Tensor, columns: Tensor, block: range, sums: Tensor, add: bool) -> None:
    """Compute or add the contribution of these lines to the samples of the tiles.

    Args:
        lines: from :func:`inverse_rows`.
        columns: from :func:`inverse_matrices`.
        block: the column frequencies of ``lines``.
        sums: (v and sample down a tile, sample across), written or added to.
        add: whether to add.
    """
    planes = 1
    if not sums.is_complex():
        planes = 2
        lines = torch.view_as_real(lines.view(len(block), -1)).permute(0, 2, 1).contiguous()
    columns = columns[planes * block.start : planes * block.stop]
    sums.addmm_(lines.view(planes * len(block), -1).mT, columns, beta=int(add))


def _sampled(matrix: Tensor, window: Window) -> Tensor:
    """The columns of a matrix at the samples of a window."""
    if window.start:
        matrix = matrix.roll(-window.start, 1)
    taken = matrix[:, : (window.count - 1) * window.spacing + 1 : window.spacing]
    # A batched product would copy a strided matrix once per batch entry.
    return taken if window.spacing == 1 else taken.contiguous()
