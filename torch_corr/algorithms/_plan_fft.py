"""What the engine ``fft`` has in memory and does: pieces as large as fit, then as the cache holds.

A slab's spectra are whole, so what is cut are images, groups, rows of tiles, and at last the
outputs of a group, for each part of which the inputs are transformed anew.
"""

from __future__ import annotations

import math

from ..problem import Problem
from ._plans import SLOTS, Machine, Plan, channels_of, images_of, shape_of, sizes
from ._tiling import Axis
from .base import Cost, MapName


def plan(
    problem: Problem,
    map: MapName,
    itemsize: int,
    whole: bool,
    axes: tuple[Axis, Axis],
    limit: int,
    machine: Machine,
) -> Plan | None:
    lengths = axes[0].length, axes[1].length
    half = lengths[1] if whole else lengths[1] // 2 + 1
    pair = itemsize if whole else 2 * itemsize
    spectrum, samples = lengths[0] * half * pair, lengths[0] * lengths[1] * itemsize
    per_slab = [max(problem.batch, 1), axes[0].tiles]
    block, outs = problem.groups, problem.group_out

    def peak() -> int:
        total = work = 0
        for slot in SLOTS[map]:
            images = outs if slot == "weight" else per_slab[0]
            size = sizes(axes, slot, images, per_slab[1])
            channels = block * (outs if slot == "output" else problem.group_in)
            # Tiles and PyTorch's own copy of them, or half a spectrum and two of a whole one.
            padded = size.padded + sum(axis.length for axis in axes) * axes[0].length
            transform = size.number * max(2 * samples, 2 * spectrum) + padded * itemsize
            if slot == SLOTS[map][2]:
                transform = max(transform, size.number * (2 * spectrum + 2 * samples))
            total += channels * size.number * spectrum
            work = max(work, channels * transform)
        if map == "grad_weight":
            number = sizes(axes, "output", per_slab[0], per_slab[1]).number
            work = max(work, block * outs * number * spectrum)
            # Two more of the result's: the columns being stacked, and the sum so far.
            work += 2 * block * outs * problem.group_in * spectrum
        return total + work + 2**18

    while peak() > limit:
        if per_slab[0] > 1:
            per_slab[0] = -(-per_slab[0] // 2)
        elif block > 1:
            block = -(-block // 2)
        elif per_slab[1] > 1:
            per_slab[1] = -(-per_slab[1] // 2)
        elif outs > 1:
            outs = -(-outs // 2)
        else:
            break
    while peak() > machine.cache and max(block, *per_slab) > 1:
        if block > 1:
            block = -(-block // 2)
        else:
            which = 0 if per_slab[0] > 1 else 1
            per_slab[which] = -(-per_slab[which] // 2)
    steps = -(-problem.groups // block) * -(-problem.group_out // outs)
    slabs_ = -(-problem.batch // per_slab[0]) * -(-axes[0].tiles // per_slab[1])
    cost = _cost(problem, map, itemsize, whole, axes, -(-problem.group_out // outs))
    if peak() > machine.cache:
        cost = cost._replace(bytes=cost.bytes * machine.out_of_cache)
    calls = steps * slabs_ * (20 + 2 * (problem.group_in if map != "grad_input" else outs))
    return Plan(
        "fft",
        axes,
        (per_slab[0], per_slab[1]),
        block,
        outs,
        False,
        peak(),
        cost._replace(calls=calls),
    )


def _cost(
    problem: Problem,
    map: MapName,
    itemsize: int,
    whole: bool,
    axes: tuple[Axis, Axis],
    repeats: int,
) -> Cost:
    lengths = axes[0].length, axes[1].length
    points = lengths[0] * lengths[1]
    pair = itemsize if whole else 2 * itemsize
    spectrum = points * pair if whole else lengths[0] * (lengths[1] // 2 + 1) * pair
    apart = axes[0].tiles == axes[1].tiles == 1
    slow = itemsize / 8 if whole else itemsize / 4
    flops = moved = 0.0
    for slot in SLOTS[map]:
        size = sizes(axes, slot, images_of(problem, slot, problem.batch), axes[0].tiles)
        channels = channels_of(problem, slot) * (repeats if slot == "input" else 1)
        # Apart, only rows that are there are transformed.
        held = min(getattr(axes[0], slot).count, shape_of(problem, slot)[2])
        rows = held if apart else lengths[0]
        lines = (5.0 if whole else 2.5) * rows * lengths[1] * math.log2(lengths[1])
        across = (5.0 if whole else 2.5) * points * math.log2(lengths[0])
        flops += channels * size.number * (lines + across)
        moved += channels * (4 * size.tiles + 2 * size.padded) * itemsize
        # PyTorch's inverse transforms the columns apart, between two transpositions.
        back = 0 if slot != SLOTS[map][2] else 2 if apart else 4
        moved += channels * size.number * spectrum * back
    tiles = problem.batch * axes[0].tiles * axes[1].tiles
    moved += 3.0 * tiles * problem.group_in * problem.group_out * spectrum
    return Cost(fft_flops=problem.groups * flops * slow, bytes=problem.groups * moved)
