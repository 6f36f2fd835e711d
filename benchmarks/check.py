"""Compare the result of a contender with the definition in float64, within a derived bound.

A problem of ``WHOLE`` products or fewer is compared at every element, with the oracle of
``torch_corr.testing``.  The oracle stores all products, which takes 8 GB for a 31x31 kernel on
1024x1024 pixels.  So larger problems are compared on a sample of their elements: corners of the
result, where loops, vectors and tiles end, and elements drawn again for each check.  There are at
most ``SAMPLE``, at most as many as ``PRODUCTS`` products allow, and at least 8.  Each is computed
as a sum over pixels and taps, in float64.  All other elements must be finite.  So a wrong tile,
tail, group, stride or sum is found; a single wrong pixel inside a large image may be missed.  The
tests check every element of small problems.

An algorithm of this library must keep the bound that it declares; PyTorch and the peers, which may
use transforms, must keep ``SOME_TRANSFORM``.  With TF32, operands may lose all but 11 digits first.
A result of PyTorch or a peer beyond its bound is ``rough`` if no error exceeds 16 rounding units of
the largest value (some sum in half precision).  It is timed and marked.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from torch_corr import MAPS, Problem
from torch_corr.request import SLOTS, Slot, shape_of
from torch_corr.testing import (
    TF32_READING,
    Componentwise,
    Either,
    ErrorModel,
    Fourier,
    Reference,
    Winograd,
    oracle,
)

from .cases import Task, Work
from .results import Kind, Verdict

Operands: TypeAlias = dict[Slot, Tensor]
Index: TypeAlias = tuple[int, int, int, int]

GIVEN: dict[Work, tuple[Slot, ...]] = {
    **{map: SLOTS[map][:2] for map in MAPS},
    "call": ("input", "weight"),
    "call+grad": ("input", "weight", "output"),
}
"""The slots that each piece of work reads."""

COMPUTED: dict[Work, tuple[Slot, ...]] = {
    **{map: SLOTS[map][2:] for map in MAPS},
    "call": ("output",),
    "call+grad": ("input", "weight"),
}
"""The slots that each piece of work computes."""

WHOLE = 2**18
PRODUCTS = 2**24
SAMPLE = 160

SOME_TRANSFORM = Either((Componentwise(), Fourier(), Winograd()))
"""The bound for contenders that choose their method themselves."""

_ROUGH_UNITS = 16


@dataclass(frozen=True)
class Expected:
    """The exact values of one slot, at all or some of its elements.

    Attributes:
        given: the other two slots.
        bounds: the bounds computed so far, which several contenders share.
    """

    slot: Slot
    given: Operands
    reference: Reference
    bounds: dict[tuple[ErrorModel, torch.dtype], Tensor] = field(default_factory=dict)

    def bound(self, problem: Problem, errors: ErrorModel, dtype: torch.dtype) -> Tensor:
        """The largest allowed error of results in a dtype."""
        key = errors, dtype
        if key not in self.bounds:
            slots = self.given.get("input"), self.given.get("weight"), self.given.get("output")
            self.bounds[key] = errors.bound(problem, self.reference, slots, dtype)
        return self.bounds[key]


class Judgement(NamedTuple):
    verdict: Verdict
    error: float | None
    """The largest error over its bound."""
    note: str = ""


def expected(task: Task, operands: Operands, rng: random.Random) -> tuple[Expected, ...]:
    """The exact results of the task, complete or on a new sample."""
    problem, found = task.problem, []
    for slot in COMPUTED[task.work]:
        given = {name: value for name, value in operands.items() if name != slot}
        if problem.multiplications <= WHOLE:
            reference = oracle(problem, **given)
        else:
            reference = reference_at(problem, slot, given, sample(problem, slot, rng))
        found.append(Expected(slot, given, reference))
    return tuple(found)


def sample(problem: Problem, slot: Slot, rng: random.Random) -> list[Index]:
    """Corners of the slot and random elements, as many as ``PRODUCTS`` allows."""
    shape = shape_of(problem, slot)
    terms = max(1, problem.multiplications // math.prod(shape))
    count = max(8, min(SAMPLE, PRODUCTS // terms))
    first, second, third, fourth = (sorted({0, size - 1}) for size in shape)
    corners: list[Index] = list(product(first, second, third, fourth))
    rng.shuffle(corners)
    at = corners[: count // 2]
    while len(at) < count:
        n, c, i, j = (rng.randrange(size) for size in shape)
        at.append((n, c, i, j))
    return at


def reference_at(problem: Problem, slot: Slot, given: Operands, at: list[Index]) -> Reference:
    """Exact values, magnitudes and numbers of terms of some elements of a slot."""
    exact: Operands = {}
    for name, value in given.items():
        wide = torch.complex128 if value.is_complex() else torch.float64
        exact[name] = value.detach().to(wide)
    products = [_products(problem, slot, exact, index) for index in at]
    return Reference(
        torch.stack([each.sum() for each in products]).cpu(),
        torch.stack([each.abs().sum() for each in products]).cpu(),
        torch.tensor([each.numel() for each in products], dtype=torch.float64),
        integral=False,
        at=tuple(torch.tensor(axis) for axis in zip(*at)),
    )


def judge(
    problem: Problem,
    truths: tuple[Expected, ...],
    results: tuple[Tensor, ...],
    errors: ErrorModel,
    kind: Kind,
    tf32: bool = False,
) -> Judgement:
    """The verdict on the results of one contender, by the bound that applies to it."""
    if tf32:
        errors = Either((errors, Componentwise(operands=TF32_READING)))
    worst = 0.0
    verdict: Verdict = "right"
    for truth, result in zip(truths, results):
        shape = shape_of(problem, truth.slot)
        if tuple(result.shape) != shape:
            return Judgement("wrong", None, f"shape {tuple(result.shape)}, expected {shape}")
        if not bool(torch.isfinite(result).all()):
            return Judgement("wrong", None, "NaN or Inf from finite operands")
        got, value = result.detach(), truth.reference.value
        if truth.reference.at is not None:
            got = got[truth.reference.at]
        off = (got.cpu().resolve_conj().to(value.dtype) - value).abs().flatten()
        bound = truth.bound(problem, errors, result.dtype).flatten()
        # An element without terms has a bound of zero, and must be zero.
        ratios = torch.where(off > 0, off / bound, 0.0)
        ratio, at = float(ratios.max()), int(ratios.argmax())
        worst = max(worst, ratio)
        if ratio <= 1:
            continue
        limit = _ROUGH_UNITS * torch.finfo(result.dtype).eps * float(value.abs().max())
        if kind == "ours" or float(off.max()) > limit:
            note = f"off by {float(off[at]):.3g}, allowed are {float(bound[at]):.3g}"
            return Judgement("wrong", ratio, f"{truth.slot}: {note}")
        verdict = "rough"
    return Judgement(verdict, worst)


def _products(problem: Problem, slot: Slot, given: Operands, index: Index) -> Tensor:
    """The products that one element sums: a vector of float64 or complex128."""
    p = problem
    first, second, *at = index
    rows, columns = (_meeting(p, slot, axis, at[axis]) for axis in (0, 1))

    def part(name: Slot, *leading: int | slice) -> Tensor:
        return given[name][leading][:, rows[name]][:, :, columns[name]]

    if slot == "output":
        inputs = _group(second // p.group_out, p.group_in)
        a, b = part("input", first, inputs), part("weight", second)
    elif slot == "input":
        group, channel = divmod(second, p.group_in)
        outputs = _group(group, p.group_out)
        a, b = part("output", first, outputs), part("weight", outputs, channel)
    else:
        channel = (first // p.group_out) * p.group_in + second
        a, b = part("input", slice(None), channel), part("output", slice(None), first)
    return (a * b).flatten()


def _group(group: int, size: int) -> slice:
    """The channels of a group of this size."""
    return slice(group * size, (group + 1) * size)


def _meeting(p: Problem, slot: Slot, axis: int, at: int) -> dict[Slot, Tensor]:
    """Along an axis, the pixels, taps and outputs of all products with one position of a slot."""
    outputs, taps = torch.meshgrid(
        torch.arange(p.output_size[axis]), torch.arange(p.kernel[axis]), indexing="ij"
    )
    pixels = outputs * p.stride[axis] + taps * p.dilation[axis] - p.padding[axis][0]
    positions: dict[Slot, Tensor] = {"input": pixels, "weight": taps, "output": outputs}
    inside = (positions[slot] == at) & (pixels >= 0) & (pixels < p.size[axis])
    return {name: each[inside] for name, each in positions.items()}
