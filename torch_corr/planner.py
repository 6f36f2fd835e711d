"""Choosing an algorithm for each map; and saying which one and why.

Planning and executing never mix: a :class:`Plan` is made once from a problem, a device, a
dtype and what the caller asked for; running it decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from .algorithms import ALGORITHMS, MAPS, Algorithm, Aten, dtype_name
from .problem import Problem
from .suggest import did_you_mean

AlgorithmLike: TypeAlias = str | Algorithm
"""``"auto"``, the name of an algorithm, or an :class:`Algorithm` of one's own."""

ALGORITHM_NAMES = tuple(algorithm.name for algorithm in ALGORITHMS)


@dataclass(frozen=True)
class Plan:
    """One algorithm for each map of a problem.

    Attributes:
        problem: the geometry.
        device: where it runs.
        dtype: of the operands and the result.
        asked: what the caller asked for, ``"auto"`` or an algorithm.
        forward: computes (x, w) -> y.
        grad_input: computes (y, w) -> x.
        grad_weight: computes (x, y) -> w.
    """

    problem: Problem
    device: torch.device
    dtype: torch.dtype
    asked: AlgorithmLike
    forward: Algorithm
    grad_input: Algorithm
    grad_weight: Algorithm

    def run(self, input: Tensor | None, weight: Tensor | None, output: Tensor | None) -> Tensor:
        """Compute the slot that is None from the two that are not."""
        if output is None:
            result = self.forward.forward(self.problem, *_both(input, weight))
        elif input is None:
            result = self.grad_input.grad_input(self.problem, *_both(output, weight))
        else:
            result = self.grad_weight.grad_weight(self.problem, *_both(input, output))
        # Autograd forbids ``relu_`` and its like on a Function's output that is a view.
        return result.clone() if result._is_view() else result

    @property
    def is_conv2d(self) -> bool:
        """Whether ``torch.conv2d`` with its own derivatives is all that this plan would do."""
        maps = (self.forward, self.grad_input, self.grad_weight)
        return all(isinstance(each, Aten) for each in maps) and Aten.adds_nothing(
            self.problem, self.device, self.dtype
        )

    def able(self, problem: Problem) -> bool:
        """Whether what was asked for can run another problem of this device and dtype."""
        asked = find_algorithm(self.asked)
        if asked is None:
            return bool(able_algorithms(problem, self.device, self.dtype))
        return not asked.refusals(problem, self.device, self.dtype)

    def of(self, problem: Problem) -> Plan:
        """A plan for another problem, asked for in the same words."""
        return make_plan(problem, self.device, self.dtype, self.asked)

    def __str__(self) -> str:
        """Which algorithm each map gets, and why the others were not chosen."""
        asked = self.asked if isinstance(self.asked, str) else repr(self.asked)
        lines = [f"{_where(self.problem, self.device, self.dtype)}, algorithm={asked}"]
        for map in MAPS:
            algorithm: Algorithm = getattr(self, map)
            needed = algorithm.workspace(self.problem, map, self.dtype)
            lines.append(
                f"  {map:<12} {algorithm.name:<8} workspace {needed / 2**20:.1f} MiB, "
                f"error {algorithm.error_class}"
            )
        for algorithm in ALGORITHMS:
            for sentence in algorithm.refusals(self.problem, self.device, self.dtype):
                lines.append(f"  not {algorithm.name}: {sentence}")
        return "\n".join(lines)


@lru_cache(maxsize=4096)
def make_plan(
    problem: Problem, device: torch.device, dtype: torch.dtype, asked: AlgorithmLike
) -> Plan:
    """The plan for a problem: a named algorithm for all three maps, or what ``auto`` chooses.

    ``auto`` takes the first algorithm of ``ALGORITHMS`` that is able.

    Raises:
        RuntimeError: the named algorithm refuses the problem.
        NotImplementedError: no algorithm is able (a RuntimeError too, as in PyTorch).
        ValueError: no algorithm has that name.
        TypeError: ``asked`` is neither a string nor an :class:`Algorithm`.
    """
    algorithm = find_algorithm(asked)
    if algorithm is None:
        able = able_algorithms(problem, device, dtype)
        if not able:
            raise NotImplementedError(
                "\n".join(
                    [f"no algorithm can run {_where(problem, device, dtype)}:"]
                    + [
                        f"  - {each.name}: {sentence}"
                        for each in ALGORITHMS
                        for sentence in each.refusals(problem, device, dtype)
                    ]
                )
            )
        algorithm = able[0]
    elif sentences := algorithm.refusals(problem, device, dtype):
        able = able_algorithms(problem, device, dtype)
        names = ", ".join(each.name for each in able)
        raise RuntimeError(
            "\n".join(
                [
                    f"algorithm {algorithm.name!r} cannot run {_where(problem, device, dtype)}:",
                    *(f"  - {sentence}" for sentence in sentences),
                    f"Able here: {names}. Or pass algorithm='auto'." if able else "None is able.",
                ]
            )
        )
    return Plan(problem, device, dtype, asked, algorithm, algorithm, algorithm)


def find_algorithm(asked: AlgorithmLike) -> Algorithm | None:
    """The algorithm of a name, an algorithm itself, or None for ``"auto"``."""
    if isinstance(asked, Algorithm):
        return asked
    if not isinstance(asked, str):
        raise TypeError(
            f"algorithm must be a name or an Algorithm, got {asked!r} of type "
            f"{type(asked).__name__}"
        )
    if asked == "auto":
        return None
    for algorithm in ALGORITHMS:
        if algorithm.name == asked:
            return algorithm
    names = ("auto", *ALGORITHM_NAMES)
    raise ValueError(
        f"unknown algorithm {asked!r}{did_you_mean(asked, names)}; use one of "
        f"{', '.join(map(repr, names))}, or pass an Algorithm"
    )


def able_algorithms(problem: Problem, device: torch.device, dtype: torch.dtype) -> list[Algorithm]:
    """The algorithms that can run the problem there, in their order."""
    return [each for each in ALGORITHMS if not each.refusals(problem, device, dtype)]


def _both(first: Tensor | None, second: Tensor | None) -> tuple[Tensor, Tensor]:
    assert first is not None
    assert second is not None
    return first, second


def _where(problem: Problem, device: torch.device, dtype: torch.dtype) -> str:
    return f"{problem} on {device}/{dtype_name(dtype)}"
