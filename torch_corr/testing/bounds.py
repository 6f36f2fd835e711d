"""How far a right result may lie from the exact one: derived, never picked.

Notation: ``u`` is the unit roundoff of a dtype, ``gamma(n, u) = n*u / (1 - n*u)``.

A sum of ``n`` products in floating point, in any order, with or without fused
multiply-adds, multiplies each product by at most ``n`` factors ``(1 + delta)`` with
``|delta| <= u``: one for the product, at most ``n - 1`` for the additions above it.  Hence

    |computed - exact| <= gamma(n, u) * sum |a||b|

(Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., Lemma 3.1, (3.5), 4.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..algorithms import accumulation_dtype
from .oracle import Reference

# A complex product from three real ones (Gauss), the least accurate in use, has
#   Re = xr*wr - xi*wi,  Im = (xr+xi)(wr+wi) - xr*wr - xi*wi.
# With S = sum |x||w|: sum |xr*wr| + |xi*wi| <= S and sum |xr+xi||wr+wi| <= 2 S.  At most
# n + 4 factors act on a term (two operand sums, the product, n - 1 additions, two final
# subtractions), so the errors of Re and Im are at most gamma(n + 4) times S and 3 S, and
# the modulus at most sqrt(1 + 9) gamma(n + 4) S < 4 gamma(n + 4) S.
_COMPLEX_FACTOR, _COMPLEX_EXTRA_TERMS = 4, 4


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number of the dtype; 0 for integers."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0.0
    return torch.finfo(dtype).eps / 2


def gamma(terms: Tensor, roundoff: float) -> Tensor:
    """``n*u / (1 - n*u)``; meaningful for n*u < 1."""
    return terms * roundoff / (1 - terms * roundoff)


def error_bound(reference: Reference, dtype: torch.dtype) -> Tensor:
    """The largest componentwise error of a right map with results in ``dtype``.

    ``c * gamma(n, u_acc) * S + u_out * |y| + underflow``, where products are summed in the
    accumulation dtype (float32 for the halves), the result is rounded once to ``dtype``,
    and ``S = sum |a||b|``; c = 1 for real numbers, 4 (and n + 4) for complex ones.  The
    oracle's own float64 error is added.  Integers are exact.

    Underflow: each of the n products, sums and the final rounding loses at most the
    smallest normal number, whether subnormals are kept or flushed to zero.
    """
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.zeros_like(reference.magnitude)
    factor, terms = 1, reference.terms
    if dtype.is_complex:
        factor, terms = _COMPLEX_FACTOR, terms + _COMPLEX_EXTRA_TERMS
    summing = accumulation_dtype(dtype)
    relative = gamma(terms, unit_roundoff(summing)) + gamma(terms, unit_roundoff(torch.float64))
    error = factor * relative * reference.magnitude
    if summing != dtype:
        error = error + unit_roundoff(dtype) * (reference.value.abs() + error)
    underflow = 2 * terms * torch.finfo(summing).tiny + torch.finfo(dtype).tiny
    return error + torch.where(reference.magnitude > 0, underflow, 0.0)
