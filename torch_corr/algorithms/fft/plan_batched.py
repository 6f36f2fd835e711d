"""What the engine ``batched`` has in memory and does: as many frequencies at one time as fit.

Each operator waits for the host, so fewer blocks and slabs are the quicker plan; but operands are
read anew for every block, and smaller slabs leave room for larger blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ...request import SLOTS, Slot
from ..base import Cost
from .plans import SUMMED, Machine, Plan, Sizes, Task, block_of, halved, rank
from .tiling import Window

LONGEST = 512
"""Above this length a transform by matrix product no longer pays, on a device whose matrix
products are 9 times as fast as its transforms."""

QUANTUM = 32
"""To what multiple of rows and of columns a device's matrix product goes, as far as time shows:
2112 complex products of 49 x 128 with 128 x 128 take 381 us on an H200, 35.6 TFLOP/s, and filled
up to 64 rows 46.5."""

COMPLEX = 4 * 1.11
"""How many times as long as a real matrix product a complex one takes there: four products' worth
of multiplications, at nine tenths of the rate."""

MOST_PRODUCTS = 2**16 - 1
"""In one batch: as many as a launch of CUDA's has blocks along its last dimension."""


def plan(task: Task, limit: int, machine: Machine) -> Plan | None:
    """The best of ever smaller slabs, each with as many frequencies at one time as there is room
    for; that of least workspace if none fits; None for lengths that do not pay, and where a row
    has more tiles, of which each is a product, than one batch holds."""
    most = MOST_PRODUCTS // (task.lengths[0] * task.problem.groups)
    if most == 0 or task.axes[1].tiles > MOST_PRODUCTS:
        return None
    if max(task.lengths) > LONGEST or 0 in (task.problem.group_in, task.problem.group_out):
        return None
    return min(_plans(task, limit, most), key=lambda made: rank(made, limit, machine))


def _plans(task: Task, limit: int, most: int) -> Iterator[Plan]:
    """Of every size of slab; with at most so many frequencies at one time."""
    per_slab, frequencies = task.at_once, task.frequencies(1)
    while True:
        again = per_slab != task.at_once and task.map != "grad_weight"
        for hold in (False, True) if again else (False,):
            memory = _Memory(task, per_slab, hold)
            room = (limit - memory.standing) // max(memory.of_frequency, 1)
            block = block_of(frequencies, min(room, most))
            peak, cost = memory.peak(block), _cost(task, per_slab, block, hold)
            outs = task.problem.group_out
            accumulates = memory.accumulates
            yield Plan("batched", task.axes, per_slab, block, outs, hold, accumulates, peak, cost)
        if per_slab == (1, 1):
            return
        per_slab = halved(per_slab)


@dataclass(frozen=True)
class _Memory:
    """What :func:`.engine_batched.run` has in memory, in bytes."""

    task: Task
    per_slab: tuple[int, int]
    hold: bool

    def peak(self, block: int) -> int:
        """With so many column frequencies at one time."""
        return self.standing + max(block * self.of_frequency, self.overlapping)

    @cached_property
    def standing(self) -> int:
        """The waves, the padded operands, the samples of the tiles, a weight's whole spectrum."""
        first, second, target = SLOTS[self.task.map]
        # Of each axis at most four matrices of complex128.
        total = 2**16 + 64 * sum(length**2 for length in self.task.lengths)
        total += sum(self._sizes(slot).padded for slot in (first, second)) * self.task.itemsize
        total += self.task.sums(self.accumulates)
        if target != "weight":
            total += self._sizes(target).cut * self.task.itemsize
        return total + (self.task.frequencies(1) * self._spectrum("weight") if self.hold else 0)

    @property
    def accumulates(self) -> bool:
        """Whether slabs add to the same pixels, or blocks to the same weights."""
        weight = self.task.map == "grad_weight"
        return weight or self.task.accumulates(self.per_slab[1], self.task.problem.group_out)

    @cached_property
    def of_frequency(self) -> int:
        """The most of these, in the order of the run: the first operand on its way, the second
        beside the first's spectrum, the products beside both, the way back in two steps."""
        before, after, target = SLOTS[self.task.map]
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
        if not self.task.overlapping:
            return 0
        down, across = self.task.windows("input", self.per_slab[1])
        planes = self.per_slab[0] * self.task.problem.in_channels
        rows, columns = _added_up(down), _added_up(across)
        total = 0 if down.tiles == 1 else planes * rows * across.tiles * across.count
        total += 0 if across.tiles == 1 else planes * down.samples * columns
        return total * self.task.itemsize

    def _way(self, slot: Slot) -> int:
        """The larger of an operand's planes and its spectrum, one of which is beside its lines."""
        return max(self._planes(slot), self._spectrum(slot))

    def _planes(self, slot: Slot) -> int:
        """Columns are transformed."""
        across = self.task.windows(slot)[1]
        return (
            self._sizes(slot).padded // across.samples * across.tiles * self.task.complex_itemsize
        )

    def _lines(self, slot: Slot) -> int:
        """And cut into rows of tiles."""
        down = self.task.windows(slot)[0]
        return self._sizes(slot).number * down.count * self.task.complex_itemsize

    def _spectrum(self, slot: Slot) -> int:
        """And rows are transformed."""
        return self._sizes(slot).number * self.task.lengths[0] * self.task.complex_itemsize

    def _sizes(self, slot: Slot) -> Sizes:
        """Of all channels in one slab."""
        channels = self.task.problem.groups * self.task.channels(slot)
        return Sizes(*(channels * size for size in self.task.sizes(slot, self.per_slab)))


def _added_up(window: Window) -> int:
    """Samples of the axis that :func:`.tiling.overlap_add` adds tiles up in."""
    laps = -(-window.count // window.hop)
    return (window.tiles - 1 + laps) * window.hop


def _cost(task: Task, per_slab: tuple[int, int], block: int, hold: bool) -> Cost:
    """Of all slabs and blocks; products in multiples of what a device's fill."""
    problem, (height, width), target = task.problem, task.lengths, SLOTS[task.map][2]
    itemsize, complex_itemsize = task.itemsize, task.complex_itemsize
    planes, real = (1, COMPLEX) if task.is_complex else (2, 1)
    frequencies, slabs = task.frequencies(1), task.slabs(per_slab)
    blocks = -(-frequencies // block)
    flops = moved = 0.0
    for slot in SLOTS[task.map]:
        down, across = task.windows(slot)
        # A weight's spectrum that is not held is made anew for every slab.
        anew = slot == "weight" and target != "weight" and not hold
        channels = (slabs if anew else 1) * problem.groups * task.channels(slot)
        padded, samples, number = (channels * size for size in task.sizes(slot))
        lines, spectrum = number * down.count * frequencies, number * height * frequencies
        moved += 2 * (spectrum + lines) * complex_itemsize
        if slot == target:
            flops += _product(frequencies, down.count, number, height, COMPLEX)
            flops += _product(1, across.count, number * down.count, planes * frequencies, real)
            # Every block but the first reads what is there; to a weight all slabs add.
            sums = blocks * (slabs if slot == "weight" else 1)
            moved += (
                2 * lines * (planes - 1) * complex_itemsize + (2 * sums - 1) * samples * itemsize
            )
            if task.overlapping:
                # Zeros, sums and copies: down, across, and into the result.
                lapped = samples * min(1, down.hop / down.count)
                moved += (samples + 6 * lapped) * itemsize
                moved += 9 * lapped * min(1, across.hop / across.count) * itemsize
            elif slot != "weight":
                moved += 2 * samples * itemsize
        else:
            rows = padded // across.samples
            halfway = rows * across.tiles * frequencies
            flops += _product(blocks * across.tiles, planes * block, rows, across.count, real)
            flops += _product(frequencies, height, number, down.count, COMPLEX)
            copies = 0 if slot == "weight" else 3
            moved += (copies + blocks) * padded * itemsize + (halfway + lines) * complex_itemsize
    tiles = per_slab[0] * per_slab[1] * task.axes[1].tiles
    counts = {"input": problem.group_in, "output": problem.group_out, "tiles": tiles}
    terms = counts.pop(SUMMED[task.map])
    rows, columns = counts.values()
    flops += _product(slabs * frequencies * height * problem.groups, rows, columns, terms, COMPLEX)
    # Operators: those that make the waves, of a slab, and of a block.
    matrices = 12 if height == width else 19
    calls = matrices + slabs * (6 + (8 if task.overlapping else 0) + 10 * blocks)
    return Cost(matmul_flops=task.slow * flops, bytes=moved, calls=calls)


def _product(number: int, rows: int, columns: int, terms: int, each: float) -> float:
    """Operations of so many matrix products, ``2 * each`` for one multiplication and addition."""
    return 2.0 * each * number * _full(rows, QUANTUM) * _full(columns, QUANTUM) * _full(terms, 8)


def _full(size: int, quantum: int) -> int:
    return -(-size // quantum) * quantum
