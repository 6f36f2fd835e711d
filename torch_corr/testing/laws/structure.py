"""Laws about structure: linearity, translation, groups and batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...problem import Problem
from ..oracle import oracle
from ..subject import Case, Subject, Violation, require_close
from .base import is_differentiable


def linearity(subject: Subject, case: Case) -> None:
    """corr(2a - 3b, w) = 2 corr(a, w) - 3 corr(b, w), and likewise for the weight."""
    problem = case.problem
    x, w, _ = case.operands()
    x_, w_, _ = case.another().operands()
    wide = torch.int64
    if is_differentiable(case.dtype):
        wide = torch.complex128 if case.dtype.is_complex else torch.float64
    for mixed, one, other in (
        ((2 * x - 3 * x_, w), (x, w), (x_, w)),
        ((x, 2 * w - 3 * w_), (x, w), (x, w_)),
    ):
        results, bounds = [], []
        for pair in (mixed, one, other):
            result = subject.forward(problem, *pair)
            results.append(result.detach().cpu().to(wide))
            bounds.append(_bound(subject, problem, *pair))
        expected = 2 * results[1] - 3 * results[2]
        bound = bounds[0] + 2 * bounds[1] + 3 * bounds[2]
        require_close("output of a sum", results[0].to(_kept(case, wide)), expected, bound)


def translation(subject: Subject, case: Case) -> None:
    """Moving the image by one stride within zeros moves the output by one pixel."""
    p = case.problem
    down, across = p.stride
    framed = replace(p, size=(p.size[0] + down, p.size[1] + across))
    x, w, _ = case.operands()
    at_first, moved = x.new_zeros(framed.input_shape), x.new_zeros(framed.input_shape)
    height, width = p.size
    at_first[:, :, :height, :width] = x
    moved[:, :, down:, across:] = x
    before, after = subject.forward(framed, at_first, w), subject.forward(framed, moved, w)
    expected = before.detach()[..., :-1, :-1].cpu()
    bound = _bound(subject, framed, at_first, w)[..., :-1, :-1]
    bound = bound + _bound(subject, framed, moved, w)[..., 1:, 1:]
    require_close("moved output", after[..., 1:, 1:], _wide(expected), bound)


def groups(subject: Subject, case: Case) -> None:
    """Each group of channels is a separate problem."""
    p = case.problem
    alone = replace(p, in_channels=p.group_in, out_channels=p.group_out, groups=1)
    x, w, _ = case.operands()
    parts = (
        (x[:, g * p.group_in : (g + 1) * p.group_in], w[outputs], (slice(None), outputs))
        for g in range(p.groups)
        for outputs in (slice(g * p.group_out, (g + 1) * p.group_out),)
    )
    _parts_make_the_whole(subject, p, alone, x, w, parts)


def batch(subject: Subject, case: Case) -> None:
    """Each image of a batch is a separate problem."""
    p = case.problem
    x, w, _ = case.operands()
    parts = ((x[n : n + 1], w, (slice(n, n + 1),)) for n in range(p.batch))
    _parts_make_the_whole(subject, p, replace(p, batch=1), x, w, parts)


def batch_invariance(subject: Subject, case: Case) -> None:
    """An image's output does not depend on the rest of the batch, to the last bit."""
    p = case.problem
    x, w, _ = case.operands()
    whole = subject.forward(p, x, w)
    for n in range(p.batch):
        alone = subject.forward(replace(p, batch=1), x[n : n + 1], w)
        if not torch.equal(alone, whole[n : n + 1]):
            apart = (alone - whole[n : n + 1]).abs().max().item()
            raise Violation(f"image {n} of {p.batch} alone differs from itself by {apart}")


def _parts_make_the_whole(
    subject: Subject,
    problem: Problem,
    alone: Problem,
    x: Tensor,
    w: Tensor,
    parts: Iterator[tuple[Tensor, Tensor, tuple[slice, ...]]],
) -> None:
    whole = subject.forward(problem, x, w)
    for input, weight, where in parts:
        part = subject.forward(alone, input, weight, what="output of a part")
        bound = 2 * _bound(subject, alone, input, weight)
        require_close("output of a part", part, _wide(whole[where].detach().cpu()), bound)


def _bound(subject: Subject, problem: Problem, x: Tensor, w: Tensor) -> Tensor:
    reference = oracle(problem, input=x, weight=w)
    return subject.errors.bound(problem, reference, (x, w, None), x.dtype)


def _wide(value: Tensor) -> Tensor:
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value


def _kept(case: Case, wide: torch.dtype) -> torch.dtype:
    """The dtype of the comparison: integers wrap around in their own dtype."""
    return wide if is_differentiable(case.dtype) else case.dtype
