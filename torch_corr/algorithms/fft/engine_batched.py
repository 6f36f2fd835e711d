"""Transforms as matrix products for a device: few large operators, and no copy that transposes.

On a device an operator costs as much as moving ten megabytes, matrix products are ten times as
fast as transforms, and the slowest copies are those that transpose.  So, unlike in
:mod:`.engine_matrix`, an operand is read as it lies, columns innermost, and matrix products
transpose on their way:

    columns   A[u; g, e] = sum_q D'[g, q] x[e, u*hop + q]     e = (image, group, channel, row)
    a copy    from planes of real and imaginary parts to complex, cut into rows of tiles:
              B[g; v, p],  v = (group, tile, image, channel)
    rows      X[g; f, v] = sum_p D[f, p] B[g; v, p]

X is (g, f, group, tile and image, channel), ready for one batched product over frequencies and
groups; and back, from the sums S[g; f, v] of all products,

    rows      C[g; v, p] = sum_f S[g; f, v] D*[f, p]
    a copy    from complex to planes
    columns   z[v, p; q] = sum_g C[g; v, p] D'*[g, q].

A real operand has half the column frequencies; of them a block at a time goes through all of
this, and adds its part to z: memory is bounded at the price of reading the operands anew.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import Problem
from ...request import SLOTS, MapName
from .plans import Plan
from .tiling import (
    Window,
    Windows,
    complex_of,
    copy_side_by_side,
    overlap_add,
    padded,
    put,
    read_span,
    slabs,
)


def run(
    plan: Plan,
    problem: Problem,
    map: MapName,
    first: Tensor,
    second: Tensor,
    result: Tensor,
    like: Tensor,
) -> None:
    """Run a plan of this engine, all groups at one time.

    Args:
        result: written; but where an input's gradient is added up from tiles, zeros to add to.
        like: an empty tensor of the dtype to compute in, which the operands may not have.
    """
    if map == "grad_weight":
        _weight(plan, problem, first, second, result, like)
    else:
        _tiles(plan, problem, map, first, second, result, like)


def _tiles(
    plan: Plan,
    problem: Problem,
    map: MapName,
    first: Tensor,
    weight: Tensor,
    result: Tensor,
    like: Tensor,
) -> None:
    source, _, target = SLOTS[map]
    groups, matrices = problem.groups, dft_matrices(plan.lengths, like)
    of_weight = plan.windows("weight")
    taps = padded(weight, of_weight, like.dtype).contiguous()
    back = inverse_matrices(matrices, plan.windows(target))
    result = torch.unflatten(result, 1, (groups, -1))
    held: dict[range, Tensor] = {}
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part = slice(images.start, images.stop)
        of_first, windows = plan.windows(source, rows), plan.windows(target, rows)
        samples = padded(first[part], of_first, like.dtype).contiguous()
        order = groups, windows[1].tiles, windows[0].tiles, len(images), result.shape[2]
        count, across = windows[0].count, windows[1].count
        sums = like.new_empty(math.prod(order) * count, across)
        for block in plan.blocks(1, like.is_complex()):
            left = forward_dft(samples, of_first, matrices, False, groups, block)
            if block in held:
                w = held[block]
            else:
                w = forward_dft(taps, of_weight, matrices, map == "forward", 1, block)
                # Its images, the outputs, come group by group.
                w = w.view(len(left), problem.group_out, -1)
            if plan.hold:
                held[block] = w
            spectrum = torch.bmm(left, w.mT if map == "forward" else w)
            del left, w
            lines = rows_back(spectrum, back[0], block)
            del spectrum
            columns_back(lines, back[1], block, sums, add=block.start > 0)
            del lines
        del samples
        _put_tiles(plan, sums.view(*order, count, across), windows, map, result[part])
        del sums


def _put_tiles(plan: Plan, tiles: Tensor, windows: Windows, map: MapName, result: Tensor) -> None:
    """From (group, U, T, image, channel, rows, columns) to (images, groups, channels, H, W)."""
    if map == "forward" or plan.is_overlap_save:
        down, across = (read_span(w, size)[0] for w, size in zip(windows, result.shape[-2:]))
        copy_side_by_side(tiles.permute(3, 0, 4, 2, 1, 5, 6), result[..., down, across])
        return
    tiles = overlap_add(tiles.permute(3, 0, 4, 2, 5, 1, 6), 3, windows[0].hop)
    put(overlap_add(tiles, 4, windows[1].hop), windows, result, add=plan.accumulates)


def _weight(
    plan: Plan, problem: Problem, input: Tensor, output: Tensor, result: Tensor, like: Tensor
) -> None:
    groups, matrices = problem.groups, dft_matrices(plan.lengths, like)
    of_weight = plan.windows("weight")
    back = inverse_matrices(matrices, of_weight)
    sums, add = result.view(-1, result.shape[3]), False
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part = slice(images.start, images.stop)
        of_input, of_output = plan.windows("input", rows), plan.windows("output", rows)
        x = padded(input[part], of_input, like.dtype).contiguous()
        y = padded(output[part], of_output, like.dtype).contiguous()
        for block in plan.blocks(1, like.is_complex()):
            spectrum = torch.bmm(
                forward_dft(y, of_output, matrices, True, groups, block).mT,
                forward_dft(x, of_input, matrices, False, groups, block),
            )
            lines = rows_back(spectrum, back[0], block)
            del spectrum
            columns_back(lines, back[1], block, sums, add)
            add = True
            del lines
        del x, y


class DFTMatrices(NamedTuple):
    """The matrices of all transforms of a plan.

    Attributes:
        rows: ``exp(-2 pi i f p / n)`` as (f, p), and its conjugate.
        columns: the same of (g, q); for real operands real and imaginary parts of each g one below
            the other, as (2 g, q), and of half the frequencies.
        inverse: of the columns: conjugate, divided by both lengths, and with the imaginary parts'
            signs for a real sum, in which frequencies that stand for their mirror images too
            count twice.
    """

    rows: tuple[Tensor, Tensor]
    columns: tuple[Tensor, Tensor]
    inverse: Tensor


def dft_matrices(lengths: tuple[int, int], like: Tensor) -> DFTMatrices:
    """The matrices for operands like one that is given: a dozen operators."""
    down = _circle(lengths[0], like)
    across = down if lengths[0] == lengths[1] else _circle(lengths[1], like)
    rows = down, down.conj().resolve_conj()
    columns = rows if across is down else (across, across.conj().resolve_conj())
    points = lengths[0] * lengths[1]
    if like.is_complex():
        return DFTMatrices(rows, columns, columns[1] / points)
    half = lengths[1] // 2 + 1
    planes, reverse = (
        torch.view_as_real(each[:half]).mT.reshape(2 * half, lengths[1]) for each in columns
    )
    # Re((a + ib) exp(it)) = a cos t - b sin t: the very signs of exp(-it).
    inverse = planes / points
    inverse[2 : 2 * ((lengths[1] + 1) // 2)] *= 2
    return DFTMatrices(rows, (planes, reverse), inverse)


def _circle(length: int, like: Tensor) -> Tensor:
    """``exp(-2 pi i f p / n)``: angles modulo n, exact in float64, rounded once."""
    numbers = torch.arange(length, dtype=torch.float64, device=like.device)
    angles = torch.outer(numbers, numbers).remainder_(length).mul_(-2 * math.pi / length)
    return torch.polar(torch.ones_like(angles), angles).to(complex_of(like.dtype))


def forward_dft(
    samples: Tensor,
    windows: Windows,
    matrices: DFTMatrices,
    reverse: bool,
    groups: int,
    block: range,
) -> Tensor:
    """Spectra (g, f, group, tile and image, channel) of what is padded, contiguous.

    Args:
        reverse: give the spectrum at (-f, -g).
        groups: of the channels; 1 for a weight, of which the images are of groups.
        block: the column frequencies g.
    """
    down, across = windows
    images, channels, height, width = samples.shape
    real = not samples.is_complex()
    planes = 2 if real else 1
    columns = _taken(matrices.columns[reverse][planes * block.start : planes * block.stop], across)
    # All windows of a row: (U, samples, image and channel and row), as they lie.
    cut = samples.view(-1, width).unfold(1, across.count, max(across.hop, 1)).permute(1, 2, 0)
    halfway = torch.bmm(columns.expand(across.tiles, -1, -1), cut)
    halfway = halfway.view(across.tiles, len(block), planes, images, groups, -1, height)
    tiles = halfway.unfold(-1, down.count, max(down.hop, 1)).permute(2, 1, 4, 0, 6, 3, 5, 7)
    del halfway
    if real:
        # Told where to write, it copies in this order, which the view below needs.
        lines = tiles.new_empty(tiles.shape[1:], dtype=complex_of(tiles.dtype))
        torch.complex(tiles[0], tiles[1], out=lines)
    else:
        lines = tiles[0].contiguous()
    del tiles
    rows = _taken(matrices.rows[reverse], down).expand(len(block), -1, -1)
    spectrum = torch.bmm(rows, lines.view(len(block), -1, down.count).mT)
    return spectrum.view(len(block) * rows.shape[1] * groups, -1, channels // groups)


def inverse_matrices(matrices: DFTMatrices, windows: Windows) -> tuple[Tensor, Tensor]:
    """The inverse's matrices of rows and of columns, at the samples that are wanted."""
    return _taken(matrices.rows[1], windows[0]), _taken(matrices.inverse, windows[1])


def rows_back(spectrum: Tensor, rows: Tensor, block: range) -> Tensor:
    """Of a block of a spectrum, (g, f, v), the samples down a tile: (g, v, p)."""
    lines = spectrum.view(len(block), rows.shape[0], -1)
    return torch.bmm(lines.mT, rows.expand(len(block), -1, -1))


def columns_back(lines: Tensor, columns: Tensor, block: range, sums: Tensor, add: bool) -> None:
    """What those contribute to the samples of the tiles.

    Args:
        sums: (v and sample down a tile, sample across), written or added to.
    """
    planes = 1
    if not sums.is_complex():
        planes = 2
        lines = torch.view_as_real(lines.view(len(block), -1)).permute(0, 2, 1).contiguous()
    columns = columns[planes * block.start : planes * block.stop]
    sums.addmm_(lines.view(planes * len(block), -1).mT, columns, beta=int(add))


def _taken(matrix: Tensor, window: Window) -> Tensor:
    """The columns of a matrix at which the samples of a window lie."""
    if window.start:
        matrix = matrix.roll(-window.start, 1)
    taken = matrix[:, : (window.count - 1) * window.spacing + 1 : window.spacing]
    # A batched product would copy it for every matrix of the batch.
    return taken if window.spacing == 1 else taken.contiguous()
