"""The launches of ``grad_weight``: partial sums over splits of the pixels.

The second stage adds the splits in order, without atomics, so results repeat to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import Problem
from ...request import accumulation_dtype
from ..base import is_channels_last
from .axes import ONE_PIXEL, axes, band_shape, cdiv
from .configs import Band, Config, Dot, Sums
from .launch_plan import LaunchPlan
from .launch_plan_builder import (
    LaunchPlanBuilder,
    dot_constants,
    needs_int64,
    strides_of,
    sum_dtype,
)

MIN_PROGRAMS = 1056
"""The splits are so many that there are at least so many programs: 8 for each multiprocessor of
an H100.  A constant, so that results do not depend on the device."""


class Splits(NamedTuple):
    """How the pixels of ``grad_weight`` are split.

    Attributes:
        number: how many splits.
        length: pixels of a split; for Sums blocks of lanes.
        programs: programs for each split.
    """

    number: int
    length: int
    programs: int


def splits_of(problem: Problem, config: Config) -> Splits:
    """The splits of a problem in a configuration."""
    rows, columns = axes("grad_weight", problem)
    channels, (row_taps, column_taps) = problem.group_in, problem.kernel
    if isinstance(config, Sums):
        chunks = cdiv(row_taps, config.down) * cdiv(column_taps, config.across)
        programs = chunks * channels * problem.out_channels
        lanes = problem.batch * cdiv(rows.dest, config.height) * columns.dest
        blocks, unit = cdiv(lanes, config.lanes), 1
    else:
        assert isinstance(config, (Dot, Band))
        if isinstance(config, Dot):
            height, width = problem.group_out, channels * row_taps * column_taps
            pixels = problem.batch * rows.dest * columns.dest
        else:
            _, _, across, height = band_shape(problem)
            width, pixels = row_taps * across, problem.batch * rows.dest
        programs = cdiv(height, config.m) * cdiv(width, config.n) * problem.groups
        blocks, unit = cdiv(pixels, config.k), config.k
    per_split = cdiv(blocks, max(1, min(blocks, cdiv(MIN_PROGRAMS, programs))))
    return Splits(cdiv(blocks, per_split), per_split * unit, programs)


def plan_weight(
    builder: LaunchPlanBuilder, problem: Problem, input: Tensor, output: Tensor
) -> LaunchPlan:
    """The plan of ``grad_weight``.

    It fills the sums of the splits, (splits, O, C/G, kH, kW), for a Dot (splits, O, kH, kW, C/G);
    for a Band the weight.
    """
    if isinstance(builder.config, Dot):
        return _plan_dot(builder, builder.config, problem, input, output)
    if isinstance(builder.config, Band):
        return _plan_bands(builder, builder.config, problem, input, output)
    assert isinstance(builder.config, Sums)
    return _plan_sums(builder, builder.config, problem, input, output)


def _plan_dot(
    builder: LaunchPlanBuilder, config: Dot, problem: Problem, input: Tensor, output: Tensor
) -> LaunchPlan:
    both = axes("grad_weight", problem)
    splits = splits_of(problem, config)
    channels, group_out = problem.group_in, problem.group_out
    input = builder.contiguous(input, layout=torch.channels_last)
    output = builder.contiguous(output, layout=torch.channels_last)
    shape = (splits.number, problem.out_channels, *problem.kernel, channels)
    partial = builder.allocate(shape, accumulation_dtype(input.dtype))
    end = splits.number * splits.length
    launch = builder.launch(
        "weight_dot",
        splits.programs * splits.number,
        (
            *(input, output, partial, *both, strides_of(input), strides_of(output)),
            (channels * input.stride(1), group_out * output.stride(1)),
            *(problem.batch, problem.groups, channels, group_out, splits.length),
        ),
        dot_constants(config, input)
        | {"USE_INT64": needs_int64(both, input, output, partial, end)},
    )
    return builder.build(partial, launch)


def _plan_sums(
    builder: LaunchPlanBuilder, config: Sums, problem: Problem, input: Tensor, output: Tensor
) -> LaunchPlan:
    rows, columns = axes("grad_weight", problem)
    splits = splits_of(problem, config)
    channels, (row_taps, column_taps) = problem.group_in, problem.kernel
    # Lanes are pixels, so pixels must be contiguous.
    input, output = (
        builder.contiguous(each) if is_channels_last(each) else each for each in (input, output)
    )
    shape = (splits.number, problem.out_channels, channels, row_taps, column_taps)
    partial = builder.allocate(shape, accumulation_dtype(input.dtype))
    # The lanes of the last split are counted to its end, beyond the last pixel.
    end = splits.number * splits.length * config.lanes
    launch = builder.launch(
        "weight_taps",
        splits.programs * splits.number,
        (
            *(input, output, partial, rows, columns, strides_of(input), strides_of(output)),
            *(problem.batch, problem.out_channels, channels, problem.group_out),
            *(cdiv(row_taps, config.down), cdiv(column_taps, config.across), splits.length),
        ),
        {
            "LANES": config.lanes,
            "HEIGHT": config.height,
            "DOWN": min(config.down, row_taps),
            "ACROSS": min(config.across, column_taps),
            "MULT": rows.mult,
            "TAP_STEP": rows.tap_step,
            "USE_INT64": needs_int64((rows, columns), input, output, partial, end),
            "SUM": sum_dtype(input.dtype),
        },
    )
    return builder.build(partial, launch)


def _plan_bands(
    builder: LaunchPlanBuilder, config: Band, problem: Problem, input: Tensor, output: Tensor
) -> LaunchPlan:
    """A product (splits, O, output columns, kH, input columns), then the sums of its diagonals."""
    rows, columns = axes("grad_weight", problem)
    splits = splits_of(problem, config)
    groups, row_taps, across, out = band_shape(problem)
    input, output = builder.contiguous(input), builder.contiguous(output)
    dtype = accumulation_dtype(input.dtype)
    partial = builder.allocate((splits.number, groups, out, row_taps, across), dtype)
    weight = builder.allocate(problem.weight_shape, dtype)
    end = splits.number * splits.length
    product = builder.launch(
        "weight_dot",
        splits.programs * splits.number,
        (
            *(input, output, partial, rows, ONE_PIXEL),
            *((each.stride(0), 1, each.stride(2), 0) for each in (input, output)),
            (input.stride(1), output.stride(1)),
            *(problem.batch, groups, across, out, splits.length),
        ),
        dot_constants(config, input)
        | {"USE_INT64": needs_int64((rows, columns), input, output, partial, end)},
    )
    lanes = 32
    diagonals = builder.launch(
        "sum_bands",
        groups * row_taps * cdiv(columns.taps, lanes),
        (partial, weight, columns, groups, row_taps, splits.number),
        {
            "LANES": lanes,
            "USE_INT64": needs_int64((columns, columns), partial.numel()),
            "SUM": sum_dtype(partial.dtype),
        },
    )
    return builder.build(weight, product, diagonals)
