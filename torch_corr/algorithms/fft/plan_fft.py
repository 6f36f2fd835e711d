"""What the engine ``fft`` has in memory and does: pieces as large as fit, then as the cache holds.

A slab's spectra are whole, so what is cut are images, groups, rows of tiles, and at last the
outputs of a group, for each part of which the inputs are transformed anew.
"""

from __future__ import annotations

import math

from ...request import SLOTS, shape_of
from ..base import Cost
from .plans import Machine, Plan, Task, halved


def plan(task: Task, limit: int, machine: Machine) -> Plan:
    """The plan of largest pieces that fit, and that the cache holds; there is always one."""
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
    while peak() > machine.cache and max(block, images, rows) > 1:
        if block > 1:
            block = -(-block // 2)
        else:
            images, rows = halved((images, rows))
    parts = -(-problem.group_out // outs)
    cost = _cost(task, parts)
    if peak() > machine.cache:
        cost = cost._replace(bytes=cost.bytes * machine.out_of_cache)
    pieces = -(-problem.groups // block) * parts * task.slabs((images, rows))
    calls = pieces * (20 + 2 * (outs if map == "grad_input" else problem.group_in))
    cost = cost._replace(calls=calls)
    accumulates = task.accumulates(rows, outs)
    return Plan("fft", task.axes, (images, rows), block, outs, False, accumulates, peak(), cost)


def _peak(task: Task, per_slab: tuple[int, int], block: int, outs: int) -> int:
    """Bytes that :func:`.engine_fft.run` has in memory: three spectra, and the work around one."""
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
        # Two more of the result's: the columns being stacked, and the sum so far.
        work += 2 * block * outs * task.problem.group_in * spectrum
    return total + work + task.sums(task.accumulates(per_slab[1], outs)) + 2**18


def _cost(task: Task, repeats: int) -> Cost:
    """Operations of all groups; the inputs are transformed ``repeats`` times."""
    problem, (height, width) = task.problem, task.lengths
    spectrum = height * task.frequencies(1) * task.complex_itemsize
    single_tile = task.axes[0].tiles == task.axes[1].tiles == 1
    each = 5.0 if task.is_complex else 2.5
    flops = moved = 0.0
    for slot in SLOTS[task.map]:
        size = task.sizes(slot)
        channels = task.channels(slot) * (repeats if slot == "input" else 1)
        # Apart, only rows that are there are transformed.
        operand_itemsize = min(task.windows(slot)[0].count, shape_of(problem, slot)[2])
        rows = operand_itemsize if single_tile else height
        lines = each * rows * width * math.log2(width)
        across = each * (height * width) * math.log2(height)
        flops += channels * size.number * (lines + across)
        moved += channels * (4 * size.cut + 2 * size.padded) * task.itemsize
        # PyTorch's inverse transforms the columns apart, between two transpositions.
        back = 0 if slot != SLOTS[task.map][2] else 2 if single_tile else 4
        moved += channels * size.number * spectrum * back
    moved += 3.0 * task.tiles * problem.group_in * problem.group_out * spectrum
    return Cost(
        fft_flops=problem.groups * flops * task.slow,
        bytes=problem.groups * moved,
    )
