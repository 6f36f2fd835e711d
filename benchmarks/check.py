"""A result is right when it lies within its bound of the float64 definition.

Where the oracle of ``torch_corr.testing`` fits (``WHOLE`` products or fewer) it judges every
element of the result.  Larger results are judged on a sample, because the oracle holds
all products at once: 8 GB of them for a 31x31 kernel on 1024x1024 pixels.

The sample holds the corners of the result (first and last image, channel, row and column,
where loops, vectors and tiles have their tails) and elements drawn afresh at every check,
at most ``SAMPLE`` in all and as many as ``PRODUCTS`` products allow, at least 8.  Each is a
sum over pixels and taps that index arithmetic finds directly, in float64:

    y[n,o,i,j] = sum over c,u,v of    x[n, c, i*s+u*d-p, j*s+v*d-p] * w[o,c,u,v]
    x[n,c,h,l] = sum over o,u,v of    y[n, o, (h+p-u*d)/s, (l+p-v*d)/s] * w[o,c,u,v]
    w[o,c,u,v] = sum over n,i,j of    x[n, c, i*s+u*d-p, j*s+v*d-p] * y[n,o,i,j]

over the indices that are whole and inside, on the device that holds the operands.  Elements
outside the sample must be finite.
So a wrong tile, tail, group, stride or sum is found; one wrong pixel amid a large image may
be missed: that is for the law tests, on small problems, where every element is checked.

Bounds are the conformance kit's.  An algorithm of ours is held to what it declares, PyTorch and
the peers, which may choose transforms inside, to ``SOME_TRANSFORM``.  With TF32 on, operands may
lose all but 11 digits first.

PyTorch and peers beyond that bound are ``rough`` while no error exceeds 16 rounding units of
the largest value (some sum in half precision); they are timed, and marked.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from torch_corr import Problem
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

from .cases import Work
from .results import Kind, Verdict

Slot: TypeAlias = Literal["input", "weight", "output"]
SLOTS: tuple[Slot, Slot, Slot] = ("input", "weight", "output")
Operands: TypeAlias = dict[Slot, Tensor]

SOUGHT: dict[Work, tuple[Slot, ...]] = {
    "forward": ("output",),
    "grad_input": ("input",),
    "grad_weight": ("weight",),
    "call": ("output",),
    "call+grad": ("input", "weight"),
}
"""The slots that each piece of work computes."""

GIVEN: dict[Work, tuple[Slot, ...]] = {
    "forward": ("input", "weight"),
    "grad_input": ("output", "weight"),
    "grad_weight": ("input", "output"),
    "call": ("input", "weight"),
    "call+grad": ("input", "weight", "output"),
}

WHOLE = 2**18
PRODUCTS = 2**24
SAMPLE = 160

SOME_TRANSFORM = Either((Componentwise(), Fourier(), Winograd()))
"""What is asked of those who choose by themselves."""

_ROUGH_UNITS = 16

Index: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True)
class Expected:
    """The truth about one slot, at some of its elements.

    Attributes:
        given: the other two.
        bounds: those that were asked for, which several contenders share.
    """

    slot: Slot
    given: Operands
    reference: Reference
    bounds: dict[tuple[ErrorModel, torch.dtype], Tensor] = field(default_factory=dict)

    def bound(self, problem: Problem, errors: ErrorModel, dtype: torch.dtype) -> Tensor:
        """How far results in a dtype may be off."""
        key = errors, dtype
        if key not in self.bounds:
            slots = tuple(self.given.get(slot) for slot in SLOTS)
            self.bounds[key] = errors.bound(problem, self.reference, slots, dtype)
        return self.bounds[key]


class Judgement(NamedTuple):
    verdict: Verdict
    error: float | None
    """The largest error over its bound."""
    note: str = ""


def shape_of(problem: Problem, slot: Slot) -> tuple[int, int, int, int]:
    shape: tuple[int, int, int, int] = getattr(problem, f"{slot}_shape")
    return shape


def expected(
    problem: Problem, work: Work, operands: Operands, rng: random.Random
) -> tuple[Expected, ...]:
    """What the work must give from these operands, whole or on a fresh sample."""
    found = []
    for slot in SOUGHT[work]:
        given = {name: value for name, value in operands.items() if name != slot}
        if problem.multiplications <= WHOLE:
            found.append(Expected(slot, given, oracle(problem, **given)))
        else:
            at = sample(problem, slot, rng)
            found.append(Expected(slot, given, reference_at(problem, slot, given, at)))
    return tuple(found)


def sample(problem: Problem, slot: Slot, rng: random.Random) -> list[Index]:
    """Corners of the slot and random elements, as many as can be afforded."""
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
    values, magnitudes, terms = [], [], []
    for index in at:
        products = _products(problem, slot, exact, index)
        values.append(products.sum())
        magnitudes.append(products.abs().sum())
        terms.append(products.numel())
    return Reference(
        torch.stack(values).cpu(),
        torch.stack(magnitudes).cpu(),
        torch.tensor(terms, dtype=torch.float64),
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
    """Whether results are right, by the bound that their maker is held to."""
    worst, verdict = 0.0, "right"
    if tf32:
        errors = Either((errors, Componentwise(operands=TF32_READING)))
    for truth, result in zip(truths, results):
        shape = shape_of(problem, truth.slot)
        if tuple(result.shape) != shape:
            return Judgement("wrong", None, f"shape {tuple(result.shape)}, expected {shape}")
        if not bool(torch.isfinite(result).all()):
            return Judgement("wrong", None, "NaN or Inf from finite operands")
        got = result.detach()
        if truth.reference.at is not None:
            got = got[truth.reference.at]
        got = got.cpu().resolve_conj()
        value = truth.reference.value
        off = (got.to(value.dtype) - value).abs()
        bound = truth.bound(problem, errors, result.dtype)
        # An element without terms has a bound of zero, and must be zero.
        ratio = float(torch.where(off > 0, off / bound, 0.0).max())
        worst = max(worst, ratio)
        if ratio <= 1:
            continue
        limit = _ROUGH_UNITS * torch.finfo(result.dtype).eps * float(value.abs().max())
        if kind != "ours" and float(off.max()) <= limit:
            verdict = "rough"
        else:
            worst_at = int(torch.where(off > 0, off / bound, 0.0).argmax())
            return Judgement(
                "wrong",
                ratio,
                f"{truth.slot}: off by {float(off.flatten()[worst_at]):.3g} where at most "
                f"{float(bound.flatten()[worst_at]):.3g} is allowed",
            )
    return Judgement("rough" if verdict == "rough" else "right", worst)


def _products(problem: Problem, slot: Slot, given: Operands, index: Index) -> Tensor:
    """The products that one element sums: a vector of float64 or complex128."""
    p = problem
    if slot == "output":
        n, o, *at = index
        (r, u), (c, v) = (_seen_by(p, axis, at[axis]) for axis in (0, 1))
        group = o // p.group_out
        channels = slice(group * p.group_in, (group + 1) * p.group_in)
        a, b = given["input"][n, channels], given["weight"][o]
        return (a[:, r][:, :, c] * b[:, u][:, :, v]).flatten()
    if slot == "input":
        n, channel, *at = index
        (i, u), (j, v) = (_reaching(p, axis, at[axis]) for axis in (0, 1))
        group, c_in_group = divmod(channel, p.group_in)
        outputs = slice(group * p.group_out, (group + 1) * p.group_out)
        a, b = given["output"][n, outputs], given["weight"][outputs, c_in_group]
        return (a[:, i][:, :, j] * b[:, u][:, :, v]).flatten()
    o, c_in_group, *at = index
    (r, i), (c, j) = (_met_by(p, axis, at[axis]) for axis in (0, 1))
    channel = (o // p.group_out) * p.group_in + c_in_group
    a, b = given["input"][:, channel], given["output"][:, o]
    return (a[:, r][:, :, c] * b[:, i][:, :, j]).flatten()


def _seen_by(p: Problem, axis: int, output: int) -> tuple[Tensor, Tensor]:
    """(pixels, taps) that meet at an output, along one axis."""
    taps = torch.arange(p.kernel[axis])
    pixels = output * p.stride[axis] + taps * p.dilation[axis] - p.padding[axis][0]
    inside = (pixels >= 0) & (pixels < p.size[axis])
    return pixels[inside], taps[inside]


def _reaching(p: Problem, axis: int, pixel: int) -> tuple[Tensor, Tensor]:
    """(outputs, taps) that meet at a pixel."""
    taps = torch.arange(p.kernel[axis])
    start = pixel + p.padding[axis][0] - taps * p.dilation[axis]
    outputs = start.div(p.stride[axis], rounding_mode="floor")
    whole = start == outputs * p.stride[axis]
    inside = whole & (outputs >= 0) & (outputs < p.output_size[axis])
    return outputs[inside], taps[inside]


def _met_by(p: Problem, axis: int, tap: int) -> tuple[Tensor, Tensor]:
    """(pixels, outputs) that meet at a tap."""
    outputs = torch.arange(p.output_size[axis])
    pixels = outputs * p.stride[axis] + tap * p.dilation[axis] - p.padding[axis][0]
    inside = (pixels >= 0) & (pixels < p.size[axis])
    return pixels[inside], outputs[inside]
