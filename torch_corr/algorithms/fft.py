"""Correlation in the frequency domain, tiled by overlap-save; three maps of one product.

By the convolution theorem the trilinear form is a sum over frequencies f of a tile,

    T(x, w, y) = 1/n^2 sum_f sum_{tile,o,c} X[f; tile,c] W[-f; o,c] Y[-f; tile,o],

so each map transforms its two operands, sums products over the one index that they
share (channels, outputs, or tiles with images), and transforms back:

    forward      Y[f; tile,o] = sum_c    X[f; tile,c] W[-f; o,c]
    grad_input   X[f; tile,c] = sum_o    Y[f; tile,o] W[f; o,c]
    grad_weight  W[f; o,c]    = sum_tile Y[-f; tile,o] X[f; tile,c]

Nothing is conjugated: W[-f] is the conjugate of W[f] only where w is real.

The error is normwise.  For u half the machine epsilon, x_t the pixels that tile t reads,
and K terms in a frequency's sum, each output of the tile obeys, to first order in u,

    |y^ - y| <= (e_x + e_w + e_y + sqrt(2) (K + 3) u) * sum_c ||x_tc||_2 ||w_oc||_2.

Proof.  By Parseval sum_f |X_f| |W_f| / L <= ||X||_2 ||W||_2 / L = ||x||_2 ||w||_2 at L
points, whatever the output.  So a transform that is wrong by e_x ||X||_2 moves an output by
e_x ||x||_2 ||w||_2 at most; the products and their sum, wrong by sqrt(2) (K + 3) u
sum_c |X_c| |W_c| in each frequency, by that times the same; and the inverse, which gives each
output as a sum of all frequencies times waves of modulus 1, by e_y of it.
:func:`transform_error` states e_x, e_w and e_y.  The map grad_input adds up to ceil(n / hop)^2
overlapping tiles, hence as many such bounds; grad_weight sums x and y over the tiles.
A large pixel thus blurs the outputs of its own tile, and of no other.

Sources: Oppenheim & Schafer, Discrete-Time Signal Processing, 8.7.3 (overlap-save);
Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., chapter 24.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import cached_property, lru_cache
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..problem import Problem, as_int
from . import _batched, _dft, _fft
from ._contrast import even, views
from ._tiling import (
    Axis,
    Turned,
    Window,
    aligned_length,
    axis_of,
    axis_of_length,
    copy_side_by_side,
    fast_length,
    overlap_add,
    prime_factors,
    read_span,
    slabs,
    turned,
)
from .base import (
    DEFAULT_WORKSPACE,
    Cost,
    ErrorClass,
    MapName,
    check_workspace_limit,
    dtype_refusal,
    products_may_use_tf32,
)
from .fitted import Fitted, Work

ABLE = (torch.float32, torch.float64, torch.complex64, torch.complex128)

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


@dataclass(frozen=True)
class FFT(Fitted):
    """Overlap-save in the frequency domain.

    Attributes:
        tile: length of the transforms along both axes, rounded to a fast one and enlarged
            to hold one window; None lets the cost model choose, each axis by itself.
        workspace_limit: bytes to take at most beyond operands and result.

    Raises:
        TypeError: a tile or a limit that is no integer.
        ValueError: a tile below 1, or a negative limit.
    """

    tile: int | None = None
    workspace_limit: int = DEFAULT_WORKSPACE

    name: ClassVar[str] = "fft"
    error_class: ClassVar[ErrorClass] = "normwise"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_workspace_limit(self.workspace_limit)
        if self.tile is not None and as_int("tile", self.tile) < 1:
            raise ValueError(f"tile={self.tile} must be at least 1, or None to have it chosen")

    def refusals(
        self, problem: Problem, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        """No transform of halves and integers; no plan within the workspace limit."""
        if unable := dtype_refusal(dtype, ABLE):
            return unable
        least = max(self._plan(problem, map, device, dtype).workspace for map in SLOTS)
        if least <= self.workspace_limit:
            return ()
        return (
            f"its smallest workspace here, {least} bytes, is above the limit of "
            f"{self.workspace_limit}; raise workspace_limit",
        )

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        """(x, w) -> y, as the base class says."""
        return self._run("forward", problem, input, weight)

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        """(y, w) -> x, as the base class says."""
        return self._run("grad_input", problem, output, weight)

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        """(x, y) -> w, as the base class says."""
        return self._run("grad_weight", problem, input, output)

    def workspace(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> int:
        """Bytes that the chosen plan takes at its peak, from above."""
        return self._plan(problem, map, device, dtype).workspace

    def work(self, problem: Problem, map: MapName, dtype: torch.dtype) -> Work:
        """What the plan chosen for a CPU does."""
        chosen = self._plan(problem, map, torch.device("cpu"), dtype)
        if chosen.engine == "matrix":
            return Work("matrix", chosen.cost)
        # Over one tile there is nothing to sum, and no padded copy to make.
        one = chosen.apart and problem.batch == 1
        regime = "fft, one tile" if one else "fft"
        return Work(f"{regime}, long" if max(chosen.lengths) >= LONG else regime, chosen.cost)

    def cost(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> Cost:
        """By fitted factors on the CPU; elsewhere what the plan chosen there does."""
        if device.type == "cpu":
            return super().cost(problem, map, device, dtype)
        return self._plan(problem, map, device, dtype).cost

    def stands(
        self, problem: Problem, map: MapName, first: Tensor, second: Tensor, result: Tensor
    ) -> bool:
        """Whether a result is as good as if no plane had bright and faint parts; on the CPU.

        A transform blurs what is not finite over its tile, and rounds a tile's faint parts as
        coarsely as its bright ones.  The result stands if all of it is finite, and if in no
        plane of the operands half a window is fainter than the rest by more than the contrast
        C = 2**-7 / eps (65,536 in float32), unless it is zero.  The error is then at most
        C sqrt(N) times :meth:`error_constant` times sum_c m_c ||w_oc||, m_c being the largest
        modulus in any half window that is not zero (see :mod:`._contrast`).

        The way out where it is False: an algorithm whose error class is componentwise.
        """
        if not (result.sum().isfinite() or result.isfinite().all()):
            return False
        return all(even(*pair) for pair in zip((first, second), views(problem, map)))

    def error_constant(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> float:
        """The factor before ``sum_c ||x_c|| ||w_oc||`` in the bound that the module states.

        The norms may be those of whole planes, which are no smaller than their tiles'.  Where
        PyTorch's settings let CUDA's matrix products use TF32, u is that of its digits.
        """
        chosen = self._plan(problem, map, device, dtype)
        tiles = problem.batch * chosen.axes[0].tiles * chosen.axes[1].tiles
        terms = {"input": problem.group_out, "output": problem.group_in, "weight": tiles}
        units = math.sqrt(2) * (terms[SLOTS[map][2]] + 3)
        for slot in SLOTS[map]:
            for axis in chosen.axes:
                samples = getattr(axis, slot).count
                if slot == SLOTS[map][2] and chosen.engine != "fft":
                    units += math.sqrt(2) * (axis.length + 6)
                else:
                    units += transform_error(axis.length, samples, chosen.engine)
        overlapping = 1  # tiles whose contributions one pixel of the result adds up
        if map == "grad_input":
            for axis in chosen.axes:
                overlapping *= axis.laps
        unit = torch.finfo(dtype).eps / 2
        if chosen.engine == "batched" and device.type == "cuda" and products_may_use_tf32(dtype):
            # Both operands of every product are cut to 11 digits, which a sum's (c + 4) u covers.
            unit = 2.0**-11
        return overlapping * units * unit

    def _plan(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> Plan:
        whole, limit = dtype.is_complex, self.workspace_limit
        return plan(problem, map, dtype.itemsize, whole, self.tile, limit, device.type)

    def _run(self, map: MapName, problem: Problem, first: Tensor, second: Tensor) -> Tensor:
        shape = _shape(problem, SLOTS[map][2])
        if first.numel() == 0 or second.numel() == 0:
            return first.new_zeros(shape)
        chosen = self._plan(problem, map, first.device, first.dtype)
        # The tiles cover every output and every tap, but not every input.
        add = map == "grad_input" and not chosen.turned
        result = first.new_zeros(shape) if add else first.new_empty(shape)
        _RUNS[chosen.engine](chosen, problem, map, first, second, result)
        return result


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

    def windows(self, slot: Slot, rows: range) -> tuple[Window, Window]:
        """Where an operand lies under the given rows of tiles."""
        return getattr(self.axes[0].run(rows), slot), getattr(self.axes[1], slot)

    def read(self, slot: Slot, rows: range) -> tuple[Window, Window]:
        """The same, but for pixels that no product meets: read, they need no zeros written."""
        down, across = self.windows(slot, rows)
        if slot != "input" or self.apart:
            return down, across
        return replace(down, count=self.lengths[0]), replace(across, count=self.lengths[1])


def _shape(problem: Problem, slot: Slot) -> tuple[int, int, int, int]:
    shape: tuple[int, int, int, int] = getattr(problem, f"{slot}_shape")
    return shape


def _place(result: Tensor, piece: Tensor, windows: tuple[Window, Window], map: MapName) -> None:
    """Put what lies under the tiles where it belongs in (..., H, W).

    Outputs belong to one tile; inputs to several, whose contributions are added.
    """
    (rows, from_rows), (columns, from_columns) = (
        read_span(window, size) for window, size in zip(windows, result.shape[-2:])
    )
    place, values = result[..., rows, columns], piece[..., from_rows, from_columns]
    if map == "forward":
        place.copy_(values)
    else:
        place.add_(values)


# -- transforms by matrix products ------------------------------------------------------------


def _run_matrix(
    plan: Plan, problem: Problem, map: MapName, first: Tensor, second: Tensor, result: Tensor
) -> None:
    channels = {"input": problem.group_in, "output": problem.group_out}
    for group in range(problem.groups):
        operands = []
        for slot, tensor in zip(SLOTS[map], (first, second, result)):
            if slot == "weight":
                operands.append(tensor.narrow(0, group * problem.group_out, problem.group_out))
            else:
                operands.append(tensor.narrow(1, group * channels[slot], channels[slot]))
        _group_matrix(plan, problem, map, *operands)


def _group_matrix(
    plan: Plan, problem: Problem, map: MapName, first: Tensor, second: Tensor, result: Tensor
) -> None:
    if map == "grad_weight":
        _weight_of_group(plan, problem, first, second, result)
    else:
        _tiles_of_group(plan, problem, map, first, second, result)


def _tiles_of_group(
    plan: Plan, problem: Problem, map: MapName, first: Tensor, weight: Tensor, result: Tensor
) -> None:
    source, _, target = SLOTS[map]
    everything = range(plan.axes[0].tiles)
    of_first = _waves(plan, source, first, reverse=False)
    of_weight = _waves(plan, "weight", weight, reverse=map == "forward")
    inverse = _dft.inverse_waves(plan.windows(target, everything), plan.lengths, result)
    taps = _dft.lay_out(weight, plan.windows("weight", everything))
    held: dict[range, Tensor] = {}
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part, windows = slice(images.start, images.stop), plan.windows(target, rows)
        tiles = _dft.lay_out(first[part], plan.windows(source, rows))
        number = len(images) * windows[0].tiles * windows[1].tiles
        sums = result.new_zeros(windows[0].count, windows[1].count * number * result.shape[1])
        for block in _blocks(plan, 0, result.is_complex()):
            w = held[block] if block in held else _dft.analyse(taps, of_weight, block)
            if plan.hold:
                held[block] = w
            spectrum = torch.bmm(
                _dft.analyse(tiles, of_first, block), w.mT if map == "forward" else w
            )
            del w
            _dft.synthesise(spectrum, sums, inverse, block)
            del spectrum
        del tiles
        _place(result[part], _dft.put_together(sums, windows, len(images)), windows, map)


def _weight_of_group(
    plan: Plan, problem: Problem, input: Tensor, output: Tensor, result: Tensor
) -> None:
    everything = range(plan.axes[0].tiles)
    of_input = _waves(plan, "input", input, reverse=False)
    of_output = _waves(plan, "output", output, reverse=True)
    windows = plan.windows("weight", everything)
    inverse = _dft.inverse_waves(windows, plan.lengths, result)
    sums = result.new_zeros(windows[0].count, result.numel() // windows[0].count)
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part = slice(images.start, images.stop)
        x = _dft.lay_out(input[part], plan.windows("input", rows))
        y = _dft.lay_out(output[part], plan.windows("output", rows))
        for block in _blocks(plan, 0, result.is_complex()):
            spectrum = torch.bmm(
                _dft.analyse(y, of_output, block).mT, _dft.analyse(x, of_input, block)
            )
            _dft.synthesise(spectrum, sums, inverse, block)
            del spectrum
        del x, y
    result.copy_(_dft.put_together(sums, windows, result.shape[0]))


def _waves(plan: Plan, slot: Slot, like: Tensor, reverse: bool) -> _dft.Waves:
    windows = plan.windows(slot, range(plan.axes[0].tiles))
    frequencies = plan.lengths[0] if like.is_complex() else plan.lengths[0] // 2 + 1
    return _dft.waves(windows, plan.lengths, frequencies, reverse, like)


def _blocks(plan: Plan, dim: int, whole: bool) -> Iterator[range]:
    """Frequencies of an axis, ``plan.block`` at a time: all, or the half of a real signal's."""
    stop = plan.lengths[dim] if whole else plan.lengths[dim] // 2 + 1
    for start in range(0, stop, plan.block):
        yield range(start, min(start + plan.block, stop))


# -- transforms by few large matrix products --------------------------------------------------


def _run_batched(
    plan: Plan, problem: Problem, map: MapName, first: Tensor, second: Tensor, result: Tensor
) -> None:
    if map == "grad_weight":
        _weight_batched(plan, problem, first, second, result)
    else:
        _tiles_batched(plan, problem, map, first, second, result)


def _tiles_batched(
    plan: Plan, problem: Problem, map: MapName, first: Tensor, weight: Tensor, result: Tensor
) -> None:
    source, _, target = SLOTS[map]
    groups, waves = problem.groups, _batched.waves(plan.lengths, result)
    of_weight = plan.windows("weight", range(plan.axes[0].tiles))
    taps = _batched.padded(weight, of_weight)
    back = _batched.waves_back(waves, plan.windows(target, range(plan.axes[0].tiles)))
    result = torch.unflatten(result, 1, (groups, -1))
    held: dict[range, Tensor] = {}
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part = slice(images.start, images.stop)
        of_first, windows = plan.windows(source, rows), plan.windows(target, rows)
        samples = _batched.padded(first[part], of_first)
        order = groups, windows[1].tiles, windows[0].tiles, len(images), result.shape[2]
        count, across = windows[0].count, windows[1].count
        sums = result.new_empty(math.prod(order) * count, across)
        for block in _blocks(plan, 1, result.is_complex()):
            left = _batched.analyse(samples, of_first, waves, False, groups, block)
            if block in held:
                w = held[block]
            else:
                w = _batched.analyse(taps, of_weight, waves, map == "forward", 1, block)
                w = w.view(len(left), problem.group_out, -1)
            if plan.hold:
                held[block] = w
            spectrum = torch.bmm(left, w.mT if map == "forward" else w)
            del left, w
            lines = _batched.rows_back(spectrum, back[0], block)
            del spectrum
            _batched.columns_back(lines, back[1], block, sums, block.start > 0)
            del lines
        del samples
        _put_tiles(plan, sums.view(*order, count, across), windows, map, result[part])
        del sums


def _put_tiles(
    plan: Plan, tiles: Tensor, windows: tuple[Window, Window], map: MapName, result: Tensor
) -> None:
    """From (group, U, T, image, channel, rows, columns) to (images, groups, channels, H, W)."""
    if map == "forward" or plan.turned:
        down, across = (read_span(w, size)[0] for w, size in zip(windows, result.shape[-2:]))
        copy_side_by_side(tiles.permute(3, 0, 4, 2, 1, 5, 6), result[..., down, across])
        return
    tiles = overlap_add(tiles.permute(3, 0, 4, 2, 5, 1, 6), 3, windows[0].hop)
    _place(result, overlap_add(tiles, 4, windows[1].hop), windows, map)


def _weight_batched(
    plan: Plan, problem: Problem, input: Tensor, output: Tensor, result: Tensor
) -> None:
    groups, waves = problem.groups, _batched.waves(plan.lengths, result)
    of_weight = plan.windows("weight", range(plan.axes[0].tiles))
    back = _batched.waves_back(waves, of_weight)
    sums, add = result.view(-1, result.shape[3]), False
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part = slice(images.start, images.stop)
        of_input, of_output = plan.windows("input", rows), plan.windows("output", rows)
        x, y = _batched.padded(input[part], of_input), _batched.padded(output[part], of_output)
        for block in _blocks(plan, 1, result.is_complex()):
            spectrum = torch.bmm(
                _batched.analyse(y, of_output, waves, True, groups, block).mT,
                _batched.analyse(x, of_input, waves, False, groups, block),
            )
            lines = _batched.rows_back(spectrum, back[0], block)
            del spectrum
            _batched.columns_back(lines, back[1], block, sums, add)
            add = True
            del lines
        del x, y


# -- transforms by FFT ------------------------------------------------------------------------


def _run_fft(
    plan: Plan, problem: Problem, map: MapName, first: Tensor, second: Tensor, result: Tensor
) -> None:
    for start in range(0, problem.groups, plan.block):
        groups = range(start, min(start + plan.block, problem.groups))
        for low in range(0, problem.group_out, plan.outs):
            outs = range(low, min(low + plan.outs, problem.group_out))
            operands = (
                _select(problem, slot, tensor, groups, outs)
                for slot, tensor in zip(SLOTS[map], (first, second, result))
            )
            _groups_fft(plan, problem, map, len(groups), *operands)


def _select(problem: Problem, slot: Slot, tensor: Tensor, groups: range, outs: range) -> Tensor:
    """Some groups, and of each some outputs, of an operand: a view."""
    dim = 0 if slot == "weight" else 1
    each = problem.group_in if slot == "input" else problem.group_out
    part = tensor.narrow(dim, groups.start * each, len(groups) * each)
    if slot == "input" or len(outs) == each:
        return part
    return part.narrow(dim, outs.start, len(outs))  # only ever within one group


def _groups_fft(
    plan: Plan,
    problem: Problem,
    map: MapName,
    groups: int,
    first: Tensor,
    second: Tensor,
    result: Tensor,
) -> None:
    source, other, target = SLOTS[map]
    everything, apart = range(plan.axes[0].tiles), plan.apart
    # Inputs belong to several tiles, and to every output channel.
    add = map == "grad_input" and not (apart and plan.outs == problem.group_out)
    right = spectrum = None
    if map != "grad_weight":
        windows = plan.read(other, everything)
        right = _fft.analyse(second, windows, plan.lengths, map == "forward", apart)
        right = torch.unflatten(right.squeeze((2, 3)), 0, (groups, -1))
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part = slice(images.start, images.stop)
        left = _fft.analyse(first[part], plan.read(source, rows), plan.lengths, False, apart)
        left = torch.unflatten(left, 1, (groups, -1))
        if map == "grad_weight":
            last = _fft.analyse(second[part], plan.read(other, rows), plan.lengths, True, apart)
            partial = _sum_over_tiles(left, torch.unflatten(last, 1, (groups, -1)))
            spectrum = partial if spectrum is None else spectrum.add_(partial)
            continue
        assert right is not None
        product = _sum_over_channels(left, right if map == "grad_input" else right.transpose(1, 2))
        del left
        windows = plan.windows(target, rows)
        _fft.synthesise(product.flatten(1, 2), windows, plan.lengths, apart, result[part], add)
        del product
    if spectrum is not None:
        windows = plan.windows("weight", everything)
        spectrum = spectrum.flatten(0, 1)[:, :, None, None]
        _fft.synthesise(spectrum, windows, plan.lengths, apart, result, False)


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


# -- planning ---------------------------------------------------------------------------------


def transform_error(length: int, samples: int, engine: Engine) -> float:
    """Bound on ||X^ - X||_2 / ||X||_2 of a transform along one axis, in units of u.

    By matrix products: an inner product of c complex terms errs by sqrt(2) (c + 4) u times
    that of the moduli (Higham, section 3.6, the rounding of the waves added), and the matrix of
    moduli, all ones, has 2-norm sqrt(n c), against sqrt(n) of the transform: sqrt(2 c) (c + 4).

    By FFT: a stage of radix r does r-point transforms by at worst their definition,
    sqrt(r) (r + 2) as above, and multiplies by rounded waves, 2 sqrt(2) + 1; the stages,
    each sqrt(r) times unitary, add up (Higham, theorem 24.2, is r = 2).  A real transform is
    one of half the length and one more stage of r = 2.

    The inverse is bounded path by path rather than in norm, with less than either: c + 4
    products and sums by matrix; by FFT a stage's r + 2.
    """
    if engine != "fft":
        return math.sqrt(2 * samples) * (samples + 4)
    stages = [2, *prime_factors(length)]
    return sum(math.sqrt(r) * (r + 2) + 2 * math.sqrt(2) + 1 for r in stages)


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

LONG = 96
"""Length from which a transform's time is fitted apart."""

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

    def _windows(self, slot: Slot) -> tuple[Window, Window]:
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
        held = min(getattr(axes[0], slot).count, _shape(problem, slot)[2])
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


_RUNS = {"matrix": _run_matrix, "batched": _run_batched, "fft": _run_fft}
_PLANS = {"matrix": _plan_matrix, "batched": _plan_batched, "fft": _plan_fft}
_FAST: dict[Engine, Callable[[int], int]] = {
    "matrix": fast_length,
    "batched": aligned_length,
    "fft": fast_length,
}
"""By engine: how it runs, how it is planned, and which lengths it takes."""
