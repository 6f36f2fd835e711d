"""How far a right result may lie from the exact one: derived, never picked.

Notation: ``u`` is the unit roundoff of a dtype, ``gamma(n, u) = n*u / (1 - n*u)``.

**Componentwise.**  A sum of ``n`` products in floating point, in any order, with or without
fused multiply-adds, multiplies each product by at most ``n`` factors ``(1 + delta)`` with
``|delta| <= u``: one for the product, at most ``n - 1`` for the additions above it.  Hence

    |computed - exact| <= gamma(n, u) * sum |a||b|

(Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., Lemma 3.1, (3.5), 4.2).
Direct loops, im2col with a matrix product, and implicit versions of either keep it.

**Normwise.**  Fourier transforms and Winograd's mix all pixels of an image or a tile, so their
errors are relative to it: ``normwise.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from ..algorithms import accumulation_dtype
from ..problem import Problem
from .oracle import Reference

Slots: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Input, weight and output, of which the open one is None."""

# A complex product from three real ones (Gauss), the least accurate in use, has
#   Re = xr*wr - xi*wi,  Im = (xr+xi)(wr+wi) - xr*wr - xi*wi.
# With S = sum |x||w|: sum |xr*wr| + |xi*wi| <= S and sum |xr+xi||wr+wi| <= 2 S.  At most
# n + 4 factors act on a term (two operand sums, the product, n - 1 additions, two final
# subtractions), so the errors of Re and Im are at most gamma(n + 4) times S and 3 S, and
# the modulus at most sqrt(1 + 9) gamma(n + 4) S < 4 gamma(n + 4) S.
_COMPLEX_FACTOR, _COMPLEX_EXTRA_TERMS = 4, 4

TF32_READING = 2.0**-10
"""TF32 has 11 digits; hardware that is fed float32 may cut the others off."""


class ErrorModel(Protocol):
    """What an algorithm promises about its rounding errors."""

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        """The largest error of each result in ``dtype``, float64."""
        ...


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number of the dtype; 0 for integers."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0.0
    return torch.finfo(dtype).eps / 2


def gamma(terms: Tensor, roundoff: float) -> Tensor:
    """``n*u / (1 - n*u)``; meaningful for n*u < 1."""
    return terms * roundoff / (1 - terms * roundoff)


def error_bound(
    reference: Reference, dtype: torch.dtype, summing: torch.dtype | None = None
) -> Tensor:
    """The largest componentwise error of a right map with results in ``dtype``.

    ``c * gamma(n, u_sum) * S + u_out * |y| + underflow``, where products are summed in
    ``summing`` (float32 for the halves, else the dtype itself), the result is rounded once
    to ``dtype``, and ``S = sum |a||b|``; c = 1 for real numbers, 4 (and n + 4) for complex
    ones.  The oracle's own float64 error is added.  Integers are exact; in a float dtype they
    are while ``c * S <= 1/u_sum``, since then no partial sum is rounded, in any order.

    Underflow: each of the n products, sums and the final rounding loses at most the
    smallest normal number, whether subnormals are kept or flushed to zero; so does a
    subnormal operand that is flushed, as long as the other one is at most 1.
    """
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.zeros_like(reference.magnitude)
    summing = summing or accumulation_dtype(dtype)
    roundoff = unit_roundoff(summing)
    factor, terms = 1, reference.terms
    if dtype.is_complex:
        factor, terms = _COMPLEX_FACTOR, terms + _COMPLEX_EXTRA_TERMS
    relative = gamma(terms, roundoff) + gamma(terms, unit_roundoff(torch.float64))
    error = factor * relative * reference.magnitude
    error = error + 3 * reference.terms * torch.finfo(summing).tiny
    if reference.integral:
        error = torch.where(factor * reference.magnitude <= 1 / roundoff, 0.0, error)
    return error if summing == dtype else rounded(error, reference, dtype)


@dataclass(frozen=True)
class Componentwise:
    """Products are summed as they are, in any order: :func:`error_bound`.

    Attributes:
        halves: dtype in which products of float16 and bfloat16 are summed; None: in their own.
        operands: relative error ``r`` with which operands are read, :data:`TF32_READING` for
            TF32.  A product is then off by ``(2 + r) r`` besides, as are its rounding errors.
    """

    halves: torch.dtype | None = torch.float32
    operands: float = 0.0

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        bound = error_bound(reference, dtype, summing_dtype(dtype, self.halves))
        return bound + (2 + self.operands) * self.operands * (reference.magnitude + bound)


def summing_dtype(dtype: torch.dtype, halves: torch.dtype | None) -> torch.dtype:
    """The dtype in which products are summed: ``halves`` for the halves, else their own."""
    half = dtype in (torch.float16, torch.bfloat16)
    return halves if half and halves is not None else dtype


def rounded(error: Tensor, reference: Reference, dtype: torch.dtype) -> Tensor:
    """The error, after one more rounding to ``dtype``; an exact small integer has none."""
    u = unit_roundoff(dtype)
    rounding = u * (reference.value.abs() + error)
    rounding = rounding + torch.finfo(dtype).tiny * (reference.terms > 0).double()
    exact = (error == 0) & (reference.value.abs() <= 1 / u) if reference.integral else False
    return error + torch.where(torch.as_tensor(exact), 0.0, rounding)
