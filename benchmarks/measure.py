"""Measure one piece of work: check each contender, time all in turns, and check again.

For each piece of work (a case and a map):

1.  *Try* (CPU): each contender runs once in a separate process (``memory``).
2.  *Check*: with new random operands, against the float64 definition (``check``).  A wrong
    contender is reported as wrong and not timed.
3.  *Warm up*: new numbers are written into the same memory, so that a remembered result is wrong.
    Every contender prepares again and runs untimed.
4.  *Time*: contenders take one sample each, in an order that rotates every round.  A sample is the
    mean over as many calls as fill ``Settings.sample``.  Before its sample a fast contender makes
    an untimed call, to warm caches and threads.
5.  *Check again*: the result of the last timed call, on a new sample of its elements.

On CUDA maps are compared by the time of the device (``device_time``), and calls by the time in a
stream.  The row holds both, and the host's own time per call.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from timeit import Timer
from typing import Any

import torch

from torch_corr.planning.timing import raise_mmap_threshold

from .cases import CALLS, Case, Task, Work
from .check import Expected, Operands, expected, judge
from .contenders import Contender, Prepared
from .device_time import DeviceTime, time_in_stream, time_on_device
from .memory import device_peak, random_operands, sentence, try_once
from .results import Row, Verdict

LEAST = 3
_STREAM_SAMPLES = 3
"""Samples by the clock that a row is not compared by."""
_WARM_BELOW = 0.02
"""Seconds per call below which an untimed call precedes each sample."""
_CENTRAL = 10
"""Factor of patience for ``auto`` and PyTorch."""
_SLOW = 0.5
"""Seconds per call above which the checked call is the only warm-up."""
_PAUSE = 0.002
"""Seconds between samples on the CPU, so that threads of another library stop spinning."""
_QUEUED = 50
"""Calls that are queued on the device at most."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        device: the device to measure.
        threads: of PyTorch and of every peer with its own threads.
        budget: seconds of samples per contender and piece of work.
        sample: seconds that one sample lasts at least.
        least: number of samples of calls that are short compared with the budget.
        most: largest number of samples.
        patience: seconds after which a first run is stopped; ``auto`` and PyTorch have ten times as
            long.
        memory: whether to make the first run, which measures memory.
        tf32: whether float32 products may lose 13 bits on CUDA.
        seed: of operands and samples.
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
        """Set the global state: threads, subnormals, TF32 and the allocator."""
        raise_mmap_threshold()
        torch.set_flush_denormal(True)
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cuda.matmul.allow_tf32 = self.tf32

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"


@dataclass
class Entry:
    """A contender at one piece of work.

    Attributes:
        first: seconds of the checked call.
        number: calls per sample.
        samples: seconds per call of each sample.
        result: the result of the last call, in a list of length 1.
        host: on CUDA, seconds per call on the host, of each sample where the device slept.
    """

    contender: Contender
    task: Task
    row: Row
    settings: Settings
    prepared: Prepared | None = None
    first: float = 0.0
    number: int = 1
    samples: list[float] = field(default_factory=list)
    result: list[Any] = field(default_factory=lambda: [None])
    host: list[float] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.row.verdict in ("right", "rough")

    @property
    def wants_more(self) -> bool:
        """Whether to take another sample: until the budget is spent, or there are enough."""
        settings, taken = self.settings, len(self.samples)
        spent = sum(self.samples) * self.number
        return (
            taken < LEAST
            or (taken < settings.least and spent < 4 * settings.budget)
            or (taken < settings.most and spent < settings.budget)
        )

    def attempt(self, step: Callable[..., None], *args: Any) -> None:
        """Take a step with the contender's settings, and in its thread if it has one.

        An exception ends the work of this contender only.
        """

        def run() -> None:
            with self.contender.settings():
                step(*args)

        thread = self.contender.thread()
        try:
            if thread is None:
                run()
            else:
                thread.submit(run).result()
        except Exception as error:
            self.drop("failed", sentence(error))

    def _prepare(self, operands: Operands) -> Prepared:
        self.prepared = self.contender.prepare(self.task, operands)
        self.row.note = self.prepared.chose
        return self.prepared

    def first_run(self, operands: Operands, truth: tuple[Expected, ...]) -> None:
        """Call once and check the result; on CUDA also measure memory."""
        prepared = self._prepare(operands)
        started = time.perf_counter()
        if self.settings.on_cuda:
            peak = device_peak(self._call)
            results = prepared.tensors(self.result[0])
            self.row.memory = max(0, peak - sum(each.nbytes for each in results))
        else:
            self._call()
        self.first = time.perf_counter() - started
        self.check(truth)

    def warm_up(self, operands: Operands) -> None:
        """Prepare again, make untimed calls, and find how many calls fill a sample."""
        prepared = self._prepare(operands)
        names = {"run": prepared.run, "result": self.result}
        self._timer = Timer("result[0] = run()", globals=names)
        self.result[0] = None
        least = self.settings.sample
        if self.settings.on_cuda:
            self._warm_up_device()
        elif self.first <= _SLOW:
            once = self._seconds(1)
            if once < least:
                once = self._seconds(max(1, min(50, int(least / 4 / once))))
            self.number = max(1, int(least / once))

    def _warm_up_device(self) -> None:
        """As many calls per sample as fill it and fit into the device's queue."""
        self._call()  # compiles kernels and searches in cuDNN
        torch.cuda.synchronize()
        started = time.perf_counter()
        self._call()
        self.host = [time.perf_counter() - started]
        torch.cuda.synchronize()
        in_stream = self.row.work in CALLS
        once = self._seconds(1) if in_stream else self._on_device(1).device
        self.number = max(1, min(_QUEUED, int(self.settings.sample / max(once, 1e-6))))
        while self.number > 1 and not self._on_device(self.number).ahead:
            self.number //= 2
        self.host = self.host[-1:]

    def _seconds(self, number: int) -> float:
        """Seconds per call of this number of calls; on CUDA in a stream."""
        if self.settings.on_cuda:
            return time_in_stream(self._call, number).device
        return self._timer.timeit(number) / number

    def _call(self) -> None:
        assert self.prepared is not None
        self.result[0] = self.prepared.run()

    def _on_device(self, number: int) -> DeviceTime:
        found = time_on_device(self._call, number, self.host[-1] if self.host else 1e-3)
        self.host.append(found.host)
        return found

    def take_sample(self) -> None:
        if self.settings.on_cuda and self.row.work not in CALLS:
            found = self._on_device(self.number)
            if not found.ahead:  # the host may have been interrupted
                found = self._on_device(self.number)
            self.row.ahead = found.ahead and self.row.ahead is not False
            self.samples.append(found.device)
        else:
            if self.first < _WARM_BELOW or self.settings.on_cuda:
                self._seconds(1)
            self.samples.append(self._seconds(self.number))

    def finish(self) -> None:
        """Summarise the samples; on CUDA also measure by the clock that was not used."""
        self.row.set_samples(self.samples)
        self.row.number = self.number
        if not self.settings.on_cuda:
            return
        if self.row.work in CALLS:
            for _ in range(_STREAM_SAMPLES):
                self._on_device(self.number)
        elif self.row.seconds < _SLOW:
            samples = (self._seconds(self.number) for _ in range(_STREAM_SAMPLES))
            self.row.stream = median(samples)
        self.row.host = median(self.host)

    def check(self, truth: tuple[Expected, ...]) -> None:
        """Compare the last result with the exact one."""
        assert self.prepared is not None
        found = judge(
            self.task.problem,
            truth,
            self.prepared.tensors(self.result[0]),
            self.prepared.errors,
            self.contender.kind,
            self.settings.tf32 and self.settings.on_cuda,
        )
        if found.error is not None:
            self.row.error = max(self.row.error or 0.0, found.error)
        if found.verdict == "wrong":
            self.drop("wrong", found.note)
        elif found.verdict == "rough":
            self.row.verdict = "rough"

    def drop(self, verdict: Verdict, note: str) -> None:
        """End the work of this contender, without a time."""
        self.row.verdict, self.row.note, self.row.number = verdict, note, 0
        self.row.set_samples([])


def measure(
    case: Case, work: Work, contenders: Sequence[Contender], settings: Settings
) -> list[Row]:
    """The rows of one piece of work, in the order of the contenders; absent ones have none."""
    task = Task(case.problem, work, case.torch_dtype, settings.device, case.layout)
    entries = [
        Entry(each, task, Row(case.name, work, each.name), settings)
        for each in contenders
        if each.absent() is None
    ]
    for entry in entries:
        _try(entry)

    rng = random.Random(f"{settings.seed} {case.name} {work}")
    generator = torch.Generator(settings.device).manual_seed(rng.getrandbits(62))
    operands = random_operands(task, generator)
    truth = expected(task, operands, rng)

    for entry in _alive(entries):
        entry.attempt(entry.first_run, operands, truth)
    for slot, numbers in random_operands(task, generator).items():
        operands[slot].copy_(numbers)
    for entry in _alive(entries):
        entry.attempt(entry.warm_up, operands)
    for entry in turns(entries, 0.0 if settings.on_cuda else _PAUSE):
        entry.attempt(entry.take_sample)
    truth = expected(task, operands, rng)
    for entry in _alive(entries):
        entry.attempt(entry.finish)
    for entry in _alive(entries):
        entry.attempt(entry.check, truth)
    return [entry.row for entry in entries]


def _alive(entries: Sequence[Entry]) -> list[Entry]:
    """The contenders that have not been dropped."""
    return [entry for entry in entries if entry.alive]


def turns(entries: list[Entry], pause: float = _PAUSE) -> Iterator[Entry]:
    """Entries in turn, until none wants more; the first of a round is the last of the next."""
    order = list(entries)
    while waiting := [entry for entry in _alive(order) if entry.wants_more]:
        for entry in waiting:
            time.sleep(pause)
            yield entry
        order.append(order.pop(0))


def _try(entry: Entry) -> None:
    """Ask for refusals, then run once in another process."""
    contender, settings = entry.contender, entry.settings
    if sentences := contender.refusals(entry.task):
        entry.drop("refused", "; ".join(sentences))
    elif settings.memory and settings.device.type == "cpu":
        patience = settings.patience * (_CENTRAL if contender.central else 1)
        trial = try_once(contender, entry.task, settings.threads, patience)
        entry.row.memory = trial.memory
        if trial.failure:
            entry.drop("too slow" if trial.timed_out else "failed", trial.failure)
