"""Which tiles, which engine, and how much at one time: chosen before anything runs.

A plan says all that a map's running needs to know beside its operands.  It depends on the problem,
the dtype, the limit and the kind of device alone, never on what is in the operands; so it is made
once, and what it takes at its peak, in time and in memory, is known without running it.

Every engine plans every tiling that it can run; of all those plans within the limit the one of
least predicted time is taken, by the rates of the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from ..problem import Problem
from ._tiling import (
    Axis,
    Turned,
    Window,
    Windows,
    aligned_length,
    axis_of,
    axis_of_length,
    fast_length,
    turned,
)
from .base import Cost, MapName

Slot = Literal["input", "weight", "output"]
SLOTS: dict[MapName, tuple[Slot, Slot, Slot]] = {
    "forward": ("input", "weight", "output"),
    "grad_input": ("output", "weight", "input"),
    "grad_weight": ("input", "output", "weight"),
}
"""The operands of each map in their order, and its result."""

SUMMED: dict[MapName, Literal["input", "output", "tiles"]] = {
    "forward": "input",
    "grad_input": "output",
    "grad_weight": "tiles",
}
"""Over what each map sums in a frequency: channels, or tiles with images."""

Engine = Literal["matrix", "batched", "fft"]


@dataclass(frozen=True)
class Plan:
    """How to run one map: engine, tiles, and what is in memory at one time.

    Attributes:
        engine: ``matrix`` transforms by matrix products, ``batched`` too, in an order for devices,
            ``fft`` by FFT.
        axes: the tiling of the rows and of the columns.
        per_slab: images, and rows of tiles, in memory at one time.
        block: row frequencies at one time (``matrix``), column frequencies (``batched``), or
            groups (``fft``).
        outs: output channels of a group at one time (``fft``).
        hold: whether the weight's whole spectrum is kept over the slabs (not by ``fft``).
    """

    engine: Engine
    axes: tuple[Axis, Axis]
    per_slab: tuple[int, int]
    block: int
    outs: int
    hold: bool
    workspace: int
    cost: Cost

    @property
    def lengths(self) -> tuple[int, int]:
        """Transform lengths of rows and columns."""
        return self.axes[0].length, self.axes[1].length

    @property
    def apart(self) -> bool:
        """Whether one tile holds all."""
        return self.axes[0].tiles == self.axes[1].tiles == 1

    @property
    def turned(self) -> bool:
        """Whether an input's gradient is computed by overlap-save (``batched``)."""
        return isinstance(self.axes[0], Turned)

    def windows(self, slot: Slot, rows: range) -> Windows:
        """Where an operand lies under the given rows of tiles."""
        return getattr(self.axes[0].run(rows), slot), getattr(self.axes[1], slot)

    def read(self, slot: Slot, rows: range) -> Windows:
        """The same, but for pixels that no product meets: read, they need no zeros written."""
        down, across = self.windows(slot, rows)
        if slot != "input" or self.apart:
            return down, across
        return replace(down, count=self.lengths[0]), replace(across, count=self.lengths[1])

    def blocks(self, dim: int, whole: bool) -> Iterator[range]:
        """Frequencies of an axis, ``block`` at a time: all, or the half of a real signal's."""
        stop = self.lengths[dim] if whole else self.lengths[dim] // 2 + 1
        for start in range(0, stop, self.block):
            yield range(start, min(start + self.block, stop))


def shape_of(problem: Problem, slot: Slot) -> tuple[int, int, int, int]:
    """Shape of one operand of a problem."""
    shape: tuple[int, int, int, int] = getattr(problem, f"{slot}_shape")
    return shape


@dataclass(frozen=True)
class Machine:
    """What plans are ranked by on one kind of device.

    Attributes:
        rates: what is done in a second, float32.
        cache: bytes that a block's spectra of the ``fft`` engine should keep within.
        out_of_cache: how many times longer a byte takes outside it.
        engines: that are looked at.
    """

    rates: Cost
    cache: float
    out_of_cache: float
    engines: tuple[Engine, ...]


HOST = Machine(
    Cost(matmul_flops=130e9, fft_flops=48e9, bytes=50e9, calls=150e3),
    cache=24 * 2**20,
    out_of_cache=2,
    engines=("matrix", "fft"),
)
"""Two Zen 5 cores, PyTorch 2.13 with MKL 2024.2.  They copy 58 GB/s in a 32 MiB cache and 8 GB/s in
fresh memory, and glibc gives blocks above 32 MiB back at every free."""

CUDA = Machine(
    Cost(matmul_flops=51.6e12, fft_flops=4e12, bytes=3.5e12, calls=400e3),
    cache=math.inf,
    out_of_cache=1,
    engines=("batched", "fft"),
)
"""An NVIDIA H200, PyTorch 2.11 with TF32 off: matrix products at 51.6 TFLOP/s, ``rfft2`` of 6272
tiles of 64 x 64 in 139 us and ``irfft2`` in 245, copies at 3.5 to 4.2 TB/s.  Small operators, some
2.5 us each, were a third to a half of the time of plans made for a host; so nothing is cut up for
the sake of a cache."""

MACHINES = {"cuda": CUDA}
"""By type of device; all others plan as the host does."""


BLOCK = 96 * 2**20
"""Bytes of spectra that the matrix engine makes at one time.  More would leave the cache for
nothing; fewer make thin products, which read the operands anew for every few row frequencies.
On two Zen 4 cores, 128 to 128 channels of 256x256, 32x32: 807 ms with 24 MiB, 644 with 48, 518
with 96, 523 with 180; 64 to 64 of 4x128x128, 8x8: 76, 69, 65, 79."""

LONGEST_MATRIX = 256
"""Above this length a transform by matrix product costs 5 times the FFT and more."""

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


@lru_cache(maxsize=4096)
def plan(
    problem: Problem,
    map: MapName,
    itemsize: int,
    whole: bool,
    tile: int | None,
    limit: int,
    device: str = "cpu",
) -> Plan:
    """The plan of least predicted time within the limit; if none fits, that of least workspace.

    Args:
        itemsize: bytes of one element of the operands.
        whole: whether they are complex, so that the whole spectrum is needed.
        device: the type of device.
    """
    machine = MACHINES.get(device, HOST)
    best: Plan | None = None
    for fast in {_FAST[engine]: None for engine in machine.engines}:
        tilings = list(_tilings(problem, tile, fast))
        if map == "grad_input" and fast is aligned_length and (other := turned(problem)):
            for pair in _tilings(other, tile, fast):
                tilings.append((Turned(*astuple(pair[0])), Turned(*astuple(pair[1]))))
        for axes in tilings:
            for engine in machine.engines:
                if _FAST[engine] != fast:
                    continue
                made = _PLANS[engine](problem, map, itemsize, whole, axes, limit, machine)
                if made is not None and (
                    best is None or _rank(made, limit, machine) < _rank(best, limit, machine)
                ):
                    best = made
    assert best is not None
    return best


def _rank(plan: Plan, limit: int, machine: Machine) -> tuple[bool, float]:
    if plan.workspace > limit:
        return True, plan.workspace
    return False, _seconds(plan.cost, machine)


def _seconds(cost: Cost, machine: Machine) -> float:
    return sum(amount / rate for amount, rate in zip(cost, machine.rates))


def _tilings(
    problem: Problem, tile: int | None, fast: Callable[[int], int] = fast_length
) -> Iterator[tuple[Axis, Axis]]:
    if tile is not None:
        yield axis_of_length(problem, 0, tile, fast), axis_of_length(problem, 1, tile, fast)
        return
    choices = [_axis_choices(problem, dim, fast) for dim in (0, 1)]
    pairs = [(rows, columns) for rows in choices[0] for columns in choices[1]]
    # Near to square, of which there is none where a kernel is far longer than the image is wide.
    most = max(2.0, min(_oblong(*pair) for pair in pairs))
    if 1 in map(len, choices):
        most = math.inf
    yield from (pair for pair in pairs if _oblong(*pair) <= most)


def _oblong(rows: Axis, columns: Axis) -> float:
    """How many times longer one side of a tile is than the other."""
    return max(rows.length, columns.length) / min(rows.length, columns.length)


def _axis_choices(problem: Problem, dim: int, fast: Callable[[int], int]) -> list[Axis]:
    """Tilings of one axis, from one window to a tile up to one tile for all."""
    span = problem.span[dim]
    whole = axis_of(problem, dim, 1, fast)
    found = {whole}
    length = span + problem.stride[dim] * 3
    while length < whole.length:
        found.add(axis_of_length(problem, dim, length, fast))
        if fast is aligned_length:
            # To the next length that fills a device's matrix products.
            length = QUANTUM // 2 * (length * 5 // 4 // (QUANTUM // 2) + 1)
        else:
            length = length * 5 // 4 + 1
    return sorted(found, key=lambda axis: axis.length)


class _Sizes(NamedTuple):
    """One operand in one slab: its padded samples, its tiles' samples, its images x tiles."""

    padded: int
    tiles: int
    number: int


def _sizes(axes: tuple[Axis, Axis], slot: Slot, images: int, rows: int) -> _Sizes:
    down, across = getattr(axes[0].run(range(rows)), slot), getattr(axes[1], slot)
    number = images * down.tiles * across.tiles
    padded = images * down.samples * across.samples
    return _Sizes(padded, number * down.count * across.count, number)


def _channels(problem: Problem, slot: Slot) -> int:
    """Channels of one group; a weight's outputs count as its images."""
    return problem.group_out if slot == "output" else problem.group_in


def _images(problem: Problem, slot: Slot, images: int) -> int:
    return problem.group_out if slot == "weight" else images


def _plan_matrix(
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
            size = _sizes(axes, slot, _images(problem, slot, per_slab[0]), per_slab[1])
            elements = size.tiles if slot == SLOTS[map][2] else size.padded
            total += elements * _channels(problem, slot) * itemsize
            copies = 2 if slot == SLOTS[map][2] else 1
            beside = max(beside, copies * elements * _channels(problem, slot) * itemsize)
        return total, beside

    def per_frequency() -> int:
        """Bytes for each row frequency: three spectra, and the largest work around one."""
        total = work = 0
        for slot in SLOTS[map]:
            size = _sizes(axes, slot, _images(problem, slot, per_slab[0]), per_slab[1])
            down, across = getattr(axes[0].run(range(per_slab[1])), slot), getattr(axes[1], slot)
            halfway = size.padded // down.samples * down.tiles
            columns = size.number * across.count
            channels = _channels(problem, slot) * pair
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
    cost = _matrix_cost(problem, map, itemsize, whole, axes, 1 if hold else slabs_)
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


def _matrix_cost(
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
        size = _sizes(axes, slot, _images(problem, slot, problem.batch), axes[0].tiles)
        times = repeats if slot == "weight" else 1
        channels = _channels(problem, slot) * times
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


def _plan_batched(
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
            memory = _BatchedMemory(problem, map, itemsize, whole, axes, (images, rows), hold)
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
                _batched_cost(problem, map, itemsize, whole, axes, (images, rows), block, hold),
            )
            if best is None or _rank(made, limit, machine) < _rank(best, limit, machine):
                best = made
        if images == rows == 1:
            return best
        images, rows = (-(-images // 2), rows) if images > 1 else (images, -(-rows // 2))


@dataclass(frozen=True)
class _BatchedMemory:
    """What :func:`_run_batched` has in memory, in bytes."""

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

    def _count(self, slot: Slot) -> _Sizes:
        """Samples and tiles of all channels."""
        images = _images(self.problem, slot, self.per_slab[0])
        channels = self.problem.groups * _channels(self.problem, slot)
        return _Sizes(*(channels * n for n in _sizes(self.axes, slot, images, self.per_slab[1])))


def _lapped(window: Window) -> int:
    """Samples of an axis in which tiles are added up."""
    return (window.tiles - 1 - -window.count // window.hop) * window.hop


def _batched_cost(
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
        channels = repeats * problem.groups * _channels(problem, slot)
        size = _sizes(axes, slot, _images(problem, slot, problem.batch), axes[0].tiles)
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
    sizes = {"input": problem.group_in, "output": problem.group_out, "tiles": tiles}
    terms = sizes.pop(SUMMED[map])
    rows, columns = sizes.values()
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


def _plan_fft(
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
            size = _sizes(axes, slot, images, per_slab[1])
            channels = block * (outs if slot == "output" else problem.group_in)
            # Tiles and PyTorch's own copy of them, or half a spectrum and two of a whole one.
            padded = size.padded + sum(axis.length for axis in axes) * axes[0].length
            transform = size.number * max(2 * samples, 2 * spectrum) + padded * itemsize
            if slot == SLOTS[map][2]:
                transform = max(transform, size.number * (2 * spectrum + 2 * samples))
            total += channels * size.number * spectrum
            work = max(work, channels * transform)
        if map == "grad_weight":
            number = _sizes(axes, "output", per_slab[0], per_slab[1]).number
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
    cost = _fft_cost(problem, map, itemsize, whole, axes, -(-problem.group_out // outs))
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


def _fft_cost(
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
        size = _sizes(axes, slot, _images(problem, slot, problem.batch), axes[0].tiles)
        channels = _channels(problem, slot) * (repeats if slot == "input" else 1)
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


_PLANS = {"matrix": _plan_matrix, "batched": _plan_batched, "fft": _plan_fft}
_FAST: dict[Engine, Callable[[int], int]] = {
    "matrix": fast_length,
    "batched": aligned_length,
    "fft": fast_length,
}
"""By engine: how it is planned, and which lengths it takes."""
