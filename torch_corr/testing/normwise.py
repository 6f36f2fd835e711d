"""Error bounds for Fourier and Winograd transforms, relative to the norms of whole planes.

These algorithms mix all pixels of a plane, so an error may exceed the bound for the output's own
products.  A map's result plane is a sum of correlations of planes of the operands.  With a norm
``|.|`` of a plane, the bounds are

    |computed - exact| <= constant * P,    P[n, o] = sum_c |x[n,c]| |w[o,c]|    (forward)

with ``P[n, c] = sum_o |y[n,o]| |w[o,c]|`` for grad_input and ``P[o, c] = sum_n |x[n,c]| |y[n,o]|``
for grad_weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, log2, prod, sqrt
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..algorithms import Algorithm
from ..problem import Problem
from ..request import MapName, Request
from .bounds import (
    Componentwise,
    ErrorModel,
    Slots,
    error_bound,
    gamma,
    rounded,
    summing_dtype,
    unit_roundoff,
)
from .oracle import Reference, oracle

Constant: TypeAlias = Callable[[Request], float]

_MAP_OF_SLOT: tuple[MapName, MapName, MapName] = ("grad_input", "grad_weight", "forward")


@dataclass(frozen=True)
class Normwise:
    """A bound ``constant * P`` with the 2-norms of planes, for an algorithm with a proven constant.

    Attributes:
        constant: a function of the :class:`~torch_corr.Request` with the dtype of the sums; or a
            number of unit roundoffs of that dtype.  The constant may be of first order in u: 1% is
            added for higher orders.
        halves: the dtype of the sums for float16 and bfloat16; None means the operands' dtype.
    """

    constant: float | Constant
    halves: torch.dtype | None = torch.float32

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        summing = summing_dtype(dtype, self.halves)
        if callable(self.constant):
            (device, *_) = (value.device for value in slots if value is not None)
            request = Request(problem, _MAP_OF_SLOT[slots.index(None)], device, summing)
            factor = self.constant(request)
        else:
            factor = self.constant * unit_roundoff(summing)
        planes = _planes(problem, slots, 2.0)
        pixels = sum(value.numel() for value in slots if value is not None)
        lost = 3 * pixels * torch.finfo(summing).tiny
        error = 1.01 * factor * planes.value + lost
        return _error_per_element(error, reference, summing, dtype)


@dataclass(frozen=True)
class Fourier:
    """The bound for discrete Fourier transforms of whole planes or tiles.

    Let ``a`` and ``b`` be the planes whose correlations are summed (over channels for forward),
    N the size of the transform, ``z = sum a*b`` and ``L = log2(N)``.

    1. A transform has ``||error||_2 <= d ||result||_2`` with ``d = L*t / (1 - L*t)`` and
       ``t = u + gamma(4)(sqrt(2) + u)``, if the twiddle factors are exact to u (Higham,
       Theorem 24.2).  The theorem is for radix 2.  A butterfly of prime radix r, computed as r
       sums, has ``sqrt(r) gamma(r + 3)`` for its ``log2(r)`` steps, at most twice as much
       for r <= 11.  So t is doubled, and N must have no prime factor above 11.
    2. The transform A of a has ``||A||_2 = sqrt(N) ||a||_2``.  So, by Cauchy-Schwarz, the error e
       of the spectrum after the products and the sum over m planes satisfies
       ``||e||_1 <= N * ((1+d)**2 * (1 + gamma(m + 4)) - 1) * P``, ``P = sum ||a||_2 ||b||_2``.
    3. The inverse transform changes each pixel by at most ``||e||_1 / N`` and adds its own error
       ``d ||z||_2``, where ``||z||_2 <= sum ||a||_1 ||b||_2 <= sqrt(K) P`` and K is the number of
       pixels of the smaller plane.

    Tiles have smaller norms and sizes; m includes the number of tiles that are summed.

    Attributes:
        halves: the dtype of the transforms for float16 and bfloat16; None means their own dtype.
    """

    halves: torch.dtype | None = torch.float32

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        summing = summing_dtype(dtype, self.halves)
        u = unit_roundoff(summing)
        planes = _planes(problem, slots, 2.0)
        pixels = [prod(value.shape[2:]) for value in slots if value is not None]
        size = prod(2 * (side + span) for side, span in zip(problem.padded_size, problem.span))
        steps = log2(size)
        four = 4 * u / (1 - 4 * u)
        t = 2 * (u + four * (sqrt(2) + u))
        d = steps * t / (1 - steps * t)
        spectrum = (1 + d) ** 2 * (1 + gamma(planes.terms + max(pixels) + 4, u)) - 1
        error = (spectrum + d * (1 + spectrum) * sqrt(min(pixels))) * planes.value
        lost = 3 * size * torch.finfo(summing).tiny
        error = error + lost * (planes.terms > 0).double()
        return _error_per_element(error, reference, summing, dtype)


@dataclass(frozen=True)
class Winograd:
    """The bound for Winograd's minimal filtering F(m, r).

    F(m, r) computes m outputs from r taps and n = m + r - 1 pixels.  Along one axis it
    is a sum of n products in one trilinear form,

        T(x, w, y) = sum_k (A^T y)_k (G w)_k (B x)_k,    A: m x n,  G: n x r,  B: n x n.

    Along two axes it is nested.  Each map computes one slot from the other two.  So every computed
    result is a sum of terms ``a g g' w b b' x a'`` of matrix entries and operands, each multiplied
    by at most K factors ``(1 + delta)`` with ``|delta| <= u``.  A sum of l products with rounded
    constants has l + 1 factors (the constant's rounding, the product, l - 1 additions).  Two of the
    three matrices of an axis sum at most n products, and one at most max(m, r).  So K is
    ``2 n + max(m, r) + 3`` for each axis, plus one for the product and one for each further plane
    or tile in the sum.  Hence

        |computed - exact| <= gamma(K) k_rows k_columns P,  with max norms in P, and
        k = max_i sum_j |A_ij| g_j b_j (forward),  max_p sum_j |B_jp| a_j g_j (grad_input, for
        each of the at most ceil(n/m) tiles that contain the pixel),
        max_q sum_j |G_jq| a_j b_j (grad_weight, for each tile),

    where a, g, b are the sums of absolute entries of A's columns, G's rows and B's rows.
    grad_input may also be computed as the forward of the flipped kernel, so the larger k is used.
    Scaling one matrix and dividing another by the same factor does not change k.  The points of
    interpolation are 0, 1, -1, 2, -2, 1/2, -1/2, 4, ... and infinity.

    With a stride, a dilation, or a kernel too long for the points, the bound is that of
    :class:`Componentwise`; it is never smaller than that.  An axis with one tap is not transformed.
    Complex products are bounded as in ``bounds.py``.

    Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (the
    matrices); Barabasz, Anderson, Soodhalter & Gregg, "Error analysis and improving the
    accuracy of Winograd convolution for deep neural networks", ACM TOMS 46, 2020 (bounds of
    this kind, in other norms).

    Attributes:
        tile: the largest m; 2, 4 and 6 are common for 3x3 kernels.
        halves: the dtype of the transforms for float16 and bfloat16; None means their own dtype.
    """

    tile: int = 4
    halves: torch.dtype | None = torch.float32

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        summing = summing_dtype(dtype, self.halves)
        direct = Componentwise(self.halves).bound(problem, reference, slots, dtype)
        axes = [(taps, self.tile + taps - 1) for taps in problem.kernel if taps > 1]
        dense = problem.stride == problem.dilation == (1, 1)
        if not axes or not dense or max(n for _, n in axes) > len(_POINTS) + 1:
            return direct
        map = _MAP_OF_SLOT[slots.index(None)]
        planes = _planes(problem, slots, float("inf"))
        factor = prod(_amplification(self.tile, taps, map) for taps, _ in axes)
        tiles = 1
        if map == "grad_weight":
            tiles = prod(ceil(side / self.tile) for side in problem.output_size)
        rounds = planes.terms * tiles + sum(2 * n + max(self.tile, taps) + 3 for taps, n in axes)
        complexity, more = (5, 4) if dtype.is_complex else (1, 0)
        u = unit_roundoff(summing)
        error = complexity * gamma(rounds + more, u) * factor * tiles * planes.value
        operands = (value for value in slots if value is not None and value.numel())
        largest = max([1.0, *(float(value.detach().abs().max()) for value in operands)])
        lost = 2 * factor * tiles * largest * torch.finfo(summing).tiny
        error = error + lost * rounds * planes.terms
        return torch.maximum(direct, _error_per_element(error, reference, summing, dtype))


@dataclass(frozen=True)
class Either:
    """The largest of several bounds, for a callable that chooses among algorithms, like cuDNN."""

    promises: tuple[ErrorModel, ...]

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        bound = torch.zeros_like(reference.magnitude)
        for each in self.promises:
            bound = torch.maximum(bound, each.bound(problem, reference, slots, dtype))
        return bound


@dataclass(frozen=True)
class Checked:
    """The bound for results that are checked, and recomputed if the check fails.

    It is ``tolerance(dtype) * sum |a||b|`` over the result's own products, plus the bound of
    :class:`Componentwise`.

    Attributes:
        tolerance: a function of the operands' dtype.
    """

    tolerance: Callable[[torch.dtype], float]

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        direct = Componentwise().bound(problem, reference, slots, dtype)
        return direct + self.tolerance(dtype) * reference.magnitude


def declared(algorithm: Algorithm) -> ErrorModel:
    """The error model of an :class:`~torch_corr.Algorithm`.

    It is :class:`Componentwise` if ``algorithm.error_class`` says so.  Otherwise it is
    :class:`Checked` for an algorithm with a method ``tolerance(dtype)``, :class:`Normwise` for one
    with a method ``error_constant(request)``, and else :class:`Fourier`.

    Example:
        >>> from torch_corr import Direct
        >>> declared(Direct())
        Componentwise(halves=torch.float32, operands=0.0)
    """
    if algorithm.error_class == "componentwise":
        return Componentwise()
    tolerance: Callable[[torch.dtype], float] | None = getattr(algorithm, "tolerance", None)
    if tolerance is not None:
        return Checked(tolerance)
    constant: Constant | None = getattr(algorithm, "error_constant", None)
    return Fourier() if constant is None else Normwise(constant)


def _planes(problem: Problem, slots: Slots, order: float) -> Reference:
    """P of the module's docstring: the map of the planes' norms, as planes of one pixel."""
    norms = [None if value is None else _norms(value, order) for value in slots]
    points = Problem(
        problem.batch,
        problem.in_channels,
        (1, 1),
        problem.out_channels,
        kernel=(1, 1),
        groups=problem.groups,
    )
    return oracle(points, *norms)


def _norms(value: Tensor, order: float) -> Tensor:
    """The norm of each plane of a 4-D tensor, as a plane of one pixel."""
    wide = torch.complex128 if value.is_complex() else torch.float64
    # On CUDA this is faster than a copy to the CPU.  Other devices may not support float64.
    value = value.detach() if value.is_cuda else value.detach().cpu()
    planes = value.to(wide).flatten(2)
    if planes.shape[2] == 0:
        return torch.zeros(*planes.shape[:2], 1, 1, dtype=torch.float64)
    norms: Tensor = torch.linalg.vector_norm(planes, ord=order, dim=2)
    return norms[..., None, None]


def _error_per_element(
    error: Tensor, reference: Reference, summing: torch.dtype, dtype: torch.dtype
) -> Tensor:
    """The planes' error for each element, plus the oracle's error and the final rounding."""
    if reference.at is not None:
        error = error[reference.at[0], reference.at[1], 0, 0]
    error = error + error_bound(reference, torch.complex128 if dtype.is_complex else torch.float64)
    return error if summing == dtype else rounded(error, reference, dtype)


_POINTS = tuple(map(Fraction, ("0", "1", "-1", "2", "-2", "1/2", "-1/2", "4", "-4", "1/4", "-1/4")))


class Transforms(NamedTuple):
    """The exact matrices of F(m, r) along one axis: ``y = A ((G w) * (B x))``."""

    A: list[list[Fraction]]
    G: list[list[Fraction]]
    B: list[list[Fraction]]


def transforms(tile: int, taps: int) -> Transforms:
    """The Cook-Toom matrices of F(tile, taps) for the first points and infinity."""
    points = _POINTS[: tile + taps - 2]
    A = [[p**i for p in points] + [Fraction(int(i == tile - 1))] for i in range(tile)]
    G, B = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = prod(((p - q) for q in others), start=Fraction(1))
        G.append([p**q / scale for q in range(taps)])
        B.append([*_polynomial(others), Fraction(0)])
    G.append([Fraction(int(q == taps - 1)) for q in range(taps)])
    B.append(_polynomial(points))
    return Transforms(A, G, B)


def _polynomial(roots: tuple[Fraction, ...] | list[Fraction]) -> list[Fraction]:
    """The coefficients of the product of ``(x - root)``, starting with the constant one."""
    product = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *product]
        product = [high - root * low for high, low in zip(shifted, [*product, Fraction(0)])]
    return product


@lru_cache(maxsize=256)
def _amplification(tile: int, taps: int, map: MapName) -> float:
    """The largest k of F(m, taps) for m from 1 to ``tile``."""
    return max(_amplification_of(m, taps, map) for m in range(1, tile + 1))


def _amplification_of(tile: int, taps: int, map: MapName) -> float:
    """k of F(tile, taps)."""
    A, G, B = (
        torch.tensor([[abs(float(each)) for each in row] for row in matrix], dtype=torch.float64)
        for matrix in transforms(tile, taps)
    )
    a, g, b = A.sum(0), G.sum(1), B.sum(1)
    forward = float((A @ (g * b)).max())
    if map == "forward":
        return forward
    if map == "grad_weight":
        return float((G.T @ (a * b)).max())
    reaching = ceil((tile + taps - 1) / tile)
    return max(forward, reaching * float((B.T @ (a * g)).max()))
