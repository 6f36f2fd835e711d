"""Proves which results of a transform are accurate, and recomputes others by the definition.

Let y be one result of a map, S = sum |a||b| over its own products, y^ the transform's value and E a
bound on |y^ - y|.  For a tolerance t, y^ is certified in one of two ways:

1.  |y^| >= (1 + 1/t) E.  Then S >= |y| >= |y^| - E >= E/t, so |y^ - y| <= E <= t S.
2.  No nonzero product of its planes is smaller than p >= 8 E / t.  If y has a nonzero product,
    S >= p >= 8 E / t.  If it has none, |y^| <= E, and at most 4 E once it is rounded to a number
    that may be subnormal.  So every |y^| <= 4 E becomes 0: exact in the second case, and an error
    of at most 5 E <= t S in the first.

If y >= 0, a certified y^ is not negative: y^ >= y - E >= -E, and |y^| is above 4 E or becomes 0.

E is the bound of :mod:`.error_bound`, K * sum_c ||a_c|| ||b_c|| over whole planes, and reads every
number of both operands.  It holds unless an intermediate result underflows or overflows. Planes in
which that is possible, or in which (1 + 1/t) E exceeds the range of the result's dtype, get E =
infinity, and none of their results is certified.  The same holds for planes with subnormal numbers
where the CPU flushes these to zero.  With transforms in double precision K is about 1e-13, so
random images leave one result in 10**5 to 10**6 uncertified.

In the functions below, ``first`` and ``second`` are the operands of ``map`` in its order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ... import native
from ...problem import Problem
from ...request import SLOTS, MapName, shape_of
from . import scans
from .algorithm import double_precision

TOLERANCES = {
    torch.float32: 2.0**-14,
    torch.complex64: 2.0**-14,
    torch.float64: 2.0**-22,
    torch.complex128: 2.0**-22,
}
"""The tolerance t by the dtype of the operands: 6e-5 and 2.4e-7."""

MARGIN = 1 + 2.0**-20
"""Covers the rounding of E and of thresholds, which are sums and products of positive numbers."""

WIDENED = 2**19
"""Numbers converted to double precision at a time, 4 MiB that fit in a cache; one plane may have
more."""

SMALLEST, LARGEST = 1e-130, 1e140
"""Moduli between which squares, norms and products neither underflow nor overflow in float64.  E is
then above 1e-276, so underflow in a transform is negligible."""

GATHERED = 2**16
"""Products that :func:`recompute` holds in memory at a time; a single result may have more."""

_GROUPED = {"input": "ngc", "weight": "goc", "output": "ngo"}
"""Axes of each operand with a separate axis for groups: image, group, input and output."""


class Certificate(NamedTuple):
    """The outcome of the check for each result.

    Attributes:
        result: with the zeros that way 2 inserts.
        uncertified: True where a result must be recomputed.
    """

    result: Tensor
    uncertified: Tensor


def error_bounds(
    problem: Problem,
    map: MapName,
    first: Tensor,
    second: Tensor,
    constant: float,
    tolerance: float,
) -> Tensor:
    """E for each plane of a map's result, as (A, B, 1, 1); infinite where no bound is known.

    Args:
        constant: K, the factor of :meth:`.fft.FFT.error_before_rounding`.
        tolerance: t.
    """
    factor = constant * MARGIN
    most = min(LARGEST**2, torch.finfo(first.dtype).max / (2 + 2 / tolerance))
    if _is_compiled(problem, first, second):
        limits = _smallest_safe(first), LARGEST, most
        return scans.error_bounds(problem, map, first, second, factor, limits)
    bounds = factor * _over_planes(problem, map, _sum_of_products, _norms(first), _norms(second))
    return torch.where(bounds < most, bounds, torch.inf)[..., None, None]


def uncertified_by_size(
    result: Tensor, bounds: Tensor, tolerance: float, most: int
) -> Tensor | None:
    """Indices, (P,), into the flattened result of numbers that way 1 does not certify; None if
    there are more than ``most``."""
    if scans.can_read(result):
        factor, tiny = (1 + 1 / tolerance) * MARGIN, torch.finfo(result.dtype).tiny
        return scans.below(result, bounds, factor, tiny, most)
    uncertified = ~(result.abs() >= _thresholds(result, bounds, tolerance))
    points = uncertified.flatten().nonzero()[:, 0]
    return points if len(points) <= most else None


def certify(
    problem: Problem,
    map: MapName,
    first: Tensor,
    second: Tensor,
    result: Tensor,
    bounds: Tensor,
    tolerance: float,
) -> Certificate:
    """Apply both ways to each result.

    Args:
        result: of the transform, in the dtype that the map returns.
        bounds: E, from :func:`error_bounds`.
        tolerance: t.
    """
    smallest = (of_planes(each, _smallest) for each in (first, second))
    products = _over_planes(problem, map, _least_of_products, *smallest)[..., None, None]
    separated = products >= (8 * MARGIN / tolerance) * bounds
    moduli = result.abs()
    noise = separated & (moduli <= (4 * MARGIN * bounds).to(moduli.dtype))
    certified = separated | (moduli >= _thresholds(result, bounds, tolerance))
    return Certificate(torch.where(noise, 0, result), ~certified)


def _is_compiled(problem: Problem, first: Tensor, second: Tensor) -> bool:
    """Whether the compiled functions of :mod:`.scans` can compute with these operands."""
    return scans.can_read(first) and scans.can_read(second) and native.can_count(problem)


def _smallest_safe(values: Tensor) -> float:
    """The smallest modulus above zero that a norm may be computed from; 0 if any.

    The squares of float32 numbers do not underflow in float64.  But after
    ``torch.set_flush_denormal(True)`` this thread takes subnormal numbers for zeros, and other
    threads of PyTorch may not: a norm could leave out numbers that a transform reads.
    """
    if values.dtype.to_real() == torch.float64:
        return SMALLEST
    flushes = values.is_cpu and sys.float_info.min / 2 == 0
    return torch.finfo(values.dtype).tiny if flushes else 0.0


def _thresholds(result: Tensor, bounds: Tensor, tolerance: float) -> Tensor:
    """The least modulus that way 1 certifies; never a subnormal number, which has a large rounding
    error."""
    dtype = result.dtype.to_real()
    least = torch.where(bounds == 0, 0, torch.finfo(dtype).tiny)
    return torch.maximum((1 + 1 / tolerance) * MARGIN * bounds, least).to(dtype)


def _norms(values: Tensor) -> Tensor:
    """The 2-norm of each plane; NaN if it has a number outside the limits.

    These are :func:`_smallest_safe` and, in float64, :data:`LARGEST`.
    """
    result = of_planes(values, torch.linalg.vector_norm)
    if (smallest := _smallest_safe(values)) == 0:
        return result
    high = of_planes(values, _largest)
    safe = (_smallest_modulus(values) >= smallest) & (high < LARGEST)
    return torch.where(safe, result, torch.nan)


def _smallest_modulus(values: Tensor) -> Tensor:
    """The smallest nonzero number in each plane of (N, C, H, W), infinite if there is none.

    Numbers are compared as integers, since a thread may take subnormal numbers for zeros.  For a
    complex number the larger of its two parts counts.
    """
    parts = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values[..., None]
    integer = torch.int32 if parts.dtype == torch.float32 else torch.int64
    infinity = torch.tensor(torch.inf, dtype=parts.dtype, device=parts.device).view(integer)
    bits = parts.resolve_neg().contiguous().view(integer) & torch.iinfo(integer).max
    bits = bits.amax(-1)
    return torch.where(bits == 0, infinity, bits).amin((2, 3)).view(parts.dtype)


def of_planes(values: Tensor, measure: Callable[..., Tensor]) -> Tensor:
    """Reduce each plane of (N, C, H, W) in double precision.

    Args:
        values: the planes.
        measure: a reduction along the axes ``dim``.

    Returns:
        (N, C) in double precision.
    """
    wide = double_precision(values.dtype)
    if values.numel() <= WIDENED:
        return measure(values.to(wide), dim=(2, 3))
    channels = max(1, WIDENED // values.shape[2:].numel())
    rows = (
        [measure(part.to(wide), dim=(2, 3)) for part in torch.split(some, channels, 1)]
        for some in torch.split(values, max(1, channels // values.shape[1]))
    )
    return torch.cat([torch.cat(parts, 1) for parts in rows])


def _smallest(values: Tensor, dim: tuple[int, ...]) -> Tensor:
    """The smallest nonzero modulus; infinite if there is none."""
    moduli = values.abs()
    return torch.where(moduli == 0, torch.inf, moduli).amin(dim)


def _largest(values: Tensor, dim: tuple[int, ...]) -> Tensor:
    return values.abs().amax(dim)


def _over_planes(
    problem: Problem,
    map: MapName,
    combine: Callable[[str, Tensor, Tensor], Tensor],
    first: Tensor,
    second: Tensor,
) -> Tensor:
    """Combine one number per plane of the operands into one per plane of the result."""
    left, right, target = (_GROUPED[slot] for slot in SLOTS[map])
    sizes = {
        "n": problem.batch,
        "g": problem.groups,
        "c": problem.group_in,
        "o": problem.group_out,
    }
    operands = (
        each.reshape([sizes[axis] for axis in axes])
        for each, axes in ((first, left), (second, right))
    )
    combined = combine(f"{left},{right}->{target}", *operands)
    # A weight has its groups in the first axis, images have theirs in the second.
    return combined.flatten(0, 1) if target == "goc" else combined.flatten(1)


def _sum_of_products(equation: str, first: Tensor, second: Tensor) -> Tensor:
    result: Tensor = torch.einsum(equation, first, second)
    return result


def _least_of_products(equation: str, first: Tensor, second: Tensor) -> Tensor:
    """An einsum with the minimum instead of the sum."""
    operands, target = equation.split("->")
    left, right = operands.split(",")
    (summed,) = set(left + right) - set(target)
    aligned = [
        each.permute([axes.index(axis) for axis in target + summed if axis in axes])[
            tuple(slice(None) if axis in axes else None for axis in target + summed)
        ]
        for each, axes in ((first, left), (second, right))
    ]
    return (aligned[0] * aligned[1]).amin(-1)


# -- the definition, for single results ----------------------------------------------------------


def recompute(
    problem: Problem, map: MapName, first: Tensor, second: Tensor, points: Tensor
) -> Tensor:
    """Some results of a map by its definition.

    Args:
        first, second: finite.
        points: (P,) indices into the map's flattened result.

    Returns:
        (P,) sums, in double precision.
    """
    if _is_compiled(problem, first, second):
        return scans.results_at(problem, map, first, second, points)
    each = max(1, GATHERED // max(1, terms_of(problem, map)))
    parts = torch.split(points, each)
    return torch.cat([_sums(problem, map, first, second, part) for part in parts])


def terms_of(problem: Problem, map: MapName) -> int:
    """Products in one result of a map, including those with padding."""
    taps, pixels = problem.kernel, problem.output_size
    return {
        "forward": problem.group_in * taps[0] * taps[1],
        "grad_input": problem.group_out * taps[0] * taps[1],
        "grad_weight": problem.batch * pixels[0] * pixels[1],
    }[map]


def _sums(problem: Problem, map: MapName, first: Tensor, second: Tensor, points: Tensor) -> Tensor:
    images, channels, *pixel = torch.unravel_index(points, shape_of(problem, SLOTS[map][2]))
    size = first.shape[2:]
    (rows, rows_in), (columns, columns_in) = (
        _operand_indices(problem, map, dim, pixel[dim], size[dim]) for dim in (0, 1)
    )
    within, group_in, group_out = channels[:, None], problem.group_in, problem.group_out
    if map == "forward":
        group = channels // group_out
        read = images[:, None], group[:, None] * group_in + _range(group_in, points)
        others = second[channels]
    elif map == "grad_input":
        outs = (channels // group_in)[:, None] * group_out + _range(group_out, points)
        read = images[:, None], outs
        others = second[outs, within % group_in]
    else:
        # A tap's "image" is its output channel.
        batch = _range(problem.batch, points).expand(len(points), -1)
        read = batch, images[:, None] // group_out * group_in + within
        others = second[batch, images[:, None]]
    image, channel = (each[:, :, None, None] for each in read)
    products = first[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    wide = double_precision(first.dtype)
    products = products.to(wide).mul_(others.to(wide))
    outside = ~(rows_in[:, None, :, None] & columns_in[:, None, None, :])
    return products.masked_fill_(outside, 0).sum((1, 2, 3))


def _range(stop: int, like: Tensor) -> Tensor:
    return torch.arange(stop, device=like.device)[None]


def _operand_indices(
    problem: Problem, map: MapName, dim: int, position: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Indices along one axis of the first operand that contribute to a result, and whether they
    exist.

    An input row h, a tap u and an output row i contribute where h = i * stride + u * dilation -
    padding.
    """
    stride, dilation = problem.stride[dim], problem.dilation[dim]
    before, position = problem.padding[dim][0], position[:, None]
    if map == "grad_input":
        steps = position + before - dilation * _range(problem.kernel[dim], position)
        index = steps // stride
    elif map == "forward":
        index = position * stride - before + dilation * _range(problem.kernel[dim], position)
    else:
        index = position * dilation - before + stride * _range(problem.output_size[dim], position)
    exists = (index >= 0) & (index < size)
    if map == "grad_input":
        exists &= steps % stride == 0
    return index.clamp(0, size - 1), exists
