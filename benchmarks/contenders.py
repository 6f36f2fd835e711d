"""Who takes part: each algorithm of torch_corr, ``auto``, PyTorch itself, and peers.

A contender prepares a piece of work into a callable; converting operands to its own
layout and planning happen there, off the clock.  Everything that must happen again at the
next call (padding, transforms of the weight, cropping) is on the clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import torch_corr
from torch_corr import ALGORITHMS, Algorithm, Auto, Problem, corr2d
from torch_corr.algorithms.base import is_channels_last
from torch_corr.dispatch.layout import IN_CHANNELS_LAST
from torch_corr.planning.plan import AlgorithmLike, Plan, make_plan, refusals
from torch_corr.request import Request
from torch_corr.testing import ErrorModel, declared

from .cases import CALLS, Work
from .check import GIVEN, SOME_TRANSFORM, Operands, Slot, shape_of
from .results import Kind

NAIVE_PIXELS, NAIVE_PRODUCTS = 4096, 2**24
"""Beyond these the definition, one Python step per output pixel, would take minutes."""


@dataclass(frozen=True)
class Prepared:
    """A piece of work, ready to run.

    Attributes:
        run: does it once.
        tensors: what ``run`` returned, as tensors of the sought slots' shapes.
        chose: which algorithm runs, where the contender had a choice.
        errors: what the algorithm that runs promises about rounding.
    """

    run: Callable[[], Any]
    tensors: Callable[[Any], tuple[Tensor, ...]]
    chose: str = ""
    errors: ErrorModel = SOME_TRANSFORM


@dataclass(frozen=True)
class Contender(ABC):
    """Something that computes correlations."""

    name: str
    kind: Kind

    def absent(self) -> str | None:
        """Why it cannot take part on this machine at all."""
        return None

    def version(self) -> str:
        return ""

    @abstractmethod
    def refusals(
        self, problem: Problem, work: Work, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        """Why it cannot do this piece of work; empty if it can."""

    @abstractmethod
    def prepare(self, problem: Problem, work: Work, operands: Operands) -> Prepared:
        """Make the work ready; operands hold the slots of ``GIVEN[work]``."""

    @property
    def central(self) -> bool:
        """Whether the report is about it, so that it may take longer than others."""
        return self.kind == "torch"

    def settings(self) -> AbstractContextManager[Any]:
        """Global settings while it runs."""
        return nullcontext()

    def thread(self) -> ThreadPoolExecutor | None:
        """Where it runs; None: with the others."""
        return None


@dataclass(frozen=True)
class Ours(Contender):
    """``torch_corr``: one algorithm for all maps, or what ``auto`` plans for each."""

    requested: AlgorithmLike = "auto"

    @property
    def central(self) -> bool:
        return not isinstance(self.requested, Algorithm)

    def version(self) -> str:
        return torch_corr.__version__

    def refusals(
        self, problem: Problem, work: Work, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        if work in CALLS and self.requested != "auto" and device.type == "cpu":
            return ("calls are timed for 'auto' alone",)
        if not isinstance(self.requested, Algorithm):
            return ()
        if self.requested.name == "naive" and (
            prod(problem.output_size) > NAIVE_PIXELS or problem.multiplications > NAIVE_PRODUCTS
        ):
            return ("one Python step per output pixel would take minutes here",)
        return refusals(self.requested, Request.of_each_map(problem, device, dtype))

    def prepare(self, problem: Problem, work: Work, operands: Operands) -> Prepared:
        if work in CALLS:
            return _calling(self._corr2d(problem), problem, work, operands)
        some = operands[GIVEN[work][0]]
        measures = isinstance(self.requested, Auto) and self.requested.measure
        make = _measured_plan if measures else make_plan
        # As ``corr2d``, which looks how its operands lie.
        last = self.requested == "auto" and is_channels_last(some)
        requested = IN_CHANNELS_LAST if last else self.requested
        plan = make(problem, some.device, some.dtype, requested)
        slots = operands.get("input"), operands.get("weight"), operands.get("output")
        chosen: Algorithm = getattr(plan, work)
        return Prepared(
            run=lambda: plan.run(*slots),
            tensors=lambda result: (result,),
            chose=""
            if isinstance(self.requested, Algorithm) and self.requested is chosen
            else chosen.name,
            errors=declared(chosen),
        )

    def _corr2d(self, problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
        p, requested = problem, self.requested
        (top, bottom), (left, right) = p.padding
        # As F.conv2d is called, where that can spell it.
        padding = (top, left) if (top, left) == (bottom, right) else p.padding
        return lambda x, w: corr2d(
            x, w, None, p.stride, padding, p.dilation, p.groups, algorithm=requested
        )


@lru_cache(maxsize=64)
def _measured_plan(
    problem: Problem, device: torch.device, dtype: torch.dtype, requested: AlgorithmLike
) -> Plan:
    """What was measured for this plan is forgotten, since plain ``auto`` would heed it."""
    plan = make_plan(problem, device, dtype, requested)
    torch_corr.wisdom.forget()
    return plan


@dataclass(frozen=True)
class PyTorch(Contender):
    """``F.conv2d`` and ``aten::convolution_backward`` as they stand.

    For complex numbers, whose backward PyTorch composes in autograd, the gradients are
    timed there, on a retained graph.
    """

    cudnn_benchmark: bool = False

    def thread(self) -> ThreadPoolExecutor | None:
        """One that searches has its own: what cuDNN has once chosen for a problem, searching or
        not, PyTorch keeps for the thread, and whoever came second would be given that."""
        return _searching() if self.cudnn_benchmark else None

    def version(self) -> str:
        return str(torch.__version__)

    def settings(self) -> AbstractContextManager[Any]:
        return cudnn_flags(self.cudnn_benchmark)

    def refusals(
        self, problem: Problem, work: Work, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        if self.cudnn_benchmark and device.type != "cuda":
            return ("cuDNN runs on CUDA only",)
        return symmetric_refusal(problem)

    def prepare(self, problem: Problem, work: Work, operands: Operands) -> Prepared:
        p = problem
        padding = p.padding[0][0], p.padding[1][0]
        if work in ("forward", *CALLS):

            def conv2d(x: Tensor, w: Tensor) -> Tensor:
                return F.conv2d(x, w, None, p.stride, padding, p.dilation, p.groups)

            return _calling(conv2d, problem, "call" if work == "forward" else work, operands)
        if next(iter(operands.values())).is_complex():
            return by_autograd(
                lambda x, w: F.conv2d(x, w, None, p.stride, padding, p.dilation, p.groups),
                problem,
                work,
                operands,
            )
        wanted = 0 if work == "grad_input" else 1
        output = operands["output"]
        # Of what is sought the shape alone is read.  It has memory of its own, as in a training
        # step: a view of one number PyTorch would copy into such memory at every call.  And it
        # lies as the operands do, for PyTorch computes in the layout of these two.
        slots: tuple[Slot, Slot] = ("input", "weight")
        x, w = (
            operands[slot] if slot in operands else _like(output, problem, slot) for slot in slots
        )

        def run() -> Any:
            return torch.ops.aten.convolution_backward(
                *(output, x, w, None, p.stride, padding, p.dilation, False, (0, 0), p.groups),
                (wanted == 0, wanted == 1, False),
            )

        return Prepared(run, lambda result: (result[wanted],))


def _like(given: Tensor, problem: Problem, slot: Slot) -> Tensor:
    """Memory for a slot, in the layout of another."""
    layout = torch.channels_last if is_channels_last(given) else torch.contiguous_format
    return given.new_empty(shape_of(problem, slot)).contiguous(memory_format=layout)


def by_autograd(
    correlate: Callable[[Tensor, Tensor], Tensor],
    problem: Problem,
    work: Work,
    operands: Operands,
) -> Prepared:
    """A gradient of a differentiable correlation: its backward alone, on a retained graph."""
    output = operands["output"]
    x = operands.get("input", output.new_zeros(problem.input_shape))
    w = operands.get("weight", output.new_zeros(problem.weight_shape))
    # The maps do not conjugate, autograd does.
    leaves = tuple(each.detach().conj().resolve_conj() for each in (x, w))
    sought = leaves[0] if work == "grad_input" else leaves[1]
    sought.requires_grad_()
    with torch.enable_grad():
        y = correlate(*leaves)
    return Prepared(
        run=lambda: torch.autograd.grad(y, sought, output, retain_graph=True),
        tensors=tuple,
        chose="autograd",
    )


@cache
def _searching() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="cudnn.benchmark")


def symmetric_refusal(problem: Problem) -> tuple[str, ...]:
    if any(before != after for before, after in problem.padding):
        return ("padding must be the same on both sides",)
    return ()


def cudnn_flags(benchmark: bool) -> AbstractContextManager[Any]:
    """cuDNN's search for the fastest algorithm on or off, all else as it is."""
    cudnn = torch.backends.cudnn
    if not torch.cuda.is_available():
        return nullcontext()
    manager: AbstractContextManager[Any] = cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=cudnn.allow_tf32,
    )
    return manager


def our_contenders(names: Sequence[str] | None = None) -> list[Contender]:
    """``auto``, ``auto-measured`` and every algorithm, or those named."""
    found: list[Contender] = [
        Ours("auto", "ours"),
        Ours("auto-measured", "ours", requested=Auto(measure=True)),
        *(Ours(each.name, "ours", requested=each) for each in ALGORITHMS),
    ]
    return named(found, names, "algorithm")


def torch_contenders(device: torch.device) -> list[Contender]:
    """PyTorch as it stands; on CUDA with and without cuDNN's search."""
    found: list[Contender] = [PyTorch("torch", "torch")]
    if device.type == "cuda":
        found.append(PyTorch("torch, cudnn.benchmark", "torch", cudnn_benchmark=True))
    return found


def named(found: list[Contender], names: Sequence[str] | None, what: str) -> list[Contender]:
    if names is None:
        return found
    known = [each.name for each in found]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"unknown {what} {unknown[0]!r}; there are {', '.join(known) or 'none'}")
    return [each for each in found if each.name in names]


def _calling(
    correlate: Callable[[Tensor, Tensor], Tensor],
    problem: Problem,
    work: Work,
    operands: Operands,
) -> Prepared:
    """A call as a user writes it; with its backward, graph and all."""
    x, w = operands["input"], operands["weight"]
    if work == "call":
        return Prepared(lambda: correlate(x, w), lambda result: (result,))
    leaves = x.detach().requires_grad_(), w.detach().requires_grad_()
    output = operands["output"]

    def run() -> Any:
        return torch.autograd.grad(correlate(*leaves), leaves, output)

    return Prepared(run, tuple)
