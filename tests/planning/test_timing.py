"""Timing of algorithms on random operands."""

from __future__ import annotations

import pytest
import torch

from support.algorithms import Sleeper
from support.maps import request
from torch_corr import Aten, Auto, Problem, Unfold, corr2d
from torch_corr.planning import timing as stopwatch
from torch_corr.planning.plan import clear_plans, make_plan
from torch_corr.planning.timing import time_algorithms, time_in_turns

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = Problem.parse("n1c2-x9-o2-k3")


def test_measuring_keeps_random_state():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    assert torch.equal(torch.rand(3), expected)


def test_measuring_under_vmap():
    """The operands that are timed are plain tensors."""
    x, w = torch.randn(3, 1, 2, 9, 9), torch.randn(2, 2, 3, 3)
    mapped = torch.func.vmap(lambda image: corr2d(image, w, algorithm=Auto(measure=True)))(x)
    assert torch.allclose(mapped[1], corr2d(x[1], w), atol=1e-5)


def test_no_timing_during_cuda_graph_capture(with_triton, monkeypatch):
    problem = Problem.parse("n8c64-x56-o64-k3-p1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"while a CUDA graph is captured.*once before"):
        make_plan(problem, CUDA, torch.float32, Auto(measure=True))
    assert not with_triton
    assert isinstance(make_plan(problem, CUDA, torch.float32, "auto").forward, Aten)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    chosen = make_plan(problem, CUDA, torch.float32, Auto(measure=True))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    clear_plans()
    assert make_plan(problem, CUDA, torch.float32, Auto(measure=True)) == chosen


def test_slow_algorithm_has_longer_time():
    times = time_algorithms([Unfold(), Sleeper()], request(SMALL))
    assert times["sleeper"] > times["unfold"] > 0


def test_timing_synchronizes_accelerators(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda where: calls.append(str(where)))
    for device, waits in (("mps", ["mps"]), ("xpu:1", ["xpu:1"]), ("cpu", []), ("meta", [])):
        calls.clear()
        stopwatch._timed(torch.device(device), lambda: calls.append("work"))
        assert calls == [*waits, "work", *waits]


def test_long_first_run_is_timed_and_not_repeated(monkeypatch):
    monkeypatch.setattr(stopwatch, "_LONG_RUN", 0.01)
    monkeypatch.setattr(stopwatch, "_timed", lambda device, work: work())
    runs = []

    def work_of(name, seconds):
        return lambda: (runs.append(name), seconds)[1]

    works = {"quick": work_of("quick", 0.001), "slow": work_of("slow", 0.02)}
    pauses = []
    times = time_in_turns(works, CPU, lambda: pauses.append(1))
    assert times == {"quick": 0.001, "slow": 0.02}
    assert runs.count("slow") == 1 < runs.count("quick")
    assert len(pauses) == len(runs)
