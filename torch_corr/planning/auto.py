"""How ``auto`` chooses the algorithm of each map: the fastest one, with few exceptions.

If wisdom has measured times, they decide.  Otherwise each time is predicted from the algorithm's
cost and the machine's rates.

The docstring of ``algorithms/cost_factors.py`` states how accurate the predictions are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Literal, NamedTuple, get_args

import torch

from ..algorithms import ALGORITHMS, DEFAULT_WORKSPACE, Algorithm, ErrorClass
from ..algorithms.base import (
    CALL_OVERHEAD,
    check_workspace_limit,
    may_use_tf32,
    products_may_use_tf32,
)
from ..request import Request
from ..suggest import did_you_mean
from ..value import Value
from .machine import Machine, machine_of
from .timing import time_algorithms
from .wisdom import WISDOM, Key

PLANNING_THRESHOLD = 2**14
"""With fewer multiplications, PyTorch finishes before another choice could pay off."""

SWITCH_RATIO = 0.82
"""Replace a preferred algorithm only if another's predicted time is below this fraction of its
time."""

UNFITTED_SWITCH_RATIO = 0.5
"""The same for leaving PyTorch where the factors were fitted on another processor.

With AVX2 alone (two Zen 4 cores) 17 of 286 maps then took over 5% longer than in PyTorch with 0.82
and the rates of AVX-512, 8 with calibrated rates; with 0.5 one and none.  The speed-up over PyTorch
falls from 1.68 to 1.59.
"""

MEASURE_RATIO = 20
"""On a CPU, algorithms predicted to take this many times the least predicted time are not
measured."""

REFERENCE = next(each for each in ALGORITHMS if each.is_reference)
"""Computes what no other algorithm can."""

_measuring = Lock()
"""Held while measuring, because concurrent measurements would disturb each other."""


class Candidate(NamedTuple):
    """One algorithm considered for one map.

    Attributes:
        algorithm: with the options that ``auto`` gives it.
        refusals: why it is excluded, one sentence each; empty if it can be chosen.
        workspace: bytes beyond operands and result; 0 if it cannot compute the map.
        seconds: its time; infinite if it cannot compute the map.
        source: whether the time is predicted or measured.
    """

    algorithm: Algorithm
    refusals: tuple[str, ...]
    workspace: int = 0
    seconds: float = math.inf
    source: Literal["predicted", "measured"] = "predicted"


@dataclass(frozen=True)
class Auto(Value):
    """Choose the algorithm of each map, for the layout of its images.  ``"auto"`` is ``Auto()``.

    Attributes:
        measure: when a problem first occurs, time every algorithm that can run it, and use the
            fastest; the times go into :data:`torch_corr.wisdom`.  Otherwise the choice uses
            wisdom where available, and predicted times elsewhere.
        error: ``"normwise"`` allows transforms with a check of each result: its error is at most
            2**-14 (float32) or 2**-22 (float64) of the output's own sum |x||w|, unless its products
            underflow.
            ``"componentwise"`` allows only direct sums, whose error is a few roundings of that sum.
        workspace_limit: bytes that a map may use beyond its operands and its result.

    Raises:
        ValueError: an unknown error class; a negative workspace limit.
        TypeError: a workspace limit that is not an integer; a ``measure`` that is not a bool.

    Example:
        >>> import torch
        >>> from torch_corr import Auto, corr2d
        >>> corr2d(torch.ones(4, 4), torch.ones(3, 3), algorithm=Auto(error="componentwise"))
        tensor([[9., 9.],
                [9., 9.]])
    """

    measure: bool = False
    error: ErrorClass = "normwise"
    workspace_limit: int = DEFAULT_WORKSPACE

    def __post_init__(self) -> None:
        super().__post_init__()
        classes = get_args(ErrorClass)
        if self.error not in classes:
            raise ValueError(
                f"unknown error class {self.error!r}{did_you_mean(str(self.error), classes)}; use "
                f"'componentwise', or 'normwise' to allow both"
            )
        check_workspace_limit(self.workspace_limit)
        if not isinstance(self.measure, bool):
            raise TypeError(f"measure must be True or False, got {self.measure!r}")

    def choose(self, request: Request) -> Algorithm | None:
        """The algorithm for one map; None if no algorithm can compute it."""
        return _Selection(self, request).algorithm_to_run()

    def choose_each(self, requests: Sequence[Request]) -> list[Algorithm | None]:
        """The algorithms of all three maps.

        On a CPU PyTorch computes both gradients in one call, which reorders their common operand
        once.  So if only one of them is predicted to be faster elsewhere, it stays in PyTorch
        unless both together are clearly faster.
        """
        selections = [_Selection(self, each) for each in requests]
        chosen = [each.algorithm_to_run() for each in selections]
        gradients = chosen[1:]
        if requests[0].device.type == "cpu" and len({_is_pytorch(each) for each in gradients}) == 2:
            pytorch = next(each for each in gradients if _is_pytorch(each))
            ours = [each.candidate(one) for each, one in zip(selections[1:], gradients)]
            theirs = [each.candidate(pytorch) for each in selections[1:]]
            all_predicted = all(each and each.source == "predicted" for each in (*ours, *theirs))
            ratio = selections[1].switch_ratio
            if all_predicted and sum(map(_seconds, ours)) > ratio * sum(map(_seconds, theirs)):
                return [chosen[0], pytorch, pytorch]
        return chosen

    def candidates(self, request: Request) -> list[Candidate]:
        """All algorithms, with refusals, workspace and time."""
        return _Selection(self, request).candidates(ALGORITHMS)


@dataclass(frozen=True)
class _Selection:
    """The choice of an algorithm for one map, by the options of an :class:`Auto`."""

    options: Auto
    request: Request

    def algorithm_to_run(self) -> Algorithm | None:
        """The chosen algorithm; None if no algorithm can compute the map."""
        device = self.request.device.type
        small = self.request.problem.multiplications < PLANNING_THRESHOLD
        # Cost models exist for CPUs, and for some algorithms on CUDA; elsewhere only measured
        # times count.
        has_times = device in CALL_OVERHEAD or len(WISDOM)
        if not self.options.measure and (small or self._only_pytorch or not has_times):
            # One by one, PyTorch first, since the refusals of some take long to compute.
            unchecked = (each for each in ALGORITHMS if not each.needs_check)
            return next((each for each in unchecked if not each.refusals(self.request)), None)
        able = self._race
        if device != "cpu":
            measured = [each for each in able if each.source == "measured"]
            predicted = [each for each in able if each.algorithm.has_cuda_cost_model]
            able = measured or (predicted if device == "cuda" else able[:1])
        if not able and device == "cuda":
            # Algorithms without a cost model are still faster than the reference.
            others = [a for a in ALGORITHMS if not (a.has_cuda_cost_model or a.is_reference)]
            able = self._able(others)[:1]
        if not able:
            return None if REFERENCE.refusals(self.request) else REFERENCE
        return _fastest(able, self.switch_ratio)

    def candidate(self, algorithm: Algorithm | None) -> Candidate | None:
        """The candidate with this algorithm; None if it is not worth considering."""
        return next((each for each in self._race if each.algorithm == algorithm), None)

    @property
    def switch_ratio(self) -> float:
        """The fraction of PyTorch's predicted time for which a map leaves PyTorch."""
        known = self._machine(self.request.dtype).is_fitted
        return SWITCH_RATIO if known else UNFITTED_SWITCH_RATIO

    @cached_property
    def _race(self) -> list[Candidate]:
        """The candidates that can be chosen."""
        return self._able(self._contenders())

    def _able(self, algorithms: Sequence[Algorithm]) -> list[Candidate]:
        """Those of the algorithms that can be chosen."""
        return [each for each in self.candidates(algorithms) if not each.refusals]

    def candidates(self, algorithms: Sequence[Algorithm]) -> list[Candidate]:
        """The given algorithms and their variants, with refusals, workspace and time."""
        candidates = [
            each
            for algorithm in algorithms
            if not algorithm.needs_check
            for each in self._with_variants(algorithm)
        ]
        candidates += [self._checked(each, candidates) for each in algorithms if each.needs_check]
        measured = self._measured_seconds([each for each in candidates if not each.refusals])
        return [
            each._replace(seconds=measured[each.algorithm.spelling], source="measured")
            if each.algorithm.spelling in measured
            else each
            for each in candidates
        ]

    def _contenders(self) -> list[Algorithm]:
        """The algorithms worth considering: planning or measuring the others takes longer than they
        save."""
        contenders = [
            each
            for each in ALGORITHMS
            if not each.is_reference
            and (self.options.measure or each.is_worth_planning(self.request))
        ]
        if self.request.device.type == "cuda" and not self.options.measure and not len(WISDOM):
            return [each for each in contenders if each.has_cuda_cost_model]
        return contenders

    def _with_variants(self, algorithm: Algorithm) -> list[Candidate]:
        """An algorithm with the workspace limit of ``auto``, and its variants."""
        algorithm = algorithm.limited(self.options.workspace_limit)
        if refusals := algorithm.refusals(self.request):
            return [Candidate(algorithm, refusals)]
        # Variants take part only if they are measured.
        known, measure = self._stored_seconds(), self.options.measure
        variants = algorithm.variants(self.request) if measure or known else ()
        able = algorithm, *(each for each in variants if measure or each.spelling in known)
        return [self._candidate(each) for each in able]

    def _checked(self, algorithm: Algorithm, others: Sequence[Candidate]) -> Candidate:
        """An algorithm whose results need a check, with that check.

        Args:
            algorithm: with normwise error.
            others: the other candidates; the fastest one of componentwise error recomputes.
        """
        direct = [
            each
            for each in others
            if not each.refusals and each.algorithm.error_class == "componentwise"
        ]
        fallback = _fastest(direct) if direct else REFERENCE
        limited = algorithm.limited(self.options.workspace_limit)
        checked = limited.checked(self.request.device, fallback)
        if refusals := checked.refusals(self.request):
            return Candidate(limited, refusals)
        return self._candidate(checked)

    def _candidate(self, algorithm: Algorithm) -> Candidate:
        """A candidate with its workspace and predicted time."""
        workspace = algorithm.workspace(self.request)
        cost = algorithm.cost(self.request)
        priced = algorithm.rates_dtype(self.request.dtype)
        seconds = self._machine(priced).seconds(cost, priced)
        call, least = algorithm.call_seconds(self.request, cost)
        seconds = max(seconds, least) + call
        refusals = self._exclusions(algorithm, workspace)
        return Candidate(algorithm, refusals, workspace, seconds)

    def _machine(self, dtype: torch.dtype) -> Machine:
        """The machine whose rates predict times of computations in a dtype."""
        return machine_of(self.request.device, dtype)

    def _exclusions(self, algorithm: Algorithm, workspace: int) -> tuple[str, ...]:
        """Why an algorithm that can compute the map must not be chosen."""
        if self._keeps_layout and not algorithm.keeps_channels_last(self.request):
            return ("it has no kernels for channels_last here; Auto(measure=True) times it",)
        multiplies = algorithm.uses_matrix_products(self.request)
        dtype = algorithm.rates_dtype(self.request.dtype)
        if multiplies and (sentence := _matrix_product_refusal(dtype)):
            return (sentence,)
        if algorithm.error_class != "componentwise":
            if self.options.error == "componentwise":
                return ("its error is normwise, and Auto(error='componentwise') excludes it",)
            if self.request.device.type not in ("cpu", "cuda"):
                return (
                    "its results must be checked, which works only on CPUs and CUDA; use "
                    "algorithm='fft' for unchecked results",
                )
        if workspace > self.options.workspace_limit:
            return (
                f"it takes {workspace} bytes of workspace, more than the limit of "
                f"{self.options.workspace_limit}; raise it with Auto(workspace_limit=...)",
            )
        return ()

    def _measured_seconds(self, able: Sequence[Candidate]) -> Mapping[str, float]:
        """Measured times by spelling; with ``measure``, times promising candidates that have
        none."""
        if self.options.measure and self.request.device.type != "meta":
            with _measuring:
                stored = WISDOM.seconds(self._key)
                promising = _worth_measuring(able, self.request.device)
                if new := [each for each in promising if each.spelling not in stored]:
                    _refuse_capture(self.request)
                    times = time_algorithms(new, self.request)
                    WISDOM.remember(self._key, times)
        return self._stored_seconds()

    def _stored_seconds(self) -> Mapping[str, float]:
        """Times from wisdom by spelling; empty on meta, where nothing runs."""
        if self.request.device.type == "meta" or not len(WISDOM):
            return {}
        return WISDOM.seconds(self._key)

    @property
    def _keeps_layout(self) -> bool:
        """Whether to consider only algorithms with kernels for channels_last: predicted times do
        not contain that of converting images, measured ones do."""
        if self.options.measure or self._stored_seconds():
            return False
        return any(each.is_pytorch for each in self._with_channels_last)

    @property
    def _only_pytorch(self) -> bool:
        """Whether only PyTorch has kernels for the images' layout."""
        return self._keeps_layout and all(each.is_pytorch for each in self._with_channels_last)

    @cached_property
    def _with_channels_last(self) -> list[Algorithm]:
        """The algorithms with kernels for channels_last, if the images have that layout."""
        if not self.request.channels_last:
            return []
        return [each for each in ALGORITHMS if each.keeps_channels_last(self.request)]

    @cached_property
    def _key(self) -> Key:
        return Key.of(self.request)


def _matrix_product_refusal(dtype: torch.dtype) -> str:
    """Why PyTorch's settings exclude matrix products on CUDA: they allow TF32 for products but not
    for convolutions, or require determinism; empty if they do not."""
    # PyTorch's convolutions of complex numbers are real ones.
    if products_may_use_tf32(dtype) and not may_use_tf32(dtype.to_real()):
        return "PyTorch's settings allow TF32 in its matrix products, but not in convolutions"
    settled = os.environ.get("CUBLAS_WORKSPACE_CONFIG") in (":4096:8", ":16:8")
    if torch.are_deterministic_algorithms_enabled() and not settled:
        return (
            "it uses cuBLAS, which torch.use_deterministic_algorithms(True) refuses unless "
            "CUBLAS_WORKSPACE_CONFIG is :4096:8 or :16:8"
        )
    return ""


def _refuse_capture(request: Request) -> None:
    """Raise an error during the capture of a CUDA graph, which waiting for the device would end."""
    problem, device = request.problem, request.device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"Auto(measure=True) cannot time {problem} on {device} while a CUDA graph is captured, "
            f"since timing waits for the device; call it once before the capture, or load "
            f"measurements with torch_corr.wisdom.load"
        )


def _worth_measuring(candidates: Sequence[Candidate], device: torch.device) -> list[Algorithm]:
    """The candidates worth timing.

    On a CPU the predictions are accurate to a factor, so slow ones are left out.  On a device they
    assume its peak rates, which PyTorch's depthwise layers miss by a factor of a hundred.  There
    only the reference is left out, whose loops may take minutes.
    """
    if device.type != "cpu":
        return [each.algorithm for each in candidates if not each.algorithm.is_reference]
    limit = MEASURE_RATIO * min((each.seconds for each in candidates), default=0.0)
    return [each.algorithm for each in candidates if each.seconds <= max(limit, 1e-3)]


def _is_pytorch(algorithm: Algorithm | None) -> bool:
    return algorithm is not None and algorithm.is_pytorch


def _fastest(candidates: Sequence[Candidate], switch_ratio: float = SWITCH_RATIO) -> Algorithm:
    """The fastest candidate, unless a preferred one is nearly as fast.

    If any candidate was measured, only measured ones are considered. Componentwise error is
    preferred to normwise; if all times are predicted, PyTorch's own convolution is preferred to
    others by ``switch_ratio``.
    """
    measured = [each for each in candidates if each.source == "measured"]
    candidates = measured or candidates
    best = min(candidates, key=_seconds)
    if best.algorithm.error_class != "componentwise":
        best = _prefer_unless_slower(
            best, [each for each in candidates if each.algorithm.error_class == "componentwise"]
        )
    if not measured:
        pytorch = [each for each in candidates if each.algorithm.is_pytorch]
        best = _prefer_unless_slower(best, pytorch, switch_ratio)
    return best.algorithm


def _prefer_unless_slower(
    best: Candidate, preferred: Sequence[Candidate], ratio: float = SWITCH_RATIO
) -> Candidate:
    """The fastest of the preferred candidates if it is nearly as fast as ``best``, else
    ``best``."""
    alternative = min(preferred, key=_seconds, default=best)
    return best if best.seconds <= ratio * alternative.seconds else alternative


def _seconds(candidate: Candidate | None) -> float:
    return math.inf if candidate is None else candidate.seconds
