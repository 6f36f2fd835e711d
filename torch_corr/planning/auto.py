"""What ``auto`` takes for each map: the quickest, as measured where there is wisdom, else as
predicted from what each algorithm says that it does and from the rates of the machine.

How accurate the predictions are stands beside their factors, in ``algorithms/cost_factors.py``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Literal, NamedTuple, get_args

import torch

from ..algorithms import (
    ALGORITHMS,
    DEFAULT_WORKSPACE,
    FFT,
    Algorithm,
    Aten,
    CheckedFFT,
    ErrorClass,
    MapName,
    Naive,
    Triton,
    Unfold,
)
from ..algorithms.aten import lags_in_channels_last
from ..algorithms.base import check_workspace_limit, may_use_tf32, products_may_use_tf32
from ..problem import Problem
from ..suggest import did_you_mean
from ..value import Value
from .machine import machine_of
from .timing import time_algorithms
from .wisdom import WISDOM, Key

WORTH_A_CHOICE = 2**14
"""Multiplications below which PyTorch is done before another choice could pay for itself."""

TRANSFORM_TAPS = 81
"""Taps below which no transform is looked at: planning one takes milliseconds, and of 2,565 maps
timed on two Zen 4 cores, 2026-11-25, it was ahead with fewer in 12, of complex numbers all but
one."""

TRANSFORM_TAPS_OF_MANY = 49
"""The same where there is much to do, see :data:`MANY`: 64 to 64 channels of 4x128x128, 8x8, take
half of PyTorch's time."""

MANY = 2**30
"""Multiplications that take longer than planning a transform, whatever does them."""

PREJUDICE = 0.82
"""The part of a preferred algorithm's time that another's must stay below to be taken instead."""

OWN_CALL = {"cpu": 33e-6, "cuda": 100e-6}
"""Seconds that a call through the Function of ``autograd`` takes on top of PyTorch's own.

On a CPU a third of what each of MobileNetV2's 52 layers took more in a training step through it, 90
to 105 us on two Zen 4 cores (55 in a loop over one layer).  On CUDA, with ``triton``'s launches,
rounded down from the 130 to 170 us a map that a small layer's forward and backward took more on the
host of an H200.

So PyTorch keeps some maps that others would do quicker if called alone: of 1,215 the time is 1.09
times the quickest's, with 8 us 1.065.  But MobileNetV2 converted has 0.95 of the speed of
``nn.Conv2d``; with 20, 0.92."""

FORETOLD = (Aten, Triton, FFT, CheckedFFT)
"""Algorithms whose time on CUDA can be told, if roughly, without measuring: see their ``cost``."""

OPERATOR = 30e-6
"""Seconds that the host of an H200 took for one of the calls that a transform's plan counts there:
0.3 to 1.3 ms for 22 to 28 of them, 2.5 to 4.1 for 176.  The device waits for it meanwhile."""

HOPELESS = 20
"""Times the least predicted time from which an algorithm is not even measured on a CPU."""

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
            2**-14 (float32) or 2**-22 (float64) of the output's own sum |x||w|.
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

    def choose(
        self, map: MapName, problem: Problem, device: torch.device, dtype: torch.dtype
    ) -> Algorithm | None:
        """The algorithm for one map; None where none is able."""
        return _Race(self, map, problem, device, dtype).winner()

    def survey(
        self, map: MapName, problem: Problem, device: torch.device, dtype: torch.dtype
    ) -> list[Candidate]:
        """All algorithms, with what speaks against each, workspace and seconds."""
        return _Race(self, map, problem, device, dtype).survey(ALGORITHMS)


@dataclass(frozen=True)
class _Race:
    """The algorithms against each other for one map, by the rules of an :class:`Auto`."""

    rules: Auto
    map: MapName
    problem: Problem
    device: torch.device
    dtype: torch.dtype

    def winner(self) -> Algorithm | None:
        """The algorithm to take; None where none is able."""
        cuda = self.device.type == "cuda"
        small = self.problem.multiplications < WORTH_A_CHOICE
        # How far code stays behind its machine is known of CPUs, and of some on CUDA; elsewhere
        # only what was measured counts.
        known = self.device.type in OWN_CALL or len(WISDOM)
        if not self.rules.measure and (small or self._keeps_to_pytorch or not known):
            # Asked one by one, PyTorch first, since some look long before they answer.
            direct_sums = (each for each in ALGORITHMS if not isinstance(each, FFT))
            return next((each for each in direct_sums if not self._refusals(each)), None)
        survey = self.survey(self._entrants())
        race = [each for each in survey if not each.refusals]
        if self.device.type != "cpu":
            measured = [each for each in race if each.source == "measured"]
            told = [each for each in race if isinstance(each.algorithm, FORETOLD)]
            race = measured or (told if cuda else race[:1])
        if not race and cuda:
            # What nobody can foretell is still sooner done than the reference.
            others = [a for a in ALGORITHMS if not isinstance(a, (*FORETOLD, Naive))]
            race = [each for each in self.survey(others) if not each.refusals][:1]
        if not race:
            # The reference is for reading; it runs what nothing else can.
            return None if self._refusals(Naive()) else Naive()
        return _quickest(race)

    def survey(self, algorithms: Sequence[Algorithm]) -> list[Candidate]:
        """Each of some algorithms, and its variants, with what speaks against it."""
        candidates = [
            each
            for algorithm in algorithms
            if not isinstance(algorithm, FFT)
            for each in self._candidates(algorithm)
        ]
        if any(isinstance(each, FFT) for each in algorithms):
            candidates.append(self._checked_fft(candidates))
        measured = self._measured([each for each in candidates if not each.refusals])
        return [
            each._replace(seconds=measured[each.algorithm.spelling], source="measured")
            if each.algorithm.spelling in measured
            else each
            for each in candidates
        ]

    def _entrants(self) -> list[Algorithm]:
        """Those that may win: not what takes longer to plan, or to measure, than it could save."""
        many = self.problem.multiplications >= MANY
        enough = TRANSFORM_TAPS_OF_MANY if many else TRANSFORM_TAPS
        few_taps = self.problem.kernel[0] * self.problem.kernel[1] < enough
        hopeless = (FFT, Naive) if few_taps and not self.rules.measure else (Naive,)
        entrants = [each for each in ALGORITHMS if not isinstance(each, hopeless)]
        if self.device.type == "cuda" and not self.rules.measure and not len(WISDOM):
            return [each for each in entrants if isinstance(each, FORETOLD)]
        return entrants

    def _candidates(self, algorithm: Algorithm) -> list[Candidate]:
        """An algorithm with the options that the rules give it, and what it has of variants."""
        if isinstance(algorithm, Unfold):
            algorithm = replace(algorithm, workspace_limit=self.rules.workspace_limit)
        if refusals := self._refusals(algorithm):
            return [Candidate(algorithm, refusals, 0, math.inf, "predicted")]
        # Variants are in it where they are to be measured or have been.
        known, measure = self._known(), self.rules.measure
        variants = (
            algorithm.variants(self.problem, self.map, self.dtype) if measure or known else ()
        )
        able = algorithm, *(each for each in variants if measure or each.spelling in known)
        return [self._candidate(each) for each in able]

    def _checked_fft(self, others: Sequence[Candidate]) -> Candidate:
        """Transforms whose results are checked, with what computes those that fail.

        Args:
            others: the other candidates: the quickest of them is the fallback, on CUDA ``triton``.
        """
        sure = [
            each
            for each in others
            if not each.refusals and each.algorithm.error_class == "componentwise"
        ]
        fallback: Algorithm = Naive()
        if self.device.type == "cuda":
            fallback = Triton()
        elif sure:
            fallback = _quickest(sure)
        fast = FFT(workspace_limit=self.rules.workspace_limit, double=True)
        algorithm = CheckedFFT(fast, fallback)
        refusals = self._refusals(fast)
        if not refusals and (reasons := self._refusals(fallback)):
            refusals = (
                f"{fallback.name} must recompute what fails its check, and refuses: {reasons[0]}; "
                f"name 'fft' to have results that are not checked",
            )
        if refusals:
            return Candidate(fast, refusals, 0, math.inf, "predicted")
        return self._candidate(algorithm)

    def _candidate(self, algorithm: Algorithm) -> Candidate:
        """An algorithm that is able, as it is predicted to do."""
        workspace = algorithm.workspace(*self._where)
        cost = algorithm.cost(*self._where)
        priced = algorithm.rates_dtype(self.dtype)
        seconds = machine_of(self.device, priced).seconds(cost, priced)
        if self.device.type == "cuda" and isinstance(algorithm, CheckedFFT):
            seconds = max(seconds, OPERATOR * cost.calls)
        seconds += 0 if isinstance(algorithm, Aten) else OWN_CALL.get(self.device.type, 0.0)
        refusals = self._rules_out(algorithm, workspace)
        return Candidate(algorithm, refusals, workspace, seconds, "predicted")

    def _rules_out(self, algorithm: Algorithm, workspace: int) -> tuple[str, ...]:
        """Why an algorithm that is able is not to be chosen."""
        if not isinstance(algorithm, Aten) and self._keeps_to_pytorch:
            return ("images in channels_last stay with PyTorch, which hands the layout on",)
        multiplies = self.device.type == "cuda" and isinstance(algorithm, (CheckedFFT, Unfold))
        if multiplies and (sentence := _against_products(algorithm.rates_dtype(self.dtype))):
            return (sentence,)
        if algorithm.error_class != "componentwise":
            if self.rules.error == "componentwise":
                return ("its error is normwise, and Auto(error='componentwise') was asked for",)
            if self.device.type not in ("cpu", "cuda"):
                return (
                    "its results must be checked, which is written for CPUs and CUDA; name 'fft' "
                    "to have them unchecked",
                )
        if workspace > self.rules.workspace_limit:
            return (
                f"it takes {workspace} bytes of workspace, more than the limit of "
                f"{self.rules.workspace_limit}; raise it with Auto(workspace_limit=...)",
            )
        return ()

    def _measured(self, able: Sequence[Candidate]) -> Mapping[str, float]:
        """Seconds that are known of those that are able; of all with a chance, if to measure."""
        if self.rules.measure and self.device.type != "meta":
            with _measuring:
                seen = WISDOM.seconds(self._key)
                hopeful = _hopeful(able, self.device)
                if new := [each for each in hopeful if each.spelling not in seen]:
                    _refuse_capture(self.problem, self.device)
                    times = time_algorithms(new, self.problem, self.map, self.device, self.dtype)
                    WISDOM.remember(self._key, times)
        return self._known()

    def _known(self) -> Mapping[str, float]:
        """Seconds by spelling of what has been measured here; nothing runs on meta."""
        if self.device.type == "meta" or not len(WISDOM) or self.rules.channels_last:
            return {}
        return WISDOM.seconds(self._key)

    def _refusals(self, algorithm: Algorithm) -> tuple[str, ...]:
        return algorithm.refusals(self.problem, self.device, self.dtype)

    @property
    def _keeps_to_pytorch(self) -> bool:
        return self.rules.channels_last and not lags_in_channels_last(*self._where)

    @property
    def _where(self) -> tuple[Problem, MapName, torch.device, torch.dtype]:
        """In the order in which an algorithm is asked."""
        return self.problem, self.map, self.device, self.dtype

    @cached_property
    def _key(self) -> Key:
        return Key.of(*self._where)


def _against_products(dtype: torch.dtype) -> str:
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


def _refuse_capture(problem: Problem, device: torch.device) -> None:
    """Nothing is timed while a CUDA graph is captured: to wait for the device would end that."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"Auto(measure=True) cannot time {problem} on {device} while a CUDA graph is captured, "
            f"since timing waits for the device; call it once before the capture, or load what was "
            f"measured with torch_corr.wisdom.load"
        )


def _hopeful(race: Sequence[Candidate], device: torch.device) -> list[Algorithm]:
    """Those whose predicted time is not beyond all hope: on a CPU predictions are good to a factor.

    On a device they are what it does at its peaks, which PyTorch's depthwise layers miss a hundred
    times over.  There only the reference is left out, whose loops may take minutes.
    """
    if device.type != "cpu":
        return [each.algorithm for each in race if not isinstance(each.algorithm, Naive)]
    limit = HOPELESS * min((each.seconds for each in race), default=0.0)
    return [each.algorithm for each in race if each.seconds <= max(limit, 1e-3)]


def _quickest(race: Sequence[Candidate]) -> Algorithm:
    """The least time, unless what is preferred for another reason is nearly as quick.

    A measured time beats any prediction: an algorithm that was not measured is not taken.
    Errors relative to each output's own terms are preferred; and, as far as times are only
    predicted, PyTorch's own convolution.
    """
    measured = [each for each in race if each.source == "measured"]
    race = measured or race
    best = min(race, key=_seconds)
    if best.algorithm.error_class != "componentwise":
        best = _unless_far_behind(
            best, [each for each in race if each.algorithm.error_class == "componentwise"]
        )
    if not measured:
        best = _unless_far_behind(best, [each for each in race if isinstance(each.algorithm, Aten)])
    return best.algorithm


def _unless_far_behind(best: Candidate, preferred: Sequence[Candidate]) -> Candidate:
    """The quickest of the preferred where it is nearly as quick as the best, else that."""
    favourite = min(preferred, key=_seconds, default=best)
    return best if best.seconds <= PREJUDICE * favourite.seconds else favourite


def _seconds(candidate: Candidate) -> float:
    return candidate.seconds
