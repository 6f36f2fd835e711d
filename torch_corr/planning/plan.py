"""A plan: one algorithm for each map; how it is made, run and explained.

Planning and executing never mix: a :class:`Plan` is made once from a problem, a device, a
dtype and what the caller asked for.  Running it decides nothing, except whether a transform's
result passes its check (:class:`~torch_corr.algorithms.CheckedFFT`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from itertools import chain, count
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from ..algorithms import ALGORITHMS, Algorithm, may_use_tf32
from ..algorithms.base import products_may_use_tf32
from ..problem import Problem
from ..request import MapName, Request
from ..suggest import did_you_mean
from .auto import Auto
from .explain import provenance, table
from .wisdom import WISDOM

AlgorithmLike: TypeAlias = str | Auto | Algorithm
"""``"auto"`` or an :class:`Auto` with options, an algorithm's name, or an :class:`Algorithm`."""

ALGORITHM_NAMES = tuple(algorithm.name for algorithm in ALGORITHMS)

_MAY_BE_CUDA = torch.version.cuda is not None


@dataclass(frozen=True)
class Plan:
    """One algorithm for each map of a problem.

    Attributes:
        problem: the geometry.
        device: where it runs.
        dtype: of the operands and the result.
        requested: what the caller asked for, ``"auto"`` or an algorithm.
        forward: computes (x, w) -> y.
        grad_input: computes (y, w) -> x.
        grad_weight: computes (x, y) -> w.
    """

    problem: Problem
    device: torch.device
    dtype: torch.dtype
    requested: AlgorithmLike
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
            result = self.forward.forward(self.problem, *_materialized(input, weight))
        elif input is None:
            result = self.grad_input.grad_input(self.problem, *_materialized(output, weight))
        else:
            result = self.grad_weight.grad_weight(self.problem, *_materialized(input, output))
        # Autograd forbids ``relu_`` and its like on a Function's output that is a view.
        result = result.clone() if result._is_view() else result
        # A gradient may come in another layout than the images that it is of.
        layout = layout_of(self.requested, "grad_weight" if weight is None else "forward")
        return result.contiguous(memory_format=layout) if layout else result

    def run_gradients(self, input: Tensor, weight: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of input and weight by one call; only if :attr:`has_both_gradients`."""
        if autocasts(self.device):
            with torch.autocast(self.device.type, enabled=False):
                return self.run_gradients(input, weight, output)
        return self.grad_input.gradients(self.problem, input, weight, output)

    @property
    def requests(self) -> tuple[Request, ...]:
        """What it computes, one request for each map."""
        return Request.of_each_map(self.problem, self.device, self.dtype)

    @cached_property
    def has_both_gradients(self) -> bool:
        """Whether one algorithm computes both gradients, and does so by one call."""
        return self.grad_input == self.grad_weight and self.grad_input.has_both_gradients(
            self.requests[1]
        )

    @property
    def is_conv2d(self) -> bool:
        """Whether ``torch.conv2d`` with its own derivatives is all that this plan would do."""
        one = self.forward == self.grad_input == self.grad_weight
        return one and self.forward.runs_as_conv2d(self.requests[0])

    def able(self, problem: Problem) -> bool:
        """Whether what was asked for can run another problem of this device and dtype."""
        requested = find_algorithm(self.requested)
        if isinstance(requested, Auto):
            return bool(able_algorithms(problem, self.device, self.dtype))
        return not refusals(requested, Request.of_each_map(problem, self.device, self.dtype))

    def __str__(self) -> str:
        """For each map every algorithm's time, workspace and error class, or why it is out."""
        requested = find_algorithm(self.requested)
        named = self.requested if isinstance(self.requested, str) else repr(self.requested)
        lines = [f"{self.requests[0]}, algorithm={named}"]
        auto = requested if isinstance(requested, Auto) else Auto()
        for request in self.requests:
            map = request.map
            lines.extend(table(map, auto.candidates(request), getattr(self, map)))
        return "\n".join([*lines, provenance(self.device, self.dtype)])


_revisions = count()
_revision = next(_revisions)
"""The revision of what is known, by which plans are made."""

Function = TypeVar("Function", bound=Callable[..., object])


def cached_plan(function: Function) -> Function:
    """Remember what a planning function of hashable arguments, the algorithm last, returns.

    For what it depends on beside them: the number of threads, settings of CUDA, what is known.
    """

    @lru_cache(maxsize=4096)
    def remembered(known: Hashable, *arguments: Hashable) -> object:
        return function(*arguments)

    @wraps(function)
    def planned(*arguments: Hashable) -> object:
        known = _revision, torch.get_num_threads(), _MAY_BE_CUDA and _cuda_settings()
        try:
            return remembered(known, *arguments)
        except TypeError:
            # A list of names, say, which no key can hold.
            find_algorithm(cast(AlgorithmLike, arguments[-1]))
            raise

    return cast(Function, planned)


def _cuda_settings() -> tuple[bool, ...]:
    """What of PyTorch's settings a choice on CUDA depends on."""
    return (
        may_use_tf32(torch.float32),
        products_may_use_tf32(torch.float32),
        torch.are_deterministic_algorithms_enabled(),
    )


def clear_plans() -> None:
    """Make every plan anew from now on: what is known has changed.

    A plan that is being made meanwhile, in another thread, is kept for the revision before.
    """
    global _revision
    _revision = next(_revisions)


WISDOM.on_change.append(clear_plans)


@cached_plan
def make_plan(
    problem: Problem, device: torch.device, dtype: torch.dtype, requested: AlgorithmLike
) -> Plan:
    """The plan for a problem: a named algorithm for all three maps, or what ``auto`` chooses.

    Raises:
        RuntimeError: the named algorithm refuses the problem.
        NotImplementedError: no algorithm is able (a RuntimeError too, as in PyTorch).
        ValueError: no algorithm has that name.
        TypeError: ``requested`` is neither a string nor an :class:`Algorithm`.
    """
    algorithm = find_algorithm(requested)
    requests = Request.of_each_map(problem, device, dtype)
    if isinstance(algorithm, Auto):
        chosen = (_choose(algorithm, request) for request in requests)
        return Plan(problem, device, dtype, requested, *chosen)
    if sentences := refusals(algorithm, requests):
        able = able_algorithms(problem, device, dtype)
        names = ", ".join(each.name for each in able)
        raise RuntimeError(
            "\n".join(
                [
                    f"algorithm {algorithm.name!r} cannot run {requests[0]}:",
                    *(f"  - {sentence}" for sentence in sentences),
                    f"Able here: {names}. Or pass algorithm='auto'." if able else "None is able.",
                ]
            )
        )
    return Plan(problem, device, dtype, requested, algorithm, algorithm, algorithm)


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device; on meta there is none to ask about."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def layout_of(requested: AlgorithmLike, map: MapName) -> torch.memory_format | None:
    """The layout of a map's result that was asked for, if any was."""
    last = isinstance(requested, Auto) and requested.channels_last and map != "grad_weight"
    return torch.channels_last if last else None


def find_algorithm(requested: AlgorithmLike) -> Auto | Algorithm:
    """The algorithm of a name, or what was asked for itself; :class:`Auto` for ``"auto"``.

    Raises:
        ValueError: no algorithm has that name.
        TypeError: neither a string nor an :class:`Auto` or :class:`Algorithm`.
    """
    if isinstance(requested, (Auto, Algorithm)):
        return requested
    if not isinstance(requested, str):
        raise TypeError(
            f"algorithm must be a name, an Auto or an Algorithm, got {requested!r} of type "
            f"{type(requested).__name__}"
        )
    if requested == "auto":
        return Auto()
    for algorithm in ALGORITHMS:
        if algorithm.name == requested:
            return algorithm
    names = ("auto", *ALGORITHM_NAMES)
    raise ValueError(
        f"unknown algorithm {requested!r}{did_you_mean(requested, names)}; use one of "
        f"{', '.join(map(repr, names))}, or pass an Algorithm"
    )


def able_algorithms(problem: Problem, device: torch.device, dtype: torch.dtype) -> list[Algorithm]:
    """The algorithms that can run all three maps of the problem there, in their order."""
    requests = Request.of_each_map(problem, device, dtype)
    return [each for each in ALGORITHMS if not refusals(each, requests)]


def refusals(algorithm: Algorithm, requests: Iterable[Request]) -> tuple[str, ...]:
    """Why an algorithm cannot compute all of these, each reason once; empty if it can."""
    return tuple(dict.fromkeys(chain.from_iterable(map(algorithm.refusals, requests))))


def _choose(auto: Auto, request: Request) -> Algorithm:
    if algorithm := auto.choose(request):
        return algorithm
    reasons = [
        f"  - {each.algorithm.name}: {sentence}"
        for each in auto.candidates(request)
        for sentence in each.refusals
    ]
    raise NotImplementedError("\n".join([f"no algorithm can run {request}:", *reasons]))


def _materialized(first: Tensor | None, second: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operands in memory, where kernels read: what autograd knows to be zero has none."""
    assert first is not None
    assert second is not None
    return (
        first.clone() if first._is_zerotensor() else first,
        second.clone() if second._is_zerotensor() else second,
    )
