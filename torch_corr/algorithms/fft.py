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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..problem import Problem, as_int
from . import _batched, _fft, _matrix
from ._contrast import even, views
from ._plans import SLOTS, Engine, Plan, Slot, plan, shape_of
from ._tiling import (
    Window,
    copy_side_by_side,
    overlap_add,
    prime_factors,
    read_span,
    slabs,
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

LONG = 96
"""Length from which a transform's time is fitted apart."""


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
        shape = shape_of(problem, SLOTS[map][2])
        if first.numel() == 0 or second.numel() == 0:
            return first.new_zeros(shape)
        chosen = self._plan(problem, map, first.device, first.dtype)
        # The tiles cover every output and every tap, but not every input.
        add = map == "grad_input" and not chosen.turned
        result = first.new_zeros(shape) if add else first.new_empty(shape)
        _RUNS[chosen.engine](chosen, problem, map, first, second, result)
        return result


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
    inverse = _matrix.inverse_waves(plan.windows(target, everything), plan.lengths, result)
    taps = _matrix.lay_out(weight, plan.windows("weight", everything))
    held: dict[range, Tensor] = {}
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part, windows = slice(images.start, images.stop), plan.windows(target, rows)
        tiles = _matrix.lay_out(first[part], plan.windows(source, rows))
        number = len(images) * windows[0].tiles * windows[1].tiles
        sums = result.new_zeros(windows[0].count, windows[1].count * number * result.shape[1])
        for block in _blocks(plan, 0, result.is_complex()):
            w = held[block] if block in held else _matrix.analyse(taps, of_weight, block)
            if plan.hold:
                held[block] = w
            spectrum = torch.bmm(
                _matrix.analyse(tiles, of_first, block), w.mT if map == "forward" else w
            )
            del w
            _matrix.synthesise(spectrum, sums, inverse, block)
            del spectrum
        del tiles
        _place(result[part], _matrix.put_together(sums, windows, len(images)), windows, map)


def _weight_of_group(
    plan: Plan, problem: Problem, input: Tensor, output: Tensor, result: Tensor
) -> None:
    everything = range(plan.axes[0].tiles)
    of_input = _waves(plan, "input", input, reverse=False)
    of_output = _waves(plan, "output", output, reverse=True)
    windows = plan.windows("weight", everything)
    inverse = _matrix.inverse_waves(windows, plan.lengths, result)
    sums = result.new_zeros(windows[0].count, result.numel() // windows[0].count)
    for images, rows in slabs(problem.batch, plan.axes[0].tiles, plan.per_slab):
        part = slice(images.start, images.stop)
        x = _matrix.lay_out(input[part], plan.windows("input", rows))
        y = _matrix.lay_out(output[part], plan.windows("output", rows))
        for block in _blocks(plan, 0, result.is_complex()):
            spectrum = torch.bmm(
                _matrix.analyse(y, of_output, block).mT, _matrix.analyse(x, of_input, block)
            )
            _matrix.synthesise(spectrum, sums, inverse, block)
            del spectrum
        del x, y
    result.copy_(_matrix.put_together(sums, windows, result.shape[0]))


def _waves(plan: Plan, slot: Slot, like: Tensor, reverse: bool) -> _matrix.Waves:
    windows = plan.windows(slot, range(plan.axes[0].tiles))
    frequencies = plan.lengths[0] if like.is_complex() else plan.lengths[0] // 2 + 1
    return _matrix.waves(windows, plan.lengths, frequencies, reverse, like)


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


_RUNS = {"matrix": _run_matrix, "batched": _run_batched, "fft": _run_fft}
"""By engine: how it is run."""
