"""Three PyTorch operators, one for each map.

``torch.compile``, fake tensors, tensor subclasses and FLOP counters see a program as the
PyTorch operators that it calls.  For them each map is one operator of known shape and cost:

    torch_corr::forward      (x, w) -> y
    torch_corr::grad_input   (y, w) -> x
    torch_corr::grad_weight  (x, y) -> w

An operator makes its plan when it runs, from the actual sizes.  So a captured graph chooses
algorithms for each batch size, as eager mode does.  :func:`run` calls the operator only where it is
needed; a direct call of the algorithm is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.flop_counter import register_flop_formula

from ._torch_compat import (
    FrameAction,
    FrameExecStrategy,
    dispatch_stack_depth,
    is_functorch_wrapped,
    set_code_exec_strategy,
)
from .algorithms import Algorithm
from .algorithms.base import is_channels_last
from .planning.auto import Auto
from .planning.plan import AlgorithmLike, Plan, find_algorithm, make_plan
from .problem import Problem, as_pair, require, same_shape, shape_str
from .request import MAPS, SLOTS, MapName, Request, Slot, shape_of
from .sharding import is_distributed, register_splits

Slots: TypeAlias = Sequence[Tensor | None]

INPUT, WEIGHT, OUTPUT = range(3)
_NAMES: tuple[Slot, ...] = ("input", "weight", "output")
OPERANDS = {map: tuple(_NAMES.index(slot) for slot in SLOTS[map][:2]) for map in MAPS}
"""The numbers of the two slots that each map reads."""

_MAP_OF = {_NAMES.index(SLOTS[map][2]): map for map in MAPS}
PLAIN = (Tensor, Parameter)
"""The classes whose operands an algorithm may take directly."""

_SKIP = FrameExecStrategy(FrameAction.SKIP, FrameAction.SKIP)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def skip_dynamo(function: _Function) -> _Function:
    """Decorator that keeps Dynamo from compiling a function and all functions that it calls.

    After a graph break, Dynamo compiles every Python function that runs.  In ``loss.backward()``
    it would compile the loops of this package, again for each size, and fail on some.
    ``torch.compiler.disable`` has the same effect, but it imports Dynamo and wraps each call.

    Dynamo still traces calls of the function from within a graph.
    """
    set_code_exec_strategy(function.__code__, _SKIP)
    return function


@dataclass(frozen=True)
class Deferred:
    """A plan for symbolic sizes.  The operator makes the actual plan each time it runs.

    Attributes:
        problem: the geometry, with symbolic sizes.
        device, dtype, requested, channels_last: as in :class:`~torch_corr.Plan`.
    """

    problem: Problem
    device: torch.device
    dtype: torch.dtype
    requested: AlgorithmLike
    channels_last: bool


def planned(
    problem: Problem,
    device: torch.device,
    dtype: torch.dtype,
    requested: AlgorithmLike,
    channels_last: bool,
) -> Plan | Deferred:
    """:func:`make_plan` of a problem, or a :class:`Deferred` plan if its sizes are symbolic."""
    plan = Deferred if problem.is_symbolic else make_plan
    return plan(problem, device, dtype, requested, channels_last)


def run(plan: Plan | Deferred, slots: Slots, bias: Tensor | None = None) -> Tensor:
    """Compute the open slot, with the plan's algorithm or, if needed, with an operator.

    A bias is added to an output, if :func:`runs_alone`.
    """
    map = _MAP_OF[open_slot(slots)]
    if isinstance(plan, Plan):
        if not _needs_custom_op(slots):
            input, weight, output = slots
            return plan.run(input, weight, output, bias)
        algorithm: Auto | Algorithm = getattr(plan, map)
    else:
        algorithm = find_algorithm(plan.requested)
    if isinstance(algorithm, Auto) or not algorithm.is_pytorch or is_distributed(slots):
        return operate(plan, *slots)
    operands = [slots[slot] for slot in OPERANDS[map]]
    request = Request(plan.problem, map, plan.device, plan.dtype)
    if plan.problem.is_data_dependent or algorithm.needs_sizes(request):
        # The choice among PyTorch's operators depends on the sizes, so it waits until the graph
        # runs.
        if plan.device.type == "cpu" and any(
            is_channels_last(each) for each in operands if each is not None
        ):
            plan = replace(plan, channels_last=True)
        return operate(plan, *slots)
    # Compilers can trace and optimize PyTorch's own operators.
    result: Tensor = getattr(algorithm, map)(plan.problem, *operands)
    return result


def operate(plan: Plan | Deferred, *slots: Tensor | None) -> Tensor:
    """Compute the open slot with the operator of its map."""
    if is_distributed(slots):
        register_splits()
    p, map = plan.problem, _MAP_OF[open_slot(slots)]
    extra = {"forward": (), "grad_input": (p.size,), "grad_weight": (p.kernel,)}[map]
    padding = (*p.padding[0], *p.padding[1])
    operator: Callable[..., Tensor] = getattr(torch.ops.torch_corr, map)
    first, second = (slots[slot] for slot in OPERANDS[map])
    return operator(
        first,
        second,
        p.groups,
        *extra,
        p.stride,
        padding,
        p.dilation,
        plan.channels_last,
        encode_algorithm(plan.requested),
    )


def open_slot(slots: Slots) -> int:
    """The number of the slot to compute: the one that is None."""
    return INPUT if slots[INPUT] is None else WEIGHT if slots[WEIGHT] is None else OUTPUT


def runs_alone(plan: Plan | Deferred, slots: Slots) -> bool:
    """Whether :func:`run` calls the plan's algorithm, and no operator."""
    return isinstance(plan, Plan) and not _needs_custom_op(slots)


def _needs_custom_op(slots: Slots) -> bool:
    if dispatch_stack_depth() > 0:
        return True
    for value in slots:  # any() with a generator takes twice as long
        if value is not None and (type(value) not in PLAIN or is_functorch_wrapped(value)):
            return True
    return False


_requested: dict[str, AlgorithmLike] = {}
"""The algorithm of each key that is not a name."""


def encode_algorithm(requested: AlgorithmLike) -> str:
    """The requested algorithm as a string, because operators take no other objects.

    The key of a name is the name; the key of an :class:`~torch_corr.Algorithm` is its ``repr``.
    """
    find_algorithm(requested)
    if isinstance(requested, str):
        return requested
    key = repr(requested)
    while _requested.setdefault(key, requested) != requested:
        key += "'"  # another algorithm with the same repr
    return key


def decode_algorithm(key: str) -> AlgorithmLike:
    """The inverse of :func:`encode_algorithm`."""
    return _requested.get(key, key)


def problem_of(map: MapName, first: Sequence[int], second: Sequence[int], *numbers: Any) -> Problem:
    """The problem of an operator's arguments.

    Batch and channels come from the operands' shapes, so an operator is correct for a part of the
    batch too.

    Args:
        map: the operator.
        first: the shape of its first operand.
        second: the shape of its second operand.
        numbers: its other arguments, without layout and algorithm.
    """
    groups, *numbers = numbers  # type: ignore[assignment]
    size, kernel = tuple(first[2:]), tuple(second[2:])
    if map == "grad_input":
        size, *numbers = numbers  # type: ignore[assignment]
    elif map == "grad_weight":
        kernel, *numbers = numbers  # type: ignore[assignment]
    stride, (top, bottom, left, right), dilation = numbers
    return Problem(
        batch=first[0],
        in_channels=second[1] * groups if map == "grad_input" else first[1],
        size=as_pair("size", size),
        out_channels=second[1] if map == "grad_weight" else second[0],
        kernel=as_pair("kernel", kernel),
        stride=as_pair("stride", stride),
        padding=((top, bottom), (left, right)),
        dilation=as_pair("dilation", dilation),
        groups=groups,
    )


def slots_of(map: MapName, first: Any, second: Any) -> list[Any]:
    """The three slots, with a map's operands and None."""
    slots = [None, None, None]
    for slot, value in zip(OPERANDS[map], (first, second)):
        slots[slot] = value
    return slots


def plan_of(map: MapName, first: Tensor, second: Tensor, *arguments: Any) -> Plan | Deferred:
    """The plan for an operator's arguments.

    Raises:
        RuntimeError: the operands' shapes do not match, or the algorithm refuses.
    """
    *numbers, channels_last, key = arguments
    problem = problem_of(map, first.shape, second.shape, *numbers)
    for slot, given in zip(SLOTS[map], (first.shape, second.shape)):
        shape = shape_of(problem, slot)
        require(
            same_shape(given, shape),
            lambda: (
                f"torch_corr::{map} got operands of shapes {shape_str(first.shape)} and "
                f"{shape_str(second.shape)}, which do not belong together in {problem}: "
                f"{slot} should be {shape_str(shape)}"  # noqa: B023
            ),
        )
    requested = decode_algorithm(key)
    return planned(problem, first.device, first.dtype, requested, channels_last)


@skip_dynamo
def _compute(map: MapName, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
    plan = plan_of(map, first, second, *arguments)
    assert isinstance(plan, Plan)
    result = plan.run(*slots_of(map, first, second))
    return result.contiguous(memory_format=_fake_layout(map, plan))


@skip_dynamo
def _fake_impl(map: MapName, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
    """An empty tensor with the shape and the layout of the operator's result."""
    plan = plan_of(map, first, second, *arguments)
    shape, layout = shape_of(plan.problem, SLOTS[map][2]), _fake_layout(map, plan)
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout)


def _fake_layout(map: MapName, plan: Plan | Deferred) -> torch.memory_format:
    last = plan.channels_last and map != "grad_weight"
    return torch.channels_last if last else torch.contiguous_format


def _flops(map: MapName, first: Any, second: Any, *arguments: Any, **_: Any) -> int:
    """Two FLOPs for each product, as for PyTorch's convolution."""
    return 2 * problem_of(map, first, second, *arguments[:-2]).multiplications


LIBRARY: Any = torch.library.Library("torch_corr", "DEF")  # type: ignore[no-untyped-call]
# Groups come before the lists, because DTensor's cache of sharding decisions ignores lists before
# the first integer argument.
_GEOMETRY = "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation"
_OPERANDS: dict[MapName, str] = {
    "forward": "Tensor input, Tensor weight, SymInt groups",
    "grad_input": "Tensor output, Tensor weight, SymInt groups, SymInt[2] size",
    "grad_weight": "Tensor input, Tensor output, SymInt groups, SymInt[2] kernel",
}
for _map in MAPS:
    LIBRARY.define(
        f"{_map}({_OPERANDS[_map]}, {_GEOMETRY}, bool channels_last, str algorithm) -> Tensor",
        tags=torch.Tag.pt2_compliant_tag,
    )
    LIBRARY.impl(_map, partial(_compute, _map), "CompositeExplicitAutograd")
    torch.library.register_fake(f"torch_corr::{_map}", partial(_fake_impl, _map), lib=LIBRARY)
    # Register at import, although this imports Triton if it is installed (200 ms).  A
    # FlopCounterMode copies the formulas when it is created and counts later ones as zero.
    register_flop_formula(getattr(torch.ops.torch_corr, _map))(partial(_flops, _map))
