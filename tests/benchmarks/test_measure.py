"""``measure``: wrong contenders are detected and not timed; right ones are timed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from benchmarks import measure, report
from benchmarks.analysis import lines
from benchmarks.cases import WORKS, Case, Task, Work
from benchmarks.contenders import Ours, Prepared, PyTorch, our_contenders
from benchmarks.device_time import time_on_device
from benchmarks.results import Row
from support.benchmark_results import BRIEF, LARGE, SMALL, results_of
from torch_corr import Aten, Problem
from torch_corr.algorithms import MAPS

each_case = pytest.mark.parametrize("case", [SMALL, LARGE], ids=lambda case: case.name)


class Planted(Aten):
    """PyTorch's convolution; each subclass has a planted bug."""

    name: ClassVar[str] = "planted"


class Flipped(Planted):
    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        return super().grad_weight(problem, input, output).flip(-1)


class DropsLastElement(Planted):
    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        result = super().forward(problem, input, weight)
        result[-1, -1, -1, -1] = 0
        return result


class Imprecise(Planted):
    """Sums in half precision."""

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        return super().forward(problem, input.bfloat16(), weight.bfloat16()).to(input.dtype)


class LeavesNaN(Planted):
    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        result = super().forward(problem, input, weight)
        result[0, 0, 3, 3] = torch.nan
        return result


@dataclass(frozen=True)
class Remembers(Planted):
    """Returns its earlier result for the same memory."""

    seen: dict[int, Tensor] = field(default_factory=dict, hash=False, compare=False)

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        if input.data_ptr() not in self.seen:
            self.seen[input.data_ptr()] = super().forward(problem, input, weight)
        return self.seen[input.data_ptr()]


@dataclass(frozen=True)
class WrongLater(Planted):
    """Right only for its first two calls."""

    calls: list[int] = field(default_factory=list, hash=False, compare=False)

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        self.calls.append(1)
        result = super().forward(problem, input, weight)
        return result if len(self.calls) < 3 else result * 1.001


class Slow(Planted):
    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        time.sleep(0.01)
        return super().forward(problem, input, weight)


class Raises(Planted):
    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        raise ValueError("no such kernel\nand more")


def measured(algorithm: Any, case: Case = SMALL, work: Work = "forward") -> list[Row]:
    """The rows of PyTorch and of one algorithm of ours."""
    contenders = [PyTorch("torch", "torch"), Ours("auto", "ours", requested=algorithm)]
    rows = measure.measure(case, work, contenders, BRIEF)
    assert rows[0].verdict == "right", rows[0]
    assert rows[0].count == 3
    return rows


@each_case
@pytest.mark.parametrize(
    ("planted", "work"),
    [
        (Flipped(), "grad_weight"),
        (DropsLastElement(), "forward"),
        (Imprecise(), "forward"),
        (LeavesNaN(), "forward"),
        (Remembers(), "forward"),
        (WrongLater(), "forward"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Planted) else "",
)
def test_wrong_algorithm_is_reported_and_not_timed(planted: Planted, work: Work, case: Case):
    row = measured(planted, case, work)[1]
    assert row.verdict == "wrong"
    assert row.note
    assert not row.timed


def test_exception_is_reported_and_others_are_timed():
    row = measured(Raises())[1]
    assert (row.verdict, row.note) == ("failed", "ValueError: no such kernel")


@each_case
@pytest.mark.parametrize("work", WORKS)
def test_every_algorithm_is_timed_where_it_does_not_refuse(case: Case, work: Work):
    for row in measure.measure(case, work, our_contenders(), BRIEF):
        assert row.verdict in ("right", "refused"), row
        assert row.timed == (row.verdict == "right")
        assert row.error is None or row.error <= 1


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "complex64"])
def test_every_dtype_is_judged_by_its_own_bound(dtype: str):
    case = Case("typed", SMALL.spelling, "test", dtype)
    contenders = [PyTorch("torch", "torch"), Ours("auto", "ours")]
    for work in MAPS:
        for row in measure.measure(case, work, contenders, BRIEF):
            assert row.verdict in ("right", "rough"), row
            assert row.timed


def test_slow_algorithm_is_a_loss_in_the_report(tmp_path: Path):
    rows = measured(Slow())
    assert rows[1].seconds >= 0.01
    (line,) = lines(results_of(rows))
    assert line.speedup is not None
    assert line.speedup < 0.5
    tables = report.markdown(results_of(rows)).partition("## Means")[2]  # the text explains marks
    assert "▼" in tables


def test_turns_rotate_and_skip_finished_or_wrong_contenders():
    @dataclass
    class Entry:
        name: str
        left: int
        alive: bool = True

        @property
        def wants_more(self) -> bool:
            return self.left > 0

    entries: list[Any] = [Entry("a", 3), Entry("b", 3), Entry("x", 3, alive=False), Entry("c", 1)]
    seen = ""
    for entry in measure.turns(entries):
        seen += entry.name
        entry.left -= 1
    assert seen == "abcbaab"


def test_settings_set_threads_subnormals_and_tf32():
    tiny = torch.full((64,), 1e-39)
    assert bool((tiny * 1.0 != 0).all())
    for tf32 in (True, False):
        measure.Settings(threads=1, tf32=tf32).apply()
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
    assert torch.get_num_threads() == 1
    assert bool((tiny * 1.0 == 0).all())


# The clocks of a GPU.


class Device:
    """Simulates CUDA's clocks: calls are queued, and the device runs them in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free_at = 0.0
        monkeypatch.setattr(torch.cuda, "Event", lambda **_: Event(self))
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.work(cycles / 2e9))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.wait(self.free_at))

    def work(self, seconds: float) -> None:
        self.free_at = max(self.free_at, time.perf_counter()) + seconds

    def wait(self, until: float) -> None:
        time.sleep(max(0.0, until - time.perf_counter()))


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, 0.0

    def record(self) -> None:
        self.at = max(self.device.free_at, time.perf_counter())

    def query(self) -> bool:
        return time.perf_counter() >= self.at

    def synchronize(self) -> None:
        self.device.wait(self.at)

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.at - self.at)


def test_device_time_excludes_the_host_if_it_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)

    def call() -> None:
        time.sleep(2e-3)
        device.work(1e-4)

    found = time_on_device(call, 3, host=4e-3)
    assert found.ahead
    assert found.device == pytest.approx(1e-4)
    assert found.host > 2e-3
    late = time_on_device(call, 3, host=0.0)
    assert not late.ahead
    assert late.device > 1e-3


@dataclass(frozen=True)
class Simulated(PyTorch):
    """PyTorch on a simulated device."""

    call: Any = None

    def prepare(self, task: Task, operands: Any) -> Prepared:
        return Prepared(self.call, lambda result: (result,))


@pytest.mark.parametrize("work", ["forward", "call"])
@pytest.mark.parametrize("searches", [False, True])
def test_cuda_row_has_device_stream_and_host_time(
    monkeypatch: pytest.MonkeyPatch, work: Work, searches: bool
) -> None:
    """Maps are compared by the device, calls in a stream; cuDNN's search has its own thread."""
    device = Device(monkeypatch)
    contender = Simulated("torch", "torch", cudnn_benchmark=searches, call=lambda: call())
    on_cuda = measure.Settings(device=torch.device("cuda"), sample=0.002, budget=0.01, least=5)
    task = Task(SMALL.problem, work, device=on_cuda.device)
    entry = measure.Entry(contender, task, Row("a", work, "torch"), on_cuda)
    threads = set()

    def call() -> None:
        threads.add(threading.current_thread())
        time.sleep(1e-3)
        device.work(1e-4)

    entry.attempt(entry.warm_up, {})
    while entry.wants_more:
        entry.attempt(entry.take_sample)
    entry.attempt(entry.finish)
    row = entry.row
    assert row.verdict == "right", row
    assert row.count >= measure.LEAST
    assert row.host is not None
    assert row.host > 1e-3
    if work == "call":
        assert row.seconds > 1e-3
        assert (row.stream, row.ahead) == (None, None)
    else:
        assert row.stream is not None
        assert row.stream > 1e-3
        if row.ahead:  # a busy machine can be late
            assert row.seconds == pytest.approx(1e-4)
    assert (threads == {threading.main_thread()}) == (not searches)
    assert len(threads) == 1
