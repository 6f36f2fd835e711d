"""Algorithms for tests of the planner."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from torch import Tensor

from torch_corr import Problem, Unfold
from torch_corr.algorithms import Algorithm, Cost
from torch_corr.request import Request


@dataclass(frozen=True)
class Sleeper(Unfold):
    """Unfold after a pause; it is slow but predicts no cost."""

    name = "sleeper"
    pause: float = 0.002

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        threading.Event().wait(self.pause)
        return super().forward(problem, input, weight)

    def cost(self, request: Request) -> Cost:
        return Cost()


@dataclass(frozen=True)
class Paused(Sleeper):
    """An algorithm whose default is slower than its variant."""

    name = "paused"
    pause: float = 0.02

    @property
    def spelling(self) -> str:
        return self.name if self.pause == 0.02 else f"paused {self.pause}"

    def variants(self, request: Request) -> tuple[Algorithm, ...]:
        return (Paused(pause=0.0),)
