"""Laws about gradients: first and second order, reverse and forward mode."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

from ...problem import Problem
from ..bounds import unit_roundoff
from ..oracle import oracle
from ..subject import Case, Refusal, Subject, Violation, require_alike, require_close
from .base import leaves, moot, must_not_raise


def differentiable(subject: Subject, case: Case) -> None:
    """A valid problem has gradients with the operands' shapes and dtype."""
    x, w, g = case.operands()
    x, w = leaves(x, w)
    y = subject.forward(case.problem, x, w)
    with must_not_raise("a valid problem"):
        grad_input, grad_weight = subject.pull(y, (x, w), g)
    require_alike("grad_input", grad_input, tuple(x.shape), x)
    require_alike("grad_weight", grad_weight, tuple(w.shape), w)


def gradients(subject: Subject, case: Case) -> None:
    """The gradients of input and weight are correct; complex ones conjugate the other operand."""
    problem = case.problem
    x, w, g = case.operands()
    x, w = leaves(x, w)
    y = subject.forward(problem, x, w)
    grad_input, grad_weight = subject.pull(y, (x, w), g)
    subject.require("grad_input", grad_input, problem, weight=w.conj(), output=g)
    subject.require("grad_weight", grad_weight, problem, input=x.conj(), output=g)


def frozen_operands(subject: Subject, case: Case) -> None:
    """An operand's gradient is the same if the other operand needs none."""
    x, w, g = case.operands()
    expected = subject.expect_maps(case.problem, x, w, g)
    with moot("wrong with both gradients already"):
        both = subject.maps(case.problem, x, w, g)
        expected.require_all(both)
    for name in ("input", "weight"):
        slots = {"input": x, "weight": w}
        (slots[name],) = leaves(slots[name])
        try:
            y = subject.forward(case.problem, slots["input"], slots["weight"])
            (gradient,) = subject.pull(y, (slots[name],), g)
        except Refusal as refusal:
            if f"grad_{name}" not in both:
                raise
            raise Violation(f"grad_{name} alone raises {refusal}") from refusal
        expected.require(f"grad_{name}", gradient, what=f"grad_{name} alone")


def second_order(subject: Subject, case: Case) -> None:
    """The gradients of the gradients are correct: maps of the same trilinear form."""
    problem = case.problem
    x, w, g = leaves(*case.operands())
    a, b, _ = case.another().operands()
    y = subject.forward(problem, x, w)
    grad_input, grad_weight = subject.pull(y, (x, w), g, create_graph=True)
    with must_not_raise("a gradient's gradient"):
        dw, dg = subject.pull(grad_input, (w, g), a, create_graph=True)
        dx, dg_ = subject.pull(grad_weight, (x, g), b)
    # grad_input = corr^T(g, conj w): linear in g, conjugate-linear in w.
    subject.require("d grad_input/dg", dg, problem, input=a, weight=w)
    subject.require("d grad_input/dw", dw, problem, input=a.conj(), output=g)
    subject.require("d grad_weight/dg", dg_, problem, input=x, weight=b)
    subject.require("d grad_weight/dx", dx, problem, weight=b.conj(), output=g)


def second_order_bias(subject: Subject, case: Case) -> None:
    """With a bias the second order is the same, and grad_bias is linear in the output's gradient.

    grad_bias sums the output's gradient over each channel; its adjoint repeats a number there.
    """
    problem = case.problem
    x, w, g = leaves(*case.operands())
    (b,) = leaves(case.bias())
    other_x, other_w, _ = case.another().operands()
    with moot("the second order is wrong without a bias already"):
        second_order(subject, case)
    y = subject.forward(problem, x, w, b)
    grad_input, grad_weight, grad_bias = subject.pull(y, (x, w, b), g, create_graph=True)
    other_b = case.bias() + 4  # nowhere zero
    with must_not_raise("with a bias, a gradient's gradient"):
        (repeated,) = subject.pull(grad_bias, (g,), other_b, create_graph=True)
        (dw,) = subject.pull(grad_input, (w,), other_x, create_graph=True)
        (dx,) = subject.pull(grad_weight, (x,), other_w)
    everywhere = other_b[:, None, None].expand(problem.output_shape)
    require_alike("d grad_bias/dg", repeated, problem.output_shape, g)
    require_close("d grad_bias/dg", repeated, everywhere, torch.zeros(problem.output_shape))
    for name, got, slots in (
        ("d grad_input/dw", dw, {"input": other_x.conj(), "output": g}),
        ("d grad_weight/dx", dx, {"weight": other_w.conj(), "output": g}),
    ):
        subject.require(f"{name} with a bias", got, problem, **slots)


def forward_mode(subject: Subject, case: Case) -> None:
    """The tangent is corr(dx, w) + corr(x, dw), plus the tangent of the bias.

    The tangent of the bias is tested alone, where nothing is rounded.
    """
    problem = case.problem
    x, w, _ = case.operands()
    dx, dw, _ = case.another().operands()
    with forward_ad.dual_level():
        dual = (_dual(x, dx), _dual(w, dw))
        try:
            y = subject.forward(problem, *dual)
            tangent = forward_ad.unpack_dual(y).tangent  # type: ignore[no-untyped-call]
        except NotImplementedError as error:
            raise Refusal(f"forward mode: {error}") from error
    if tangent is None:
        raise Violation("the output has no tangent")
    terms = oracle(problem, input=dx, weight=w), oracle(problem, input=x, weight=dw)
    require_alike("tangent", tangent, problem.output_shape, x)
    bounds = [
        subject.errors.bound(problem, term, slots, case.dtype)
        for term, slots in zip(terms, ((dx, w, None), (x, dw, None)))
    ]
    total = terms[0].value + terms[1].value
    bound = bounds[0] + bounds[1]
    bound = bound + unit_roundoff(case.dtype) * (total.abs() + bound)
    require_close("tangent", tangent, total, bound)
    _require_tangent_of_bias(subject, case)


def _require_tangent_of_bias(subject: Subject, case: Case) -> None:
    """Raise Violation unless the bias' tangent reaches the output, if the callable has a bias."""
    problem, db = case.problem, case.bias() + 4
    x, w, _ = case.operands()
    with suppress(Refusal):
        subject.forward(problem, x, w, case.bias())
        with forward_ad.dual_level():
            y = subject.forward(problem, x, w, _dual(case.bias(), db))
            tangent = forward_ad.unpack_dual(y).tangent  # type: ignore[no-untyped-call]
        if tangent is None:
            raise Violation("the output has no tangent if only the bias has one")
        require_alike("the bias' tangent", tangent, problem.output_shape, x)
        everywhere = db[:, None, None].expand(problem.output_shape)
        require_close("the bias' tangent", tangent, everywhere, torch.zeros(problem.output_shape))


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return dual


def finite_differences(subject: Subject, case: Case) -> None:
    """gradcheck and gradgradcheck of torch.autograd find no error in the gradients.

    A map is linear in each operand, so central differences have only rounding errors.  Images and
    channels are reduced by :func:`cut`, because on failure gradcheck computes the whole Jacobian.
    """
    problem = cut(case.problem)
    case = replace(case, data="normal", problem=problem)
    x, w, _ = case.operands()
    if 0 in (x.numel(), w.numel()):
        return
    x, w = leaves(x, w)

    def correlate(input: Tensor, weight: Tensor) -> Tensor:
        return subject.forward(problem, input, weight)

    for check in (gradcheck, gradgradcheck):
        try:
            with torch.random.fork_rng():
                torch.manual_seed(case.seed)
                check(correlate, (x, w), fast_mode=True)
        except GradcheckError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise Violation(f"{check.__name__}: {' '.join(lines[:3])}") from error
        except RuntimeError as error:
            raise Refusal(f"{check.__name__}: {error}") from error


def cut(p: Problem) -> Problem:
    """Reduce a problem to 3x3 outputs plus those of padding, 2 images, 3 groups of 2 channels.

    Padding is reduced so that at most two windows on each side contain only padding.
    """
    rows, columns = (
        (min(first, span - 1 + 2 * step), min(last, span - 1 + 2 * step))
        for (first, last), span, step in zip(p.padding, p.span, p.stride)
    )
    height, width = (
        min(size, max(1, span - sum(sides) + 2 * step))
        for size, span, sides, step in zip(p.size, p.span, (rows, columns), p.stride)
    )
    groups = min(p.groups, 3)
    return replace(
        p,
        batch=min(p.batch, 2),
        in_channels=groups * min(p.group_in, 2),
        out_channels=groups * min(p.group_out, 2),
        size=(height, width),
        padding=(rows, columns),
        groups=groups,
    )


def trilinear(subject: Subject, case: Case) -> None:
    """<y, forward(x, w)> = <x, grad_input(y, w)> = <w, grad_weight(x, y)>.

    The error of each inner product is at most its map's weighted errors plus its own rounding.
    For complex operands the products do not conjugate, and the gradients are those of the
    conjugated operands.
    """
    problem = case.problem
    x, w, y = case.operands()
    a, b = leaves(x.conj().resolve_conj(), w.conj().resolve_conj())
    grad_input, grad_weight = subject.pull(subject.forward(problem, a, b), (a, b), y)
    products, errors = [], []
    for result, mine, slots in (
        (subject.forward(problem, x, w), y, (x, w, None)),
        (grad_input, x, (None, w, y)),
        (grad_weight, w, (x, None, y)),
    ):
        product, error = _inner_product(subject, problem, result, mine, slots)
        products.append(product)
        errors.append(error)
    for i, name in ((1, "grad_input"), (2, "grad_weight")):
        apart = (products[0] - products[i]).abs()
        if not apart <= errors[0] + errors[i]:
            raise Violation(
                f"<y, forward> = {products[0].item()} but {name}'s product is "
                f"{products[i].item()}; they may differ by {float(errors[0] + errors[i]):.3g}"
            )


def _inner_product(
    subject: Subject,
    problem: Problem,
    result: Tensor,
    other: Tensor,
    slots: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """<other, result>, and the bound of its rounding error."""
    reference = oracle(problem, *slots)
    require_alike("a map's result", result, tuple(other.shape), other)
    wide = reference.value.dtype
    result, weights = (value.detach().cpu().to(wide) for value in (result, other))
    bound = subject.errors.bound(problem, reference, slots, other.dtype)
    own = 8 * (weights.numel() + 4) * unit_roundoff(torch.float64)
    error = (weights.abs() * (bound + own * (result.abs() + reference.magnitude))).sum()
    return (weights * result).sum(), error * (1 + own)
