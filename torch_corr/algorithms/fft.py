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

What to do is planned first (:mod:`._planning` looks for the best :class:`~._plans.Plan`) and then
run, by one of three engines: :mod:`._matrix` and :mod:`._batched` transform by matrix products, for
a CPU and for a device, :mod:`._fft` by FFT.

Sources: Oppenheim & Schafer, Discrete-Time Signal Processing, 8.7.3 (overlap-save);
Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., chapter 24.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..problem import Problem, as_int
from . import _batched, _fft, _matrix
from ._planning import plan
from ._plans import SLOTS, SUMMED, Engine, Plan, shape_of
from ._tiling import prime_factors
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

    The error of a result is relative to the norms of its tile, not to its own terms.  So a result
    whose products are all zero may be a small number of either sign, faint parts of an image may
    drown beside bright ones, and a number that is not finite fills its tile.  ``"auto"`` uses
    transforms only where it proves that none of this happens.

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

    def error_constant(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> float:
        """The factor before ``sum_c ||x_c|| ||w_oc||`` in the bound that the module states.

        The norms may be those of whole planes, which are no smaller than their tiles'.  Where
        PyTorch's settings let CUDA's matrix products use TF32, u is that of its digits.
        """
        chosen = self._plan(problem, map, device, dtype)
        tiles = problem.batch * chosen.axes[0].tiles * chosen.axes[1].tiles
        terms = {"input": problem.group_in, "output": problem.group_out, "tiles": tiles}
        units = math.sqrt(2) * (terms[SUMMED[map]] + 3)
        for slot in SLOTS[map]:
            for axis in chosen.axes:
                samples = getattr(axis, slot).count
                if slot == SLOTS[map][2] and chosen.engine != "fft":
                    # c + 4 as for a transform, and two for waves divided by the length.
                    units += math.sqrt(2) * (axis.length + 6)
                else:
                    units += transform_error(axis.length, samples, chosen.engine)
        overlapping = 1  # tiles whose contributions one pixel of the result adds up
        if map == "grad_input":
            for axis in chosen.axes:
                overlapping *= min(axis.laps, axis.tiles)
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


_RUNS = {"matrix": _matrix.run, "batched": _batched.run, "fft": _fft.run}
"""By engine: how it is run."""
