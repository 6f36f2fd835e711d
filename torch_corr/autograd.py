"""Derivatives of every order, from one trilinear form.

``T(x, w, y) = sum(y * corr(x, w))`` is linear in each of its three slots x, w and y.  A map reads
two of them and computes the third, the *open* slot: forward computes y, grad_input x, grad_weight
w.  The gradients of a map are the other two maps: the gradient of grad_weight by x, for example, is
grad_input.  So one set of rules, :class:`_Rules`, serves all maps in every order (``backward``,
``jvp`` and ``vmap``); it only needs to know which slot is open.

:func:`trilinear` chooses how to pass the rules to PyTorch:

    nothing to differentiate      run the map, without a Function
    reverse mode, with a bias     ``CorrelationWithBias``
    reverse mode                  ``Correlation``: the fastest kind of Function
    operands with tangents        ``CorrelationOfDuals``, which keeps the operands until ``jvp``
    transforms of torch.func      ``CorrelationTransformed``, with ``setup_context`` and ``vmap``
    innermost is functionalize    call ``trilinear`` again on the unwrapped tensors

The class names appear in ``grad_fn=<CorrelationBackward>``, in profiles and in anomaly mode.

Captured graphs use the same rules.  Dynamo puts the call of ``corr2d`` into its graph without
tracing it, and the next tracer runs this Python code.  Every row of the table ends in
:func:`~torch_corr.operators.run`; there the tracer sees one operator.  This module also registers
the rules for the operators, so that a captured graph can be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    runs_alone,
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
    """Compute one slot of ``T(x, w, y) = sum(y * corr(x, w))`` from the other two.

    Args:
        plan: the problem, and the algorithm for each map.
        input: (N, C, H, W), or None to compute it.
        weight: (O, C/groups, kH, kW), or None to compute it.
        output: (N, O, H', W'), or None to compute it.

    Returns:
        The slot that is None: ``output`` by the map ``forward``, ``input`` by
        ``grad_input``, ``weight`` by ``grad_weight``.  Differentiable to every order.
    """
    slots = (input, weight, output)
    function: type[_Rules] = Correlation
    if are_functorch_transforms_active():
        function = CorrelationTransformed
        innermost = innermost_transform()
        if innermost.key() == TransformType.Functionalize:
            return _under_functionalize(innermost, plan, slots)
    elif any(map(_is_old_batched, slots)):
        return _under_old_vmap(plan, slots)
    elif is_forward_mode() and any(map(_has_tangent, slots)):
        function = CorrelationOfDuals
    elif not torch.is_grad_enabled() or not any(map(_requires_grad, slots)):
        return run(plan, slots)  # a Function takes as long as a small conv2d
    result: Tensor = function.apply(plan, *slots)  # type: ignore[no-untyped-call]
    return result


@skip_dynamo
def forward_with_bias(plan: Plan | Deferred, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The output plus a bias of each channel, of shape (O,); differentiable to every order.

    The algorithm adds the bias in eager mode.  For transforms, tangents and graphs it is a
    separate sum, which has rules of its own.
    """
    slots = input, weight, bias
    if (
        not runs_alone(plan, slots)
        or is_forward_mode()
        or are_functorch_transforms_active()
        or any(map(is_old_batched, slots))
    ):
        return trilinear(plan, input, weight) + bias[:, None, None]
    if not torch.is_grad_enabled() or not any(map(_requires_grad, slots)):
        return run(plan, (input, weight, None), bias)
    result: Tensor = CorrelationWithBias.apply(plan, *slots)  # type: ignore[no-untyped-call]
    return result


class _Rules(Function):
    """The rules of differentiation.  The arguments are the plan and the three slots."""

    @staticmethod
    @skip_dynamo
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        """Compute each operand's gradient from the other operand and the result's gradient.

        The form does not conjugate, so the adjoint conjugates the other operand.
        """
        if gradient is None:
            return None, None, None, None
        saved = [value if value is None else value.conj() for value in ctx.saved_tensors]
        saved[ctx.open] = gradient
        return None, *_gradients(ctx.plan, saved, ctx.needs_input_grad[1:])

    @staticmethod
    @skip_dynamo
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor | None:
        """The product rule: the sum of the maps with one operand replaced by its tangent."""
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
    def forward(ctx: Any, plan: Plan | Deferred, *slots: Tensor | None) -> Tensor:
        _save(ctx, plan, slots)
        return run(plan, slots)


class CorrelationWithBias(Function):
    """``forward`` with a bias that the algorithm adds.  The arguments are the plan and operands."""

    @staticmethod
    @skip_dynamo
    def forward(ctx: Any, plan: Plan, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.plan = plan
        _, needs_input, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        return plan.run(input, weight, None, bias)

    @staticmethod
    @skip_dynamo
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, None
        saved = [value if value is None else value.conj() for value in ctx.saved_tensors]
        _, *needs, needs_bias = ctx.needs_input_grad
        gradients = _gradients(ctx.plan, [*saved, gradient], (*needs, False))
        gradients[OUTPUT] = gradient.sum((0, 2, 3)) if needs_bias else None
        return None, *gradients


class CorrelationOfDuals(Correlation):
    @staticmethod
    @skip_dynamo
    def forward(ctx: Any, plan: Plan | Deferred, *slots: Tensor | None) -> Tensor:
        ctx.save_for_forward(*slots)
        return Correlation.forward(ctx, plan, *slots)

    @staticmethod
    @skip_dynamo
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor | None:
        tangent = _Rules.jvp(ctx, _, *tangents)
        # Otherwise backward would use these instead of the saved tensors.  It would keep them
        # alive and not check whether they were modified in place.
        ctx.saved_for_forward = None
        return tangent


class CorrelationTransformed(_Rules):
    @staticmethod
    @skip_dynamo
    def forward(plan: Plan | Deferred, *slots: Tensor | None) -> Tensor:
        return run(plan, slots)

    @staticmethod
    @skip_dynamo
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        plan, *slots = inputs
        _save(ctx, plan, slots)
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
        return _vmap(plan, leading, [dim is not None for dim in in_dims[1:]], info.batch_size), 0


def _gradients(plan: Plan | Deferred, slots: Slots, needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of those slots that need one, each from the two others."""
    if not torch.is_grad_enabled() and runs_alone(plan, slots) and not _is_transformed(slots):
        return cast(Plan, plan).run_gradients(slots, needs)
    return [
        trilinear(plan, *_with(slots, slot, None)) if needs[slot] else None
        for slot in (INPUT, WEIGHT, OUTPUT)
    ]


def _vmap(
    plan: Plan | Deferred,
    slots: Slots,
    mapped: list[bool],
    times: int,
    compute: Callable[..., Tensor] = trilinear,
) -> Tensor:
    """The rule of vmap: ``times`` problems of one geometry become one larger problem.

    The slots share the batch, the groups and the channels of a group.  Each slot lacks one of
    these axes, except the groups.  The mapped axis is folded into the axis that the unmapped
    operand lacks, or into the groups if both operands are mapped.

    Args:
        plan: the plan of one problem.
        slots: the operands; mapped ones have an additional first axis of length ``times``.
        mapped: for each slot, whether it has that axis.
        times: the length of the mapped axis.
        compute: computes the open slot of the larger problem.

    Returns:
        The open slot, with an additional first axis.
    """
    opened = open_slot(slots)
    unmapped = [slot for slot, has in enumerate(mapped) if not has and slot != opened]
    axis = _LACKED_AXIS[unmapped[0]] if unmapped else _GROUPS
    if is_known_zero(times):
        (some, *_) = (value for value in slots if value is not None)
        return some.new_zeros((0, *_shape(plan.problem, opened)))
    problem = _folded_problem(plan.problem, axis, times)
    fits = not isinstance(plan, Plan) or problem.is_symbolic or plan.able(problem)
    if not fits and times > 1:
        # The larger problem exceeds a limit of the algorithm, such as the workspace: split it.
        parts = []
        for start, length in ((0, times // 2), (times // 2, times - times // 2)):
            part = [
                value.narrow(0, start, length) if value is not None and has else value
                for value, has in zip(slots, mapped)
            ]
            parts.append(_vmap(plan, part, mapped, length, compute))
        return torch.cat(parts)
    operands = [
        _fold(plan.problem, problem, slot, axis, value) if value is not None and has else value
        for slot, (value, has) in enumerate(zip(slots, mapped))
    ]
    larger = planned(problem, plan.device, plan.dtype, plan.requested, plan.channels_last)
    return _unfold(plan.problem, opened, axis, compute(larger, *operands), times)


def _under_functionalize(transform: Any, plan: Plan | Deferred, slots: Slots) -> Tensor:
    """Compute below the transform ``functionalize``, for which a Function has no rule.

    This is correct because a map does not modify its operands and does not return a view.
    """
    api = FunctorchFunctionalizeAPI(transform)
    plain: Any = api.unwrap_tensors(tuple(slots))
    with api.redispatch_to_next():
        result = trilinear(plan, *plain)
    (wrapped,) = api.wrap_tensors((result,))
    return cast(Tensor, wrapped)


def _under_old_vmap(plan: Plan | Deferred, slots: Slots) -> Tensor:
    """The rule of vmap for the legacy vmap, which ``is_grads_batched`` still uses."""
    level = _innermost_old_level(slots)
    # An operand that is not mapped at this level gets an axis of length 1.
    leading = [value if value is None else remove_batch_dim(value, level, 1, 0) for value in slots]
    times = max(value.shape[0] for value in leading if value is not None)
    mapped = [value is not None and value.shape[0] == times for value in leading]
    operands = [value if value is None or has else value[0] for value, has in zip(leading, mapped)]
    return add_batch_dim(_vmap(plan, operands, mapped, times), 0, level)


_OLD_LEVELS = 64
"""The maximum nesting of the legacy vmap."""


def _innermost_old_level(slots: Slots) -> int:
    """The deepest level at which an operand is mapped.

    PyTorch's count of levels belongs to a thread.  Backward on CUDA runs in another thread, where
    the count is 0, so all levels are tried there.
    """
    nesting = increment_old_vmap() - 1
    decrement_old_vmap()

    def mapped(value: Tensor, level: int) -> bool:
        # An operand that is not mapped at this level is expanded to the length that is passed.
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


def _save(ctx: Any, plan: Plan | Deferred, slots: Slots) -> None:
    """Save the plan and each operand that the other operand's gradient needs."""
    ctx.set_materialize_grads(False)
    ctx.plan = plan
    ctx.open = open_slot(slots)
    needs = ctx.needs_input_grad[1:]
    ctx.save_for_backward(
        *(value if sum(needs) > own else None for value, own in zip(slots, needs))
    )


def _with(slots: Slots, slot: int, value: Tensor | None) -> list[Tensor | None]:
    changed = list(slots)
    changed[slot] = value
    return changed


def _is_transformed(slots: Slots) -> bool:
    """Whether vmap, another transform or forward mode applies to the operands."""
    return (
        are_functorch_transforms_active() or is_forward_mode() or any(map(_is_old_batched, slots))
    )


def _requires_grad(value: Tensor | None) -> bool:
    return value is not None and value.requires_grad


def _has_tangent(value: Tensor | None) -> bool:
    if value is None:
        return False
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


# The axes of the form, without those of the image.  Each slot has three of them, in this order.
_BATCH, _GROUPS, _IN, _OUT = "batch", "groups", "group_in", "group_out"
_AXES = {
    INPUT: (_BATCH, _GROUPS, _IN),
    WEIGHT: (_GROUPS, _OUT, _IN),
    OUTPUT: (_BATCH, _GROUPS, _OUT),
}
_LACKED_AXIS = {INPUT: _OUT, WEIGHT: _BATCH, OUTPUT: _IN}


def _folded_problem(problem: Problem, axis: str, times: int) -> Problem:
    """The problem with one axis ``times`` as long."""
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
    """The slot's shape with separate axes for the groups and the channels of a group."""
    return *(getattr(problem, axis) for axis in _AXES[slot]), *_shape(problem, slot)[2:]


def _fold(problem: Problem, folded: Problem, slot: int, axis: str, value: Tensor) -> Tensor:
    """Merge the first axis of ``value`` into an axis of its slot."""
    split = value.reshape(value.shape[0], *_split_shape(problem, slot))
    return split.movedim(0, _AXES[slot].index(axis)).reshape(_shape(folded, slot))


def _unfold(problem: Problem, slot: int, axis: str, value: Tensor, times: int) -> Tensor:
    """Split ``times`` off an axis of a slot, as the first axis; the inverse of :func:`_fold`."""
    shape, position = list(_split_shape(problem, slot)), _AXES[slot].index(axis)
    split = value.reshape(*shape[:position], times, *shape[position:])
    return split.movedim(position, 0).reshape(times, *_shape(problem, slot))


@skip_dynamo
def _differentiate(map: MapName, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
    """The Autograd kernel of an operator."""
    operands = first, second
    if (torch.is_grad_enabled() and any(value.requires_grad for value in operands)) or (
        is_fwd_grad_enabled()
        and is_forward_mode()
        and any(_has_tangent(value) for value in operands)
    ):
        if are_functorch_transforms_active():
            raise NotImplementedError(
                f"torch_corr::{map} cannot be differentiated by torch.func; call "
                f"torch_corr.corr2d, which can"
            )
        plan = plan_of(map, first, second, *arguments)
        return trilinear(plan, *slots_of(map, first, second))
    with below_autograd():
        result: Tensor = getattr(torch.ops.torch_corr, map)(first, second, *arguments)
    return result


@skip_dynamo
def _vmap_operator(
    map: MapName,
    info: Any,
    in_dims: tuple[int | None, ...],
    first: Tensor,
    second: Tensor,
    *arguments: Any,
) -> tuple[Tensor, int]:
    """The vmap rule of an operator."""
    dims = in_dims[:2]
    operands = [
        value if dim is None else value.movedim(dim, 0) for value, dim in zip((first, second), dims)
    ]
    one, other = (value if dim is None else value[0] for value, dim in zip(operands, dims))
    plan = plan_of(map, one, other, *arguments)
    mapped = [dim is not None for dim in slots_of(map, *dims)]
    return _vmap(plan, slots_of(map, *operands), mapped, info.batch_size, operate), 0


for _map in MAPS:
    LIBRARY.impl(_map, partial(_differentiate, _map), "Autograd")
    torch.library.register_vmap(f"torch_corr::{_map}", partial(_vmap_operator, _map), lib=LIBRARY)
