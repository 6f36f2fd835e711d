"""Plans of transforms, and the tiled tasks and device rates that they are made from.

A :class:`TransformPlan` contains everything that an engine needs to compute a map except the
operands: the tiles, and how much is in memory at a time. It states its workspace and its cost, from
which a device's rates predict a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple

from torch import Tensor

from ...problem import Problem
from ...request import SLOTS, MapName, Slot, shape_of
from ..base import Cost
from .tiling import GradInputAxis, Slab, TiledAxis, Windows, slabs

SUMMED: dict[MapName, Literal["input", "output", "tiles"]] = {
    "forward": "input",
    "grad_input": "output",
    "grad_weight": "tiles",
}
"""The index that each map sums over in a frequency: channels, or tiles and images."""

Engine = Literal["matrix", "batched", "fft"]


@dataclass(frozen=True)
class DeviceRates:
    """The rates by which plans are ranked on one kind of device.

    Attributes:
        rates: work per second in float32.
        cache: bytes that the spectra of a block should fit in (``fft`` engine).
        out_of_cache: how many times longer a byte takes outside the cache.
        engines: the engines to consider.
    """

    rates: Cost
    cache: float
    out_of_cache: float
    engines: tuple[Engine, ...]


CPU = DeviceRates(
    Cost(matmul_flops=130e9, fft_flops=48e9, bytes=50e9, calls=150e3),
    cache=24 * 2**20,
    out_of_cache=2,
    engines=("matrix", "fft"),
)
"""Two Zen 5 cores, PyTorch 2.13 with MKL 2024.2.  They copy 58 GB/s in a 32 MiB cache and 8 GB/s in
newly mapped memory; glibc returns blocks above 32 MiB to the system at every free."""

CUDA = DeviceRates(
    Cost(matmul_flops=51.6e12, fft_flops=4e12, bytes=3.5e12, calls=400e3),
    cache=math.inf,
    out_of_cache=1,
    engines=("batched", "fft"),
)
"""An NVIDIA H200, PyTorch 2.11 with TF32 off: matrix products at 51.6 TFLOP/s, ``rfft2`` of 6272
tiles of 64 x 64 in 139 us and ``irfft2`` in 245, copies at 3.5 to 4.2 TB/s.  Small operators, some
2.5 us each, took a third to a half of the time of plans made for a CPU; so nothing is split to fit
a cache."""

RATES_OF = {"cuda": CUDA}
"""By type of device; all others plan like the CPU."""


class Sizes(NamedTuple):
    """Samples and tiles of one channel of an operand.

    Attributes:
        padded: samples under all tiles together, including padding.
        cut: samples of the tiles; those in several tiles count several times.
        number: images x tiles.
    """

    padded: int
    cut: int
    number: int


@dataclass(frozen=True)
class Task:
    """One map of a problem, tiled: the input of an engine's planner.

    Attributes:
        itemsize: bytes of one number in the dtype to compute in.
        operand_itemsize: bytes of one number of the operands and of the result.
        is_complex: whether they are complex, so that the whole spectrum is needed.
        axes: the tiling of rows and columns.
    """

    problem: Problem
    map: MapName
    itemsize: int
    operand_itemsize: int
    is_complex: bool
    axes: tuple[TiledAxis, TiledAxis]

    @property
    def lengths(self) -> tuple[int, int]:
        """Transform lengths of rows and columns."""
        return self.axes[0].length, self.axes[1].length

    @property
    def complex_itemsize(self) -> int:
        """Bytes of a complex number."""
        return self.itemsize if self.is_complex else 2 * self.itemsize

    @property
    def dtype_slowdown(self) -> float:
        """How many times longer than in float32 an operation takes."""
        return self.complex_itemsize / 8

    @property
    def overlapping(self) -> bool:
        """Whether tiles of the result overlap, and are added."""
        return self.map == "grad_input" and not self.is_overlap_save

    def accumulates(self, engine: Engine, rows: int, outs: int) -> bool:
        """Whether several pieces, of this many tile rows and outputs, add to the same numbers of
        the result; in the ``batched`` engine all blocks add to the same weights."""
        if engine == "batched" and self.map == "grad_weight":
            return True
        pieces = rows < self.axes[0].tiles or outs < self.problem.group_out
        return self.overlapping and pieces

    def sums(self, engine: Engine, rows: int, outs: int) -> int:
        """Bytes of a copy of the result in the dtype to compute in, which is needed if pieces are
        added before rounding."""
        rounded = self.accumulates(engine, rows, outs) and self.operand_itemsize != self.itemsize
        return prod(shape_of(self.problem, SLOTS[self.map][2])) * self.itemsize if rounded else 0

    @property
    def at_once(self) -> tuple[int, int]:
        """All images and all rows of tiles, as a single slab."""
        return max(self.problem.batch, 1), self.axes[0].tiles

    @property
    def tiles(self) -> int:
        """The number of tiles of all images."""
        return self.problem.batch * self.axes[0].tiles * self.axes[1].tiles

    def slabs(self, per_slab: tuple[int, int]) -> int:
        """The number of slabs of this many images and tile rows."""
        return -(-self.problem.batch // per_slab[0]) * -(-self.axes[0].tiles // per_slab[1])

    def frequencies(self, dim: int) -> int:
        """The number of frequencies of an axis: half for real signals."""
        return frequencies(self.lengths[dim], self.is_complex)

    def channels(self, slot: Slot) -> int:
        """Channels of one group; a weight's outputs count as images."""
        return self.problem.group_out if slot == "output" else self.problem.group_in

    @property
    def single_tile(self) -> bool:
        """Whether one tile covers everything."""
        return self.axes[0].tiles == self.axes[1].tiles == 1

    @property
    def is_overlap_save(self) -> bool:
        """Whether an input's gradient is computed by overlap-save (``batched`` engine)."""
        return isinstance(self.axes[0], GradInputAxis)

    def windows(self, slot: Slot, rows: range | None = None) -> Windows:
        """Where an operand lies under the given rows of tiles, or under all."""
        down = self.axes[0] if rows is None else self.axes[0].run(rows)
        return getattr(down, slot), getattr(self.axes[1], slot)

    def sizes(
        self, slot: Slot, per_slab: tuple[int, int] | None = None, outs: int | None = None
    ) -> Sizes:
        """The sizes of one channel, in one slab or in all; for a weight, of ``outs`` outputs or
        all."""
        images, rows = per_slab or (self.problem.batch, self.axes[0].tiles)
        if slot == "weight":
            images = self.problem.group_out if outs is None else outs
        down, across = self.windows(slot, range(rows))
        number = images * down.tiles * across.tiles
        padded = images * down.samples * across.samples
        return Sizes(padded, number * down.count * across.count, number)


@dataclass(frozen=True)
class TransformPlan:
    """How to compute one map: which engine, and how much is in memory at a time.

    Attributes:
        engine: ``matrix`` transforms by matrix products; ``batched`` does too, in an order that
            suits GPUs; ``fft`` transforms by FFT.
        task: the map and its tiling.
        per_slab: images, and rows of tiles, in memory at a time.
        block: row frequencies at a time (``matrix``), column frequencies (``batched``), or
            groups (``fft``).
        outs: output channels of a group at a time (``fft``).
        hold: whether the weight's whole spectrum is kept for all slabs (never by ``fft``).
        workspace: upper bound on the bytes beyond operands and result.
        cost: of the whole map.
        error: the factor of :func:`.error_bound.error_units`; 0 until the plan is chosen.
    """

    engine: Engine
    task: Task
    per_slab: tuple[int, int]
    block: int
    outs: int
    hold: bool
    workspace: int
    cost: Cost
    error: float = 0.0

    @cached_property
    def accumulates(self) -> bool:
        """Whether several pieces of the work add to the same numbers of the result."""
        return self.task.accumulates(self.engine, self.per_slab[1], self.outs)

    def slabs(self) -> Iterator[Slab]:
        """All images and rows of tiles, ``per_slab`` at a time."""
        return slabs(self.task.problem.batch, self.task.axes[0].tiles, self.per_slab)

    def blocks(self, dim: int) -> Iterator[range]:
        """Frequencies of an axis, ``block`` at a time."""
        stop = self.task.frequencies(dim)
        for start in range(0, stop, self.block):
            yield range(start, min(start + self.block, stop))


def select(problem: Problem, slot: Slot, tensor: Tensor, groups: range, outs: range) -> Tensor:
    """A view of some groups of an operand and, within one group, of some outputs."""
    dim = 0 if slot == "weight" else 1
    each = problem.group_in if slot == "input" else problem.group_out
    part = tensor.narrow(dim, groups.start * each, len(groups) * each)
    if slot == "input" or len(outs) == each:
        return part
    return part.narrow(dim, outs.start, len(outs))


def rank(plan: TransformPlan, limit: int, rates: DeviceRates) -> tuple[bool, float]:
    """A sort key, least for the best plan: plans within the limit by time, then others by
    workspace."""
    if plan.workspace > limit:
        return True, plan.workspace
    return False, sum(amount / rate for amount, rate in zip(plan.cost, rates.rates) if amount)


def frequencies(length: int, is_complex: bool) -> int:
    """The number of frequencies of an axis: half of them determine a real signal."""
    return length if is_complex else length // 2 + 1


def halved(per_slab: tuple[int, int]) -> tuple[int, int]:
    """Half the images, or for one image half the rows of tiles."""
    images, rows = per_slab
    return (-(-images // 2), rows) if images > 1 else (1, -(-rows // 2))


def block_of(number: int, most: int) -> int:
    """The smallest block size that divides ``number`` into as few blocks as ``most`` would."""
    blocks = -(-number // min(max(most, 1), number))
    return -(-number // blocks)
