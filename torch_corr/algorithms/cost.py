"""Cost models with fitted factors: how far an algorithm's code stays behind the machine's peak
rates.

An algorithm states its multiplications, including those on padding and in idle lanes, and the bytes
that it moves.  Measurements give how far its code stays behind a matrix product, a transform and a
copy: each *regime* of an algorithm has a factor f for each quantity q of a
:class:`~torch_corr.algorithms.base.Cost`, and with the rates r of the machine

    seconds = sum_q f_q q / r_q.

``python -m benchmarks fit`` measures some hundred problems, fits the factors by least squares of
the logarithms, and writes ``cost_factors.py``, with the machine, the day and the accuracy.
(Exponents of lengths and channels in addition to the factors fitted those problems better, others
worse.)
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import ceil, prod
from typing import NamedTuple

import torch

from ..problem import Problem
from ..request import MapName, Request, dtype_name
from .base import Algorithm, Cost, operand_bytes
from .cost_factors import FACTORS


class Work(NamedTuple):
    """The work of a map before the fitted factors are applied.

    Attributes:
        regime: names the code path that runs; one regime has one set of factors.
        ideal: multiplications, transforms and bytes, including those on padding, and calls.
    """

    regime: str
    ideal: Cost


@dataclass(frozen=True)
class Fitted(Algorithm):
    """An algorithm whose cost is its work times fitted factors."""

    @abstractmethod
    def work(self, request: Request) -> Work:
        """The map's regime and its work on the CPU."""

    def cost(self, request: Request) -> Cost:
        """The work times the factors of its regime; without the factors on other devices than the
        CPU."""
        regime, ideal = self.work(request)
        if request.device.type != "cpu":
            return ideal
        factors = factors_of(self.name, regime, request.map, self.rates_dtype(request.dtype))
        return Cost(*(factor * amount for factor, amount in zip(factors.of_each, ideal)))


class Factors(NamedTuple):
    """The factors of a regime: how many times longer its code takes than the machine's rates say.

    A regime does one kind of multiplications and moves one kind of bytes.
    """

    flops: float
    fft_flops: float
    bytes: float
    calls: float

    @property
    def of_each(self) -> Cost:
        """The factor of each quantity of a cost."""
        flops, fft_flops, bytes, calls = self
        return Cost(flops, fft_flops, bytes, calls, flops, flops, bytes)

    @classmethod
    def sums(cls, amounts: Cost) -> Factors:
        """The sums of the quantities that share a factor."""
        flops = amounts.matmul_flops + amounts.vector_flops + amounts.conv_flops
        bytes = amounts.bytes + amounts.cached_bytes
        return cls(flops, amounts.fft_flops, bytes, amounts.calls)


def factors_of(algorithm: str, regime: str, map: MapName, dtype: torch.dtype) -> Factors:
    """The fitted factors of a regime; those of float32 for a dtype that was not measured.

    A regime that was never measured is assumed slow, so that ``auto`` does not choose it.
    """
    for kind in (kind_of(dtype), "float32", "float64"):
        key = factors_key(algorithm, regime, map, kind)
        if key in FACTORS:
            return Factors(*FACTORS[key])
    return Factors(4, 4, 4, 100)


def factors_key(algorithm: str, regime: str, map: MapName, kind: str) -> str:
    """The key of a regime's factors."""
    return f"{algorithm}, {regime}, {map}, {kind}"


def kind_of(dtype: torch.dtype) -> str:
    """The dtype's name; ``complex`` for both complex dtypes, which share their factors."""
    return "complex" if dtype.is_complex else dtype_name(dtype)


def im2col_bytes(problem: Problem, dtype: torch.dtype) -> float:
    """Bytes of all windows copied side by side (im2col): each pixel up to kH*kW times."""
    height, width = problem.output_size
    taps = problem.in_channels * prod(problem.kernel)
    return float(dtype.itemsize * problem.batch * height * width * taps)


def round_up_ratio(number: int, lanes: int) -> float:
    """``number`` rounded up to a multiple of ``lanes``, divided by ``number``: at least 1."""
    return ceil(number / lanes) * lanes / max(number, 1)


def valid_row_pairs(problem: Problem) -> int:
    """The number of (output row, kernel row) pairs that read a row of the image and not padding."""
    outputs, taps = problem.output_size[0], problem.kernel[0]
    if problem.padding[0] == (0, 0):
        return outputs * taps
    size, step, (before, _) = problem.size[0], problem.stride[0], problem.padding[0]
    offsets = (u * problem.dilation[0] - before for u in range(taps))
    return sum(
        max(0, min(outputs, (size - 1 - offset) // step + 1) - max(0, ceil(-offset / step)))
        for offset in offsets
    )


MMAP_THRESHOLD = 2**25
"""From this many bytes on, glibc maps new pages for each tensor and returns them when it is
freed."""

PAGE_FAULT_FACTOR = 6
"""How many times longer writing a byte of newly mapped memory takes, since the kernel first creates
its pages.  PyTorch's im2col, on two Zen 4 cores: 6 to 25 GB/s below :data:`MMAP_THRESHOLD`, 2 to
2.5 above it."""


def traffic_bytes(request: Request) -> float:
    """Bytes of operands and result, plus the cost of page faults for a large result."""
    itemsize, (*_, result) = request.dtype.itemsize, request.shapes
    return operand_bytes(request.problem, request.dtype) + page_fault_bytes(itemsize * prod(result))


def page_fault_bytes(bytes: float) -> float:
    """The extra cost of writing a tensor of this size to newly mapped memory, in bytes of plain
    writes."""
    return PAGE_FAULT_FACTOR * bytes if bytes >= MMAP_THRESHOLD else 0.0
