"""Where operands lie, and what else lies there, changes nothing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...problem import Problem
from ..data import SLOTS, Operands
from ..oracle import oracle
from ..poison import litter, poisoned
from ..subject import Case, ExpectedMaps, Refusal, Subject, Violation, require_alike
from .base import is_differentiable, leaves, moot

CONTIGUOUS = torch.contiguous_format


def memory_formats(subject: Subject, case: Case) -> None:
    """Strides, offsets and lazy conjugation of the operands do not change the output.

    Also where gradients are asked for, since training may take another path.
    """
    values = case.operands()
    plain = _contiguous(values)
    expected = subject.expect_maps(case.problem, *plain)
    with moot("wrong for contiguous operands already"):
        expected.require("output", subject.forward(case.problem, plain.input, plain.weight))
    for training in (False, True) if is_differentiable(case.dtype) else (False,):
        x, w = leaves(*values[:2]) if training else values[:2]
        try:
            y = subject.forward(case.problem, x, w)
        except Refusal as refusal:
            raise Violation(f"with these strides a valid problem raises {refusal}") from refusal
        expected.require("output", y, what="output in training" if training else "output")


def gradient_memory_formats(subject: Subject, case: Case) -> None:
    """Nor do they change the gradients; the gradient that comes in may lie in any layout too."""
    values = case.operands()
    plain = _contiguous(values)
    expected = subject.expect_maps(case.problem, *plain)
    with moot("wrong for contiguous operands already"):
        _require_gradients(subject, case.problem, plain, expected)
    try:
        _require_gradients(subject, case.problem, values, expected)
    except Refusal as refusal:
        raise Violation(f"with these strides a valid problem raises {refusal}") from refusal


def _contiguous(values: Operands) -> Operands:
    return Operands(*(each.resolve_conj().clone(memory_format=CONTIGUOUS) for each in values))


def _require_gradients(
    subject: Subject, problem: Problem, values: Operands, expected: ExpectedMaps
) -> None:
    x, w = leaves(values.input, values.weight)
    y = subject.forward(problem, x, w)
    gradients = subject.pull(y, (x, w), values.output)
    expected.require_all(dict(zip(("grad_input", "grad_weight"), gradients)))


def stale_memory(subject: Subject, case: Case) -> None:
    """What uninitialised memory holds reaches no result: here it is NaN (the largest integer).

    So is what was just given back, which those get who do not take theirs from ``torch.empty``.
    """
    values = case.operands()
    with poisoned():
        results = subject.maps(case.problem, *values, before=partial(litter, case.device))
    if is_differentiable(case.dtype):
        for name, result in results.items():
            stale = int((~result.isfinite()).sum())
            if stale:
                raise Violation(f"{name} holds {stale} NaN or infinities of {result.numel()}")
        return
    x, w, _ = values
    with moot("wrong in memory of any kind"):
        clean = subject.forward(case.problem, x, w)
        subject.require("output", clean, case.problem, input=x, weight=w)
    subject.require("output", results["output"], case.problem, input=x, weight=w)


def purity(subject: Subject, case: Case) -> None:
    """No operand and no earlier result is written to, and no result shares operands' memory."""
    values = case.operands()
    before = [value.clone() for value in values]
    b = case.bias()
    results = subject.maps(case.problem, *values)
    with suppress(Refusal):  # whoever takes no bias
        results["biased output"] = subject.forward(case.problem, values.input, values.weight, b)
    for name, value, old in zip(("input", "weight", "grad_output"), values, before):
        if not torch.equal(value, old):
            raise Violation(f"{name} was written to")
    if not torch.equal(b, case.bias()):
        raise Violation("bias was written to")
    for name, result in results.items():
        for operand, value in zip(("input", "weight", "grad_output"), values):
            shared = result.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
            if shared and result.numel() and value.numel():
                raise Violation(f"{name} shares the memory of {operand}")
    kept = {name: result.clone() for name, result in results.items()}
    subject.maps(case.problem, *case.another().operands())
    for name, result in results.items():
        if not torch.equal(result, kept[name]):
            raise Violation(f"a later call wrote to the earlier {name}")


def non_finite(subject: Subject, case: Case) -> None:
    """NaN and infinity reach the results whose sums hold them, and no others.

    One element of one operand is made NaN or infinite, among numbers or among zeros, or operands
    hold several already.  A result that multiplies one by a pixel of the image is not finite
    either; one that meets one over the padding may or may not be; all others are finite, and
    right.
    """
    problem = case.problem
    slots = dict(zip(SLOTS, (value.contiguous() for value in case.operands())))
    with moot("wrong for finite operands already"):
        finite = {name: _finite(value) for name, value in slots.items()}
        for opened, result in _maps(subject, problem, finite).items():
            others = {name: value for name, value in finite.items() if name != opened}
            subject.require(opened, result, problem, **others)
    if case.data == "special":
        for opened, result in _maps(subject, problem, slots).items():
            _require_contained(subject, problem, "special values", opened, result, slots)
        return
    for special in (float("nan"), float("inf")):
        everywhere = complex(special, special) if case.dtype.is_complex else special
        for marked, clean in slots.items():
            if clean.numel() == 0:
                continue
            dirty = clean.clone()
            dirty.view(-1)[case.seed % clean.numel()].fill_(everywhere)
            rest = slots
            if case.seed % 2:  # zeros, which hide nothing: zero times NaN is NaN
                rest = {name: torch.zeros_like(value) for name, value in slots.items()}
            operands = {**rest, marked: dirty}
            results = _maps(subject, problem, operands)
            del results[marked]  # which does not read it
            for opened, result in results.items():
                name = f"{special} in {marked}"
                _require_contained(subject, problem, name, opened, result, operands)


def _require_contained(
    subject: Subject,
    problem: Problem,
    what: str,
    opened: str,
    result: Tensor,
    slots: dict[str, Tensor],
) -> None:
    """That a map's result is not finite where its operands' NaN and infinities reach it alone."""
    operands = {name: value for name, value in slots.items() if name != opened}
    ones = {name: torch.ones(value.shape, dtype=torch.float64) for name, value in operands.items()}
    meets, may = torch.tensor(False), torch.tensor(False)
    for name, value in operands.items():
        mark = (~value.isfinite()).cpu().double()
        meets = meets | (oracle(problem, **{**ones, name: mark}).value > 0)
        may = may | _over_padding(problem, opened, name, mark)
    reached = ~result.detach().cpu().isfinite()
    for wrong, so in (
        (meets & ~reached, "whose sums hold one are finite"),
        (reached & ~meets & ~may, "are not finite that do not meet one"),
    ):
        if wrong.any():
            raise Violation(f"{opened} with {what}: {int(wrong.sum())} results {so}")
    clean = {name: _finite(value) for name, value in operands.items()}
    only = ~meets & ~may
    subject.require(f"{opened} with {what}", result, problem, **clean, only=only)


def _finite(value: Tensor) -> Tensor:
    """The value, with zero for what is not finite."""
    return torch.where(value.isfinite(), value, torch.zeros_like(value))


def _maps(subject: Subject, problem: Problem, slots: dict[str, Tensor]) -> dict[str, Tensor]:
    """The results by the slot that they open; of the form, hence of conjugated operands."""
    a, b = leaves(*(slots[name].conj().resolve_conj() for name in ("input", "weight")))
    grad_input, grad_weight = subject.pull(subject.forward(problem, a, b), (a, b), slots["output"])
    output = subject.forward(problem, slots["input"], slots["weight"])
    for got, slot in ((grad_input, "input"), (grad_weight, "weight")):
        require_alike(f"grad_{slot}", got, tuple(slots[slot].shape), slots[slot])
    return {"input": grad_input, "weight": grad_weight, "output": output}


def _over_padding(problem: Problem, opened: str, marked: str, mark: Tensor) -> Tensor:
    """Results that may meet the mark over the padding, where it is multiplied by zero."""
    if opened == "input" or marked == "input":
        return torch.tensor(False)  # pixels of the image are never over the padding
    whole = replace(problem, size=problem.padded_size, padding=((0, 0), (0, 0)))
    ones = torch.ones(whole.input_shape, dtype=torch.float64)
    return oracle(whole, input=ones, **{marked: mark}).value > 0
