"""A plan: one algorithm for each map of a problem; how it is made, run and printed.

Planning and execution are separate: a :class:`Plan` is made once from a problem, a device, a dtype
and the requested algorithm.  When it runs, nothing is chosen again.  There is one exception:
:class:`~torch_corr.algorithms.CheckedFFT` recomputes results that fail its check.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from inspect import signature
from itertools import chain, count
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from .._torch_compat import is_any_autocast, is_profiling
from ..algorithms import ALGORITHMS, Algorithm, may_use_tf32
from ..algorithms.base import products_may_use_tf32
from ..problem import Problem
from ..request import Request
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
        requested: the algorithm argument of the caller.
        forward: computes (x, w) -> y.
        grad_input: computes (y, w) -> x.
        grad_weight: computes (x, y) -> w.
        channels_last: whether images are in channels_last; output and grad_input then are too.
    """

    problem: Problem
    device: torch.device
    dtype: torch.dtype
    requested: AlgorithmLike
    forward: Algorithm
    grad_input: Algorithm
    grad_weight: Algorithm
    channels_last: bool = False

    def run(
        self,
        input: Tensor | None,
        weight: Tensor | None,
        output: Tensor | None,
        bias: Tensor | None = None,
        recorded: bool = False,
    ) -> Tensor:
        """Compute the operand that is None from the other two; a bias is added to an output.

        Profilers show it as ``torch_corr::fft.grad_weight``, for example, once it is *recorded*.
        """
        if autocasts(self.device) or (is_profiling() and not recorded):
            map = "forward" if output is None else "grad_input" if input is None else "grad_weight"
            with _without_autocast(self.device, f"{getattr(self, map).name}.{map}"):
                return self.run(input, weight, output, bias, recorded=True)
        if output is None and bias is not None:
            operands = *_materialized(input, weight), _materialized(bias, bias)[0]
            result = self.forward.forward_with_bias(self.problem, *operands)
        elif output is None:
            result = self.forward.forward(self.problem, *_materialized(input, weight))
        elif input is None:
            result = self.grad_input.grad_input(self.problem, *_materialized(output, weight))
        else:
            result = self.grad_weight.grad_weight(self.problem, *_materialized(input, output))
        # Autograd forbids ``relu_`` and other in-place operators on a Function's output that is a
        # view.
        result = result.clone() if result._is_view() else result
        # An algorithm may return a gradient in another layout than that of the image.
        if self.channels_last and weight is not None:
            return result.contiguous(memory_format=torch.channels_last)
        return result

    def run_gradients(
        self, slots: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of those slots that need one, each from the two others."""
        input, weight, output = slots
        if needs[0] and needs[1] and self.has_both_gradients:
            run = self.grad_input.gradients
            operands: Any = self.problem, input, weight, output
            if autocasts(self.device) or is_profiling():
                name = f"{self.grad_input.name}.grad_input, grad_weight"
                with _without_autocast(self.device, name):
                    return [*run(*operands), None]
            return [*run(*operands), None]
        return [
            self.run(None, weight, output) if needs[0] else None,
            self.run(input, None, output) if needs[1] else None,
            self.run(input, weight, None) if needs[2] else None,
        ]

    @property
    def requests(self) -> tuple[Request, ...]:
        """One request for each map."""
        return Request.of_each_map(self.problem, self.device, self.dtype, self.channels_last)

    @cached_property
    def has_both_gradients(self) -> bool:
        """Whether one algorithm computes both gradients, in one call."""
        return self.grad_input == self.grad_weight and self.grad_input.has_both_gradients(
            self.requests[1]
        )

    def is_conv2d(self, needs_input: bool, needs_weight: bool) -> bool:
        """Whether ``torch.conv2d`` computes the output as this plan does, and its derivatives the
        gradients that are needed."""
        needed = (self.grad_input, needs_input), (self.grad_weight, needs_weight)
        same = all(each == self.forward for each, is_needed in needed if is_needed)
        return same and self.forward.runs_as_conv2d(self.requests[0])

    def able(self, problem: Problem) -> bool:
        """Whether the requested algorithm can run another problem with this device and dtype."""
        requested = find_algorithm(self.requested)
        if isinstance(requested, Auto):
            return bool(able_algorithms(problem, self.device, self.dtype))
        return not refusals(requested, Request.of_each_map(problem, self.device, self.dtype))

    def __str__(self) -> str:
        """For each map every algorithm's time, workspace and error class, or its refusal."""
        requested = find_algorithm(self.requested)
        named = self.requested if isinstance(self.requested, str) else repr(self.requested)
        lines = [f"{self.requests[0]}, algorithm={named}"]
        auto = requested if isinstance(requested, Auto) else Auto()
        for request in self.requests:
            map = request.map
            lines.extend(table(map, auto.candidates(request), getattr(self, map)))
        return "\n".join([*lines, provenance(self.device, self.dtype)])


@contextmanager
def _without_autocast(device: torch.device, name: str) -> Iterator[None]:
    """Turns autocast off, since matrix products inside would use its dtype, and shows profilers a
    name."""
    with ExitStack() as stack:
        if is_profiling():
            stack.enter_context(record_function(f"torch_corr::{name}"))
        if autocasts(device):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


_revisions = count()
_revision = next(_revisions)
"""Changes whenever wisdom does; part of the key of cached plans."""

Function = TypeVar("Function", bound=Callable[..., object])


def cached_plan(function: Function) -> Function:
    """Cache a planning function of hashable arguments.

    The result also depends on the number of threads, CUDA settings and wisdom, so they are part of
    the key.
    """

    parameters = list(signature(function).parameters)

    @lru_cache(maxsize=4096)
    def cached(state: Hashable, *arguments: Hashable) -> object:
        return function(*arguments)

    @wraps(function)
    def planned(*arguments: Hashable) -> object:
        state = _revision, torch.get_num_threads(), _MAY_BE_CUDA and _cuda_settings()
        try:
            return cached(state, *arguments)
        except TypeError:
            # An argument is not hashable, for example a list of names; raise the error for that.
            if "algorithm" in parameters:
                find_algorithm(cast(AlgorithmLike, arguments[parameters.index("algorithm")]))
            raise

    return cast(Function, planned)


def _cuda_settings() -> tuple[bool, ...]:
    """PyTorch's settings that affect the choice on CUDA."""
    return (
        may_use_tf32(torch.float32),
        products_may_use_tf32(torch.float32),
        torch.are_deterministic_algorithms_enabled(),
    )


def clear_plans() -> None:
    """Discard all cached plans, because wisdom has changed.

    A plan that another thread is making at the same time is cached under the old revision.
    """
    global _revision
    _revision = next(_revisions)


WISDOM.on_change.append(clear_plans)


@cached_plan
def make_plan(
    problem: Problem,
    device: torch.device,
    dtype: torch.dtype,
    algorithm: AlgorithmLike,
    channels_last: bool = False,
) -> Plan:
    """The plan for a problem: a named algorithm for all three maps, or the choices of ``auto``.

    Raises:
        RuntimeError: the named algorithm refuses the problem.
        NotImplementedError: no algorithm can compute it (a RuntimeError too, as in PyTorch).
        ValueError: no algorithm has that name.
        TypeError: ``algorithm`` is neither a string nor an :class:`Algorithm`.
    """
    found = find_algorithm(algorithm)
    requests = Request.of_each_map(problem, device, dtype, channels_last)
    if isinstance(found, Auto):
        forward, grad_input, grad_weight = (
            algorithm or _refuse(found, request)
            for algorithm, request in zip(found.choose_each(requests), requests)
        )
    elif sentences := refusals(found, requests):
        able = able_algorithms(problem, device, dtype)
        names = ", ".join(each.name for each in able)
        raise RuntimeError(
            "\n".join(
                [
                    f"algorithm {found.name!r} cannot run {requests[0]}:",
                    *(f"  - {sentence}" for sentence in sentences),
                    f"Able here: {names}. Or pass algorithm='auto'." if able else "None is able.",
                ]
            )
        )
    else:
        forward = grad_input = grad_weight = found
    return Plan(problem, device, dtype, algorithm, forward, grad_input, grad_weight, channels_last)


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device; never on meta, which has none."""
    if not is_any_autocast() or device.type == "meta":
        return False
    return torch.is_autocast_enabled(device.type)


def find_algorithm(requested: AlgorithmLike) -> Auto | Algorithm:
    """The algorithm with this name, or the given object itself; :class:`Auto` for ``"auto"``.

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
    """The algorithms that can run all three maps of the problem, in their order."""
    requests = Request.of_each_map(problem, device, dtype)
    return [each for each in ALGORITHMS if not refusals(each, requests)]


def refusals(algorithm: Algorithm, requests: Iterable[Request]) -> tuple[str, ...]:
    """Why an algorithm cannot compute all of these requests, each reason once; empty if it can."""
    return tuple(dict.fromkeys(chain.from_iterable(map(algorithm.refusals, requests))))


def _refuse(auto: Auto, request: Request) -> NoReturn:
    reasons = [
        f"  - {each.algorithm.name}: {sentence}"
        for each in auto.candidates(request)
        for sentence in each.refusals
    ]
    raise NotImplementedError("\n".join([f"no algorithm can run {request}:", *reasons]))


def _materialized(first: Tensor | None, second: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operands with memory, which kernels need: autograd's zero tensors have none."""
    assert first is not None
    assert second is not None
    return (
        first.clone() if first._is_zerotensor() else first,
        second.clone() if second._is_zerotensor() else second,
    )
