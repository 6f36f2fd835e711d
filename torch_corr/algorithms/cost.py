"""Costs by fitted factors: what an algorithm's work costs beside the ideal.

An algorithm knows how many multiplications it does, those on padding and in idle lanes
included, and how many bytes it moves.  How far its code stays behind a matrix product, a
transform and a copy is measured: for each *regime* of an algorithm there is a factor f for each
of the four quantities q of a :class:`~torch_corr.algorithms.base.Cost`, and with the rates r of
the machine

    seconds = sum_q f_q q / r_q.

``python -m benchmarks fit`` measures some hundred problems, fits the factors by least squares of
the logarithms, and writes ``cost_factors.py``, with the machine, the day and the accuracy.
(Exponents of lengths and channels beside the factors fitted those problems better, others worse.)
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
    """What a map does, before it is known at which fraction of the machine's rates.

    Attributes:
        regime: a word for the code that will run; work of one regime runs at one fraction.
        ideal: multiplications, transforms and bytes, those on padding included, and calls.
    """

    regime: str
    ideal: Cost


@dataclass(frozen=True)
class Fitted(Algorithm):
    """An algorithm whose cost is its work times fitted factors."""

    @abstractmethod
    def work(self, request: Request) -> Work:
        """What the map does on the CPU."""

    def cost(self, request: Request) -> Cost:
        """The work, times the factors of its regime; on another device than the CPU, the ideal."""
        regime, ideal = self.work(request)
        if request.device.type != "cpu":
            return ideal
        factors = factors_of(self.name, regime, request.map, self.rates_dtype(request.dtype))
        return Cost(*(factor * amount for factor, amount in zip(factors, ideal)))


def factors_of(algorithm: str, regime: str, map: MapName, dtype: torch.dtype) -> Cost:
    """The fitted factors of a regime; float32's for a dtype that was not measured there.

    A regime that was never measured is taken to be slow, lest ``auto`` fall for it.
    """
    for kind in (kind_of(dtype), "float32", "float64"):
        key = factors_key(algorithm, regime, map, kind)
        if key in FACTORS:
            return Cost(*FACTORS[key])
    return Cost(4, 4, 4, 100)


def factors_key(algorithm: str, regime: str, map: MapName, kind: str) -> str:
    """The key of a regime's factors."""
    return f"{algorithm}, {regime}, {map}, {kind}"


def kind_of(dtype: torch.dtype) -> str:
    """The dtype's name; ``complex`` for the complex ones, which are measured as one."""
    return "complex" if dtype.is_complex else dtype_name(dtype)


def columns_bytes(problem: Problem, dtype: torch.dtype) -> float:
    """Bytes of all windows side by side: each pixel up to kH*kW times."""
    height, width = problem.output_size
    taps = problem.in_channels * prod(problem.kernel)
    return float(dtype.itemsize * problem.batch * height * width * taps)


def filled(number: int, lanes: int) -> float:
    """How much more than ``number`` is done by going in steps of ``lanes``: at least 1."""
    return ceil(number / lanes) * lanes / max(number, 1)


def rows_met(problem: Problem) -> int:
    """Pairs of a row of outputs and a row of taps that meet a row of the image, not padding."""
    outputs, taps = problem.output_size[0], problem.kernel[0]
    if problem.padding[0] == (0, 0):
        return outputs * taps
    size, step, (before, _) = problem.size[0], problem.stride[0], problem.padding[0]
    offsets = (u * problem.dilation[0] - before for u in range(taps))
    return sum(
        max(0, min(outputs, (size - 1 - offset) // step + 1) - max(0, ceil(-offset / step)))
        for offset in offsets
    )


FRESH = 2**25
"""Bytes from which glibc takes memory for each tensor anew from the system, and gives it back."""

FRESH_COST = 6
"""Times that writing a byte of fresh memory takes longer: its pages are first made.  PyTorch's
columns of windows, on two Zen 4 cores: 6 to 25 GB/s below :data:`FRESH`, 2 to 2.5 above it."""


def moved(request: Request) -> float:
    """Bytes of operands and result, those of a result in fresh memory at their price."""
    itemsize, (*_, result) = request.dtype.itemsize, request.shapes
    return operand_bytes(request.problem, request.dtype) + fresh(itemsize * prod(result))


def fresh(bytes: float) -> float:
    """What writing so many bytes costs beyond writing them to memory at hand."""
    return FRESH_COST * bytes if bytes >= FRESH else 0.0
