"""The compiled part of the check of transforms, for dense operands in float32 or float64 on a CPU.

Next to a transform of one 512x512 image, 1.9 ms on two Zen 4 cores, PyTorch's operators take 160 us
for two norms and 70 us to find small numbers; the compiled passes take 26 and 10.

In the functions below, ``first`` and ``second`` are the operands of ``map`` in its order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import native
from ...problem import Problem
from ...request import MAPS, SLOTS, MapName, shape_of
from ..base import FLOATS


def can_read(values: Tensor) -> bool:
    """Whether the compiled functions can read a tensor in place."""
    known = values.dtype in (torch.float32, torch.float64) and values.is_cpu
    return known and native.compiled is not None and native.can_address(values)


def error_bounds(
    problem: Problem,
    map: MapName,
    first: Tensor,
    second: Tensor,
    factor: float,
    limits: tuple[float, float, float],
) -> Tensor:
    """For each plane of a map's result, a factor times the sum of the products of its planes'
    norms.

    Args:
        factor: multiplies the sums.
        limits: the smallest and the largest modulus above zero from which norms are computed,
            and the largest bound; planes and bounds beyond them give infinity.

    Returns:
        (A, B, 1, 1) in float64.
    """
    bounds = first.new_empty(result_planes(problem, map), dtype=torch.float64)
    native.compiled.error_bounds(
        MAPS.index(map),
        first.data_ptr(),
        first.numel(),
        second.data_ptr(),
        second.numel(),
        bounds.data_ptr(),
        bounds.numel(),
        factor,
        *limits,
        native.sizes(problem),
        FLOATS.index(first.dtype),
        torch.get_num_threads(),
        _isa(),
    )
    return bounds


def below(values: Tensor, bounds: Tensor, factor: float, tiny: float, most: int) -> Tensor | None:
    """Indices of numbers whose modulus is below a factor times the bound of their plane, or NaN.

    Args:
        values: (N, C, H, W).
        bounds: (N, C, 1, 1), in float64.
        factor: multiplies the bounds.
        tiny: the least threshold where a bound is not 0.
        most: the maximum number of indices.

    Returns:
        (P,) indices into the flattened numbers; None if there are more than ``most``.
    """
    bounds = bounds.contiguous()
    found = native.compiled.below(
        values.data_ptr(),
        values.numel(),
        bounds.data_ptr(),
        bounds.numel(),
        factor,
        tiny,
        most,
        FLOATS.index(values.dtype),
        torch.get_num_threads(),
        _isa(),
    )
    if not found:
        # Nearly always; this is quicker than to make a tensor of an empty list.
        return None if found is None else values.new_empty(0, dtype=torch.int64)
    return values.new_tensor(found, dtype=torch.int64)


def results_at(
    problem: Problem, map: MapName, first: Tensor, second: Tensor, points: Tensor
) -> Tensor:
    """Some results of a map by its definition, summed in double precision.

    Args:
        points: (P,) indices into the flattened result.
    """
    points = points.contiguous()
    sums = first.new_empty(len(points), dtype=torch.float64)
    native.compiled.results_at(
        MAPS.index(map),
        first.data_ptr(),
        first.numel(),
        second.data_ptr(),
        second.numel(),
        points.data_ptr(),
        sums.data_ptr(),
        len(points),
        native.sizes(problem),
        FLOATS.index(first.dtype),
        torch.get_num_threads(),
    )
    return sums


def result_planes(problem: Problem, map: MapName) -> tuple[int, int, int, int]:
    """The shape of a tensor with one number per plane of a map's result."""
    return (*shape_of(problem, SLOTS[map][2])[:2], 1, 1)


def _isa() -> str:
    requested = native.requested_isa()
    return requested if requested and requested in native.compiled.isas() else ""
