"""The results are those of the definition, for every valid problem."""

from __future__ import annotations

from dataclasses import replace

from ...problem import Problem
from ..bounds import unit_roundoff
from ..oracle import oracle
from ..subject import Case, Refusal, Subject, Violation, require_alike, require_close
from .base import is_differentiable, leaves


def accepts(subject: Subject, case: Case) -> None:
    """A valid problem is computed: no error, the right shape, the operands' dtype and device."""
    x, w, _ = case.operands()
    try:
        subject.forward(case.problem, x, w)
    except Refusal as refusal:
        raise Violation(f"a valid problem raises {refusal}") from refusal


def values(subject: Subject, case: Case) -> None:
    """Every output is the definition's, within the rounding errors that are promised."""
    x, w, _ = case.operands()
    y = subject.forward(case.problem, x, w)
    subject.require("output", y, case.problem, input=x, weight=w)


def bias(subject: Subject, case: Case) -> None:
    """A bias is added to every pixel of its channel; its gradient is their gradients' sum.

    The bias may be one more term of the sum, or be added to the rounded sum.
    """
    problem, b = case.problem, case.bias()
    x, w, g = case.operands()
    if is_differentiable(case.dtype):
        (b,) = leaves(b)
    y = subject.forward(problem, x, w, b)
    without = oracle(problem, input=x, weight=w)
    added = b.detach().cpu().to(without.value.dtype)[:, None, None]
    reference = without._replace(
        value=without.value + added,
        magnitude=without.magnitude + added.abs(),
        terms=without.terms + 1,
    )
    bound = subject.errors.bound(problem, reference, (x, w, None), case.dtype)
    roundings = unit_roundoff(case.dtype) * (without.value.abs() + reference.value.abs() + bound)
    require_close("output", y, reference.value, bound + roundings)
    if y.requires_grad:
        (gradient,) = subject.pull(y, (b,), g)
        require_alike("grad_bias", gradient, b.shape, g)
        # The bias is the 1x1 kernel of one more channel, which is 1 everywhere.
        channel = Problem(problem.batch, 1, problem.output_size, problem.out_channels, (1, 1))
        ones = g.new_ones(channel.input_shape)
        kernel = gradient.reshape(channel.weight_shape)
        subject.require("grad_bias", kernel, channel, input=ones, output=g)


def zero_sizes(subject: Subject, case: Case) -> None:
    """No images give no images; no channels sum to zero; and the gradients likewise."""
    for nothing, problem in (
        ("no images", replace(case.problem, batch=0)),
        ("no channels", replace(case.problem, in_channels=0)),
    ):
        try:
            x, w, g = replace(case, problem=problem).operands()
            if is_differentiable(case.dtype):
                x, w = leaves(x, w)
            what = f"output with {nothing}"
            y = subject.forward(problem, x, w, what=what)
            subject.require(what, y, problem, input=x, weight=w)
            if is_differentiable(case.dtype) and y.requires_grad:
                for got, name in zip(subject.pull(y, (x, w), g), ("input", "weight")):
                    slots = {"input": x, "weight": w, "output": g}
                    del slots[name]
                    subject.require(f"grad_{name} with {nothing}", got, problem, **slots)
        except Refusal as refusal:
            raise Violation(f"{nothing} raises {refusal}") from refusal


def large_numbers(subject: Subject, case: Case) -> None:
    """A stride or dilation beyond 32 bits is no smaller one: pixel numbers do not wrap around."""
    for extra in (2**31, 2**32, 2**32 + 1):
        problem = case.problem
        stride, dilation = list(problem.stride), list(problem.dilation)
        kernel = list(problem.kernel)
        for axis in (0, 1):
            if stride[axis] > 1:
                stride[axis] += extra
            if dilation[axis] > 1:
                kernel[axis], dilation[axis] = 1, dilation[axis] + extra
        problem = replace(
            problem,
            stride=(stride[0], stride[1]),
            dilation=(dilation[0], dilation[1]),
            kernel=(kernel[0], kernel[1]),
        )
        if problem == case.problem:
            return
        values(subject, replace(case, problem=problem))
