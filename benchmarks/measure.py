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

The same for all: operands, threads, TF32 state, flushing of subnormals to zero (set before
any thread pool starts, as threads inherit it).  Times are ``torch.utils.benchmark.Timer``'s; on
CUDA its clock is replaced by events on the device.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.common import set_torch_threads

from torch_corr import Problem

from .cases import Case, Work
from .check import expected, judge
from .contenders import Contender, Prepared
from .memory import device_peak, random_operands, try_once
from .progress import Progress
from .results import Row

LEAST = 3
_WARM_BELOW = 0.02
"""Seconds per call below which an untimed call goes before each sample."""
_PAUSE = 0.002
"""Seconds between turns, for another library's threads to stop spinning."""


@dataclass(frozen=True)
class Settings:
    """How a run is made.

    Attributes:
        device: where.
        threads: of PyTorch and of every peer with threads of its own.
        budget: seconds of samples per contender and piece of work.
        sample: seconds that one sample lasts at least.
        most: samples at most.
        patience: seconds after which a first try is stopped.
        memory: whether to make the first try, and measure memory in it.
        tf32: whether float32 products may lose 13 bits on CUDA.
        seed: of operands and samples; drawn afresh by the command line.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    budget: float = 1.0
    sample: float = 0.005
    most: int = 40
    patience: float = 60.0
    memory: bool = True
    tf32: bool = False
    seed: int = 0

    def apply(self) -> None:
        """Set what is global: threads, subnormals, TF32."""
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


@dataclass
class _Entry:
    """A contender in the ring."""

    contender: Contender
    row: Row
    prepared: Prepared
    threads: int
    device: torch.device
    number: int = 1
    spent: float = 0.0
    kept: list[Any] = field(default_factory=lambda: [None])

    @cached_property
    def watch(self) -> _Stopwatch:
        clock: dict[str, Any] = {"timer": _Instant} if self.device.type == "cuda" else {}
        names = {"run": self.prepared.run, "kept": self.kept}
        return _Stopwatch("kept[0] = run()", globals=names, num_threads=self.threads, **clock)

    def turn(self, settings: Settings) -> None:
        """One sample."""
        with self.contender.settings():
            if not self.row.samples or self.row.samples[-1] < _WARM_BELOW:
                self.watch.one_sample(1)
            seconds = self.watch.one_sample(self.number)
        self.row.samples.append(seconds)
        self.row.number = self.number
        self.spent += seconds * self.number

    def warm_up(self, settings: Settings) -> None:
        """Untimed calls, and how many of them fill a sample."""
        with self.contender.settings():
            once = self.watch.one_sample(1)
            if once < settings.sample:
                once = self.watch.one_sample(max(1, min(50, int(settings.sample / 4 / once))))
        self.number = max(1, int(settings.sample / once))

    def wants_more(self, settings: Settings) -> bool:
        taken = len(self.row.samples)
        return taken < LEAST or (taken < settings.most and self.spent < settings.budget)


def measure(
    case: Case,
    work: Work,
    contenders: Sequence[Contender],
    settings: Settings,
    progress: Progress | None = None,
    weight: float = 1.0,
) -> list[Row]:
    """The rows of one piece of work, in the contenders' order; absent ones have none."""
    problem, dtype = case.problem, case.torch_dtype
    rows: dict[str, Row] = {}
    present = [each for each in contenders if each.absent() is None]
    step = weight / max(1, len(present))
    label = f"{case.name}, {work}"

    def show(what: str, part: float) -> None:
        if progress is not None:
            progress.step(part * step, f"{label}: {what}")

    able = []
    for each in present:
        show(f"trying {each.name}", 0.3)
        row = rows[each.name] = Row(case.name, work, each.name)
        _try(each, problem, work, dtype, settings, row)
        if row.verdict == "right":
            able.append(each)

    rng = random.Random(f"{settings.seed} {case.name} {work}")
    generator = torch.Generator(settings.device).manual_seed(rng.getrandbits(62))
    operands = random_operands(problem, work, dtype, generator)
    truth = expected(problem, work, operands, rng) if able else ()
    ring: list[_Entry] = []

    def hold(entry: _Entry, result: Any) -> bool:
        found = judge(
            problem,
            truth,
            entry.prepared.tensors(result),
            entry.prepared.error_class,
            entry.contender.kind,
            settings.tf32 and settings.device.type == "cuda",
        )
        row = entry.row
        row.error = max(row.error or 0.0, found.error) if found.error is not None else row.error
        if row.verdict == "right":
            row.verdict = found.verdict
        if found.verdict == "wrong":
            row.verdict, row.note, row.samples, row.number = "wrong", found.note, [], 0
        return found.verdict != "wrong"

    def enter(each: Contender) -> _Entry:
        with each.settings():
            prepared = each.prepare(problem, work, operands)
        return _Entry(each, rows[each.name], prepared, settings.threads, settings.device)

    for each in able:
        show(f"checking {each.name}", 0.2)
        entry = _guarded(rows[each.name], lambda each=each: enter(each))  # type: ignore[misc]
        if entry is None:
            continue
        result = _guarded(entry.row, lambda entry=entry: _run(entry, settings))  # type: ignore[misc]
        if result is not None and hold(entry, result):
            entry.row.note = entry.prepared.chose
            ring.append(entry)
        del result

    for slot, fresh in random_operands(problem, work, dtype, generator).items():
        operands[slot].copy_(fresh)
    ring = [enter(entry.contender) for entry in ring]
    for entry in ring:
        entry.warm_up(settings)
    for entry in _turns(ring, settings):
        entry.turn(settings)
    truth = expected(problem, work, operands, rng) if ring else ()
    for entry in ring:
        hold(entry, entry.kept[0])
    show("done", 0.5 * len(present) + 0.2 * (len(present) - len(able)))
    return [rows[each.name] for each in present]


def _turns(ring: list[_Entry], settings: Settings) -> Any:
    """Entries in turn, until none wants more; the first of a round is next time the last."""
    order = list(ring)
    while waiting := [entry for entry in order if entry.wants_more(settings)]:
        for entry in waiting:
            time.sleep(_PAUSE)
            yield entry
        order.append(order.pop(0))


def _try(
    contender: Contender,
    problem: Problem,
    work: Work,
    dtype: torch.dtype,
    settings: Settings,
    row: Row,
) -> None:
    """Refusals, then a first run in another process."""
    if sentences := contender.refusals(problem, work, settings.device, dtype):
        row.verdict, row.note = "refused", "; ".join(sentences)
    elif settings.memory and settings.device.type == "cpu":
        trial = try_once(contender, problem, work, dtype, settings.threads, settings.patience)
        row.memory = trial.memory
        if trial.failure:
            row.verdict = "too slow" if trial.timed_out else "failed"
            row.note = trial.failure


def _run(entry: _Entry, settings: Settings) -> Any:
    with entry.contender.settings():
        if settings.device.type != "cuda":
            return entry.prepared.run()
        kept: list[Any] = []
        peak = device_peak(lambda: kept.append(entry.prepared.run()))
        first = entry.prepared.tensors(kept[0])
        entry.row.memory = max(0, peak - sum(each.nbytes for each in first))
        return kept[0]


def _guarded(row: Row, do: Callable[[], Any]) -> Any:
    """What ``do`` returns; None when it raises, which the row then tells."""
    try:
        return do()
    # Whatever a contender raises is a finding, told in its row; the others go on.
    except Exception as error:
        row.verdict, row.note = "failed", f"{type(error).__name__}: {str(error).splitlines()[:1]}"
        return None
