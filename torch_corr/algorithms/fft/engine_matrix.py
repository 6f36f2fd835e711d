"""Short transforms as matrix products: spectra laid out for the sums over channels.

The transform of a tile x (rows by columns) is ``D x D'`` with ``D[f, p] = exp(-2 pi i f p / n)``.
As matrices, the transforms cost O(n) per pixel instead of O(log n), yet for tiles up to
about 64 they win beside many channels:

* they run at the rate of the matrix product (175 GFLOP/s against the FFT's 40 on two Zen 5
  cores, float32);
* only the samples that are there are read and only those that are wanted are written: a
  kernel's zero padding, an output's stride and a weight's dilation are missing columns (rows)
  of ``D`` and cost nothing;
* images, tiles and channels stay innermost, so a spectrum comes out as (frequency, tile,
  channel), ready for one batched product, where an FFT would have to be transposed (4 to 13
  GB/s);
* a block of frequencies is a block of rows of ``D``: memory is bounded by going through the
  spectrum in blocks, which repeats no arithmetic.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import Problem
from ...request import SLOTS, MapName
from .plans import Plan, frequencies
from .tiling import Window, Windows, complex_of, overlap_add, put, read_span, slabs


def run(
    plan: Plan,
    problem: Problem,
    map: MapName,
    first: Tensor,
    second: Tensor,
    result: Tensor,
    like: Tensor,
) -> None:
    """Run a plan of this engine, group by group.

    Args:
        result: written; but where an input's gradient is added up from tiles, zeros to add to.
        like: an empty tensor of the dtype to compute in, which the operands may not have.
    """
    channels = {"input": problem.group_in, "output": problem.group_out}
    for group in range(problem.groups):
        a, b, c = (
            tensor.narrow(0, group * problem.group_out, problem.group_out)
            if slot == "weight"
            else tensor.narrow(1, group * channels[slot], channels[slot])
            for slot, tensor in zip(SLOTS[map], (first, second, result))
        )
        if map == "grad_weight":
            _weight_of_group(plan, problem, a, b, c, like)
        else:
            _tiles_of_group(plan, problem, map, a, b, c, like)


def _tiles_of_group(
    plan: Plan,
    problem: Problem,
    map: MapName,
    first: Tensor,
    weight: Tensor,
    result: Tensor,
    like: Tensor,
) -> None:
    source, _, target = SLOTS[map]
    of_first = dft_matrices(plan.windows(source), plan.lengths, False, like)
    of_weight = dft_matrices(plan.windows("weight"), plan.lengths, map == "forward", like)
    inverse = inverse_dft_matrices(plan.windows(target), plan.lengths, like)
    taps = lay_out(weight, plan.windows("weight"), like.dtype)
    held: dict[range, Tensor] = {}
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part, windows = slice(images.start, images.stop), plan.windows(target, rows)
        tiles = lay_out(first[part], plan.windows(source, rows), like.dtype)
        number = len(images) * windows[0].tiles * windows[1].tiles
        sums = like.new_zeros(windows[0].count, windows[1].count * number * result.shape[1])
        for block in plan.blocks(0, like.is_complex()):
            w = held[block] if block in held else forward_dft(taps, of_weight, block)
            if plan.hold:
                held[block] = w
            spectrum = torch.bmm(
                forward_dft(tiles, of_first, block), w.mT if map == "forward" else w
            )
            del w
            inverse_dft(spectrum, sums, inverse, block)
            del spectrum
        del tiles
        samples = put_together(sums, windows, len(images))
        put(samples, windows, result[part], add=plan.accumulates)


def _weight_of_group(
    plan: Plan, problem: Problem, input: Tensor, output: Tensor, result: Tensor, like: Tensor
) -> None:
    of_input = dft_matrices(plan.windows("input"), plan.lengths, False, like)
    of_output = dft_matrices(plan.windows("output"), plan.lengths, True, like)
    windows = plan.windows("weight")
    inverse = inverse_dft_matrices(windows, plan.lengths, like)
    sums = like.new_zeros(windows[0].count, result.numel() // windows[0].count)
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part = slice(images.start, images.stop)
        x = lay_out(input[part], plan.windows("input", rows), like.dtype)
        y = lay_out(output[part], plan.windows("output", rows), like.dtype)
        for block in plan.blocks(0, like.is_complex()):
            spectrum = torch.bmm(
                forward_dft(y, of_output, block).mT, forward_dft(x, of_input, block)
            )
            inverse_dft(spectrum, sums, inverse, block)
            del spectrum
        del x, y
    result.copy_(put_together(sums, windows, result.shape[0]))


class Tiles(NamedTuple):
    """One operand under its tiles: samples as (rows, columns, images, channels)."""

    samples: Tensor
    windows: Windows


class DFTMatrices(NamedTuple):
    """The matrices of one operand's transform: (frequencies, samples) of rows and of columns."""

    rows: Tensor
    columns: Tensor


def dft_matrices(
    windows: Windows, lengths: tuple[int, int], reverse: bool, like: Tensor
) -> DFTMatrices:
    """``exp(-+ 2 pi i f p / n)`` for the samples p of the windows, at all column frequencies and
    all row frequencies, or half of these for real operands; ``reverse`` takes the lower sign."""
    rows = frequencies(lengths[0], like.is_complex())
    return DFTMatrices(
        _axis_matrix(lengths[0], windows[0], rows, reverse, like),
        _axis_matrix(lengths[1], windows[1], lengths[1], reverse, like),
    )


def lay_out(tensor: Tensor, windows: Windows, dtype: torch.dtype) -> Tiles:
    """The samples of a (images, channels, H, W) tensor under its tiles, zeros where it has none."""
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

    ``X[f, g] = sum_{p,q} D[f, p] x[p, q] D'[g, q]`` for row frequencies f in ``block`` and
    all column frequencies g, where D and D' are the ``matrices`` of rows and columns.
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
    """Tiles along the columns too: (T, f, W, e) to complex (f, column, T, U, e), one pass.

    Of a real operand ``halfway`` holds the planes of real and imaginary parts along f.
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
    """Add to ``sums`` what a block of a spectrum contributes to the samples of its tiles.

    ``x[p, q] = 1/(n m) sum_{f,g} D[f, p] X[f, g] D'[g, q]`` with the reverse ``matrices``; of a
    real operand ``block`` is part of the half spectrum, and X[-f, -g] = conj X[f, g] is added.

    Args:
        spectrum: (frequency, tile and image, channel) as :func:`forward_dft` gives it.
        sums: (samples down a tile, everything else), added to in place.
        matrices: of the result's windows, reverse, and divided by the lengths
            (see :func:`inverse_dft_matrices`).
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
    """The matrices that :func:`inverse_dft` needs; of a real result, for the half spectrum,
    where the frequencies that stand for their mirror images too count twice."""
    rows, columns = dft_matrices(windows, lengths, True, like)
    if not like.is_complex():
        rows[1 : (lengths[0] + 1) // 2] *= 2
    return DFTMatrices(rows / lengths[0], columns / lengths[1])


def put_together(sums: Tensor, windows: Windows, images: int) -> Tensor:
    """From the samples of every tile to (images, channels, rows, columns) under the tiles."""
    down, across = windows
    tiles = sums.view(down.count, across.count, down.tiles, across.tiles, images, -1)
    tiles = tiles.permute(2, 0, 3, 1, 4, 5)
    samples = overlap_add(overlap_add(tiles, 0, down.hop), 1, across.hop)
    return samples.permute(2, 3, 0, 1)


def _axis_matrix(length: int, window: Window, number: int, reverse: bool, like: Tensor) -> Tensor:
    """At so many frequencies; angles reduced modulo n in integers, rounded once, from float64."""
    positions = torch.arange(window.count, device=like.device) * window.spacing
    steps = torch.outer(torch.arange(number, device=like.device), positions) % length
    angles = steps.to(torch.float64) * ((2 if reverse else -2) * math.pi / length)
    return torch.polar(torch.ones_like(angles), angles).to(complex_of(like.dtype))
