"""What the engine ``batched`` has in memory and does: as many frequencies at one time as fit.

Each operator waits for the host, so fewer blocks and slabs are the quicker plan; but operands are
read anew for every block, and smaller slabs leave room for larger blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..problem import Problem
from ._plans import SLOTS, SUMMED, Machine, Plan, Sizes, Slot, channels_of, images_of, rank, sizes
from ._tiling import Axis, Turned, Window, Windows
from .base import Cost, MapName

LONGEST_BATCHED = 512
"""The same on a device, whose matrix products are 9 times as fast as its transforms."""

QUANTUM = 32
"""To what multiple of rows and of columns a device's matrix product goes, as far as time shows:
2112 complex products of 49 x 128 with 128 x 128 take 381 us on an H200, 35.6 TFLOP/s, and filled
up to 64 rows 46.5."""

COMPLEX_PRODUCT = 1.11
"""How many times longer a complex product's multiplications take than a real one's, then."""

MOST_PRODUCTS = 2**16 - 1
"""In one batch: as many as a launch of CUDA's has blocks along its last dimension."""


def plan(
    problem: Problem,
    map: MapName,
    itemsize: int,
    whole: bool,
    axes: tuple[Axis, Axis],
    limit: int,
    machine: Machine,
) -> Plan | None:
    """The best of ever smaller slabs, each with as many frequencies at one time as there is room
    for; that of least workspace if none fits."""
    most = MOST_PRODUCTS // (axes[0].length * problem.groups)
    longest = max(axes[0].length, axes[1].length)
    if longest > LONGEST_BATCHED or problem.group_in == 0 or most == 0:
        return None
    frequencies = axes[1].length if whole else axes[1].length // 2 + 1
    best: Plan | None = None
    images, rows = max(problem.batch, 1), axes[0].tiles
    while True:
        many = images < problem.batch or rows < axes[0].tiles
        for hold in (False, True) if many and map != "grad_weight" else (False,):
            memory = _Memory(problem, map, itemsize, whole, axes, (images, rows), hold)
            room = (limit - memory.standing) // max(memory.of_frequency, 1)
            block = min(max(room, 1), frequencies, most)
            block = -(-frequencies // -(-frequencies // block))
            made = Plan(
                "batched",
                axes,
                (images, rows),
                block,
                problem.group_out,
                hold,
                memory.peak(block),
                _cost(problem, map, itemsize, whole, axes, (images, rows), block, hold),
            )
            if best is None or rank(made, limit, machine) < rank(best, limit, machine):
                best = made
        if images == rows == 1:
            return best
        images, rows = (-(-images // 2), rows) if images > 1 else (images, -(-rows // 2))


@dataclass(frozen=True)
class _Memory:
    """What :func:`._batched.run` has in memory, in bytes."""

    problem: Problem
    map: MapName
    itemsize: int
    whole: bool
    axes: tuple[Axis, Axis]
    per_slab: tuple[int, int]
    hold: bool

    def peak(self, block: int) -> int:
        """With so many column frequencies at one time."""
        return self.standing + max(block * self.of_frequency, self.overlapping)

    @cached_property
    def standing(self) -> int:
        """The waves, the padded operands, the samples of the tiles, a weight's whole spectrum."""
        total = 2**16 + 64 * sum(axis.length**2 for axis in self.axes)
        first, second, target = SLOTS[self.map]
        total += sum(self._count(slot).padded for slot in (first, second)) * self.itemsize
        if target != "weight":
            total += self._count(target).tiles * self.itemsize
        return total + (self.frequencies * self._spectrum("weight") if self.hold else 0)

    @cached_property
    def of_frequency(self) -> int:
        """Spectra, and what is on the way to them and from them."""
        before, after, target = SLOTS[self.map]
        if target == "weight":
            before, after = after, before
        first, second, third = (self._spectrum(slot) for slot in (before, after, target))
        kept = 0 if self.hold else second
        lines = self._lines(target)
        return max(
            self._way(before) + self._lines(before),
            first + self._lines(after) + (self._planes(after) if self.hold else self._way(after)),
            first + kept + third,
            third + lines,
            2 * lines,
        )

    @property
    def overlapping(self) -> int:
        """The sums of tiles that overlap, along the rows and then along the columns."""
        if self.map != "grad_input" or isinstance(self.axes[0], Turned):
            return 0
        down, across = self._windows("input")
        planes = self.per_slab[0] * self.problem.in_channels
        rows, columns = (_lapped(window) for window in (down, across))
        total = 0 if down.tiles == 1 else planes * rows * across.tiles * across.count
        total += 0 if across.tiles == 1 else planes * down.samples * columns
        return total * self.itemsize

    @property
    def frequencies(self) -> int:
        return self.axes[1].length if self.whole else self.axes[1].length // 2 + 1

    @property
    def pair(self) -> int:
        return self.itemsize if self.whole else 2 * self.itemsize

    def _way(self, slot: Slot) -> int:
        """The larger of an operand's planes and its spectrum, one of which is beside its lines."""
        return max(self._planes(slot), self._spectrum(slot))

    def _planes(self, slot: Slot) -> int:
        across = self._windows(slot)[1]
        return self._count(slot).padded // across.samples * across.tiles * self.pair

    def _lines(self, slot: Slot) -> int:
        return self._count(slot).number * self._windows(slot)[0].count * self.pair

    def _spectrum(self, slot: Slot) -> int:
        return self._count(slot).number * self.axes[0].length * self.pair

    def _windows(self, slot: Slot) -> Windows:
        return getattr(self.axes[0].run(range(self.per_slab[1])), slot), getattr(self.axes[1], slot)

    def _count(self, slot: Slot) -> Sizes:
        """Samples and tiles of all channels."""
        images = images_of(self.problem, slot, self.per_slab[0])
        channels = self.problem.groups * channels_of(self.problem, slot)
        return Sizes(*(channels * n for n in sizes(self.axes, slot, images, self.per_slab[1])))


def _lapped(window: Window) -> int:
    """Samples of an axis in which tiles are added up."""
    return (window.tiles - 1 - -window.count // window.hop) * window.hop


def _cost(
    problem: Problem,
    map: MapName,
    itemsize: int,
    whole: bool,
    axes: tuple[Axis, Axis],
    per_slab: tuple[int, int],
    block: int,
    hold: bool,
) -> Cost:
    """Of all slabs and blocks; products in multiples of what a device's fill."""
    pair, planes = (itemsize, 1) if whole else (2 * itemsize, 2)
    real, height = COMPLEX_PRODUCT * 4 if whole else 1, axes[0].length
    frequencies = axes[1].length if whole else axes[1].length // 2 + 1
    slabs_ = -(-problem.batch // per_slab[0]) * -(-axes[0].tiles // per_slab[1])
    blocks = -(-frequencies // block)
    flops = moved = 0.0
    for slot in SLOTS[map]:
        down, across = getattr(axes[0], slot), getattr(axes[1], slot)
        repeats = slabs_ if slot == "weight" != SLOTS[map][2] and not hold else 1
        channels = repeats * problem.groups * channels_of(problem, slot)
        size = sizes(axes, slot, images_of(problem, slot, problem.batch), axes[0].tiles)
        padded, samples, number = (channels * each for each in size)
        lines, spectrum = number * down.count * frequencies, number * height * frequencies
        moved += 2 * (spectrum + lines) * pair
        if slot == SLOTS[map][2]:
            flops += _product(frequencies, down.count, number, height, COMPLEX_PRODUCT * 4)
            flops += _product(1, across.count, number * down.count, planes * frequencies, real)
            # Of a weight each slab, and of all each block adds to what is there.
            sums = blocks * (slabs_ if slot == "weight" else 1)
            moved += 2 * lines * (planes - 1) * pair + (2 * sums - 1) * samples * itemsize
            if slot == "output" or isinstance(axes[0], Turned):
                moved += 2 * samples * itemsize
            elif slot == "input":
                # Zeros, sums and copies: down, across, and into the result.
                lapped = samples * min(1, down.hop / down.count)
                moved += (samples + 6 * lapped) * itemsize
                moved += 9 * lapped * min(1, across.hop / across.count) * itemsize
        else:
            rows = padded // across.samples
            halfway = rows * across.tiles * frequencies
            flops += _product(blocks * across.tiles, planes * block, rows, across.count, real)
            flops += _product(frequencies, height, number, down.count, COMPLEX_PRODUCT * 4)
            copies = 0 if slot == "weight" else 3
            moved += (copies + blocks) * padded * itemsize + (halfway + lines) * pair
    tiles = per_slab[0] * per_slab[1] * axes[1].tiles
    counts = {"input": problem.group_in, "output": problem.group_out, "tiles": tiles}
    terms = counts.pop(SUMMED[map])
    rows, columns = counts.values()
    number = slabs_ * frequencies * height * problem.groups
    flops += _product(number, rows, columns, terms, COMPLEX_PRODUCT * 4)
    slow = itemsize / 8 if whole else itemsize / 4
    waves = 12 if axes[0].length == axes[1].length else 19
    laps = 8 if map == "grad_input" and not isinstance(axes[0], Turned) else 0
    calls = waves + slabs_ * (6 + laps + 10 * blocks)
    return Cost(matmul_flops=slow * flops, bytes=moved, calls=calls)


def _product(number: int, rows: int, columns: int, terms: int, each: float) -> float:
    """Operations of so many matrix products, ``2 * each`` for one multiplication and addition."""
    return 2.0 * each * number * _full(rows, QUANTUM) * _full(columns, QUANTUM) * _full(terms, 8)


def _full(size: int, quantum: int) -> int:
    return -(-size // quantum) * quantum
