"""``fft`` as ``auto`` runs it: in double precision, proved result by result, else recomputed.

The error of a transform is relative to its largest numbers.  In float32 its proved bound is above
1e-4 of an output's own terms even for a constant image; in float64 it leaves a factor of 1e8 for
bright and faint parts.  So operands are widened, transformed, and the result is rounded once.
:mod:`.certificate` then proves for each result y with terms S = sum |a||b|

    |error| <= t S + the last rounding,    t = 2**-14 in float32 and 2**-22 in float64,

and that y is 0 where all its products are, and not negative where they are not.  Few results that
cannot be proved are computed by their definition; for many, and where an operand holds a number
that is not finite, the fallback computes the whole map.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import ClassVar

import torch
from torch import Tensor

from ...problem import Problem
from ...request import MapName, Request
from ..base import Algorithm, Cost, ErrorClass
from ..triton.algorithm import Triton
from .algorithm import FFT
from .certificate import (
    GATHERED,
    TOLERANCES,
    WIDENED,
    Certificate,
    certify,
    error_bounds,
    recompute,
    terms_of,
    uncertified_by_size,
)

MAX_RECOMPUTED = 1 / 512
"""The part of all results up to which they are recomputed one by one.

A product that is gathered takes 300 to 700 times as long as one of ``direct`` (two Zen 4 cores,
31x31 taps), so above this part the fallback is quicker."""

DEVICE_PRODUCTS = 2**22
"""Products for which there is room among the results that a device recomputes one by one."""

OPERATOR_SECONDS = 30e-6
"""Seconds that the host of an H200 took for one of the calls that a transform's plan counts there:
0.3 to 1.3 ms for 22 to 28 of them, 2.5 to 4.1 for 176.  The device waits for it meanwhile."""

CHECK_CALLS = 7
"""What the check adds on a device to the calls that a plan counts: some 50 small operators, each a
sixth of such a call.  An estimate, not measured."""


@dataclass(frozen=True)
class CheckedFFT(Algorithm):
    """``fast`` in double precision where its results are proved to be accurate, else ``fallback``.

    On a CPU the host reads the outcome of the check.  On CUDA it does not wait for it:
    :class:`Triton` is launched in any case, and its kernels return at once unless they are needed.

    Attributes:
        fast: transforms in double precision.
        fallback: an algorithm of componentwise error; :class:`Triton` on CUDA.
    """

    fast: FFT
    fallback: Algorithm

    name: ClassVar[str] = "fft, checked"
    error_class: ClassVar[ErrorClass] = "normwise"
    has_cuda_cost_model: ClassVar[bool] = True

    @classmethod
    def on(cls, device: torch.device, fast: FFT, fallback: Algorithm) -> CheckedFFT:
        """With the fallback that the device can skip: :class:`Triton` on CUDA."""
        return cls(fast, Triton() if device.type == "cuda" else fallback)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fast.double:
            raise ValueError(f"{self.fast!r} must compute in double precision: FFT(double=True)")

    @property
    def verdict(self) -> str:
        """Names the fallback."""
        return f"{self.error_class}; each result is checked, else {self.fallback.name}"

    def uses_matrix_products(self, request: Request) -> bool:
        """On CUDA, where a setting of PyTorch allows them TF32."""
        return request.device.type == "cuda"

    def call_seconds(self, request: Request, cost: Cost) -> tuple[float, float]:
        """On CUDA the host needs :data:`OPERATOR_SECONDS` for each operator while the device waits."""
        added, _ = super().call_seconds(request, cost)
        return added, OPERATOR_SECONDS * cost.calls if request.device.type == "cuda" else 0.0

    def refusals(self, request: Request) -> tuple[str, ...]:
        """What either of the two cannot do; on CUDA a fallback that the device cannot skip."""
        if request.device.type == "cuda" and not isinstance(self.fallback, Triton):
            return (
                f"the host would wait for the device to know whether {self.fallback.name} has to "
                "compute; on CUDA the fallback must be triton",
            )
        if reasons := self.fast.refusals(request):
            return reasons
        return tuple(
            f"{self.fallback.name} must recompute what fails its check, and refuses: {sentence}; "
            f"name 'fft' to have results that are not checked"
            for sentence in self.fallback.refusals(request)[:1]
        )

    def rates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Double precision; halves stay, which the transform refuses."""
        return self.fast.rates_dtype(dtype)

    def tolerance(self, dtype: torch.dtype) -> float:
        """t: the error of a result is at most t times the sum of the moduli of its products."""
        return TOLERANCES[dtype]

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        """(x, w) -> y, as the base class says."""
        return self._run(problem, "forward", input, weight)

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        """(y, w) -> x, as the base class says."""
        return self._run(problem, "grad_input", output, weight)

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        """(x, y) -> w, as the base class says."""
        return self._run(problem, "grad_weight", input, output)

    def workspace(self, request: Request) -> int:
        """The most of the transform's, the check's and the fallback's.

        With :class:`Triton` two results are in memory at a time.
        """
        dtype, (first, second, result) = request.dtype, request.shapes
        wide = self.rates_dtype(dtype).itemsize
        planes = max(max(prod(each[2:]), min(WIDENED, prod(each))) for each in (first, second))
        # An operand's planes, their moduli and those that are not zero; the result's moduli, which
        # are rounded, a copy of it, and what is known of each number; or products of results to
        # recompute.
        check = max(
            wide * 3 * planes,
            dtype.itemsize * 9 * prod(result) // 4,
            wide * 3 * max(GATHERED, terms_of(request.problem, request.map)),
        )
        own = max(self.fast.workspace(request), check)
        fallback = self.fallback.workspace(request)
        if isinstance(self.fallback, Triton):
            fallback += prod(result) * dtype.itemsize
        return max(own, fallback)

    def cost(self, request: Request) -> Cost:
        """The transform's in double precision, and the check's; results to recompute are rare."""
        cost = self.fast.cost(request)
        # Operands are widened and their norms taken; of the result moduli are taken and compared.
        moved = 3 * sum(map(prod, request.shapes)) * request.dtype.itemsize
        calls = CHECK_CALLS if request.device.type == "cuda" else 20
        return cost._replace(bytes=cost.bytes + moved, calls=cost.calls + calls)

    def _run(self, problem: Problem, map: MapName, first: Tensor, second: Tensor) -> Tensor:
        run_fast, run_fallback = getattr(self.fast, map), getattr(self.fallback, map)
        result: Tensor
        if first.numel() == 0 or second.numel() == 0:
            result = run_fallback(problem, first, second)
            return result
        operands = first, second
        constant = self.fast.error_before_rounding(Request.of(problem, map, first))
        bounds = error_bounds(problem, map, *operands, constant, self.tolerance(first.dtype))
        if isinstance(self.fallback, Triton):
            result = run_fast(problem, *operands)
            result, redo = self._on_device(problem, map, operands, result, bounds)
            return self.fallback.where_needed(problem, map, first, second, result, redo)
        if float(bounds.amax()) < inf:
            result = run_fast(problem, *operands)
            if self._is_settled(problem, map, operands, result, bounds):
                return result
            del result
        result = run_fallback(problem, first, second)
        return result

    def _is_settled(
        self,
        problem: Problem,
        map: MapName,
        operands: tuple[Tensor, Tensor],
        result: Tensor,
        bounds: Tensor,
    ) -> bool:
        """Whether all results are certified, or recomputed since they were few; changes them."""
        tolerance, most = self.tolerance(result.dtype), int(MAX_RECOMPUTED * result.numel())
        points = uncertified_by_size(result, bounds, tolerance, most)
        if points is None:
            found = certify(problem, map, *operands, result, bounds, tolerance)
            if int(found.uncertified.sum()) > most:
                return False
            result.copy_(found.result)
            points = found.uncertified.flatten().nonzero()[:, 0]
        if len(points):
            result.put_(points, recompute(problem, map, *operands, points).to(result.dtype))
        return True

    def _on_device(
        self,
        problem: Problem,
        map: MapName,
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
        room = max(1, min(most, int(MAX_RECOMPUTED * result.numel())))
        uncertified = found.uncertified.flatten()
        places = uncertified.cumsum(0)
        numbers = torch.arange(len(places), device=result.device)
        # What is certified, or beyond the room, goes to one more place, which is cut off.
        into = torch.where(uncertified & (places <= room), places - 1, room)
        # Room that is not taken stands for a result after the last one, which is cut off too.
        free = numbers.new_full((room + 1,), len(numbers))
        chosen = free.scatter_(0, into, numbers)[:room]
        points = chosen.clamp(max=len(numbers) - 1)
        sums = recompute(problem, map, *operands, points).to(result.dtype)
        flat = torch.cat((found.result.flatten(), result.new_zeros(1))).scatter_(0, chosen, sums)
        redo = (places[-1] > room) | ~bounds.isfinite().all()
        return flat[:-1].view(result.shape), redo.to(torch.int32).view(1)
