"""Long transforms by FFT: spectra laid out image by image, channels multiplied pair by pair.

A spectrum is (image, channel, row of tiles, tile, row frequency, column frequency); the sum
over the channels of a group is a loop of elementwise products.  That suits one channel,
depthwise and a few channels, where no matrix product could gain from the transposition that
it needs.

Where one tile holds all, each axis is transformed by itself: rows of nothing but zeros, of which
a padded kernel mostly consists, are left out, and so are rows of the result that nobody
asked for; and no axis is transposed between the two of the inverse.  On two Zen 4 cores one
512 x 512 image with a 101 x 101 kernel takes 0.86 ms so, and 1.03 ms by ``rfft2`` and ``irfft2``;
128 of 72 x 72 with kernels of 31 x 31 take 2.5 and 2.8 ms.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...problem import Problem
from ...request import SLOTS, MapName, Slot
from .plans import Plan
from .tiling import Window, Windows, copy_side_by_side, overlap_add, padded, put, read_span, slabs


def run(
    plan: Plan,
    problem: Problem,
    map: MapName,
    first: Tensor,
    second: Tensor,
    result: Tensor,
    like: Tensor,
) -> None:
    """Run a plan of this engine, some groups at one time, and of one group some outputs.

    Args:
        result: written; but where an input's gradient is added up from tiles, zeros to add to.
        like: an empty tensor of the dtype to compute in, which the operands may not have.
    """
    for start in range(0, problem.groups, plan.block):
        groups = range(start, min(start + plan.block, problem.groups))
        for low in range(0, problem.group_out, plan.outs):
            outs = range(low, min(low + plan.outs, problem.group_out))
            a, b, c = (
                _select(problem, slot, tensor, groups, outs)
                for slot, tensor in zip(SLOTS[map], (first, second, result))
            )
            if map == "grad_weight":
                _weight_of_groups(plan, problem.batch, len(groups), a, b, c, like.dtype)
            else:
                _tiles_of_groups(plan, problem, map, len(groups), a, b, c, like.dtype)


def _select(problem: Problem, slot: Slot, tensor: Tensor, groups: range, outs: range) -> Tensor:
    """Some groups, and of each some outputs, of an operand: a view."""
    dim = 0 if slot == "weight" else 1
    each = problem.group_in if slot == "input" else problem.group_out
    part = tensor.narrow(dim, groups.start * each, len(groups) * each)
    if slot == "input" or len(outs) == each:
        return part
    return part.narrow(dim, outs.start, len(outs))  # only ever within one group


def _tiles_of_groups(
    plan: Plan,
    problem: Problem,
    map: MapName,
    groups: int,
    first: Tensor,
    weight: Tensor,
    result: Tensor,
    dtype: torch.dtype,
) -> None:
    (source, _, target), single_tile = SLOTS[map], plan.single_tile
    taps = plan.windows("weight")
    w = forward_dft(weight, taps, plan.lengths, map == "forward", single_tile, dtype)
    w = torch.unflatten(w.squeeze((2, 3)), 0, (groups, -1))
    if map == "forward":
        w = w.transpose(1, 2)
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part = slice(images.start, images.stop)
        read = _read(plan, source, rows)
        spectra = forward_dft(first[part], read, plan.lengths, False, single_tile, dtype)
        product = _sum_over_channels(torch.unflatten(spectra, 1, (groups, -1)), w)
        del spectra
        windows = plan.windows(target, rows)
        inverse_dft(
            product.flatten(1, 2),
            windows,
            plan.lengths,
            single_tile,
            result[part],
            plan.accumulates,
        )
        del product


def _weight_of_groups(
    plan: Plan,
    batch: int,
    groups: int,
    input: Tensor,
    output: Tensor,
    result: Tensor,
    dtype: torch.dtype,
) -> None:
    single_tile, sums = plan.single_tile, None
    for images, rows in slabs(batch, plan.axes[0].tiles, plan.per_slab):
        part = slice(images.start, images.stop)
        read, of_output = _read(plan, "input", rows), plan.windows("output", rows)
        x = forward_dft(input[part], read, plan.lengths, False, single_tile, dtype)
        y = forward_dft(output[part], of_output, plan.lengths, True, single_tile, dtype)
        x, y = (torch.unflatten(each, 1, (groups, -1)) for each in (x, y))
        product = _sum_over_tiles(x, y)
        del x, y
        sums = product if sums is None else sums.add_(product)
        del product
    assert sums is not None
    windows = plan.windows("weight")
    spectrum = sums.flatten(0, 1)[:, :, None, None]
    inverse_dft(spectrum, windows, plan.lengths, single_tile, result, False)


def _read(plan: Plan, slot: Slot, rows: range) -> Windows:
    """Where an operand is read: in whole tiles, for pixels that no product meets need no zeros."""
    down, across = plan.windows(slot, rows)
    if slot != "input" or plan.single_tile:
        return down, across
    return replace(down, count=plan.lengths[0]), replace(across, count=plan.lengths[1])


def _sum_over_channels(spectra: Tensor, weight: Tensor) -> Tensor:
    """``sum_a S[n, g, a, tiles, f] W[g, a, b, f]``, as (n, g, b, tiles, f)."""
    total: Tensor | None = None
    for a in range(weight.shape[1]):
        factors = spectra[:, :, a, None], weight[None, :, a, :, None, None]
        total = torch.mul(*factors) if total is None else total.addcmul_(*factors)
    assert total is not None
    return total


def _sum_over_tiles(input: Tensor, output: Tensor) -> Tensor:
    """``sum_{n,tiles} Y[n, g, o, tiles, f] X[n, g, c, tiles, f]``, as (g, o, c, f)."""
    if input.shape[0] == input.shape[3] == input.shape[4] == 1:
        return output[0, :, :, None, 0, 0] * input[0, :, None, :, 0, 0]
    columns = [
        torch.mul(output, input[:, :, c, None]).sum((0, 3, 4)) for c in range(input.shape[2])
    ]
    return torch.stack(columns, 2)


def forward_dft(
    tensor: Tensor,
    windows: Windows,
    lengths: tuple[int, int],
    reverse: bool,
    single_tile: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Spectra of the tiles of (images, channels, H, W): (images, channels, T, U, f, g).

    Args:
        reverse: give the spectrum at (-f, -g).
        single_tile: transform each axis by itself; for one tile.
        dtype: to compute in.
    """
    if single_tile:
        return _forward_dft_of_single_tile(tensor, windows, lengths, reverse, dtype)
    tiles = _cut(tensor, windows, lengths, dtype)
    spectrum: Tensor
    if tensor.is_complex():
        spectrum = torch.fft.ifft2(tiles, norm="forward") if reverse else torch.fft.fft2(tiles)
        return spectrum
    spectrum = torch.fft.rfft2(tiles)
    return spectrum.conj_physical_() if reverse else spectrum


def _forward_dft_of_single_tile(
    tensor: Tensor,
    windows: Windows,
    lengths: tuple[int, int],
    reverse: bool,
    dtype: torch.dtype,
) -> Tensor:
    (rows, to_rows), (columns, to_columns) = (
        _inside(window, size) for window, size in zip(windows, tensor.shape[2:])
    )
    # Scaled by nothing, the inverse is the transform at -f.
    full, norm = (torch.fft.ifft, "forward") if reverse else (torch.fft.fft, "backward")
    spectrum: Tensor
    part = tensor[:, :, rows, columns]
    if part.shape[3] != lengths[1]:
        some, part = part, tensor.new_zeros(*part.shape[:3], lengths[1], dtype=dtype)
        part[..., to_columns] = some
    if part.shape[2] == 0:
        # Windows on nothing but padding; MKL refuses to transform no rows.
        part = tensor.new_zeros(*part.shape[:2], 1, lengths[1])
        to_rows = slice(0, 1)
    part = part.to(dtype)
    if tensor.is_complex():
        spectrum = full(part, norm=norm)
    else:
        spectrum = torch.fft.rfft(part)
        if reverse:
            spectrum = spectrum.conj_physical_()
    del part
    if spectrum.shape[2] != lengths[0]:
        some = spectrum
        spectrum = some.new_zeros(*some.shape[:2], lengths[0], some.shape[3])
        spectrum[:, :, to_rows] = some
        del some
    spectrum = full(spectrum, dim=2, norm=norm)
    return spectrum[:, :, None, None]


def inverse_dft(
    spectrum: Tensor,
    windows: Windows,
    lengths: tuple[int, int],
    single_tile: bool,
    result: Tensor,
    add: bool,
) -> None:
    """From (images, channels, T, U, f, g) to where the tiles lie in (images, channels, H, W).

    Args:
        single_tile: as the spectrum was made.
        add: to what is there.
    """
    down, across = windows
    (rows, from_rows), (columns, from_columns) = (
        _inside(window, size) for window, size in zip(windows, result.shape[2:])
    )
    place = result[:, :, rows, columns]
    if place.numel() == 0:
        return  # these tiles lie on nothing but padding
    if single_tile:
        lines = torch.fft.ifft(spectrum[:, :, 0, 0], dim=2)[:, :, from_rows]
        if result.is_complex():
            values = torch.fft.ifft(lines, dim=3)
        else:
            values = torch.fft.irfft(lines, lengths[1], dim=3)
        _put(place, values[..., from_columns], add)
        return
    if result.is_complex():
        tiles = torch.fft.ifft2(spectrum)
    else:
        tiles = torch.fft.irfft2(spectrum, s=lengths)
    if down.tiles == across.tiles == 1:
        _put(place, tiles[:, :, 0, 0, from_rows, from_columns], add)
        return
    tiles = tiles[..., :: down.spacing, :: across.spacing][..., : down.count, : across.count]
    if down.side_by_side and across.side_by_side and not add:
        copy_side_by_side(tiles, place)
        return
    sums = overlap_add(overlap_add(tiles.permute(0, 1, 2, 4, 3, 5), 2, down.hop), 3, across.hop)
    put(sums, windows, result, add)


def _put(place: Tensor, values: Tensor, add: bool) -> None:
    if add:
        place.add_(values)
    else:
        place.copy_(values)


def _inside(window: Window, size: int) -> tuple[slice, slice]:
    """What of an axis lies under one tile or more, and at which samples of the transform."""
    axis, samples = read_span(window, size)
    last = max(samples.stop - 1, samples.start)
    return axis, slice(
        samples.start * window.spacing,
        last * window.spacing + (samples.stop > samples.start),
        window.spacing,
    )


def _cut(tensor: Tensor, windows: Windows, lengths: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Tiles (images, channels, T, U, length, length) of a tensor, zeros where it has no samples."""
    down, across = windows
    cut = padded(tensor, windows, dtype).unfold(2, down.count, max(down.hop, 1))
    cut = cut.unfold(3, across.count, max(across.hop, 1))
    if cut.shape[4:] == lengths:
        return cut
    tiles = cut.new_zeros(*cut.shape[:4], *lengths)
    height, width = ((window.count - 1) * window.spacing + 1 for window in windows)
    tiles[..., : height : down.spacing, : width : across.spacing] = cut
    return tiles
