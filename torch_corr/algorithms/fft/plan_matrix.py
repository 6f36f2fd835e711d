"""What the engine ``matrix`` has in memory and does: as few slabs, and blocks as large, as fit.

What is laid out stays in memory over a slab; spectra are there for a block of row frequencies
alone.  So slabs are halved until one frequency fits, and a block takes what is then left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ...request import SLOTS, Slot
from ..base import Cost
from .plans import Machine, Plan, Task, block_of, halved

BLOCK = 96 * 2**20
"""Bytes of spectra that the matrix engine makes at one time.  More would leave the cache for
nothing; fewer make thin products, which read the operands anew for every few row frequencies.
On two Zen 4 cores, 128 to 128 channels of 256x256, 32x32: 807 ms with 24 MiB, 644 with 48, 518
with 96, 523 with 180; 64 to 64 of 4x128x128, 8x8: 76, 69, 65, 79."""

LONGEST = 256
"""Above this length a transform by matrix product costs 5 times the FFT and more."""


def plan(task: Task, limit: int, machine: Machine) -> Plan | None:
    """The plan of largest slabs, and then blocks, that fit; None for lengths that do not pay."""
    problem = task.problem
    if max(task.lengths) > LONGEST or 0 in (problem.group_in, problem.group_out):
        return None
    memory = _Memory(task, task.at_once)
    while memory.peak(1) > limit and memory.per_slab != (1, 1):
        memory = _Memory(task, halved(memory.per_slab))
    frequencies = task.frequencies(0)
    room = min(limit - memory.standing, BLOCK)
    block = block_of(frequencies, room // max(memory.of_frequency, 1))
    workspace = memory.peak(block)
    weight = (
        problem.group_out * problem.group_in * task.lengths[1] * frequencies * task.complex_itemsize
    )
    again = memory.per_slab != task.at_once and task.map != "grad_weight"
    hold = again and workspace + weight <= limit
    if hold:
        workspace += weight
    slabs, blocks = task.slabs(memory.per_slab), -(-frequencies // block)
    cost = _cost(task, 1 if hold else slabs)
    # Every block reads anew what is laid out.
    read = problem.groups * slabs * blocks * memory.laid_out * machine.out_of_cache
    calls = problem.groups * slabs * (20 + 40 * blocks)
    cost = cost._replace(bytes=cost.bytes + read, calls=calls)
    outs, accumulates = problem.group_out, memory.accumulates
    return Plan(
        "matrix", task.axes, memory.per_slab, block, outs, hold, accumulates, workspace, cost
    )


@dataclass(frozen=True)
class _Memory:
    """What :func:`.engine_matrix.run` has in memory, in bytes."""

    task: Task
    per_slab: tuple[int, int]

    def peak(self, block: int) -> int:
        """With so many row frequencies at one time."""
        return self.standing + max(self.copies, block * self.of_frequency)

    @property
    def standing(self) -> int:
        """What is there from first to last."""
        return self.matrices + self.laid_out + self.task.sums(self.accumulates)

    @property
    def accumulates(self) -> bool:
        """Whether slabs add to the same pixels."""
        return self.task.accumulates(self.per_slab[1], self.task.problem.group_out)

    @property
    def matrices(self) -> int:
        """The matrices of three operands, of complex128 at most, and the angles of one."""
        return 2**16 + 16 * 5 * (self.task.lengths[0] ** 2 + self.task.lengths[1] ** 2)

    @cached_property
    def laid_out(self) -> int:
        """The operands, and the sums."""
        return sum(self._laid_out(slot) for slot in SLOTS[self.task.map])

    @property
    def copies(self) -> int:
        """The most that is beside those while one is laid out, or put together."""
        first, second, target = (self._laid_out(slot) for slot in SLOTS[self.task.map])
        # Operands are transposed before they are widened.
        return max(
            max(first, second) * self.task.operand_itemsize // self.task.itemsize, 2 * target
        )

    @cached_property
    def of_frequency(self) -> int:
        """For each row frequency: three spectra, and the largest work around one."""
        total = work = 0
        for slot in SLOTS[self.task.map]:
            size = self.task.sizes(slot, self.per_slab)
            down, across = self.task.windows(slot, self.per_slab[1])
            halfway = size.padded // down.samples * down.tiles
            columns = size.number * across.count
            channels = self.task.channels(slot) * self.task.complex_itemsize
            total += size.number * self.task.lengths[1] * channels
            work = max(work, (halfway + columns) * channels, 2 * columns * channels)
        return total + work

    def _laid_out(self, slot: Slot) -> int:
        size = self.task.sizes(slot, self.per_slab)
        samples = size.cut if slot == SLOTS[self.task.map][2] else size.padded
        return samples * self.task.channels(slot) * self.task.itemsize


def _cost(task: Task, repeats: int) -> Cost:
    """Operations of all groups; the weight is transformed ``repeats`` times."""
    problem, frequencies, width = task.problem, task.frequencies(0), task.lengths[1]
    flops = moved = 0.0
    for slot in SLOTS[task.map]:
        size, (down, across) = task.sizes(slot), task.windows(slot)
        channels = task.channels(slot) * (repeats if slot == "weight" else 1)
        first = (8 if task.is_complex else 4) * frequencies * down.count * across.count
        second = 8 * frequencies * width * across.count
        flops += size.number * channels * (first + second)
        moved += channels * (
            4 * size.padded * task.itemsize
            + size.number * frequencies * (3 * across.count + 2 * width) * task.complex_itemsize
        )
    products = 8.0 * frequencies * width * task.tiles * problem.group_in * problem.group_out
    # A thin matrix product runs at the rate of memory, not of arithmetic.
    thin = max(1.0, 24 / max(min(task.tiles, problem.group_in, problem.group_out), 1))
    return Cost(
        matmul_flops=problem.groups * task.slow * (flops + products * thin),
        bytes=problem.groups * moved,
    )
