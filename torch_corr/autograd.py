"""One trilinear form, three maps, one Function, every order of derivative.

``T(x, w, y) = sum(y * corr(x, w))`` is linear in each slot.  Fill two slots and the third
is a map; differentiate that map by either operand and you get another of the three.  So
the rules below, told only which slot is open, are closed under ``backward``, ``jvp`` and
``vmap``: no derivative of any order needs another rule.

The rules are written once, in :class:`_Rules`.  How they reach PyTorch depends on who
calls, and :func:`trilinear` is the one place that asks:

    nothing to differentiate    none: the map is run
    eager PyTorch               ``Correlation``, the quick form: ``forward`` takes ``ctx``
    operands with tangents      ``CorrelationOfDuals``, which keeps the operands until ``jvp``
    a torch.func transform      ``CorrelationTransformed``, with ``setup_context`` and ``vmap``
                                (of which functionalize, if innermost, is done without)

Their names are what a person meets: ``grad_fn=<CorrelationBackward>``, in a profile, in anomaly
mode.

Graph capture takes these same routes, since Dynamo writes a call of ``corr2d`` into its graph
unseen and what traces that graph further is plain Python.  At the bottom of each route is
:func:`~torch_corr.operators.run`, where a capturer sees one operator; the operators in turn
have these rules, so that a captured graph may be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ._torch_compat import (
    FunctorchFunctionalizeAPI,
    TransformType,
    add_batch_dim,
    are_functorch_transforms_active,
    below_autograd,
    decrement_old_vmap,
    increment_old_vmap,
    innermost_transform,
    is_forward_mode,
    is_fwd_grad_enabled,
    is_old_batched,
    remove_batch_dim,
)
from .operators import (
    INPUT,
    LIBRARY,
    OUTPUT,
    WEIGHT,
    Deferred,
    Slots,
    open_slot,
    operate,
    plan_of,
    planned,
    run,
    run_gradients,
    skip_dynamo,
    slots_of,
)
from .planning.plan import Plan
from .problem import Problem, is_known_zero
from .request import MAPS, MapName


@skip_dynamo
def trilinear(
    plan: Plan | Deferred,
    input: Tensor | None = None,
    weight: Tensor | None = None,
    output: Tensor | None = None,
) -> Tensor:
    """Fill two slots of ``T(x, w, y) = sum(y * corr(x, w))`` and get the third.

    Args:
        plan: the problem, and the algorithm for each map.
        input: (N, C, H, W), or None to ask for it.
        weight: (O, C/G, kH, kW), or None to ask for it.
        output: (N, O, H', W'), or None to ask for it.

    Returns:
        The slot that is None: ``output`` by the map ``forward``, ``input`` by
        ``grad_input``, ``weight`` by ``grad_weight``.  Differentiable to every order.
    """
    slots = (input, weight, output)
    route: type[_Rules] = Correlation
    if are_functorch_transforms_active():
        route = CorrelationTransformed
        innermost = innermost_transform()
        if innermost.key() == TransformType.Functionalize:
            return _under_functionalize(innermost, plan, slots)
    elif any(map(_is_old_batched, slots)):
        return _under_old_vmap(plan, slots)
    elif is_forward_mode() and any(map(_has_tangent, slots)):
        route = CorrelationOfDuals
    elif not torch.is_grad_enabled() or not any(map(_requires_grad, slots)):
        return run(plan, slots)  # as the first gradients; a Function costs as much as conv2d
    result: Tensor = route.apply(plan, *slots)  # type: ignore[no-untyped-call]
    return result


class _Rules(Function):
    """The rules of differentiation; arguments are the plan and the three slots."""

    @staticmethod
    @skip_dynamo
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        """Open the operand's slot, and fill the one that was open with its gradient.

        The form is bilinear, not sesquilinear, so the adjoint conjugates the other operand.
        """
        gradients: list[Tensor | None] = [None, None, None]
        if gradient is None:
            return None, *gradients
        saved = [value if value is None else value.conj() for value in ctx.saved_tensors]
        saved[ctx.open] = gradient
        both = ctx.needs_input_grad[1 + INPUT] and ctx.needs_input_grad[1 + WEIGHT]
        if both and not torch.is_grad_enabled() and not _is_transformed(saved):
            found = run_gradients(ctx.plan, saved)
            if found is not None:
                return None, *found, None
        for slot in (INPUT, WEIGHT, OUTPUT):
            if ctx.needs_input_grad[1 + slot]:
                gradients[slot] = trilinear(ctx.plan, *_with(saved, slot, None))
        return None, *gradients

    @staticmethod
    @skip_dynamo
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor | None:
        """The product rule: the form with one operand at a time replaced by its tangent."""
        operands = ctx.saved_tensors
        terms = [
            trilinear(ctx.plan, *_with(operands, slot, tangent))
            for slot, tangent in enumerate(tangents)
            if tangent is not None
        ]
        return sum(terms[1:], start=terms[0]) if terms else None


class Correlation(_Rules):
    @staticmethod
    @skip_dynamo
    def forward(
        ctx: Any,
        plan: Plan | Deferred,
        input: Tensor | None,
        weight: Tensor | None,
        output: Tensor | None,
    ) -> Tensor:
        slots = (input, weight, output)
        _remember(ctx, plan, slots)
        return run(plan, slots)


class CorrelationOfDuals(Correlation):
    @staticmethod
    @skip_dynamo
    def forward(
        ctx: Any,
        plan: Plan | Deferred,
        input: Tensor | None,
        weight: Tensor | None,
        output: Tensor | None,
    ) -> Tensor:
        ctx.save_for_forward(input, weight, output)
        return Correlation.forward(ctx, plan, input, weight, output)

    @staticmethod
    @skip_dynamo
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor | None:
        tangent = _Rules.jvp(ctx, _, *tangents)
        # Left there, these would stand in for the saved tensors in backward, unnecessarily
        # alive and without the check that nobody has written to them since.
        ctx.saved_for_forward = None
        return tangent


class CorrelationTransformed(_Rules):
    @staticmethod
    @skip_dynamo
    def forward(
        plan: Plan | Deferred,
        input: Tensor | None,
        weight: Tensor | None,
        output: Tensor | None,
    ) -> Tensor:
        return run(plan, (input, weight, output))

    @staticmethod
    @skip_dynamo
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        plan, *slots = inputs
        _remember(ctx, plan, slots)
        ctx.save_for_forward(*slots)

    @staticmethod
    @skip_dynamo
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], plan: Plan | Deferred, *slots: Tensor | None
    ) -> tuple[Tensor, int]:
        leading = [
            value if value is None or dim is None else value.movedim(dim, 0)
            for value, dim in zip(slots, in_dims[1:])
        ]
        return _mapped(plan, leading, [dim is not None for dim in in_dims[1:]], info.batch_size), 0


def _mapped(
    plan: Plan | Deferred,
    slots: Slots,
    mapped: list[bool],
    times: int,
    fill: Callable[..., Tensor] = trilinear,
) -> Tensor:
    """Many problems of one geometry as a single larger one: vmap's rule.

    Each axis of the form, image axes aside, is shared by two slots, the groups by all
    three.  The mapped axis is folded into the one that the slot without it lacks.

    Args:
        slots: operands, of which the mapped ones have an axis of length ``times`` in front.
        mapped: for each slot whether it has.
        fill: what fills the open slot of the larger problem.

    Returns:
        The open slot, with the axis in front.
    """
    opened = open_slot(slots)
    lacking = [slot for slot, has in enumerate(mapped) if not has and slot != opened]
    axis = _LACKED_AXIS[lacking[0]] if lacking else _GROUPS
    if is_known_zero(times):
        (some, *_) = (value for value in slots if value is not None)
        return some.new_zeros((0, *_shape(plan.problem, opened)))
    problem = _folded_problem(plan.problem, axis, times)
    fits = not isinstance(plan, Plan) or problem.is_symbolic or plan.able(problem)
    if not fits and times > 1:
        # Too large for the algorithm in one piece (a workspace limit): take it in two.
        halves = [(0, times // 2), (times // 2, times - times // 2)]
        return torch.cat(
            [
                _mapped(
                    plan,
                    [
                        value.narrow(0, start, length) if value is not None and has else value
                        for value, has in zip(slots, mapped)
                    ],
                    mapped,
                    length,
                    fill,
                )
                for start, length in halves
            ]
        )
    operands = [
        _fold(plan.problem, problem, slot, axis, value) if value is not None and has else value
        for slot, (value, has) in enumerate(zip(slots, mapped))
    ]
    larger = planned(problem, plan.device, plan.dtype, plan.requested)
    return _unfold(plan.problem, opened, axis, fill(larger, *operands), times)


def _under_functionalize(transform: Any, plan: Plan | Deferred, slots: Slots) -> Tensor:
    """``torch.func.functionalize``, for which a Function has no rule: one transform less.

    Whatever was written to the operands is in them; a map writes to nothing and makes no view.
    """
    api = FunctorchFunctionalizeAPI(transform)
    plain: Any = api.unwrap_tensors(tuple(slots))
    with api.redispatch_to_next():
        result = trilinear(plan, *plain)
    (wrapped,) = api.wrap_tensors((result,))
    return cast(Tensor, wrapped)


def _under_old_vmap(plan: Plan | Deferred, slots: Slots) -> Tensor:
    """The same for the vmap that came before torch.func, which ``is_grads_batched`` still uses."""
    level = _innermost_old_level(slots)
    # An operand that is not mapped at this level comes back with an axis of length 1.
    leading = [value if value is None else remove_batch_dim(value, level, 1, 0) for value in slots]
    times = max(value.shape[0] for value in leading if value is not None)
    mapped = [value is not None and value.shape[0] == times for value in leading]
    operands = [value if value is None or has else value[0] for value, has in zip(leading, mapped)]
    return add_batch_dim(_mapped(plan, operands, mapped, times), 0, level)


_OLD_LEVELS = 64
"""How deep the older vmap nests at most."""


def _innermost_old_level(slots: Slots) -> int:
    """The deepest level at which an operand is mapped.

    Found out from the operands, since backward on CUDA runs in a thread of its own, whose nesting
    is none; where the thread has one it is no deeper than that.
    """

    nesting = increment_old_vmap() - 1
    decrement_old_vmap()

    def mapped(value: Tensor, level: int) -> bool:
        # One that is not comes back with an axis as long as one likes.
        one, two = (remove_batch_dim(value, level, n, 0).shape[0] for n in (1, 2))
        return one == two

    batched = [value for value in slots if value is not None and _is_old_batched(value)]
    return next(
        level
        for level in range(nesting or _OLD_LEVELS, 0, -1)
        if any(mapped(value, level) for value in batched)
    )


def _is_old_batched(value: Tensor | None) -> bool:
    return value is not None and is_old_batched(value)


def _remember(ctx: Any, plan: Plan | Deferred, slots: Slots) -> None:
    """Save each operand that the other's gradient needs, and no more."""
    ctx.set_materialize_grads(False)
    ctx.plan = plan
    ctx.open = open_slot(slots)
    needs = ctx.needs_input_grad[1:]
    wanted = sum(needs)
    ctx.save_for_backward(
        *(value if wanted > own else None for value, own in zip(slots, needs))  # by another slot
    )


def _with(slots: Slots, slot: int, value: Tensor | None) -> list[Tensor | None]:
    changed = list(slots)
    changed[slot] = value
    return changed


def _is_transformed(slots: Slots) -> bool:
    """Whether a map of these is more than its numbers: a vmap, old or new, or a tangent."""
    return (
        are_functorch_transforms_active() or is_forward_mode() or any(map(_is_old_batched, slots))
    )


def _requires_grad(value: Tensor | None) -> bool:
    return value is not None and value.requires_grad


def _has_tangent(value: Tensor | None) -> bool:
    if value is None:
        return False
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


# The axes of the form that sums run over, image axes aside: batch, groups, input channels
# of a group, output channels of a group.  Each slot has three of them, in this order.
_BATCH, _GROUPS, _IN, _OUT = "batch", "groups", "group_in", "group_out"
_AXES = {
    INPUT: (_BATCH, _GROUPS, _IN),
    WEIGHT: (_GROUPS, _OUT, _IN),
    OUTPUT: (_BATCH, _GROUPS, _OUT),
}
_LACKED_AXIS = {INPUT: _OUT, WEIGHT: _BATCH, OUTPUT: _IN}


def _folded_problem(problem: Problem, axis: str, times: int) -> Problem:
    """The problem with ``times`` as much of an axis."""
    return replace(
        problem,
        batch=problem.batch * (times if axis == _BATCH else 1),
        in_channels=problem.in_channels * (times if axis in (_IN, _GROUPS) else 1),
        out_channels=problem.out_channels * (times if axis in (_OUT, _GROUPS) else 1),
        groups=problem.groups * (times if axis == _GROUPS else 1),
    )


def _shape(problem: Problem, slot: int) -> tuple[int, ...]:
    return (problem.input_shape, problem.weight_shape, problem.output_shape)[slot]


def _split_shape(problem: Problem, slot: int) -> tuple[int, ...]:
    """The slot's shape with groups and the channels within a group as axes of their own."""
    return *(getattr(problem, axis) for axis in _AXES[slot]), *_shape(problem, slot)[2:]


def _fold(problem: Problem, folded: Problem, slot: int, axis: str, value: Tensor) -> Tensor:
    """Put the leading axis of ``value`` into the named axis of its slot."""
    split = value.reshape(value.shape[0], *_split_shape(problem, slot))
    return split.movedim(0, _AXES[slot].index(axis)).reshape(_shape(folded, slot))


def _unfold(problem: Problem, slot: int, axis: str, value: Tensor, times: int) -> Tensor:
    """Take ``times`` out of the named axis of a slot again, to lead."""
    shape, position = list(_split_shape(problem, slot)), _AXES[slot].index(axis)
    split = value.reshape(*shape[:position], times, *shape[position:])
    return split.movedim(position, 0).reshape(times, *_shape(problem, slot))


@skip_dynamo
def _differentiate(map: MapName, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
    """An operator above autograd: the rules, where there is something to differentiate."""
    operands = first, second
    if (torch.is_grad_enabled() and any(value.requires_grad for value in operands)) or (
        is_fwd_grad_enabled()
        and is_forward_mode()
        and any(_has_tangent(value) for value in operands)
    ):
        if are_functorch_transforms_active():
            raise NotImplementedError(
                f"torch_corr::{map} cannot be differentiated by torch.func when it is called "
                f"itself; call torch_corr.corr2d, which can"
            )
        plan = plan_of(map, first, second, *arguments)
        return trilinear(plan, *slots_of(map, first, second))
    with below_autograd():
        result: Tensor = getattr(torch.ops.torch_corr, map)(first, second, *arguments)
    return result


@skip_dynamo
def _map_over(
    map: MapName,
    info: Any,
    in_dims: tuple[int | None, ...],
    first: Tensor,
    second: Tensor,
    *arguments: Any,
) -> tuple[Tensor, int]:
    """An operator under vmap."""
    dims = in_dims[:2]
    operands = [
        value if dim is None else value.movedim(dim, 0) for value, dim in zip((first, second), dims)
    ]
    one = [value if dim is None else value[0] for value, dim in zip(operands, dims)]
    plan = plan_of(map, one[0], one[1], *arguments)
    mapped = [dim is not None for dim in slots_of(map, *dims)]
    slots = slots_of(map, *operands)
    return _mapped(plan, slots, mapped, info.batch_size, operate), 0


for _map in MAPS:
    LIBRARY.impl(_map, partial(_differentiate, _map), "Autograd")
    torch.library.register_vmap(f"torch_corr::{_map}", partial(_map_over, _map), lib=LIBRARY)
