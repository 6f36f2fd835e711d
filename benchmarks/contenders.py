"""The contenders of a benchmark: each algorithm of torch_corr, ``auto``, PyTorch, and ``peers``.

A contender prepares a piece of work into a callable.  Planning and the conversion of operands to
its own layout happen there and are not timed.  Work that each call repeats (padding, transforms of
the weight, cropping) is timed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

import torch_corr
from torch_corr import ALGORITHMS, Algorithm, Auto, Problem, corr2d
from torch_corr.planning.plan import AlgorithmLike, Plan, make_plan, refusals
from torch_corr.request import Request, Slot, shape_of
from torch_corr.testing import ErrorModel, declared

from .cases import CALLS, FORMATS, Task
from .check import SOME_TRANSFORM, Operands
from .results import Kind

Correlate: TypeAlias = Callable[[Tensor, Tensor], Tensor]

NAIVE_PIXELS, NAIVE_PRODUCTS = 4096, 2**24
"""Above these, the reference (one Python step per output pixel) takes minutes."""


@dataclass(frozen=True)
class Prepared:
    """A piece of work, ready to run.

    Attributes:
        run: does it once.
        tensors: converts what ``run`` returned to tensors in the shapes of the computed slots.
        chose: the algorithm that runs, if the contender had a choice.
        errors: the error model of the algorithm that runs.
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
        """Why it cannot run on this machine at all."""
        return None

    def version(self) -> str:
        return ""

    @property
    def entry(self) -> dict[str, str | None]:
        """Its description in a results file."""
        absent = self.absent()
        version = self.version() if absent is None else None
        return {"name": self.name, "kind": self.kind, "version": version, "absent": absent}

    @abstractmethod
    def refusals(self, task: Task) -> tuple[str, ...]:
        """Why it cannot do this; empty if it can."""

    @abstractmethod
    def prepare(self, task: Task, operands: Operands) -> Prepared:
        """Prepare the task; operands hold the slots of ``GIVEN[task.work]``."""

    @property
    def central(self) -> bool:
        """Whether it is PyTorch or ``auto``, which get more time for their first run."""
        return self.kind == "torch"

    def settings(self) -> AbstractContextManager[Any]:
        """Global settings while it runs."""
        return nullcontext()

    def thread(self) -> ThreadPoolExecutor | None:
        """The thread that it runs in; None for the main thread."""
        return None


@dataclass(frozen=True)
class Ours(Contender):
    """``torch_corr``: one algorithm for all maps, or the plan of ``auto``."""

    requested: AlgorithmLike = "auto"

    @property
    def central(self) -> bool:
        return not isinstance(self.requested, Algorithm)

    def version(self) -> str:
        return torch_corr.__version__

    def refusals(self, task: Task) -> tuple[str, ...]:
        if task.work in CALLS and self.requested != "auto" and task.device.type == "cpu":
            return ("calls are timed for 'auto' alone",)
        if not isinstance(self.requested, Algorithm):
            return ()
        problem = task.problem
        if self.requested.name == "naive" and (
            prod(problem.output_size) > NAIVE_PIXELS or problem.multiplications > NAIVE_PRODUCTS
        ):
            return ("one Python step per output pixel would take minutes here",)
        return refusals(self.requested, Request.of_each_map(problem, task.device, task.dtype))

    def prepare(self, task: Task, operands: Operands) -> Prepared:
        if task.work in CALLS:
            return prepare_forward(self._corr2d(task.problem), task, operands)
        measures = isinstance(self.requested, Auto) and self.requested.measure
        make = _measured_plan if measures else make_plan
        last = task.layout == "channels_last"
        plan = make(task.problem, task.device, task.dtype, self.requested, last)
        slots = operands.get("input"), operands.get("weight"), operands.get("output")
        chosen: Algorithm = getattr(plan, task.work)
        return Prepared(
            run=lambda: plan.run(*slots),
            tensors=_only,
            # A measured plan also chose among the configurations of an algorithm.
            chose="" if self.requested is chosen else chosen.spelling if measures else chosen.name,
            errors=declared(chosen),
        )

    def _corr2d(self, problem: Problem) -> Correlate:
        p, requested = problem, self.requested
        (top, bottom), (left, right) = p.padding
        # In the form of F.conv2d, if it can express the padding.
        padding = (top, left) if (top, left) == (bottom, right) else p.padding
        return lambda x, w: corr2d(
            x, w, None, p.stride, padding, p.dilation, p.groups, algorithm=requested
        )


@lru_cache(maxsize=64)
def _measured_plan(
    problem: Problem,
    device: torch.device,
    dtype: torch.dtype,
    requested: AlgorithmLike,
    channels_last: bool,
) -> Plan:
    """A plan from measurements, which are then forgotten because plain ``auto`` would use them."""
    plan = make_plan(problem, device, dtype, requested, channels_last)
    torch_corr.wisdom.forget()
    return plan


@dataclass(frozen=True)
class PyTorch(Contender):
    """``F.conv2d`` and ``aten::convolution_backward``.

    For complex numbers PyTorch composes the backward in autograd.  Their gradients are timed there,
    on a retained graph.
    """

    cudnn_benchmark: bool = False

    def thread(self) -> ThreadPoolExecutor | None:
        """With cuDNN's search a separate thread: PyTorch keeps cuDNN's choice for a problem,
        searched or not, until the thread ends."""
        return _searching() if self.cudnn_benchmark else None

    def version(self) -> str:
        return str(torch.__version__)

    def settings(self) -> AbstractContextManager[Any]:
        """cuDNN's search for the fastest algorithm on or off."""
        cudnn = torch.backends.cudnn
        if not torch.cuda.is_available():
            return nullcontext()
        manager: AbstractContextManager[Any] = cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=self.cudnn_benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=cudnn.allow_tf32,
        )
        return manager

    def refusals(self, task: Task) -> tuple[str, ...]:
        if self.cudnn_benchmark and task.device.type != "cuda":
            return ("cuDNN runs on CUDA only",)
        return symmetric_refusal(task.problem)

    def prepare(self, task: Task, operands: Operands) -> Prepared:
        p, work = task.problem, task.work
        padding = p.padding[0][0], p.padding[1][0]

        def conv2d(x: Tensor, w: Tensor) -> Tensor:
            return F.conv2d(x, w, None, p.stride, padding, p.dilation, p.groups)

        if work in ("forward", *CALLS):
            return prepare_forward(conv2d, task, operands)
        output = operands["output"]
        if output.is_complex():
            return prepare_gradient(conv2d, task, operands)
        # PyTorch reads only the shape and layout of the slot that it computes.  The slot has its
        # own memory, as in a training step; PyTorch would copy an expanded view at each call.
        slots: tuple[Slot, Slot] = ("input", "weight")
        x, w = (operands[slot] if slot in operands else _empty(task, slot) for slot in slots)
        wanted = 0 if work == "grad_input" else 1

        def run() -> Any:
            return torch.ops.aten.convolution_backward(
                *(output, x, w, None, p.stride, padding, p.dilation, False, (0, 0), p.groups),
                (wanted == 0, wanted == 1, False),
            )

        return Prepared(run, lambda result: (result[wanted],))


def _empty(task: Task, slot: Slot) -> Tensor:
    """Memory for a slot."""
    shape, memory_format = shape_of(task.problem, slot), FORMATS[task.layout]
    return torch.empty(shape, dtype=task.dtype, device=task.device, memory_format=memory_format)


@cache
def _searching() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="cudnn.benchmark")


def _only(result: Tensor) -> tuple[Tensor]:
    return (result,)


def prepare_forward(correlate: Correlate, task: Task, operands: Operands) -> Prepared:
    """A call as a user writes it; for ``call+grad`` with graph and backward."""
    x, w = operands["input"], operands["weight"]
    if task.work != "call+grad":
        return Prepared(lambda: correlate(x, w), _only)
    leaves = x.detach().requires_grad_(), w.detach().requires_grad_()
    output = operands["output"]
    return Prepared(lambda: torch.autograd.grad(correlate(*leaves), leaves, output), tuple)


def prepare_gradient(correlate: Correlate, task: Task, operands: Operands) -> Prepared:
    """A gradient of a differentiable correlation: only the backward, on a retained graph."""
    output = operands["output"]
    x = operands.get("input", output.new_zeros(task.problem.input_shape))
    w = operands.get("weight", output.new_zeros(task.problem.weight_shape))
    # Autograd conjugates; the maps do not.
    leaves = tuple(each.detach().conj().resolve_conj() for each in (x, w))
    wanted = leaves[0] if task.work == "grad_input" else leaves[1]
    wanted.requires_grad_()
    with torch.enable_grad():
        y = correlate(*leaves)
    return Prepared(
        run=lambda: torch.autograd.grad(y, wanted, output, retain_graph=True),
        tensors=tuple,
        chose="autograd",
    )


def symmetric_refusal(problem: Problem) -> tuple[str, ...]:
    if any(before != after for before, after in problem.padding):
        return ("padding must be the same on both sides",)
    return ()


def our_contenders(names: Sequence[str] | None = None) -> list[Contender]:
    """``auto``, ``auto-measured`` and every algorithm, or those named."""
    found: list[Contender] = [
        Ours("auto", "ours"),
        Ours("auto-measured", "ours", requested=Auto(measure=True)),
        *(Ours(each.name, "ours", requested=each) for each in ALGORITHMS),
    ]
    return named(found, names, "algorithm")


def torch_contenders(device: torch.device) -> list[Contender]:
    """PyTorch; on CUDA also with cuDNN's search."""
    found: list[Contender] = [PyTorch("torch", "torch")]
    if device.type == "cuda":
        found.append(PyTorch("torch, cudnn.benchmark", "torch", cudnn_benchmark=True))
    return found


_C = TypeVar("_C", bound=Contender)


def named(found: Sequence[_C], names: Sequence[str] | None, kind: str) -> list[_C]:
    """The contenders with these names; all if ``names`` is None."""
    known = [each.name for each in found]
    for name in names or ():
        if name not in known:
            raise SystemExit(f"unknown {kind} {name!r}; there are {', '.join(known) or 'none'}")
    return [each for each in found if names is None or each.name in names]
