"""Where operands lie, and what else lies there, changes nothing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from ...problem import Problem
from ..oracle import oracle
from ..poison import poisoned
from ..subject import Case, Refusal, Subject, Violation
from .base import is_differentiable, leaves, moot

CONTIGUOUS = torch.contiguous_format


def memory_formats(subject: Subject, case: Case) -> None:
    """Strides, offsets and lazy conjugation of the operands change nothing, also in gradients."""
    values = case.operands()
    with moot("wrong for contiguous operands already"):
        plain = [value.resolve_conj().clone(memory_format=CONTIGUOUS) for value in values]
        _require_maps(subject, case, *plain)
    try:
        _require_maps(subject, case, *values)
    except Refusal as refusal:
        raise Violation(f"with these strides a valid problem raises {refusal}") from refusal


def stale_memory(subject: Subject, case: Case) -> None:
    """What uninitialised memory holds reaches no result: here it is NaN (the largest integer)."""
    values = case.operands()
    with poisoned():
        results = subject.maps(case.problem, *values)
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
    """The operands are not written to, and no result shares their memory."""
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


def non_finite(subject: Subject, case: Case) -> None:
    """NaN and infinity reach the results whose sums hold them, and no others.

    One element of one operand is made NaN or infinite.  A result that multiplies it by a pixel
    of the image is what the definition makes of it; one that meets it over the padding may or
    may not be; all others stay finite, and right.
    """
    problem = case.problem
    x, w, g = (value.contiguous() for value in case.operands())
    choice = case.seed
    for special in (float("nan"), float("inf")):
        everywhere = complex(special, special) if case.dtype.is_complex else special
        _spread(subject, problem, x, w, g, everywhere, choice)


def _spread(
    subject: Subject,
    problem: Problem,
    x: Tensor,
    w: Tensor,
    g: Tensor,
    special: complex,
    choice: int,
) -> None:
    slots = {"input": x, "weight": w, "output": g}
    for marked, clean in slots.items():
        if clean.numel() == 0:
            continue
        where = choice % clean.numel()
        dirty = clean.clone()
        dirty.view(-1)[where : where + 1].fill_(special)
        mark = torch.zeros_like(clean, dtype=torch.float64, device="cpu")
        mark.view(-1)[where] = 1
        operands = {**slots, marked: dirty}
        for opened, result in _maps(subject, problem, operands, marked).items():
            others = {name: value for name, value in slots.items() if name != opened}
            ones = {
                name: mark if name == marked else torch.ones(value.shape, dtype=torch.float64)
                for name, value in others.items()
            }
            meets = oracle(problem, **ones).value > 0
            may = _over_padding(problem, opened, marked, mark)
            name = f"{opened} with {special} in {marked}"
            got = result.detach().cpu()
            reached = ~(got.isfinite())
            if (meets & ~reached).any():
                count = int((meets & ~reached).sum())
                raise Violation(f"{name}: {count} results whose sums hold it are finite")
            if (reached & ~meets & ~may).any():
                count = int((reached & ~meets & ~may).sum())
                raise Violation(f"{name}: {count} results are not finite that do not meet it")
            subject.require(name, result, problem, **others, only=~meets & ~may)


def _maps(
    subject: Subject, problem: Problem, operands: dict[str, Tensor], marked: str
) -> dict[str, Tensor]:
    """The results that read the marked operand, by the slot that they open."""
    a, b = leaves(*(operands[name].conj().resolve_conj() for name in ("input", "weight")))
    g = operands["output"]
    grad_input, grad_weight = subject.pull(subject.forward(problem, a, b), (a, b), g)
    output = subject.forward(problem, operands["input"], operands["weight"])
    results = {"input": grad_input, "weight": grad_weight, "output": output}
    del results[marked]
    return results


def _over_padding(problem: Problem, opened: str, marked: str, mark: Tensor) -> Tensor:
    """Results that may meet the mark over the padding, where it is multiplied by zero."""
    if opened == "input" or marked == "input":
        return torch.tensor(False)  # pixels of the image are never over the padding
    whole = replace(problem, size=problem.padded_size, padding=((0, 0), (0, 0)))
    ones = torch.ones(whole.input_shape, dtype=torch.float64)
    return oracle(whole, input=ones, **{marked: mark}).value > 0


def _require_maps(subject: Subject, case: Case, x: Tensor, w: Tensor, g: Tensor) -> None:
    subject.require_maps(subject.maps(case.problem, x, w, g), case.problem, x, w, g)
