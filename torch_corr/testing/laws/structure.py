"""Laws about structure: linearity, translation, groups and batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...problem import Problem
from ..oracle import exact, oracle
from ..subject import Case, Subject, Violation, require_close


def linearity(subject: Subject, case: Case) -> None:
    """corr(2a - 3b, w) = 2 corr(a, w) - 3 corr(b, w), and likewise for the weight."""
    problem = case.problem
    x, w, _ = case.operands()
    x_, w_, _ = case.another().operands()
    for mixed, one, other in (
        ((2 * x - 3 * x_, w), (x, w), (x_, w)),
        ((x, 2 * w - 3 * w_), (x, w), (x, w_)),
    ):
        pairs = mixed, one, other
        of_sum, first, second = (subject.forward(problem, *pair) for pair in pairs)
        bounds = [_bound(subject, problem, *pair) for pair in pairs]
        bound = bounds[0] + 2 * bounds[1] + 3 * bounds[2]
        require_close("output of a sum", of_sum, 2 * exact(first) - 3 * exact(second), bound)


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
    bound = _bound(subject, framed, at_first, w)[..., :-1, :-1]
    bound = bound + _bound(subject, framed, moved, w)[..., 1:, 1:]
    require_close("moved output", after[..., 1:, 1:], exact(before[..., :-1, :-1]), bound)


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
        require_close("output of a part", part, exact(whole[where]), bound)


def _bound(subject: Subject, problem: Problem, x: Tensor, w: Tensor) -> Tensor:
    reference = oracle(problem, input=x, weight=w)
    return subject.errors.bound(problem, reference, (x, w, None), x.dtype)
