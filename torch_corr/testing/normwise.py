"""Bounds for algorithms that mix what one output does not read: relative to whole planes.

Each of the three maps sums, for the result's plane (n, o), products of one plane of either
operand over the index that these share.  With ``|.|`` some norm of a plane, the bounds are
multiples of the same sum of products of norms:

    |computed - exact| <= constant * P,    P[n, o] = sum_c |x[n,c]| |w[o,c]|    (forward)

and likewise ``P[n, c] = sum_o |y[n,o]| |w[o,c]|``, ``P[o, c] = sum_n |x[n,c]| |y[n,o]|``.
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

_OPENED: tuple[MapName, MapName, MapName] = ("grad_input", "grad_weight", "forward")


@dataclass(frozen=True)
class Normwise:
    """What an algorithm's author proved: ``constant * P`` with 2-norms of planes.

    Attributes:
        constant: the factor, as a function of the :class:`~torch_corr.request.Request`; or a
            number, which counts unit roundoffs of the dtype that is summed in.  To first order in
            u: a hundredth part is added for the rest.
        halves: dtype in which float16 and bfloat16 are summed; None: in their own.
    """

    constant: float | Constant
    halves: torch.dtype | None = torch.float32

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        summing = summing_dtype(dtype, self.halves)
        if callable(self.constant):
            (device, *_) = (value.device for value in slots if value is not None)
            factor = self.constant(Request(problem, _OPENED[slots.index(None)], device, summing))
        else:
            factor = self.constant * unit_roundoff(summing)
        planes = _planes(problem, slots, 2.0)
        pixels = sum(value.numel() for value in slots if value is not None)
        lost = 3 * pixels * torch.finfo(summing).tiny
        error = 1.01 * factor * planes.value + lost
        return _everywhere(error, reference, summing, dtype)


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
        return _everywhere(error, reference, summing, dtype)


@dataclass(frozen=True)
class Winograd:
    """Minimal filtering F(m, r): tiles of m outputs along an axis of r taps, n = m + r - 1 pixels.

    Along one axis the algorithm is a sum of n products of one trilinear form,

        T(x, w, y) = sum_k (A^T y)_k (G w)_k (B x)_k,    A: m x n,  G: n x r,  B: n x n,

    and along two it is nested.  Each map opens one slot of it.  Every computed result is thus
    a sum of terms ``a g g' w b b' x a'`` of entries, each times at most K factors
    ``(1 + delta)``, ``|delta| <= u``.  A sum of l products by rounded constants has l + 1 (the
    constant's rounding, the product, l - 1 additions), and of the three matrices of an axis two
    sum at most n products and one at most max(m, r): K is ``2 n + max(m, r) + 3`` for either
    axis, one for the product, and one for each further plane or tile summed.  Hence

        |computed - exact| <= gamma(K) k_rows k_columns P,  with max norms in P, and
        k = max_i sum_j |A_ij| g_j b_j (forward),  max_p sum_j |B_jp| a_j g_j (grad_input, for
        each tile that reaches the pixel, of which there are ceil(n/m)),
        max_q sum_j |G_jq| a_j b_j (grad_weight, for each tile),

    where a, g, b are the sums of absolute entries of A's columns, G's rows and B's rows.
    grad_input may as well be the forward of the flipped kernel; the larger k counts.  k does
    not change when a factor is moved between the matrices.  The points of interpolation are
    0, 1, -1, 2, -2, 1/2, -1/2, 4, ... and infinity.

    For a stride, a dilation, or kernels too long for the points: as :class:`Componentwise`;
    a side of one tap is not transformed.  No result is held to less than that.
    Complex products as there: three real ones of which the last has twice the size.

    Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (the
    matrices); Barabasz, Anderson, Soodhalter & Gregg, "Error analysis and improving the
    accuracy of Winograd convolution for deep neural networks", ACM TOMS 46, 2020 (bounds of
    this kind, in other norms).

    Attributes:
        tile: m, at most; 2, 4 and 6 are in use for 3x3 kernels.
        halves: dtype in which float16 and bfloat16 are transformed; None: in their own.
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
        map = _OPENED[slots.index(None)]
        planes = _planes(problem, slots, float("inf"))
        factor = prod(_amplification(self.tile, taps, map) for taps, _ in axes)
        tiles = 1
        if map == "grad_weight":
            tiles = prod(ceil(side / self.tile) for side in problem.output_size)
        rounds = planes.terms * tiles + sum(2 * n + max(self.tile, taps) + 3 for taps, n in axes)
        complexity, more = (5, 4) if dtype.is_complex else (1, 0)
        u = unit_roundoff(summing)
        error = complexity * gamma(rounds + more, u) * factor * tiles * planes.value
        largest = max(
            (
                float(value.detach().abs().max())
                for value in slots
                if value is not None and value.numel()
            ),
            default=0.0,
        )
        lost = 2 * factor * tiles * max(1.0, largest) * torch.finfo(summing).tiny
        error = error + lost * rounds * planes.terms
        return torch.maximum(direct, _everywhere(error, reference, summing, dtype))


@dataclass(frozen=True)
class Either:
    """One of several promises is kept, and it is not known which: the larger bound counts.

    For a callable that chooses its algorithm by itself, as cuDNN does.
    """

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
    """Each result is proved to be within a tolerance of its own terms, or summed directly.

    ``tolerance(dtype) * sum |a||b|``, and what :class:`Componentwise` allows.

    Attributes:
        tolerance: as a function of the operands' dtype.
    """

    tolerance: Callable[[torch.dtype], float]

    def bound(
        self, problem: Problem, reference: Reference, slots: Slots, dtype: torch.dtype
    ) -> Tensor:
        direct = Componentwise().bound(problem, reference, slots, dtype)
        return direct + self.tolerance(dtype) * reference.magnitude


def declared(algorithm: Algorithm) -> ErrorModel:
    """What one of ``torch_corr``'s algorithms, or a third party's, promises about rounding.

    A ``normwise`` one that has a method ``tolerance(dtype)`` is held to that times the sum of the
    moduli of each result's own products; one that has a method ``error_constant(request)`` to
    that; one that has neither to what Fourier transforms can keep.
    """
    if algorithm.error_class == "componentwise":
        return Componentwise()
    tolerance: Callable[[torch.dtype], float] | None = getattr(algorithm, "tolerance", None)
    if tolerance is not None:
        return Checked(tolerance)
    constant: Constant | None = getattr(algorithm, "error_constant", None)
    return Fourier() if constant is None else Normwise(constant)


def _planes(problem: Problem, slots: Slots, order: float) -> Reference:
    """P: the same form, of 1x1 planes that hold the planes' norms."""
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
    # Large ones are sooner summed where they lie than moved; not every device has float64.
    value = value.detach() if value.is_cuda else value.detach().cpu()
    planes = value.to(wide).flatten(2)
    if planes.shape[2] == 0:
        return torch.zeros(*planes.shape[:2], 1, 1, dtype=torch.float64)
    norms: Tensor = torch.linalg.vector_norm(planes, ord=order, dim=2)
    return norms[..., None, None]


def _everywhere(
    error: Tensor, reference: Reference, summing: torch.dtype, dtype: torch.dtype
) -> Tensor:
    """The planes' error at each element, with the oracle's own and the last rounding."""
    if reference.at is not None:
        error = error[reference.at[0], reference.at[1], 0, 0]
    error = error + error_bound(reference, torch.complex128 if dtype.is_complex else torch.float64)
    return error if summing == dtype else rounded(error, reference, dtype)


_POINTS = tuple(map(Fraction, ("0", "1", "-1", "2", "-2", "1/2", "-1/2", "4", "-4", "1/4", "-1/4")))


class Transforms(NamedTuple):
    """F(m, r) along one axis: ``y = A ((G w) * (B x))``, exact."""

    A: list[list[Fraction]]
    G: list[list[Fraction]]
    B: list[list[Fraction]]


def transforms(tile: int, taps: int) -> Transforms:
    """Cook and Toom's matrices for F(tile, taps), from the first points and infinity."""
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
    """Coefficients of the product of ``(x - root)``, that of 1 first."""
    product = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *product]
        product = [high - root * low for high, low in zip(shifted, [*product, Fraction(0)])]
    return product


@lru_cache(maxsize=256)
def _amplification(tile: int, taps: int, map: MapName) -> float:
    """k of the tile, or of a smaller one, whichever is larger."""
    return max(_amplification_of(m, taps, map) for m in range(1, tile + 1))


def _amplification_of(tile: int, taps: int, map: MapName) -> float:
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
