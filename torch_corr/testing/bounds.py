"""Derived bounds for the rounding errors of a correlation.

Notation: ``u`` is the unit roundoff of a dtype, and ``gamma(n, u) = n*u / (1 - n*u)``.

**Componentwise.**  Consider a sum of ``n`` products in floating point, in any order, with or
without fused multiply-adds.  Each product is multiplied by at most ``n`` factors ``(1 + delta)``
with ``|delta| <= u``: one for the product and at most ``n - 1`` for the additions.  Hence

    |computed - exact| <= gamma(n, u) * sum |a||b|

(Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., Lemma 3.1, (3.5), 4.2).
This bound holds for direct loops, for im2col with a matrix product, and for implicit GEMM.

**Normwise.**  Fourier and Winograd transforms mix all pixels of an image or a tile, so their
errors are relative to its norm.  ``normwise.py`` has these bounds.
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
"""Input, weight and output; the open slot is None."""

# The least accurate common method computes a complex product from three real ones (Gauss):
#   Re = xr*wr - xi*wi,  Im = (xr+xi)(wr+wi) - xr*wr - xi*wi.
# With S = sum |x||w|: sum |xr*wr| + |xi*wi| <= S and sum |xr+xi||wr+wi| <= 2 S.  Each term has at
# most n + 4 factors (two operand sums, the product, n - 1 additions, two final subtractions).
# So the errors of Re and Im are at most gamma(n + 4) times S and 3 S, and the modulus of the
# error is at most sqrt(1 + 9) gamma(n + 4) S < 4 gamma(n + 4) S.
_COMPLEX_FACTOR, _COMPLEX_EXTRA_TERMS = 4, 4

TF32_READING = 2.0**-10
"""Relative error of an operand in TF32, which has 11 bits; hardware may truncate the others."""


class ErrorModel(Protocol):
    """A bound for the rounding errors of an algorithm."""

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        """The largest allowed error of each element of a map's result.

        Args:
            problem: the geometry.
            reference: the exact result.
            slots: the operands; the open slot is None.
            dtype: of the operands and the result.

        Returns:
            A float64 tensor of the result's shape.
        """
        ...


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next larger number of the dtype; 0 for integers."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0.0
    return torch.finfo(dtype).eps / 2


def gamma(terms: Tensor, roundoff: float) -> Tensor:
    """``n*u / (1 - n*u)``, for n*u < 1."""
    return terms * roundoff / (1 - terms * roundoff)


def error_bound(
    reference: Reference, dtype: torch.dtype, summing: torch.dtype | None = None
) -> Tensor:
    """The componentwise bound for a result in ``dtype``.

    ``c * gamma(n, u_sum) * S + u_out * |y| + underflow`` with ``S = sum |a||b|``.  c is 1 for real
    numbers; for complex ones c is 4, and n + 4 replaces n.  The oracle's own float64 error is
    added.  Integer dtypes must be exact.  Integers in a float dtype must be exact if
    ``c * S <= 1/u_sum``, because then no partial sum is rounded, in any order.

    Underflow: each of the n products and sums and the final rounding loses at most the smallest
    normal number, whether subnormals are kept or flushed to zero.  A flushed subnormal operand
    loses at most as much if the other operand is at most 1.

    Args:
        reference: the exact result with its magnitudes S and numbers of terms n.
        dtype: of the result, which is rounded once to it.
        summing: the dtype of the sums; None means float32 for float16 and bfloat16, and ``dtype``
            otherwise.

    Returns:
        A float64 tensor of the result's shape.
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
    """The bound of :func:`error_bound`, for sums of products in any order.

    Attributes:
        halves: the dtype of the sums for float16 and bfloat16; None means the operands' dtype.
        operands: the relative error ``r`` of the operands, :data:`TF32_READING` for TF32.  It adds
            a relative error of ``(2 + r) r`` to each product.
    """

    halves: torch.dtype | None = torch.float32
    operands: float = 0.0

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        bound = error_bound(reference, dtype, summing_dtype(dtype, self.halves))
        return bound + (2 + self.operands) * self.operands * (reference.magnitude + bound)


def summing_dtype(dtype: torch.dtype, halves: torch.dtype | None) -> torch.dtype:
    """The dtype of the sums: ``halves`` for float16 and bfloat16, ``dtype`` for the others."""
    half = dtype in (torch.float16, torch.bfloat16)
    return halves if half and halves is not None else dtype


def rounded(error: Tensor, reference: Reference, dtype: torch.dtype) -> Tensor:
    """The error after a final rounding to ``dtype``; exact small integers are not rounded."""
    u = unit_roundoff(dtype)
    rounding = u * (reference.value.abs() + error)
    rounding = rounding + torch.finfo(dtype).tiny * (reference.terms > 0).double()
    exact = (error == 0) & (reference.value.abs() <= 1 / u) if reference.integral else False
    return error + torch.where(torch.as_tensor(exact), 0.0, rounding)
