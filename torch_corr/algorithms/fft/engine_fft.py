"""Long transforms by FFT: spectra per image, channels multiplied pair by pair.

A spectrum is (image, channel, row of tiles, tile, row frequency, column frequency); the sum over
the channels of a group is a loop of elementwise products.  That suits depthwise layers and few
channels, where a matrix product would not repay the transposition that it needs.

A single tile that covers everything is transformed axis by axis. That skips rows that are zero,
which is most of a padded kernel, and rows of the result that are not needed, and the inverse
transposes nothing between its two axes.  On two Zen 4 cores one 512 x 512 image with a 101 x 101
kernel takes 0.86 ms so, and 1.03 ms by ``rfft2`` and ``irfft2``; 128 of 72 x 72 with kernels of 31
x 31 take 2.5 and 2.8 ms.

Planning: the spectra of a slab are whole, so images, groups, rows of tiles and finally the outputs
of a group are divided, until the pieces fit in the limit and then in the cache.  Each part of the
outputs transforms the inputs again.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...request import SLOTS, Slot, shape_of
from ..base import Cost
from .plans import DeviceRates, Task, TransformPlan, halved, select
from .tiling import Window, Windows, copy_side_by_side, overlap_add, padded, read_span, store, write


def make_plan(task: Task, limit: int, rates: DeviceRates) -> TransformPlan:
    """The plan with the largest pieces that fit in the limit and the cache; there is always one."""
    problem, map = task.problem, task.map
    (images, rows), block, outs = task.at_once, problem.groups, max(1, problem.group_out)

    def peak() -> int:
        return _peak(task, (images, rows), block, outs)

    while peak() > limit:
        if images > 1:
            images = -(-images // 2)
        elif block > 1:
            block = -(-block // 2)
        elif rows > 1:
            rows = -(-rows // 2)
        elif outs > 1:
            outs = -(-outs // 2)
        else:
            break
    while peak() > rates.cache and max(block, images, rows) > 1:
        if block > 1:
            block = -(-block // 2)
        else:
            images, rows = halved((images, rows))
    parts = -(-problem.group_out // outs)
    cost = _cost(task, parts)
    if peak() > rates.cache:
        cost = cost._replace(bytes=cost.bytes * rates.out_of_cache)
    pieces = -(-problem.groups // block) * parts * task.slabs((images, rows))
    calls = pieces * (20 + 2 * (outs if map == "grad_input" else problem.group_in))
    cost = cost._replace(calls=calls)
    return TransformPlan("fft", task, (images, rows), block, outs, False, peak(), cost)


def _peak(task: Task, per_slab: tuple[int, int], block: int, outs: int) -> int:
    """Peak bytes of :func:`run`: three spectra, and the temporaries for one."""
    (height, width), itemsize = task.lengths, task.itemsize
    spectrum, samples = (
        height * task.frequencies(1) * task.complex_itemsize,
        height * width * itemsize,
    )
    total = work = 0
    for slot in SLOTS[task.map]:
        size = task.sizes(slot, per_slab, outs)
        channels = block * (outs if slot == "output" else task.problem.group_in)
        # Tiles and PyTorch's own copy of them, or half a spectrum and two of a whole one.
        padded = size.padded + (height + width) * height
        transform = size.number * max(2 * samples, 2 * spectrum) + padded * itemsize
        if slot == SLOTS[task.map][2]:
            transform = max(transform, size.number * (2 * spectrum + 2 * samples))
        total += channels * size.number * spectrum
        work = max(work, channels * transform)
    if task.map == "grad_weight":
        number = task.sizes("output", per_slab).number
        work = max(work, block * outs * number * spectrum)
        # Two more spectra of the result: the columns before they are stacked, and the partial sum.
        work += 2 * block * outs * task.problem.group_in * spectrum
    return total + work + task.sums("fft", per_slab[1], outs) + 2**18


def _cost(task: Task, repeats: int) -> Cost:
    """The work of all groups; the inputs are transformed ``repeats`` times."""
    problem, (height, width) = task.problem, task.lengths
    spectrum = height * task.frequencies(1) * task.complex_itemsize
    single_tile = task.single_tile
    each = 5.0 if task.is_complex else 2.5
    flops = traffic = 0.0
    for slot in SLOTS[task.map]:
        size = task.sizes(slot)
        channels = task.channels(slot) * (repeats if slot == "input" else 1)
        # A single tile transforms only the rows that exist.
        read = min(task.windows(slot)[0].count, shape_of(problem, slot)[2])
        rows = read if single_tile else height
        lines = each * rows * width * math.log2(width)
        across = each * (height * width) * math.log2(height)
        flops += channels * size.number * (lines + across)
        traffic += channels * (4 * size.cut + 2 * size.padded) * task.itemsize
        # PyTorch's inverse transposes before and after it transforms the columns.
        back = 0 if slot != SLOTS[task.map][2] else 2 if single_tile else 4
        traffic += channels * size.number * spectrum * back
    traffic += 3.0 * task.tiles * problem.group_in * problem.group_out * spectrum
    return Cost(
        fft_flops=problem.groups * flops * task.dtype_slowdown,
        bytes=problem.groups * traffic,
    )


# -- running -------------------------------------------------------------------------------------


def run(plan: TransformPlan, first: Tensor, second: Tensor, result: Tensor, like: Tensor) -> None:
    """Run a plan of this engine, some groups at a time, and for one group some outputs at a time;
    see :mod:`.algorithm`."""
    task = plan.task
    for start in range(0, task.problem.groups, plan.block):
        groups = range(start, min(start + plan.block, task.problem.groups))
        for low in range(0, task.problem.group_out, plan.outs):
            outs = range(low, min(low + plan.outs, task.problem.group_out))
            a, b, c = (
                select(task.problem, slot, tensor, groups, outs)
                for slot, tensor in zip(SLOTS[task.map], (first, second, result))
            )
            if task.map == "grad_weight":
                _weight_of_groups(plan, len(groups), a, b, c, like.dtype)
            else:
                _tiles_of_groups(plan, len(groups), a, b, c, like.dtype)


def _tiles_of_groups(
    plan: TransformPlan,
    groups: int,
    first: Tensor,
    weight: Tensor,
    result: Tensor,
    dtype: torch.dtype,
) -> None:
    task = plan.task
    source, _, target = SLOTS[task.map]
    w = forward_dft(task, weight, task.windows("weight"), task.map == "forward", dtype)
    w = torch.unflatten(w.squeeze((2, 3)), 0, (groups, -1))
    if task.map == "forward":
        w = w.transpose(1, 2)
    for images, rows in plan.slabs():
        part = slice(images.start, images.stop)
        spectra = forward_dft(task, first[part], _read(plan, source, rows), False, dtype)
        product = _sum_over_channels(torch.unflatten(spectra, 1, (groups, -1)), w)
        del spectra
        windows = task.windows(target, rows)
        inverse_dft(task, product.flatten(1, 2), windows, result[part], plan.accumulates)
        del product


def _weight_of_groups(
    plan: TransformPlan,
    groups: int,
    input: Tensor,
    output: Tensor,
    result: Tensor,
    dtype: torch.dtype,
) -> None:
    task, sums = plan.task, None
    for images, rows in plan.slabs():
        part = slice(images.start, images.stop)
        x = forward_dft(task, input[part], _read(plan, "input", rows), False, dtype)
        y = forward_dft(task, output[part], task.windows("output", rows), True, dtype)
        x, y = (torch.unflatten(each, 1, (groups, -1)) for each in (x, y))
        product = _sum_over_tiles(x, y)
        del x, y
        sums = product if sums is None else sums.add_(product)
        del product
    assert sums is not None
    spectrum = sums.flatten(0, 1)[:, :, None, None]
    inverse_dft(task, spectrum, task.windows("weight"), result, False)


def _read(plan: TransformPlan, slot: Slot, rows: range) -> Windows:
    """The windows of an operand; whole tiles where pixels that no product uses need not be zero."""
    task = plan.task
    down, across = task.windows(slot, rows)
    if slot != "input" or task.single_tile:
        return down, across
    return replace(down, count=task.lengths[0]), replace(across, count=task.lengths[1])


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
    task: Task, tensor: Tensor, windows: Windows, reverse: bool, dtype: torch.dtype
) -> Tensor:
    """Spectra of the tiles of (images, channels, H, W): (images, channels, T, U, f, g).

    Args:
        task: of the plan; a single tile is transformed axis by axis.
        tensor: the operand.
        windows: of the tiles.
        reverse: compute the spectrum at (-f, -g).
        dtype: the dtype to compute in.
    """
    if task.single_tile:
        return _forward_dft_of_single_tile(tensor, windows, task.lengths, reverse, dtype)
    tiles = _cut(tensor, windows, task.lengths, dtype)
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
    # Without its scaling, the inverse is the transform at -f.
    full, norm = (torch.fft.ifft, "forward") if reverse else (torch.fft.fft, "backward")
    spectrum: Tensor
    part = tensor[:, :, rows, columns]
    if part.shape[3] != lengths[1]:
        some, part = part, tensor.new_zeros(*part.shape[:3], lengths[1], dtype=dtype)
        part[..., to_columns] = some
    if part.shape[2] == 0:
        # The windows contain only padding; MKL cannot transform zero rows.
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


def inverse_dft(task: Task, spectrum: Tensor, windows: Windows, result: Tensor, add: bool) -> None:
    """Transform (images, channels, T, U, f, g) back, into (images, channels, H, W).

    Args:
        task: of the plan.
        spectrum: of all tiles.
        windows: of the tiles in the result.
        result: the output.
        add: whether to add to the result.
    """
    down, across = windows
    (rows, from_rows), (columns, from_columns) = (
        _inside(window, size) for window, size in zip(windows, result.shape[2:])
    )
    place = result[:, :, rows, columns]
    if place.numel() == 0:
        return  # the tiles contain only padding
    if task.single_tile:
        lines = torch.fft.ifft(spectrum[:, :, 0, 0], dim=2)[:, :, from_rows]
        if result.is_complex():
            values = torch.fft.ifft(lines, dim=3)
        else:
            values = torch.fft.irfft(lines, task.lengths[1], dim=3)
        store(place, values[..., from_columns], add)
        return
    if result.is_complex():
        tiles = torch.fft.ifft2(spectrum)
    else:
        tiles = torch.fft.irfft2(spectrum, s=task.lengths)
    if down.tiles == across.tiles == 1:
        store(place, tiles[:, :, 0, 0, from_rows, from_columns], add)
        return
    tiles = tiles[..., :: down.spacing, :: across.spacing][..., : down.count, : across.count]
    if down.side_by_side and across.side_by_side and not add:
        copy_side_by_side(tiles, place)
        return
    sums = overlap_add(overlap_add(tiles.permute(0, 1, 2, 4, 3, 5), 2, down.hop), 3, across.hop)
    write(sums, windows, result, add)


def _inside(window: Window, size: int) -> tuple[slice, slice]:
    """The samples of an axis under the tiles, and their positions in the transform of a single
    tile."""
    axis, samples = read_span(window, size)
    last = max(samples.stop - 1, samples.start)
    return axis, slice(
        samples.start * window.spacing,
        last * window.spacing + (samples.stop > samples.start),
        window.spacing,
    )


def _cut(tensor: Tensor, windows: Windows, lengths: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Tiles (images, channels, T, U, length, length) of a tensor, padded with zeros."""
    down, across = windows
    cut = padded(tensor, windows, dtype).unfold(2, down.count, max(down.hop, 1))
    cut = cut.unfold(3, across.count, max(across.hop, 1))
    if cut.shape[4:] == lengths:
        return cut
    tiles = cut.new_zeros(*cut.shape[:4], *lengths)
    height, width = ((window.count - 1) * window.spacing + 1 for window in windows)
    tiles[..., : height : down.spacing, : width : across.spacing] = cut
    return tiles
