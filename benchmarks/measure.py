"""One run: each contender is held right, then timed in turns with the others, then held again.

For each piece of work (a case and a map):

1.  *Try* (CPU): each contender runs once in a process of its own.  That gives its peak memory
    and keeps a hang, a crash or an exhausted memory out of the run.
2.  *Check*: on fresh random operands, against the float64 definition (see ``check``).  A
    contender that is wrong is reported so and leaves.
3.  *Warm up*: new numbers go into the same memory, so that nothing remembered can pass
    for a result; every contender prepares again and runs untimed.
4.  *Time*: contenders take turns, one sample each, in an order that rotates every round.
    A sample is the mean over as many calls as fill ``Settings.sample``.  Before its
    turn each contender makes an untimed call (fast ones), so that caches and
    threads are its own.  Fast contenders give up to ``Settings.most`` samples, slow ones
    fewer, but at least ``LEAST``, until each has had ``Settings.budget`` seconds.
5.  *Check again*: the very result of the last timed call, on a fresh sample of elements.

The same for all: operands, threads, TF32 state, an allocator that keeps what is freed, flushing of
subnormals to zero (set before any thread pool starts, as threads inherit it).  Times are
``torch.utils.benchmark.Timer``'s.

On CUDA there are two clocks, and what a call takes is the later of the two:

    device  the time between two events on the device, which sleeps until every call of the sample
            is queued, so that it never waits for the host (:func:`sample_ahead`).  Maps are
            compared by it: it is what kernels take, in a graph too.
    stream  the same without the sleep: the device is free, and waits where the host is slower.
            ``call`` and ``call+grad`` are compared by it, for there calling is what costs.

The host's own seconds per call are kept with either (``Row.host``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from statistics import median
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.common import set_torch_threads

from torch_corr import Problem
from torch_corr.planning.timing import settle_memory

from .ahead import Ahead, sample_ahead
from .cases import CALLS, Case, Work
from .check import Expected, Operands, expected, judge
from .contenders import Contender, Prepared
from .memory import device_peak, random_operands, sentence, try_once
from .progress import Progress
from .results import Row, Verdict

LEAST = 3
_STREAMED = 3
"""Samples of the clock that a row is not compared by."""
_WARM_BELOW = 0.02
"""Seconds per call below which an untimed call goes before each sample."""
_CENTRAL = 10
"""How much more patience those have that the report is about."""
_SLOW = 0.5
"""Seconds per call above which the call that was checked is all the warming up."""
_PAUSE = 0.002
"""Seconds between turns on the CPU, for another library's threads to stop spinning."""
_QUEUED = 50
"""Calls that are queued ahead of the device at most."""


@dataclass(frozen=True)
class Settings:
    """How a run is made.

    Attributes:
        device: where.
        threads: of PyTorch and of every peer with threads of its own.
        budget: seconds of samples per contender and piece of work.
        sample: seconds that one sample lasts at least.
        least: samples at least of calls shorter than the budget's share for them.
        most: samples at most.
        patience: seconds after which a first try is stopped; ``auto`` and PyTorch, of which
            the report tells, have ten times as long.
        memory: whether to make the first try, and measure memory in it.
        tf32: whether float32 products may lose 13 bits on CUDA.
        seed: of operands and samples; drawn afresh by the command line.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    budget: float = 1.0
    sample: float = 0.005
    least: int = LEAST
    most: int = 40
    patience: float = 10.0
    memory: bool = True
    tf32: bool = False
    seed: int = 0

    def apply(self) -> None:
        """Set what is global: threads, subnormals, TF32, an allocator that keeps what is freed."""
        settle_memory()
        torch.set_flush_denormal(True)
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cuda.matmul.allow_tf32 = self.tf32


class _Instant:
    """A moment on the device; the difference of two is seconds between them."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record()

    def __sub__(self, earlier: _Instant) -> float:
        self.event.synchronize()
        return cast(float, earlier.event.elapsed_time(self.event)) / 1e3


class _Stopwatch(Timer):
    """PyTorch's timer, without the two calls that ``timeit`` adds before each sample."""

    def one_sample(self, number: int) -> float:
        with set_torch_threads(self._task_spec.num_threads):
            return self._timeit(number) / number


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _inside(
    method: Callable[Concatenate[_Entry, _P], _R],
) -> Callable[Concatenate[_Entry, _P], _R]:
    """With the contender's settings, and in its thread if it has one; that is off every clock."""

    @wraps(method)
    def run(self: _Entry, *args: _P.args, **keywords: _P.kwargs) -> _R:
        def here() -> _R:
            with self.contender.settings():
                return method(self, *args, **keywords)

        thread = self.contender.thread()
        return here() if thread is None else thread.submit(here).result()

    return run


@dataclass
class _Entry:
    """A contender at this piece of work.

    Attributes:
        first: seconds that the checked call took.
        number: calls per sample.
        spent: seconds of samples so far.
        kept: the result of the last call, alone in a list.
        host: on CUDA, seconds per call of the host, of each sample that was ahead.
    """

    contender: Contender
    row: Row
    settings: Settings
    prepared: Prepared | None = None
    first: float = 0.0
    number: int = 1
    spent: float = 0.0
    kept: list[Any] = field(default_factory=lambda: [None])
    host: list[float] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.row.verdict in ("right", "rough")

    @_inside
    def prepare(self, problem: Problem, work: Work, operands: Operands) -> None:
        self.prepared = self.contender.prepare(problem, work, operands)
        self.row.note = self.prepared.chose

    @_inside
    def run(self) -> None:
        """Once, keeping the result; on CUDA the allocator's peak is taken too."""
        assert self.prepared is not None
        started = time.perf_counter()
        if self.on_cuda:
            peak = device_peak(self._call)
            results = self.prepared.tensors(self.kept[0])
            self.row.memory = max(0, peak - sum(each.nbytes for each in results))
        else:
            self._call()
        self.first = time.perf_counter() - started

    @_inside
    def warm_up(self) -> None:
        """Untimed calls, and how many of them fill a sample; the check will do for slow ones."""
        assert self.prepared is not None
        clock: dict[str, Any] = {"timer": _Instant} if self.on_cuda else {}
        self._watch = _Stopwatch(
            "kept[0] = run()",
            globals={"run": self.prepared.run, "kept": self.kept},
            num_threads=self.settings.threads,
            **clock,
        )
        self.kept[0] = None
        if self.on_cuda:
            # The first call tells nothing: kernels are compiled and cuDNN searches in it.
            self._warm_up_ahead()
            return
        if self.first > _SLOW:
            return
        least = self.settings.sample
        once = self._watch.one_sample(1)
        if once < least:
            once = self._watch.one_sample(max(1, min(50, int(least / 4 / once))))
        self.number = max(1, int(least / once))

    def _warm_up_ahead(self) -> None:
        """As many calls a sample as fill it and find room in the device's queue."""
        self._call()
        torch.cuda.synchronize()
        started = time.perf_counter()
        self._call()
        self.host = [time.perf_counter() - started]
        torch.cuda.synchronize()
        streamed = self.row.work in CALLS
        once = self._watch.one_sample(1) if streamed else self._ahead(1).device
        self.number = max(1, min(_QUEUED, int(self.settings.sample / max(once, 1e-6))))
        while self.number > 1 and not self._ahead(self.number).ahead:
            self.number //= 2
        self.host = self.host[-1:]

    def _call(self) -> None:
        assert self.prepared is not None
        self.kept[0] = self.prepared.run()

    def _ahead(self, number: int) -> Ahead:
        found = sample_ahead(self._call, number, self.host[-1] if self.host else 1e-3)
        self.host.append(found.host)
        return found

    @property
    def on_cuda(self) -> bool:
        return self.settings.device.type == "cuda"

    @_inside
    def turn(self) -> None:
        """One sample."""
        if self.on_cuda and self.row.work not in CALLS:
            found = self._ahead(self.number)
            if not found.ahead:  # The host may have been held up once.
                found = self._ahead(self.number)
            seconds = found.device
            self.row.ahead = found.ahead and self.row.ahead is not False
        else:
            if self.first < _WARM_BELOW or self.on_cuda:
                self._watch.one_sample(1)
            seconds = self._watch.one_sample(self.number)
        self.row.samples.append(seconds)
        self.row.number = self.number
        self.spent += seconds * self.number

    @_inside
    def other_clock(self) -> None:
        """What the row is not compared by: the host, and maps in a stream that keeps up."""
        for _ in range(_STREAMED if self.row.work in CALLS else 0):
            self._ahead(self.number)
        self.row.host = median(self.host)
        if self.row.work not in CALLS and self.row.seconds < _SLOW:
            self.row.stream = median(self._watch.one_sample(self.number) for _ in range(_STREAMED))

    @property
    def wants_more(self) -> bool:
        """Until the budget is spent; slow ones, of whom few samples spend it, give fewer."""
        settings, taken = self.settings, len(self.row.samples)
        short = self.spent < 4 * settings.budget
        return (
            taken < LEAST
            or (taken < settings.least and short)
            or (taken < settings.most and self.spent < settings.budget)
        )

    def hold(self, problem: Problem, truth: tuple[Expected, ...]) -> None:
        """The result kept last against the truth."""
        assert self.prepared is not None
        found = judge(
            problem,
            truth,
            self.prepared.tensors(self.kept[0]),
            self.prepared.errors,
            self.contender.kind,
            self.settings.tf32 and self.settings.device.type == "cuda",
        )
        if found.error is not None:
            self.row.error = max(self.row.error or 0.0, found.error)
        if found.verdict == "wrong":
            self.leave("wrong", found.note)
        elif found.verdict == "rough":
            self.row.verdict = "rough"

    def leave(self, verdict: Verdict, note: str) -> None:
        self.row.verdict, self.row.note = verdict, note
        self.row.samples, self.row.number = [], 0


def measure(
    case: Case,
    work: Work,
    contenders: Sequence[Contender],
    settings: Settings,
    progress: Progress | None = None,
) -> list[Row]:
    """The rows of one piece of work, in the contenders' order; absent ones have none.

    ``progress`` advances by 1.
    """
    problem, dtype = case.problem, case.torch_dtype
    ring = [
        _Entry(each, Row(case.name, work, each.name), settings)
        for each in contenders
        if each.absent() is None
    ]

    def living(what: str, share: float) -> Iterator[_Entry]:
        """Who is still in, each with its share of the bar."""
        for entry in ring:
            if entry.alive:
                if progress is not None:
                    progress.show(f"{case.name}, {work}: {what} {entry.contender.name}")
                yield entry
            if progress is not None:
                progress.advance(share / len(ring))

    for entry in living("trying", 0.3):
        _try(entry, problem, work, dtype)

    rng = random.Random(f"{settings.seed} {case.name} {work}")
    generator = torch.Generator(settings.device).manual_seed(rng.getrandbits(62))
    operands = random_operands(problem, work, dtype, generator, case.layout)
    truth = expected(problem, work, operands, rng)
    for entry in living("checking", 0.2):
        with _telling(entry):
            entry.prepare(problem, work, operands)
            entry.run()
            entry.hold(problem, truth)

    for slot, fresh in random_operands(problem, work, dtype, generator).items():
        operands[slot].copy_(fresh)
    for entry in living("warming up", 0.1):
        with _telling(entry):
            entry.prepare(problem, work, operands)
            entry.warm_up()
    for entry in _turns(ring, 0.0 if settings.device.type == "cuda" else _PAUSE):
        with _telling(entry):
            entry.turn()
    if settings.device.type == "cuda":
        for entry in ring:
            if entry.alive:
                with _telling(entry):
                    entry.other_clock()
    truth = expected(problem, work, operands, rng)
    for entry in living("checking", 0.4):
        with _telling(entry):
            entry.hold(problem, truth)
    return [entry.row for entry in ring]


def _turns(ring: list[_Entry], pause: float = _PAUSE) -> Iterator[_Entry]:
    """Entries in turn, until none wants more; the first of a round is next time the last."""
    order = list(ring)
    while waiting := [entry for entry in order if entry.alive and entry.wants_more]:
        for entry in waiting:
            time.sleep(pause)
            yield entry
        order.append(order.pop(0))


def _try(entry: _Entry, problem: Problem, work: Work, dtype: torch.dtype) -> None:
    """Refusals, then a first run in another process."""
    contender, settings = entry.contender, entry.settings
    if sentences := contender.refusals(problem, work, settings.device, dtype):
        entry.leave("refused", "; ".join(sentences))
    elif settings.memory and settings.device.type == "cpu":
        patience = settings.patience * (_CENTRAL if contender.central else 1)
        trial = try_once(contender, problem, work, dtype, settings.threads, patience)
        entry.row.memory = trial.memory
        if trial.failure:
            entry.leave("too slow" if trial.timed_out else "failed", trial.failure)


@contextmanager
def _telling(entry: _Entry) -> Iterator[None]:
    """Whatever a contender raises is a finding, told in its row; the others go on."""
    try:
        yield
    except Exception as error:
        entry.leave("failed", sentence(error))
