"""What ``auto`` takes for each map: the quickest, as measured where there is wisdom, else as
predicted from what each algorithm says that it does and from the rates of the machine.

How accurate the predictions are stands beside their factors, in ``algorithms/cost_factors.py``.
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
from .machine import machine_of
from .timing import time_algorithms
from .wisdom import WISDOM, Key

PLANNING_THRESHOLD = 2**14
"""Multiplications below which PyTorch is done before another choice could pay for itself."""

SWITCH_RATIO = 0.82
"""Another algorithm is taken if its predicted time is below this part of the preferred one's."""

MEASURE_RATIO = 20
"""Times the least predicted time from which an algorithm is not even measured on a CPU."""

REFERENCE = next(each for each in ALGORITHMS if each.is_reference)
"""It runs what nothing else can."""

_measuring = Lock()
"""Two measurements at once would measure each other."""


class Candidate(NamedTuple):
    """One algorithm in the race for one map.

    Attributes:
        algorithm: with the options that ``auto`` gives it.
        refusals: why it is out of the race, a sentence each; empty if it is in.
        workspace: bytes beyond operands and result; 0 where it is not able at all.
        seconds: that it takes; infinite where it is not able at all.
        source: where the seconds come from.
    """

    algorithm: Algorithm
    refusals: tuple[str, ...]
    workspace: int
    seconds: float
    source: Literal["predicted", "measured"]


@dataclass(frozen=True)
class Auto(Value):
    """Choose the algorithm of each map; ``"auto"`` is ``Auto()``, but looks how operands lie too.

    Attributes:
        measure: time the algorithms that are able the first time that a problem is seen, and
            take the quickest; the times go into :data:`torch_corr.wisdom`.  Without it the
            choice is by wisdom where there is some, else by predicted time.
        error: ``"normwise"`` allows transforms with a check of each result: its error is at most
            2**-14 (float32) or 2**-22 (float64) of the output's own sum |x||w|, unless its products
            underflow.
            ``"componentwise"`` allows direct sums only, whose error is a few roundings of that.
        workspace_limit: bytes that a map may take beyond its operands and its result.
        channels_last: images lie in channels_last, and their results shall.  PyTorch hands that
            layout on, and keeps every map but those in which it was seen to lag; what wisdom
            knows is of contiguous images.

    Raises:
        ValueError: an error class that is neither; a negative workspace limit; both ``measure``
            and ``channels_last``, since contiguous images are timed.
        TypeError: a workspace limit that is no integer; a ``measure`` or ``channels_last`` that
            is no bool.

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
    channels_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        classes = get_args(ErrorClass)
        if self.error not in classes:
            raise ValueError(
                f"unknown error class {self.error!r}{did_you_mean(str(self.error), classes)}; use "
                f"'componentwise', or 'normwise' to allow both"
            )
        check_workspace_limit(self.workspace_limit)
        for name in ("measure", "channels_last"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        if self.measure and self.channels_last:
            raise ValueError(
                "Auto(measure=True, channels_last=True) cannot be: contiguous images are timed, "
                "which tells nothing of channels_last; leave one of the two out"
            )

    def choose(self, request: Request) -> Algorithm | None:
        """The algorithm for one map; None where none is able."""
        return _Selection(self, request).algorithm_to_run()

    def candidates(self, request: Request) -> list[Candidate]:
        """All algorithms, with what speaks against each, workspace and seconds."""
        return _Selection(self, request).candidates(ALGORITHMS)


@dataclass(frozen=True)
class _Selection:
    """The algorithms against each other for one map, by the rules of an :class:`Auto`."""

    options: Auto
    request: Request

    def algorithm_to_run(self) -> Algorithm | None:
        """The algorithm to take; None where none is able."""
        device = self.request.device.type
        small = self.request.problem.multiplications < PLANNING_THRESHOLD
        # How far code stays behind its machine is known of CPUs, and of some on CUDA; elsewhere
        # only what was measured counts.
        known = device in CALL_OVERHEAD or len(WISDOM)
        if not self.options.measure and (small or self._requires_pytorch or not known):
            # Asked one by one, PyTorch first: some need long to answer.
            unchecked = (each for each in ALGORITHMS if not each.needs_check)
            return next((each for each in unchecked if not each.refusals(self.request)), None)
        survey = self.candidates(self._contenders())
        race = [each for each in survey if not each.refusals]
        if device != "cpu":
            measured = [each for each in race if each.source == "measured"]
            predicted = [each for each in race if each.algorithm.has_cuda_cost_model]
            race = measured or (predicted if device == "cuda" else race[:1])
        if not race and device == "cuda":
            # Algorithms without a cost model are still faster than the reference.
            others = [a for a in ALGORITHMS if not (a.has_cuda_cost_model or a.is_reference)]
            race = [each for each in self.candidates(others) if not each.refusals][:1]
        if not race:
            return None if REFERENCE.refusals(self.request) else REFERENCE
        return _fastest(race)

    def candidates(self, algorithms: Sequence[Algorithm]) -> list[Candidate]:
        """Each of some algorithms, and its variants, with what speaks against it."""
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
        """Those that may win: not what takes longer to plan, or to measure, than it could save."""
        entrants = [
            each
            for each in ALGORITHMS
            if not each.is_reference
            and (self.options.measure or each.is_worth_planning(self.request))
        ]
        if self.request.device.type == "cuda" and not self.options.measure and not len(WISDOM):
            return [each for each in entrants if each.has_cuda_cost_model]
        return entrants

    def _with_variants(self, algorithm: Algorithm) -> list[Candidate]:
        """An algorithm with the options that the rules give it, and what it has of variants."""
        algorithm = algorithm.limited(self.options.workspace_limit)
        if refusals := algorithm.refusals(self.request):
            return [Candidate(algorithm, refusals, 0, math.inf, "predicted")]
        # Variants are in it where they are to be measured or have been.
        known, measure = self._stored_seconds(), self.options.measure
        variants = algorithm.variants(self.request) if measure or known else ()
        able = algorithm, *(each for each in variants if measure or each.spelling in known)
        return [self._candidate(each) for each in able]

    def _checked(self, algorithm: Algorithm, others: Sequence[Candidate]) -> Candidate:
        """An algorithm whose results need a check, with that check.

        Args:
            algorithm: which one.
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
            return Candidate(limited, refusals, 0, math.inf, "predicted")
        return self._candidate(checked)

    def _candidate(self, algorithm: Algorithm) -> Candidate:
        """An algorithm that is able, as it is predicted to do."""
        workspace = algorithm.workspace(self.request)
        cost = algorithm.cost(self.request)
        priced = algorithm.rates_dtype(self.request.dtype)
        seconds = machine_of(self.request.device, priced).seconds(cost, priced)
        call, least = algorithm.call_seconds(self.request, cost)
        seconds = max(seconds, least) + call
        refusals = self._exclusions(algorithm, workspace)
        return Candidate(algorithm, refusals, workspace, seconds, "predicted")

    def _exclusions(self, algorithm: Algorithm, workspace: int) -> tuple[str, ...]:
        """Why an algorithm that is able is not to be chosen."""
        if not algorithm.is_pytorch and self._requires_pytorch:
            return ("images in channels_last stay with PyTorch, which hands the layout on",)
        multiplies = algorithm.uses_matrix_products(self.request)
        dtype = algorithm.rates_dtype(self.request.dtype)
        if multiplies and (sentence := _matrix_product_refusal(dtype)):
            return (sentence,)
        if algorithm.error_class != "componentwise":
            if self.options.error == "componentwise":
                return ("its error is normwise, and Auto(error='componentwise') was asked for",)
            if self.request.device.type not in ("cpu", "cuda"):
                return (
                    "its results must be checked, which is written for CPUs and CUDA; name 'fft' "
                    "to have them unchecked",
                )
        if workspace > self.options.workspace_limit:
            return (
                f"it takes {workspace} bytes of workspace, more than the limit of "
                f"{self.options.workspace_limit}; raise it with Auto(workspace_limit=...)",
            )
        return ()

    def _measured_seconds(self, able: Sequence[Candidate]) -> Mapping[str, float]:
        """Seconds that are known of those that are able; of all with a chance, if to measure."""
        if self.options.measure and self.request.device.type != "meta":
            with _measuring:
                seen = WISDOM.seconds(self._key)
                hopeful = _worth_measuring(able, self.request.device)
                if new := [each for each in hopeful if each.spelling not in seen]:
                    _refuse_capture(self.request)
                    times = time_algorithms(new, self.request)
                    WISDOM.remember(self._key, times)
        return self._stored_seconds()

    def _stored_seconds(self) -> Mapping[str, float]:
        """Seconds by spelling of what has been measured here; nothing runs on meta."""
        if self.request.device.type == "meta" or not len(WISDOM) or self.options.channels_last:
            return {}
        return WISDOM.seconds(self._key)

    @property
    def _requires_pytorch(self) -> bool:
        return self.options.channels_last and any(
            each.is_pytorch and each.keeps_channels_last(self.request) for each in ALGORITHMS
        )

    @cached_property
    def _key(self) -> Key:
        return Key.of(self.request)


def _matrix_product_refusal(dtype: torch.dtype) -> str:
    """What PyTorch's settings allow in convolutions on CUDA, and in matrix products do not, or the
    other way round; empty where they are alike."""
    # PyTorch's convolutions of complex numbers are real ones.
    if products_may_use_tf32(dtype) and not may_use_tf32(dtype.to_real()):
        return "it multiplies matrices, which PyTorch's settings let use TF32, but not convolutions"
    settled = os.environ.get("CUBLAS_WORKSPACE_CONFIG") in (":4096:8", ":16:8")
    if torch.are_deterministic_algorithms_enabled() and not settled:
        return (
            "it multiplies matrices by cuBLAS, which torch.use_deterministic_algorithms(True) "
            "refuses unless CUBLAS_WORKSPACE_CONFIG is :4096:8 or :16:8"
        )
    return ""


def _refuse_capture(request: Request) -> None:
    """Nothing is timed while a CUDA graph is captured: to wait for the device would end that."""
    problem, device = request.problem, request.device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"Auto(measure=True) cannot time {problem} on {device} while a CUDA graph is captured, "
            f"since timing waits for the device; call it once before the capture, or load what was "
            f"measured with torch_corr.wisdom.load"
        )


def _worth_measuring(race: Sequence[Candidate], device: torch.device) -> list[Algorithm]:
    """Those whose predicted time is not beyond all hope: on a CPU predictions are good to a factor.

    On a device they are what it does at its peaks, which PyTorch's depthwise layers miss a hundred
    times over.  There only the reference is left out, whose loops may take minutes.
    """
    if device.type != "cpu":
        return [each.algorithm for each in race if not each.algorithm.is_reference]
    limit = MEASURE_RATIO * min((each.seconds for each in race), default=0.0)
    return [each.algorithm for each in race if each.seconds <= max(limit, 1e-3)]


def _fastest(race: Sequence[Candidate]) -> Algorithm:
    """The least time, unless what is preferred for another reason is nearly as quick.

    A measured time beats any prediction: an algorithm that was not measured is not taken.
    Errors relative to each output's own terms are preferred; and, as far as times are only
    predicted, PyTorch's own convolution.
    """
    measured = [each for each in race if each.source == "measured"]
    race = measured or race
    best = min(race, key=_seconds)
    if best.algorithm.error_class != "componentwise":
        best = _prefer_unless_slower(
            best, [each for each in race if each.algorithm.error_class == "componentwise"]
        )
    if not measured:
        best = _prefer_unless_slower(best, [each for each in race if each.algorithm.is_pytorch])
    return best.algorithm


def _prefer_unless_slower(best: Candidate, preferred: Sequence[Candidate]) -> Candidate:
    """The quickest of the preferred where it is nearly as quick as the best, else that."""
    favourite = min(preferred, key=_seconds, default=best)
    return best if best.seconds <= SWITCH_RATIO * favourite.seconds else favourite


def _seconds(candidate: Candidate) -> float:
    return candidate.seconds
