"""A quick algorithm whose results are checked, and a sure one for those that fail the check.

A transform spreads a NaN, or the rounding of one huge pixel, over its whole tile.  Most
images hold neither, and to look for them takes less time than the transform.  So ``auto``
takes a transform where it pays only together with an algorithm that keeps what happens in a
window to that window, and pays for the second only when the first may not stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from ..problem import Problem
from ._plans import SLOTS, shape_of
from .base import Algorithm, Cost, ErrorClass, MapName, may_use_tf32
from .fft import FFT
from .triton import Triton


@dataclass(frozen=True)
class Guarded(Algorithm):
    """``quick`` where its result stands (:meth:`FFT.stands`), else ``sure``.

    Attributes:
        quick: transforms.
        sure: an algorithm of componentwise error.  On CUDA :class:`Triton`, for which nobody
            waits: the device finds out whether its launches have anything to do.
    """

    quick: FFT
    sure: Algorithm

    name: ClassVar[str] = "fft, guarded"
    error_class: ClassVar[ErrorClass] = "normwise"

    def refusals(
        self, problem: Problem, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        """What either of the two cannot do; on CUDA one that the device cannot leave out."""
        if device.type == "cuda" and not isinstance(self.sure, Triton):
            return (
                f"the host would wait for the device to find out whether {self.sure.name} has "
                "to compute; on CUDA the sure one is triton",
            )
        return tuple(
            f"{each.name}: {sentence}"
            for each in (self.quick, self.sure)
            for sentence in each.refusals(problem, device, dtype)
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
        """The larger of the two: they run one after the other.

        With :class:`Triton` there are two results at that time.
        """
        quick, sure = (
            each.workspace(problem, map, device, dtype) for each in (self.quick, self.sure)
        )
        if isinstance(self.sure, Triton):
            sure += prod(shape_of(problem, SLOTS[map][2])) * dtype.itemsize
        return max(quick, sure)

    def cost(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> Cost:
        """The quick one's: results that do not stand are rare."""
        return self.quick.cost(problem, map, device, dtype)

    def error_constant(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> float:
        """The factor before ``sum_c ||x_c|| ||w_oc||`` in the bound that either keeps.

        The quick one's is :meth:`FFT.error_constant`.  A sum of n products errs by (n + 1) u
        times that of their moduli (Higham, section 3.1), which the norms are no smaller than; more
        where PyTorch's settings let convolutions, and so :class:`Triton`, read operands as TF32.
        """
        terms = {
            "forward": problem.group_in * prod(problem.kernel),
            "grad_input": problem.group_out * prod(problem.kernel),
            "grad_weight": problem.batch * prod(problem.output_size),
        }[map]
        sure = (terms + 1) * torch.finfo(dtype).eps / 2
        if isinstance(self.sure, Triton) and may_use_tf32(dtype):
            # Of either factor 11 digits are read, the others cut off.
            off = (2 + 2.0**-10) * 2.0**-10
            sure = (1 + off) * sure + off
        return max(self.quick.error_constant(problem, map, device, dtype), sure)

    def _run(self, map: MapName, problem: Problem, first: Tensor, second: Tensor) -> Tensor:
        result: Tensor = getattr(self.quick, map)(problem, first, second)
        if isinstance(self.sure, Triton):
            return self.sure.where_doubtful(map, problem, first, second, result)
        if self.quick.stands(problem, map, first, second, result):
            return result
        sure: Tensor = getattr(self.sure, map)(problem, first, second)
        return sure
