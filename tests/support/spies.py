"""Modes and algorithms that record what PyTorch and corr2d call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_corr import Problem, Unfold


class Recorder(TorchDispatchMode):
    """Records ``take(arguments)`` at each call of an operator, unless it is None."""

    def __init__(self, operator: Any, take: Callable[[Any], Any]) -> None:
        super().__init__()
        self.operator, self.take = operator, take
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = self.take(args) if func is self.operator else None
        if value is not None:
            self.seen.append(value)
        return func(*args, **(kwargs or {}))


CONVOLUTION = torch.ops.aten.convolution.default
BACKWARD = torch.ops.aten.convolution_backward.default


class Sees(TorchDispatchMode):
    """Keeps the tensors that ``aten::convolution_backward`` is given."""

    given: tuple[Any, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.given = args[:3]
        return func(*args, **(kwargs or {}))


def saved_by(call: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
    """The result of a call, and the tensors that autograd saves for it."""
    saved: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        saved.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        return call(), saved


@dataclass(frozen=True, eq=False)
class Spy(Unfold):
    """Unfold that records the maps it computes."""

    requested: list[str] = field(default_factory=list)

    # Plans are cached by equality, so equal spies would share a plan.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        self.requested.append("forward")
        return super().forward(problem, input, weight)

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        self.requested.append("grad_input")
        return super().grad_input(problem, output, weight)

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        self.requested.append("grad_weight")
        return super().grad_weight(problem, input, output)
