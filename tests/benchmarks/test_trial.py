"""The first run in a separate process: its peak memory, and how it may end."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.cases import Task
from benchmarks.contenders import Contender, Prepared
from torch_corr import Problem


@dataclass(frozen=True)
class Acts(Contender):
    """Allocates and frees 48 MiB, dies, hangs or raises, in the other process."""

    name: str = "acts"
    kind: Any = "peer"

    def refusals(self, *_: Any) -> tuple[str, ...]:
        return ()

    def settings(self) -> Any:
        return torch.autocast("cpu")  # a setting that ``run`` can observe

    def prepare(self, task: Task, operands: Any) -> Prepared:
        def run() -> Tensor:
            assert torch.is_autocast_enabled("cpu"), "without the contender's settings"
            if task.problem.size == (4, 4):  # the first, tiny run
                return operands["input"]
            if self.name == "dies":
                os._exit(3)
            if self.name == "hangs":
                time.sleep(60)
            if self.name == "raises":
                raise MemoryError("none left")
            result = torch.ones(task.problem.output_shape)
            for _ in range(3):
                torch.ones(48 * 2**18)
            return result

        return Prepared(run, lambda result: (result,))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_trial_measures_memory_and_reports_crashes_and_hangs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_PRELOAD", ["benchmarks.memory"])  # importing peers takes long
    task = Task(
        Problem.parse("n1c1-x2048-o1-k1"), "forward"
    )  # a result of 16 MiB, which is not counted

    def trial(name: str, patience: float = 60.0) -> Any:
        return memory.try_once(Acts(name), task, 1, patience)

    found = trial("takes")
    assert not found.failure
    assert 47 * 2**20 < found.memory < 51 * 2**20
    assert "exit code 3" in trial("dies").failure
    assert "none left" in trial("raises").failure
    assert trial("hangs", patience=1.0).timed_out
