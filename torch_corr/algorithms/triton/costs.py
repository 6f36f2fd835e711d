"""The cost of a map in a configuration: instructions of row sums, or padding of tiles.

The factors were fitted to times on an H200.
"""

from __future__ import annotations

from math import prod

import torch

from ...problem import Problem
from ...request import MapName
from ..base import matrix_speed, may_use_tf32
from .axes import axes, cdiv
from .configs import Band, Config, Dot, Product, Sums, Taps, skips_outside_rows

MIN_WARPS = 264
"""Two warps for each multiprocessor of an H100.  With fewer warps, configurations with fewer rows
in a lane, and so more lanes, are faster in spite of more instructions.  A constant, so that
results do not depend on the device."""


def relative_cost(config: Config, map: MapName, problem: Problem, dtype: torch.dtype) -> float:
    """The time of a product of the definition, relative to one in a large matrix product.

    On an H200, a Dot for layers of 64 channels reached a third of the stated peak in float64, an
    eighteenth in halves, and a fifth in float32.  With TF32 it took a fifth of the time of
    float32, copies included; the peak is higher by about as much, so the factor is the same.
    """
    if isinstance(config, Dot):
        return _padding(config, map, problem) * {2: 18.0, 4: 5.5, 8: 3.2}[dtype.itemsize]
    if isinstance(config, Band):
        # As for RepLKNet's layer on an H200.
        single = 5.5 if may_use_tf32(dtype) else 1.9
        return _padding(config, map, problem) * {2: 6.0, 4: single, 8: 1.7}[dtype.itemsize]
    # A product of a large matrix product takes one instruction.  Row sums issued 0.7 of the
    # possible instructions on an H200.  Outside matrix units float64 has half the speed of
    # float32.
    instructions = instructions_per_output(config, map, problem) / prod(problem.kernel)
    return instructions / 0.7 * matrix_speed(dtype) * (2 if dtype == torch.float64 else 1)


def _padding(config: Product, map: MapName, problem: Problem) -> float:
    """Products of the tiles, relative to those of the definition."""
    taps = prod(problem.kernel)
    if isinstance(config, Band):
        across, out = problem.size[1], problem.output_size[1]
        sides = {
            "forward": ((out, config.n), (across, config.k)),
            "grad_input": ((across, config.n), (out, config.k)),
            "grad_weight": ((out, config.m), (across * problem.kernel[0], config.n)),
        }[map]
        products = prod(cdiv(length, tile) * tile for length, tile in sides)
        rows = 1 if map == "grad_weight" else problem.kernel[0]
        return products * rows / (taps * out)
    sides = {
        "forward": ((problem.group_out, config.n), (problem.group_in, config.k)),
        "grad_input": ((problem.group_in, config.n), (problem.group_out, config.k)),
        "grad_weight": ((problem.group_out, config.m), (problem.group_in * taps, config.n)),
    }[map]
    return prod(cdiv(length, tile) * tile / length for length, tile in sides)


def instructions_per_output(config: Taps | Sums, map: MapName, problem: Problem) -> float:
    """A rough count of the instructions for each output; larger if there are too few warps.

    For the configurations timed on an H200, 2026-11-27, times within one layer are mostly
    proportional to it, to within a quarter.
    """
    rows, columns = axes(map, problem)
    height = config.height
    # The last block has rows below the last row of the result.
    waste = cdiv(rows.class_length, height) * height / rows.class_length
    if isinstance(config, Sums):
        down, across = min(config.down, rows.taps), min(config.across, columns.taps)
        chunks = cdiv(rows.taps, down) * cdiv(columns.taps, across)
        loads = height + down - 1 if height > 1 else down
        return chunks * waste * (down * across + (6 * loads * across + 60) / height + 5)
    if height == 1:
        return 9.0 * rows.taps * columns.taps / (rows.period * columns.period) + 130
    if skips_outside_rows(config, problem, map):
        # No row is tested, and no address computed.
        height, waste = rows.dest, 1.0
        products, loading = rows.taps * (1 - rows.outside_share), 2.0 * rows.source
    else:
        chunk = min(config.chunk, rows.taps)
        products, loading = rows.taps, 5 * rows.taps / chunk * (height + chunk - 1)
    instructions = columns.taps * (products + (loading + 2 * rows.taps) / height) + 124 / height
    pixels = problem.batch * rows.dest * columns.dest
    channels = problem.out_channels if map == "forward" else problem.in_channels
    warps = waste * pixels * channels / height / 32
    return instructions * waste * max(1.0, MIN_WARPS / warps)
