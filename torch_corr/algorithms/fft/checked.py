"""The ``fft`` that ``auto`` uses: double precision, with a check of each result.

The error of a transform is relative to its largest numbers.  In float32 its proved bound is above
1e-4 of an output's own terms even for a constant image; in float64 bright and faint parts may
differ by a factor of 1e8.  So the operands are converted to double precision, and the result is
rounded once. :mod:`.certificate` then proves for each result y with terms S = sum |a||b|

    |error| <= t S + the last rounding,    t = 2**-14 in float32 and 2**-22 in float64,

that y is 0 if all its products are, and that it is not negative if none of its products is.  If few
results fail, they are computed by the definition; if many fail, or an operand contains a number
that is not finite, the fallback computes the whole map.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import ClassVar

import torch
from torch import Tensor

from ...problem import Problem
from ...request import HALVES, MapName, Request, accumulation_dtype
from ..base import (
    Algorithm,
    Cost,
    ErrorClass,
    UniformMaps,
    operand_bytes,
)
from ..triton.algorithm import Triton
from .algorithm import FFT, converted_bytes
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
"""Maximum fraction of the results to recompute one by one.

A gathered product takes 300 to 700 times as long as one of ``direct`` (two Zen 4 cores, 31x31
taps), so above this fraction the fallback is faster.
"""

DEVICE_PRODUCTS = 2**22
"""Maximum products in the results that a device recomputes one by one."""

OPERATOR_SECONDS = 30e-6
"""Seconds that the host of an H200 took for one of the calls in a transform's cost: 0.3 to 1.3 ms
for 22 to 28 of them, 2.5 to 4.1 for 176.  The device waits for it meanwhile."""

CHECK_CALLS = 7
"""Calls that the check adds on a device: some 50 small operators, each a sixth of such a call.  An
estimate, not measured."""


@dataclass(frozen=True)
class CheckedFFT(UniformMaps):
    """``fast`` in double precision if its results are proved to be accurate, else ``fallback``.

    On a CPU the host reads the outcome of the check.  On CUDA it does not wait for it:
    :class:`Triton` is always launched, and its kernels return at once unless they are needed.

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
        """With a fallback that the device can skip: :class:`Triton` on CUDA."""
        return cls(fast, Triton() if device.type == "cuda" else fallback)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fast.double:
            raise ValueError(f"{self.fast!r} must compute in double precision: FFT(double=True)")

    @property
    def verdict(self) -> str:
        """Includes the fallback."""
        return f"{self.error_class}; each result is checked, else {self.fallback.name}"

    def uses_matrix_products(self, request: Request) -> bool:
        """On CUDA, where a setting of PyTorch may allow TF32."""
        return request.device.type == "cuda"

    def call_seconds(self, request: Request, cost: Cost) -> tuple[float, float]:
        """On CUDA the host takes :data:`OPERATOR_SECONDS` per operator, and the device waits for
        it."""
        added, _ = super().call_seconds(request, cost)
        return added, OPERATOR_SECONDS * cost.calls if request.device.type == "cuda" else 0.0

    def refusals(self, request: Request) -> tuple[str, ...]:
        """The refusals of both algorithms; on CUDA also a fallback that the device cannot skip."""
        if request.device.type == "cuda" and not isinstance(self.fallback, Triton):
            return (
                f"the host would wait for the device to know whether {self.fallback.name} has to "
                "compute; on CUDA the fallback must be triton",
            )
        if reasons := self.fast.refusals(request):
            return reasons
        request = request.in_accumulation_dtype()
        return tuple(
            f"{self.fallback.name} must recompute what fails its check, and refuses: {sentence}; "
            f"name 'fft' to get unchecked results"
            for sentence in self.fallback.refusals(request)[:1]
        )

    def rates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Double precision."""
        return self.fast.rates_dtype(dtype)

    def tolerance(self, dtype: torch.dtype) -> float:
        """t: the error of a result is at most t times the sum of the moduli of its products."""
        return TOLERANCES[accumulation_dtype(dtype)]

    def workspace(self, request: Request) -> int:
        """The maximum of the transform's, the check's and the fallback's.

        With :class:`Triton` two results are in memory at the same time.
        """
        converted, request = converted_bytes(request), request.in_accumulation_dtype()
        dtype, (first, second, result) = request.dtype, request.shapes
        wide = self.rates_dtype(dtype).itemsize
        planes = max(max(prod(each[2:]), min(WIDENED, prod(each))) for each in (first, second))
        # An operand's planes, their moduli and the nonzero moduli; the result's rounded moduli, a
        # copy of it and its masks; or the products of results to recompute.
        check = max(
            wide * 3 * planes,
            dtype.itemsize * 9 * prod(result) // 4,
            wide * 3 * max(GATHERED, terms_of(request.problem, request.map)),
        )
        own = max(self.fast.workspace(request), check)
        fallback = self.fallback.workspace(request)
        if isinstance(self.fallback, Triton):
            fallback += prod(result) * dtype.itemsize
        return converted + max(own, fallback)

    def cost(self, request: Request) -> Cost:
        """The transform's cost in double precision plus the check's; recomputed results are
        rare."""
        cost = self.fast.cost(request)
        # The check converts the operands, computes their norms, and compares the result's moduli.
        traffic = 3 * operand_bytes(request.problem, accumulation_dtype(request.dtype))
        calls = CHECK_CALLS if request.device.type == "cuda" else 20
        return cost._replace(bytes=cost.bytes + traffic, calls=cost.calls + calls)

    def run_map(self, problem: Problem, map: MapName, first: Tensor, second: Tensor) -> Tensor:
        if first.dtype in HALVES:
            return self.run_map(problem, map, first.float(), second.float()).to(first.dtype)
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
        """Check the results, and recompute in place the few that fail; False if too many fail."""
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

        The capacity for recomputed results depends only on sizes.
        """
        found: Certificate = certify(
            problem, map, *operands, result, bounds, self.tolerance(result.dtype)
        )
        most = DEVICE_PRODUCTS // max(1, terms_of(problem, map))
        capacity = max(1, min(most, int(MAX_RECOMPUTED * result.numel())))
        uncertified = found.uncertified.flatten()
        places = uncertified.cumsum(0)
        numbers = torch.arange(len(places), device=result.device)
        # Results that are certified, or exceed the capacity, go to an extra place, removed below.
        into = torch.where(uncertified & (places <= capacity), places - 1, capacity)
        # Unused places refer to an extra result after the last one, also removed below.
        free = numbers.new_full((capacity + 1,), len(numbers))
        chosen = free.scatter_(0, into, numbers)[:capacity]
        points = chosen.clamp(max=len(numbers) - 1)
        sums = recompute(problem, map, *operands, points).to(result.dtype)
        flat = torch.cat((found.result.flatten(), result.new_zeros(1))).scatter_(0, chosen, sums)
        redo = (places[-1] > capacity) | ~bounds.isfinite().all()
        return flat[:-1].view(result.shape), redo.to(torch.int32).view(1)
