"""How far a right result may lie from the exact one: derived, never picked.

Notation: ``u`` is the unit roundoff of a dtype, ``gamma(n, u) = n*u / (1 - n*u)``.

**Componentwise.**  A sum of ``n`` products in floating point, in any order, with or without
fused multiply-adds, multiplies each product by at most ``n`` factors ``(1 + delta)`` with
``|delta| <= u``: one for the product, at most ``n - 1`` for the additions above it.  Hence

    |computed - exact| <= gamma(n, u) * sum |a||b|

(Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., Lemma 3.1, (3.5), 4.2).
Direct loops, im2col with a matrix product, and implicit versions of either keep it.

**Normwise.**  A Fourier transform mixes all pixels of an image, so its errors are relative
to the image; see :class:`Fourier`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, prod, sqrt
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from ..algorithms import accumulation_dtype
from ..problem import Problem
from .oracle import Reference, oracle

Slots: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Input, weight and output, of which the open one is None."""

# A complex product from three real ones (Gauss), the least accurate in use, has
#   Re = xr*wr - xi*wi,  Im = (xr+xi)(wr+wi) - xr*wr - xi*wi.
# With S = sum |x||w|: sum |xr*wr| + |xi*wi| <= S and sum |xr+xi||wr+wi| <= 2 S.  At most
# n + 4 factors act on a term (two operand sums, the product, n - 1 additions, two final
# subtractions), so the errors of Re and Im are at most gamma(n + 4) times S and 3 S, and
# the modulus at most sqrt(1 + 9) gamma(n + 4) S < 4 gamma(n + 4) S.
_COMPLEX_FACTOR, _COMPLEX_EXTRA_TERMS = 4, 4


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
    return error if summing == dtype else _rounded(error, reference, dtype)


@dataclass(frozen=True)
class Componentwise:
    """Products are summed as they are, in any order: :func:`error_bound`.

    Attributes:
        halves: dtype in which products of float16 and bfloat16 are summed; None: in their own.
    """

    halves: torch.dtype | None = torch.float32

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        return error_bound(reference, dtype, _summing(dtype, self.halves))


@dataclass(frozen=True)
class Fourier:
    """The maps as products of discrete Fourier transforms, whole or in tiles.

    With ``a`` and ``b`` the planes that one result plane sums over (channels for forward),
    N the transform's size, ``z = sum a*b`` and ``L = log2(N)``:

    1. A transform has ``||error||_2 <= d ||result||_2`` with ``d = L*t / (1 - L*t)`` and
       ``t = u + gamma(4)(sqrt(2) + u)``, the twiddle factors being right to u (Higham,
       Theorem 24.2).  The theorem is for radix 2.  A butterfly of prime radix r done as r
       sums has ``sqrt(r) gamma(r + 3)`` for its ``log2(r)`` steps, at most twice as much
       for r <= 11; so t is doubled, and N is to have no larger prime factor.
    2. ``||A||_2 = sqrt(N) ||a||_2`` for the transform A of a, so after the products and the
       sum over m planes, the spectrum's error e has, with Cauchy-Schwarz,
       ``||e||_1 <= N * ((1+d)**2 * (1 + gamma(m + 4)) - 1) * P``, ``P = sum ||a||_2 ||b||_2``.
    3. An inverse transform takes that to at most ``||e||_1 / N`` in every pixel, and adds its
       own ``d ||z||_2``; ``||z||_2 <= sum ||a||_1 ||b||_2 <= sqrt(K) P``, K the pixels of the
       smaller plane.

    Tiles have smaller norms and sizes; their sums are counted with m.

    Attributes:
        halves: dtype in which float16 and bfloat16 are transformed; None: in their own.
    """

    halves: torch.dtype | None = torch.float32

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        summing = _summing(dtype, self.halves)
        u = unit_roundoff(summing)
        planes = [None if value is None else value.detach().cpu().flatten(2) for value in slots]
        pixels = [value.shape[2] for value in planes if value is not None]
        norms = [None if value is None else _norms(value) for value in planes]
        flat = Problem(
            problem.batch,
            problem.in_channels,
            (1, 1),
            problem.out_channels,
            kernel=(1, 1),
            groups=problem.groups,
        )
        summed = oracle(flat, *norms)
        size = prod(2 * (side + span) for side, span in zip(problem.padded_size, problem.span))
        steps = log2(size)
        four = 4 * u / (1 - 4 * u)
        t = 2 * (u + four * (sqrt(2) + u))
        d = steps * t / (1 - steps * t)
        spectrum = (1 + d) ** 2 * (1 + gamma(summed.terms + max(pixels) + 4, u)) - 1
        error = (spectrum + d * (1 + spectrum) * sqrt(min(pixels))) * summed.value
        own = gamma(reference.terms, unit_roundoff(torch.float64)) * reference.magnitude
        tiny = 3 * size * torch.finfo(summing).tiny
        error = error + own + tiny * (summed.terms > 0).double()
        return error if summing == dtype else _rounded(error, reference, dtype)


def _norms(planes: Tensor) -> Tensor:
    """The 2-norm of each plane of a (A, B, pixels) tensor, as (A, B, 1, 1)."""
    wide = torch.complex128 if planes.is_complex() else torch.float64
    norms: Tensor = torch.linalg.vector_norm(planes.to(wide), dim=2)
    return norms[..., None, None]


def _summing(dtype: torch.dtype, halves: torch.dtype | None) -> torch.dtype:
    half = dtype in (torch.float16, torch.bfloat16)
    return halves if half and halves is not None else dtype


def _rounded(error: Tensor, reference: Reference, dtype: torch.dtype) -> Tensor:
    """The error, after one more rounding to ``dtype``; an exact small integer has none."""
    u = unit_roundoff(dtype)
    rounding = u * (reference.value.abs() + error)
    rounding = rounding + torch.finfo(dtype).tiny * (reference.terms > 0).double()
    exact = (error == 0) & (reference.value.abs() <= 1 / u) if reference.integral else False
    return error + torch.where(torch.as_tensor(exact), 0.0, rounding)
