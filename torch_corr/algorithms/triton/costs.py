"""What a map costs in a configuration: instructions counted, or tiles filled.

What is worth how much was read off times on an H200.
"""

from __future__ import annotations

from math import prod

import torch

from ...problem import Problem
from ...request import MapName
from ..base import matrix_speed, may_use_tf32
from .axes import axes
from .configs import Band, Config, Dot, Product, Sums, Taps, leaves_out

WARPS = 264
"""Warps below which fewer rows to a lane, and so more lanes, are worth their instructions: two for
each multiprocessor of an H100.  A constant, so that results do not depend on the device."""


def work(config: Config, map: MapName, problem: Problem, dtype: torch.dtype) -> float:
    """Times the definition's products, in those of a large matrix product.

    Of layers of 64 channels a Dot did, on an H200, a third of what is stated in float64, an
    eighteenth in halves, and a fifth in float32; with TF32 a fifth of float32's time, copies
    included, for which its factor is the same.
    """
    if isinstance(config, Dot):
        return _padding(config, map, problem) * {2: 18.0, 4: 5.5, 8: 3.2}[dtype.itemsize]
    if isinstance(config, Band):
        return _padding(config, map, problem) * _around_bands(dtype)
    return _beside(config, map, problem, dtype)


def _padding(config: Product, map: MapName, problem: Problem) -> float:
    """How many times the products of the definition the tiles multiply."""
    taps = prod(problem.kernel)
    if isinstance(config, Band):
        across, out = problem.size[1], problem.output_size[1]
        tiles = {
            "forward": ((out, config.n), (across, config.k)),
            "grad_input": ((across, config.n), (out, config.k)),
            "grad_weight": ((out, config.m), (across * problem.kernel[0], config.n)),
        }[map]
        filled = prod(-(-length // tile) * tile for length, tile in tiles)
        rows = 1 if map == "grad_weight" else problem.kernel[0]
        return filled * rows / (taps * out)
    sides = {
        "forward": ((problem.group_out, config.n), (problem.group_in, config.k)),
        "grad_input": ((problem.group_in, config.n), (problem.group_out, config.k)),
        "grad_weight": ((problem.group_out, config.m), (problem.group_in * taps, config.n)),
    }[map]
    return prod(-(-length // tile) * tile / length for length, tile in sides)


def _around_bands(dtype: torch.dtype) -> float:
    """What a product of a band costs, as RepLKNet's did on an H200."""
    single = 5.5 if may_use_tf32(dtype) else 1.9
    return {2: 6.0, 4: single, 8: 1.7}[dtype.itemsize]


def _beside(config: Taps | Sums, map: MapName, problem: Problem, dtype: torch.dtype) -> float:
    """What a product costs one by one, in those of a large matrix product.

    That takes an instruction each; of ours 0.7 of what could be issued were, on an H200.  One by
    one float64 is half as quick as float32.
    """
    each = instructions(config, map, problem) / prod(problem.kernel)
    return each / 0.7 * matrix_speed(dtype) * (2 if dtype == torch.float64 else 1)


def instructions(config: Taps | Sums, map: MapName, problem: Problem) -> float:
    """Instructions for each output, counted roughly; too few warps count as if each did more.

    Of the configurations timed on an H200, 2026-11-27, times mostly follow it within a quarter as
    long as the layer is the same.
    """
    rows, columns = axes(map, problem)
    height = config.height
    # Rows in vain below the last one.
    waste = -(-rows.of_class // height) * height / rows.of_class
    if isinstance(config, Sums):
        down, across = min(config.down, rows.taps), min(config.across, columns.taps)
        chunks = -(-rows.taps // down) * -(-columns.taps // across)
        read = height + down - 1 if height > 1 else down
        return chunks * waste * (down * across + (6 * read * across + 60) / height + 5)
    if height == 1:
        return 9.0 * rows.taps * columns.taps / (rows.period * columns.period) + 130
    if leaves_out(config, problem, map):
        # Neither rows nor addresses are looked at.
        height, waste = rows.dest, 1.0
        products, reading = rows.taps * (1 - rows.beyond), 2.0 * rows.source
    else:
        chunk = min(config.chunk, rows.taps)
        products, reading = rows.taps, 5 * rows.taps / chunk * (height + chunk - 1)
    each = columns.taps * (products + (reading + 2 * rows.taps) / height) + 124 / height
    pixels = problem.batch * rows.dest * columns.dest
    channels = problem.out_channels if map == "forward" else problem.in_channels
    warps = waste * pixels * channels / height / 32
    return each * waste * max(1.0, WARPS / warps)
