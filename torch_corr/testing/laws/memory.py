"""Laws about memory: layouts, uninitialised memory, in-place writes, NaN and infinity."""

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
from .base import is_differentiable, leaves, moot, must_not_raise

CONTIGUOUS = torch.contiguous_format


def memory_formats(subject: Subject, case: Case) -> None:
    """Strides, offsets and lazy conjugation of the operands do not change the output.

    It is tested with and without gradients, which may use different code.
    """
    values = case.operands()
    plain = _contiguous(values)
    expected = subject.expect_maps(case.problem, *plain)
    with moot("wrong for contiguous operands already"):
        expected.require("output", subject.forward(case.problem, plain.input, plain.weight))
    for training in (False, True) if is_differentiable(case.dtype) else (False,):
        x, w = leaves(*values[:2]) if training else values[:2]
        with must_not_raise("with these strides a valid problem"):
            y = subject.forward(case.problem, x, w)
        expected.require("output", y, what="output in training" if training else "output")


def gradient_memory_formats(subject: Subject, case: Case) -> None:
    """Strides of operands and of the output's gradient do not change the gradients."""
    values = case.operands()
    plain = _contiguous(values)
    expected = subject.expect_maps(case.problem, *plain)
    with moot("wrong for contiguous operands already"):
        _require_gradients(subject, case.problem, plain, expected)
    with must_not_raise("with these strides a valid problem"):
        _require_gradients(subject, case.problem, values, expected)


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
    """Uninitialised memory does not reach a result; it is filled with NaN (the largest integer).

    Freed blocks are filled too, for kernels that do not allocate with ``torch.empty``.
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
    """Operands and earlier results are not modified, and results do not share operands' memory."""
    values = case.operands()
    before = [value.clone() for value in values]
    b = case.bias()
    results = subject.maps(case.problem, *values)
    with suppress(Refusal):  # the callable may have no bias
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
    """NaN and infinity reach the results whose sums contain them, and no others.

    One element of an operand is NaN or infinite, among numbers or zeros, or several are.  A result
    whose products contain it must not be finite.  A result that contains it only as a product with
    padding may be finite or not.  All other results must be finite and correct.
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
            if case.seed % 2:  # zero times NaN is NaN
                rest = {name: torch.zeros_like(value) for name, value in slots.items()}
            operands = {**rest, marked: dirty}
            results = _maps(subject, problem, operands)
            del results[marked]  # this map does not read the operand
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
    """Raise Violation unless NaN and infinity are only in results whose products contain them."""
    operands = {name: value for name, value in slots.items() if name != opened}
    ones = {name: torch.ones(value.shape, dtype=torch.float64) for name, value in operands.items()}
    must, may = torch.tensor(False), torch.tensor(False)
    for name, value in operands.items():
        mark = (~value.isfinite()).cpu().double()
        must = must | (oracle(problem, **{**ones, name: mark}).value > 0)
        may = may | _over_padding(problem, opened, name, mark)
    reached = ~result.detach().cpu().isfinite()
    for wrong, so in (
        (must & ~reached, "are finite although their sums contain one"),
        (reached & ~must & ~may, "are not finite although their sums contain none"),
    ):
        if wrong.any():
            raise Violation(f"{opened} with {what}: {int(wrong.sum())} results {so}")
    clean = {name: _finite(value) for name, value in operands.items()}
    only = ~must & ~may
    subject.require(f"{opened} with {what}", result, problem, **clean, only=only)


def _finite(value: Tensor) -> Tensor:
    """The value, with zeros instead of NaN and infinity."""
    return torch.where(value.isfinite(), value, torch.zeros_like(value))


def _maps(subject: Subject, problem: Problem, slots: dict[str, Tensor]) -> dict[str, Tensor]:
    """The results of the three maps by slot, without conjugation of the operands."""
    a, b = leaves(*(slots[name].conj().resolve_conj() for name in ("input", "weight")))
    grad_input, grad_weight = subject.pull(subject.forward(problem, a, b), (a, b), slots["output"])
    output = subject.forward(problem, slots["input"], slots["weight"])
    for got, slot in ((grad_input, "input"), (grad_weight, "weight")):
        require_alike(f"grad_{slot}", got, tuple(slots[slot].shape), slots[slot])
    return {"input": grad_input, "weight": grad_weight, "output": output}


def _over_padding(problem: Problem, opened: str, marked: str, mark: Tensor) -> Tensor:
    """The results in which a marked element may be multiplied by padding."""
    if opened == "input" or marked == "input":
        return torch.tensor(
            False
        )  # only the weight and the output's gradient are multiplied by padding
    whole = replace(problem, size=problem.padded_size, padding=((0, 0), (0, 0)))
    ones = torch.ones(whole.input_shape, dtype=torch.float64)
    return oracle(whole, input=ones, **{marked: mark}).value > 0
