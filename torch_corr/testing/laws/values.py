"""Laws about values: the output, the bias, empty sizes and large numbers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...problem import Problem
from ..bounds import unit_roundoff
from ..oracle import oracle
from ..subject import Case, Refusal, Subject, Violation, require_alike, require_close
from .base import is_differentiable, leaves, moot, must_not_raise


def accepts(subject: Subject, case: Case) -> None:
    """A valid problem raises no error; the output has the right shape, dtype and device."""
    x, w, _ = case.operands()
    with must_not_raise("a valid problem"):
        subject.forward(case.problem, x, w)


def values(subject: Subject, case: Case) -> None:
    """Every output is the definition's, within the error bound.

    It is tested with and without gradients, which may use different code.
    """
    x, w, g = case.operands()
    expected = subject.expect_maps(case.problem, x, w, g)
    expected.require("output", subject.forward(case.problem, x, w))
    if is_differentiable(case.dtype):
        a, b = leaves(x, w)
        y = subject.forward(case.problem, a, b)
        expected.require("output", y, what="output in training")


def bias(subject: Subject, case: Case) -> None:
    """A bias is added to every pixel of its channel; grad_bias sums the output's gradient.

    The bias may be one more term of the sum, or it may be added to the rounded sum.  Its stride may
    be greater than 1.  It does not change the gradients of input and weight.
    """
    problem, b = case.problem, case.bias()
    x, w, g = case.operands()
    _require_biased(subject, "output", case, x, w, b)
    apart = torch.stack([b, torch.zeros_like(b)], 1)[:, 0]
    _require_biased(subject, "output for a bias with gaps", case, x, w, apart)
    if not is_differentiable(case.dtype):
        return
    plain = subject.maps(problem, x, w, g)
    if "grad_weight" not in plain:
        return  # the law ``differentiable`` reports this
    (b,) = leaves(b)
    with must_not_raise("the gradient of a bias alone"):
        (alone,) = subject.pull(subject.forward(problem, x, w, b), (b,), g)
    _require_grad_bias(subject, "grad_bias alone", case, alone, g)
    expected = subject.expect_maps(problem, x, w, g)
    with moot("the gradients are wrong without a bias already"):
        expected.require_all(plain)
    x, w = leaves(x, w)
    y = subject.forward(problem, x, w, b)
    with must_not_raise("a problem with a bias"):
        grad_input, grad_weight, grad_bias = subject.pull(y, (x, w, b), g)
    _require_grad_bias(subject, "grad_bias", case, grad_bias, g)
    expected.require("grad_input", grad_input, what="grad_input with a bias")
    expected.require("grad_weight", grad_weight, what="grad_weight with a bias")


def _require_grad_bias(subject: Subject, what: str, case: Case, got: Tensor, g: Tensor) -> None:
    """Raise Violation unless grad_bias is correct: the gradient of a 1x1 kernel over ones."""
    p = case.problem
    channel = Problem(p.batch, 1, p.output_size, p.out_channels, (1, 1))
    require_alike(what, got, (p.out_channels,), g)
    ones, kernel = g.new_ones(channel.input_shape), got.reshape(channel.weight_shape)
    subject.require(what, kernel, channel, input=ones, output=g)


def _require_biased(
    subject: Subject, what: str, case: Case, x: Tensor, w: Tensor, b: Tensor
) -> None:
    """Raise Violation unless the output with a bias is correct."""
    problem = case.problem
    y = subject.forward(problem, x, w, b, what=what)
    without = oracle(problem, input=x, weight=w)
    added = b.detach().cpu().to(without.value.dtype)[:, None, None]
    reference = without._replace(
        value=without.value + added,
        magnitude=without.magnitude + added.abs(),
        terms=without.terms + 1,
    )
    bound = subject.errors.bound(problem, reference, (x, w, None), case.dtype)
    roundings = unit_roundoff(case.dtype) * (without.value.abs() + reference.value.abs() + bound)
    require_close(what, y, reference.value, bound + roundings)


def zero_sizes(subject: Subject, case: Case) -> None:
    """An empty batch gives an empty batch, and no channels give zeros; also in the gradients.

    No filters give no output channels, or raise an error as in ``F.conv2d``.
    """
    for nothing, problem in (
        ("no images", replace(case.problem, batch=0)),
        ("no channels", replace(case.problem, in_channels=0)),
        ("no filters", replace(case.problem, out_channels=0)),
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
            if nothing != "no filters":
                raise Violation(f"{nothing} raises {refusal}") from refusal


def large_numbers(subject: Subject, case: Case) -> None:
    """Strides and dilations above 32 bits work: pixel numbers do not wrap around."""
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
