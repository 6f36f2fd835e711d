"""Correlation in the frequency domain, tiled by overlap-save; the three maps share one product.

By the convolution theorem the trilinear form is a sum over frequencies f of a tile,

    T(x, w, y) = 1/n^2 sum_f sum_{tile,o,c} X[f; tile,c] W[-f; o,c] Y[-f; tile,o],

so each map transforms its two operands, sums products over the one index that they share (channels,
outputs, or tiles with images), and transforms back:

    forward      Y[f; tile,o] = sum_c    X[f; tile,c] W[-f; o,c]
    grad_input   X[f; tile,c] = sum_o    Y[f; tile,o] W[f; o,c]
    grad_weight  W[f; o,c]    = sum_tile Y[-f; tile,o] X[f; tile,c]

Nothing is conjugated: W[-f] is the conjugate of W[f] only where w is real.

The error is normwise, relative to the norms of a tile: :mod:`.error_bound` proves a bound.

:mod:`.search` finds the best :class:`~.plans.TransformPlan`, and one of three engines runs it.
:mod:`.engine_matrix` (for CPUs) and :mod:`.engine_batched` (for GPUs) transform by matrix products,
:mod:`.engine_fft` by FFT.

Source: Oppenheim & Schafer, Discrete-Time Signal Processing, 8.7.3 (overlap-save).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from ...problem import Problem, as_int
from ...request import HALVES, MAPS, SLOTS, MapName, Request, accumulation_dtype, shape_of
from ..base import (
    COMPLEX,
    DEFAULT_WORKSPACE,
    FLOATS,
    Algorithm,
    ErrorClass,
    UniformMaps,
    check_workspace_limit,
    dtype_refusal,
    products_may_use_tf32,
)
from ..cost import Fitted, Work
from . import engine_batched, engine_fft, engine_matrix
from .plans import TransformPlan
from .search import plan

ABLE = FLOATS + COMPLEX


def double_precision(dtype: torch.dtype) -> torch.dtype:
    """float64 for float32, complex128 for complex64; any other dtype stays."""
    return {torch.float32: torch.float64, torch.complex64: torch.complex128}.get(dtype, dtype)


FEW_TAPS = 81
"""Kernels with fewer taps are not planned: planning takes milliseconds, and of 2,565 maps timed on
two Zen 4 cores, 2026-11-25, a transform with fewer taps was the fastest in 12, all but one with
complex numbers."""

FEW_TAPS_IF_LARGE = 49
"""The same for large problems, see :data:`LARGE_PROBLEM`: 64 to 64 channels of 4x128x128, 8x8, take
half of PyTorch's time."""

LARGE_PROBLEM = 2**30
"""Multiplications that take longer than planning a transform, by any algorithm."""

LONG_TRANSFORM = 96
"""From this length on, transforms have separate fitted factors."""


@dataclass(frozen=True)
class FFT(UniformMaps, Fitted):
    """Overlap-save in the frequency domain.

    The error of a result is relative to the norms of its tile, not to its own terms.  So a result
    whose products are all zero may be a small number of either sign, faint parts of an image may be
    lost next to bright ones, and a number that is not finite spreads over its tile.  ``"auto"``
    uses transforms only where it proves that none of this happens.

    Half precision is computed in float32, and each result is rounded once.

    Attributes:
        tile: length of the transforms along both axes, rounded to a fast one and enlarged
            to hold one window; None lets the cost model choose, separately for each axis.
        workspace_limit: maximum bytes beyond operands and result.
        double: compute in double precision, whatever the dtype of the operands, and round each
            result once.

    Raises:
        TypeError: a tile or limit that is not an integer; a ``double`` that is not a bool.
        ValueError: a tile below 1, or a negative limit.
    """

    tile: int | None = None
    workspace_limit: int = DEFAULT_WORKSPACE
    double: bool = False

    name: ClassVar[str] = "fft"
    error_class: ClassVar[ErrorClass] = "normwise"
    needs_check: ClassVar[bool] = True
    has_cuda_cost_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_workspace_limit(self.workspace_limit)
        if self.tile is not None and as_int("tile", self.tile) < 1:
            raise ValueError(
                f"tile={self.tile} must be at least 1, or None for an automatic choice"
            )
        if not isinstance(self.double, bool):
            raise TypeError(f"double must be True or False, got {self.double!r}")

    def checked(self, device: torch.device, fallback: Algorithm) -> Algorithm:
        """In double precision, with a check; on CUDA ``triton`` recomputes, without a host sync."""
        from .checked import CheckedFFT  # a circular import at module level

        return CheckedFFT.on(device, replace(self, double=True), fallback)

    def is_worth_planning(self, request: Request) -> bool:
        """With enough taps; large problems need fewer.  Not in half precision on CUDA, where other
        algorithms use matrix units and the conversion was not measured."""
        problem = request.problem
        if request.dtype in HALVES and request.device.type == "cuda":
            return False
        enough = FEW_TAPS_IF_LARGE if problem.multiplications >= LARGE_PROBLEM else FEW_TAPS
        return problem.kernel[0] * problem.kernel[1] >= enough

    def rates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype to compute in."""
        summing = accumulation_dtype(dtype)
        return double_precision(summing) if self.double else summing

    def refusals(self, request: Request) -> tuple[str, ...]:
        """There is no transform of integers; the plan may exceed the workspace limit."""
        if unable := dtype_refusal(request.dtype, ABLE):
            return unable
        least = max(self.workspace(request.with_map(map)) for map in MAPS)
        if least <= self.workspace_limit:
            return ()
        return (
            f"its smallest workspace here, {least} bytes, is above the limit of "
            f"{self.workspace_limit}; raise workspace_limit",
        )

    def workspace(self, request: Request) -> int:
        """Peak bytes of the chosen plan, as an upper bound, and of conversions to float32."""
        return self._plan(request).workspace + converted_bytes(request)

    def work(self, request: Request) -> Work:
        """The work of the chosen plan."""
        chosen = self._plan(request)
        moved = chosen.cost.bytes + 1.5 * converted_bytes(request)
        cost = chosen.cost._replace(bytes=moved)
        if chosen.engine == "matrix":
            return Work("matrix", cost)
        # A single tile needs no sum over tiles and no padded copy.
        one = chosen.task.single_tile and request.problem.batch == 1
        regime = "fft, single tile" if one else "fft"
        long = max(chosen.task.lengths) >= LONG_TRANSFORM
        return Work(f"{regime}, long" if long else regime, cost)

    def error_constant(self, request: Request) -> float:
        """The factor of ``sum_c ||x_c|| ||w_oc||`` in a bound on the error of each result.

        The norms may be those of whole planes, which are at least as large as those of their tiles.
        """
        before, dtype = self.error_before_rounding(request), request.dtype
        if self.rates_dtype(dtype) == dtype:
            return before
        # A result is at most that sum plus its error.
        rounding = torch.finfo(dtype).eps / 2
        return before * (1 + rounding) + rounding

    def error_before_rounding(self, request: Request) -> float:
        """The same factor before the result is rounded from ``rates_dtype``; see
        :mod:`.error_bound`.

        Where PyTorch's settings let CUDA's matrix products use TF32, u is the unit roundoff of
        TF32.
        """
        wide, chosen = self.rates_dtype(request.dtype), self._plan(request)
        unit, cuda = torch.finfo(wide).eps / 2, request.device.type == "cuda"
        if chosen.engine == "batched" and cuda and products_may_use_tf32(wide):
            # Both operands of every product are rounded to 11 bits, which (c + 4) u covers.
            unit = 2.0**-11
        return chosen.error * unit

    def _plan(self, request: Request) -> TransformPlan:
        dtype = accumulation_dtype(request.dtype)
        itemsize, is_complex = self.rates_dtype(dtype).itemsize, dtype.is_complex
        options = self.tile, self.workspace_limit, request.device.type
        return plan(request.problem, request.map, itemsize, dtype.itemsize, is_complex, *options)

    def run_map(self, problem: Problem, map: MapName, first: Tensor, second: Tensor) -> Tensor:
        if first.dtype in HALVES:
            return self.run_map(problem, map, first.float(), second.float()).to(first.dtype)
        shape = shape_of(problem, SLOTS[map][2])
        if first.numel() == 0 or second.numel() == 0:
            return first.new_zeros(shape)
        chosen = self._plan(Request.of(problem, map, first))
        # The tiles cover every output and every tap, but not every input.
        zeros = map == "grad_input" and not chosen.task.is_overlap_save
        like = first.new_empty(0, dtype=self.rates_dtype(first.dtype))
        dtype = like.dtype if chosen.accumulates else first.dtype
        new = first.new_zeros if zeros else first.new_empty
        result = new(shape, dtype=dtype)
        _RUNS[chosen.engine](chosen, first, second, result, like)
        return result.to(first.dtype)


def converted_bytes(request: Request) -> int:
    """Bytes of operands and result in float32, to which half precision is converted; else 0."""
    if request.dtype not in HALVES:
        return 0
    return torch.float32.itemsize * sum(map(prod, request.shapes))


_RUNS = {"matrix": engine_matrix.run, "batched": engine_batched.run, "fft": engine_fft.run}
"""The function of each engine that runs its plans.  Its arguments are a plan of this engine; the
map's operands; the result, which must be zero if an input's gradient accumulates over tiles; and an
empty tensor ``like`` with the dtype to compute in, which may differ from the operands'."""
