"""``fft`` as ``auto`` runs it: in double precision, proved result by result, else recomputed.

The error of a transform is relative to its largest numbers.  In float32 its proved bound is above
1e-4 of an output's own terms even for a constant image; in float64 it leaves a factor of 1e8 for
bright and faint parts.  So operands are widened, transformed, and the result is rounded once.
:mod:`._certificate` then proves for each result y with terms S = sum |a||b|

    |error| <= t S + the last rounding,    t = 2**-14 in float32 and 2**-22 in float64,

and that y is 0 where all its products are, and not negative where they are not.  Few results that
cannot be proved are computed by their definition; for many, and where an operand holds a number
that is not finite, the fallback computes the whole map.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from ..problem import Problem
from ._certificate import (
    GATHERED,
    TOLERANCES,
    Certificate,
    certify,
    error_bounds,
    has_extremes,
    recompute,
    terms_of,
    uncertified_by_size,
)
from ._plans import SLOTS, shape_of
from .base import Algorithm, Cost, ErrorClass, MapName
from .fft import FFT
from .triton import Triton

FEW = 1 / 512
"""The part of all results up to which they are recomputed one by one.

A product that is gathered takes 300 to 700 times as long as one of ``direct`` (two Zen 4 cores,
31x31 taps), so above this part the fallback is quicker."""

DEVICE_PRODUCTS = 2**22
"""Products for which there is room among the results that a device recomputes one by one."""

DEVICE_CALLS = 7
"""What the check adds on a device to the calls that a plan counts: some 50 small operators, each a
sixth of such a call.  An estimate, not measured."""


@dataclass(frozen=True)
class CheckedFFT(Algorithm):
    """``fast`` in double precision where its results are proved to be accurate, else ``fallback``.

    On a CPU the host reads the outcome of the check.  On CUDA it does not wait for it:
    :class:`Triton` is launched in any case, and its kernels return at once unless they are needed.

    Attributes:
        fast: transforms.
        fallback: an algorithm of componentwise error; :class:`Triton` on CUDA.
    """

    fast: FFT
    fallback: Algorithm

    name: ClassVar[str] = "fft, checked"
    error_class: ClassVar[ErrorClass] = "normwise"

    def refusals(
        self, problem: Problem, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        """What either of the two cannot do; on CUDA a fallback that the device cannot skip."""
        if device.type == "cuda" and not isinstance(self.fallback, Triton):
            return (
                f"the host would wait for the device to know whether {self.fallback.name} has to "
                "compute; on CUDA the fallback must be triton",
            )
        return tuple(
            f"{each.name}: {sentence}"
            for each, kind in ((self.fast, self.rates_dtype(dtype)), (self.fallback, dtype))
            for sentence in each.refusals(problem, device, kind)
        )

    def rates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Double precision; halves stay, which the transform refuses."""
        return _WIDE.get(dtype, dtype)

    def tolerance(self, dtype: torch.dtype) -> float:
        """t: the error of a result is at most t times the sum of the moduli of its products."""
        return TOLERANCES[dtype]

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        """(x, w) -> y, as the base class says."""
        return self._run("forward", problem, input, weight)

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        """(y, w) -> x, as the base class says."""
        return self._run("grad_input", problem, output, weight)

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        """(x, y) -> w, as the base class says."""
        return self._run("grad_weight", problem, input, output)

    @staticmethod
    def copies(problem: Problem, map: MapName, dtype: torch.dtype) -> int:
        """Bytes of operands and result in double precision, where they are not already."""
        wide = _WIDE.get(dtype, dtype)
        numbers = sum(prod(shape_of(problem, slot)) for slot in SLOTS[map])
        return numbers * wide.itemsize if wide != dtype else 0

    def workspace(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> int:
        """Wide copies, the transform's own and the check's; or the fallback's, if that is more.

        With :class:`Triton` two results are in memory at a time.
        """
        wide, copies = self.rates_dtype(dtype), self.copies(problem, map, dtype)
        sizes = [prod(shape_of(problem, slot)) for slot in SLOTS[map]]
        # Moduli of an operand, and a copy of those; or the products of results to recompute.
        gathered = 3 * max(GATHERED, terms_of(problem, map))
        check = wide.itemsize * max(9 * max(sizes) // 4, gathered)
        own = copies + max(self.fast.workspace(problem, map, device, wide), check)
        fallback = self.fallback.workspace(problem, map, device, dtype)
        if isinstance(self.fallback, Triton):
            fallback += sizes[2] * dtype.itemsize
        return max(own, fallback)

    def cost(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> Cost:
        """The transform's in double precision, and the check's; results to recompute are rare."""
        cost = self.fast.cost(problem, map, device, self.rates_dtype(dtype))
        sizes = [prod(shape_of(problem, slot)) for slot in SLOTS[map]]
        # Each operand is widened and its norm taken, the result is rounded and its modulus taken.
        moved = 3 * sum(sizes) * self.rates_dtype(dtype).itemsize
        calls = DEVICE_CALLS if device.type == "cuda" else 20
        return cost._replace(bytes=cost.bytes + moved, calls=cost.calls + calls)

    def _run(self, map: MapName, problem: Problem, first: Tensor, second: Tensor) -> Tensor:
        run_fast, run_fallback = getattr(self.fast, map), getattr(self.fallback, map)
        result: Tensor
        if first.numel() == 0 or second.numel() == 0:
            result = run_fallback(problem, first, second)
            return result
        dtype, device = first.dtype, first.device
        wide = self.rates_dtype(dtype)
        operands = first.to(wide), second.to(wide)
        constant = self.fast.error_constant(problem, map, device, wide)
        tolerance = self.tolerance(dtype)
        bounds = error_bounds(problem, map, *operands, constant, dtype, tolerance)
        if dtype == wide:
            bounds = torch.where(has_extremes(*operands), torch.inf, bounds)
        if isinstance(self.fallback, Triton):
            result = run_fast(problem, *operands).to(dtype)
            result, redo = self._on_device(map, problem, operands, result, bounds)
            return self.fallback.where_needed(map, problem, first, second, result, redo)
        if bounds.isfinite().all():
            result = run_fast(problem, *operands).to(dtype)
            if self._is_settled(map, problem, operands, result, bounds):
                return result
            del result
        del operands
        result = run_fallback(problem, first, second)
        return result

    def _is_settled(
        self,
        map: MapName,
        problem: Problem,
        operands: tuple[Tensor, Tensor],
        result: Tensor,
        bounds: Tensor,
    ) -> bool:
        """Whether all results are certified, or recomputed since they were few; changes them."""
        tolerance, most = self.tolerance(result.dtype), int(FEW * result.numel())
        points = uncertified_by_size(result, bounds, tolerance, most)
        if points is None:
            found = certify(problem, map, *operands, result, bounds, tolerance)
            if int(found.uncertified.sum()) > most:
                return False
            result.copy_(found.result)
            points = found.uncertified.nonzero()
        if len(points):
            sums = recompute(problem, map, *operands, points)
            result[tuple(points.unbind(1))] = sums.to(result.dtype)
        return True

    def _on_device(
        self,
        map: MapName,
        problem: Problem,
        operands: tuple[Tensor, Tensor],
        result: Tensor,
        bounds: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The same without the host: the result, and an integer, 0 unless the fallback is needed.

        There is room for a number of recomputed results that sizes decide.
        """
        found: Certificate = certify(
            problem, map, *operands, result, bounds, self.tolerance(result.dtype)
        )
        most = DEVICE_PRODUCTS // max(1, terms_of(problem, map))
        room = max(1, min(most, int(FEW * result.numel())))
        uncertified = found.uncertified.flatten()
        places = uncertified.cumsum(0)
        numbers = torch.arange(len(places), device=result.device)
        # What is certified, or beyond the room, goes to one more place, which is cut off.
        into = torch.where(uncertified & (places <= room), places - 1, room)
        # Room that is not taken stands for a result after the last one, which is cut off too.
        free = numbers.new_full((room + 1,), len(numbers))
        chosen = free.scatter_(0, into, numbers)[:room]
        points = torch.unravel_index(chosen.clamp(max=len(numbers) - 1), result.shape)
        sums = recompute(problem, map, *operands, torch.stack(points, 1)).to(result.dtype)
        flat = torch.cat((found.result.flatten(), result.new_zeros(1))).scatter_(0, chosen, sums)
        redo = (places[-1] > room) | ~bounds.isfinite().all()
        return flat[:-1].view(result.shape), redo.to(torch.int32).view(1)


_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
