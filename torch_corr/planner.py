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

from .algorithms import ALGORITHMS, MAPS, Algorithm, Aten, Direct, MapName, dtype_name
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
        if autocasts(self.device):
            # Else a matrix product inside would be taken in the dtype of autocast.
            with torch.autocast(self.device.type, enabled=False):
                return self.run(input, weight, output)
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

    What ``auto`` chooses, map by map, says :func:`choose`.

    Raises:
        RuntimeError: the named algorithm refuses the problem.
        NotImplementedError: no algorithm is able (a RuntimeError too, as in PyTorch).
        ValueError: no algorithm has that name.
        TypeError: ``asked`` is neither a string nor an :class:`Algorithm`.
    """
    algorithm = find_algorithm(asked)
    if algorithm is None:
        try:
            chosen = [choose(map, problem, device, dtype) for map in MAPS]
        except StopIteration:
            lines = [
                f"  - {each.name}: {sentence}"
                for each in ALGORITHMS
                for sentence in each.refusals(problem, device, dtype)
            ]
            raise NotImplementedError(
                "\n".join([f"no algorithm can run {_where(problem, device, dtype)}:", *lines])
            ) from None
        return Plan(problem, device, dtype, asked, *chosen)
    if sentences := algorithm.refusals(problem, device, dtype):
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


# Measured on two cores of an AMD EPYC with AVX-512 (Zen 5), PyTorch 2.13, 2026-11-23, least of
# 3 to 40 runs: on 21 depthwise, grouped and few-channel problems x 3 maps `direct` was 1.3 to
# 180 times as fast as `aten`, but for depthwise 5x5 on planes of 25x25 (forward: 0.7 times), 5x5
# with stride 2 (forward: even) and 1 -> 32 channels of 28x28 (grad_weight: 0.5 times); on 8 dense
# float32 ones, on one core, 0.2 to 0.9 times.  The limits below keep clear of the losses.
_THIN = 16
"""Products of channels in one group, C/G * O/G, up to which a problem is planes x taps."""

_MANY_TAPS = 49
"""Taps from which the size of the planes and the number of outputs no longer matter."""

_WIDE = 28
"""Columns of output that fill the vectors well enough with fewer taps."""

_WORTH_A_CHOICE = 2**21
"""Multiplications below which PyTorch is done before a choice has paid for itself."""


def choose(map: MapName, problem: Problem, device: torch.device, dtype: torch.dtype) -> Algorithm:
    """What ``auto`` takes for one map: ``direct`` where it is ahead, else the first one able.

    ``direct`` is ahead where planes of pixels meet few channels: at most 16 products of
    channels in a group, or one channel on either side, unless planes and kernels are small.
    No transform is ever chosen: its errors are normwise, and it spreads what is not finite.
    """
    # Asked one by one, since some look long before they answer.
    able = (each for each in ALGORITHMS if not each.refusals(problem, device, dtype))
    direct = Direct()
    if not _suits_direct(map, problem, dtype) or direct.refusals(problem, device, dtype):
        return next(able)
    return direct


def _suits_direct(map: MapName, problem: Problem, dtype: torch.dtype) -> bool:
    if dtype.is_complex or problem.multiplications < _WORTH_A_CHOICE:
        return False
    many_taps = problem.kernel[0] * problem.kernel[1] >= _MANY_TAPS
    if problem.group_in * problem.group_out <= _THIN:
        return map == "grad_weight" or many_taps or problem.output_size[1] >= _WIDE
    if problem.group_in == 1:
        return map == "grad_input" or many_taps
    return problem.group_out == 1


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device; on meta there is none to ask about."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


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
