"""What the engine ``matrix`` has in memory and does: as few slabs, and blocks as large, as fit.

What is laid out stays in memory over a slab; spectra are there for a block of row frequencies
alone.  So slabs are halved until one frequency fits, and a block takes what is then left.
"""

from __future__ import annotations

from ..problem import Problem
from ._plans import SLOTS, Machine, Plan, channels_of, images_of, sizes
from ._tiling import Axis
from .base import Cost, MapName

BLOCK = 96 * 2**20
"""Bytes of spectra that the matrix engine makes at one time.  More would leave the cache for
nothing; fewer make thin products, which read the operands anew for every few row frequencies.
On two Zen 4 cores, 128 to 128 channels of 256x256, 32x32: 807 ms with 24 MiB, 644 with 48, 518
with 96, 523 with 180; 64 to 64 of 4x128x128, 8x8: 76, 69, 65, 79."""

LONGEST_MATRIX = 256
"""Above this length a transform by matrix product costs 5 times the FFT and more."""


def plan(
    problem: Problem,
    map: MapName,
    itemsize: int,
    whole: bool,
    axes: tuple[Axis, Axis],
    limit: int,
    machine: Machine,
) -> Plan | None:
    if max(axes[0].length, axes[1].length) > LONGEST_MATRIX or problem.group_in == 0:
        return None
    per_slab = [max(problem.batch, 1), axes[0].tiles]
    frequencies = axes[0].length if whole else axes[0].length // 2 + 1
    pair = itemsize if whole else 2 * itemsize

    def standing() -> tuple[int, int]:
        """Bytes of the laid out operands and the sums; and of the copies beside them."""
        total = beside = 0
        for slot in SLOTS[map]:
            size = sizes(axes, slot, images_of(problem, slot, per_slab[0]), per_slab[1])
            elements = size.tiles if slot == SLOTS[map][2] else size.padded
            total += elements * channels_of(problem, slot) * itemsize
            copies = 2 if slot == SLOTS[map][2] else 1
            beside = max(beside, copies * elements * channels_of(problem, slot) * itemsize)
        return total, beside

    def per_frequency() -> int:
        """Bytes for each row frequency: three spectra, and the largest work around one."""
        total = work = 0
        for slot in SLOTS[map]:
            size = sizes(axes, slot, images_of(problem, slot, per_slab[0]), per_slab[1])
            down, across = getattr(axes[0].run(range(per_slab[1])), slot), getattr(axes[1], slot)
            halfway = size.padded // down.samples * down.tiles
            columns = size.number * across.count
            channels = channels_of(problem, slot) * pair
            total += size.number * axes[1].length * channels
            work = max(work, (halfway + columns) * channels, 2 * columns * channels)
        return total + work

    def peak(block: int) -> int:
        total, beside = standing()
        return constants + total + max(beside, block * per_frequency())

    constants = 2**16 + 16 * 5 * (axes[0].length ** 2 + axes[1].length ** 2)
    while peak(1) > limit and per_slab != [1, 1]:
        which = 0 if per_slab[0] > 1 else 1
        per_slab[which] = -(-per_slab[which] // 2)
    room = min(max(limit - constants - standing()[0], 0), BLOCK)
    block = min(max(room // max(per_frequency(), 1), 1), frequencies)
    block = -(-frequencies // -(-frequencies // block))
    workspace = peak(block)
    many = per_slab[0] < problem.batch or per_slab[1] < axes[0].tiles
    weight = problem.group_out * problem.group_in * axes[1].length * frequencies * pair
    hold = many and map != "grad_weight" and workspace + weight <= limit
    if hold:
        workspace += weight
    slabs_ = -(-problem.batch // per_slab[0]) * -(-axes[0].tiles // per_slab[1])
    cost = _cost(problem, map, itemsize, whole, axes, 1 if hold else slabs_)
    blocks = -(-frequencies // block)
    again = problem.groups * slabs_ * blocks * standing()[0]
    cost = cost._replace(bytes=cost.bytes + again * machine.out_of_cache)
    calls = problem.groups * slabs_ * (20 + 40 * blocks)
    return Plan(
        "matrix",
        axes,
        (per_slab[0], per_slab[1]),
        block,
        problem.group_out,
        hold,
        workspace,
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
    """Operations of all groups; the weight is transformed ``repeats`` times."""
    frequencies = axes[0].length if whole else axes[0].length // 2 + 1
    pair = itemsize if whole else 2 * itemsize
    flops = moved = 0.0
    for slot in SLOTS[map]:
        size = sizes(axes, slot, images_of(problem, slot, problem.batch), axes[0].tiles)
        times = repeats if slot == "weight" else 1
        channels = channels_of(problem, slot) * times
        down, across = getattr(axes[0], slot), getattr(axes[1], slot)
        first = (8 if whole else 4) * frequencies * down.count * across.count
        second = 8 * frequencies * axes[1].length * across.count
        flops += size.number * channels * (first + second)
        moved += channels * (
            4 * size.padded * itemsize
            + size.number * frequencies * (3 * across.count + 2 * axes[1].length) * pair
        )
    tiles = problem.batch * axes[0].tiles * axes[1].tiles
    products = 8.0 * frequencies * axes[1].length * tiles * problem.group_in * problem.group_out
    # A thin matrix product runs at the rate of memory, not of arithmetic.
    thin = max(1.0, 24 / max(min(tiles, problem.group_in, problem.group_out), 1))
    slow = itemsize / 8 if whole else itemsize / 4
    return Cost(
        matmul_flops=problem.groups * slow * (flops + products * thin),
        bytes=problem.groups * moved,
    )
