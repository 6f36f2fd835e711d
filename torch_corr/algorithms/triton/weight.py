"""The launches of ``grad_weight``: splits of the pixels, whose sums are summed in their order."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ...problem import Problem
from ..base import accumulation_dtype, is_channels_last
from .axes import STILL, axes, band_shape
from .configs import Band, Config, Dot, Sums
from .draft import Draft, dot_constants, passes_32_bits, strides_of, sums_in
from .form import Form, Launch

PROGRAMS = 1056
"""Programs to split ``grad_weight`` into at least: 8 for each multiprocessor of an H100.  A
constant, so that results do not depend on the device."""


def weight_form(draft: Draft, problem: Problem, input: Tensor, output: Tensor) -> Form:
    """Of ``grad_weight``.

    The launches fill the sums of the splits, (splits, O, C/G, kH, kW), or for a Dot (splits, O,
    kH, kW, C/G); those of a Band the result.
    """
    config = draft.config
    rows, columns = axes("grad_weight", problem)
    splits, per_split = splits_of(problem, config)
    sum_dtype = accumulation_dtype(input.dtype)
    (down, across), channels = problem.kernel, problem.group_in
    if isinstance(config, Dot):
        input = draft.packed(input, input, torch.channels_last)
        output = draft.packed(output, output, torch.channels_last)
        partial = draft.fresh((splits, problem.out_channels, down, across, channels), sum_dtype)
        tiles = -(-problem.group_out // config.m) * -(-channels * down * across // config.n)
        numbers = (problem.batch, problem.groups, channels, problem.group_out, per_split)
        launch = draft.launch(
            "weight_dot",
            config,
            tiles * problem.groups * splits,
            (
                *(input, output, partial, rows, columns),
                *(strides_of(input), strides_of(output)),
                (channels * input.stride(1), problem.group_out * output.stride(1)),
                *numbers,
            ),
            dot_constants(config, input)
            | {"WIDE": passes_32_bits((rows, columns), input, output, partial, splits * per_split)},
        )
        return draft.form(partial, launch)
    if isinstance(config, Band):
        input, output = draft.packed(input, input), draft.packed(output, output)
        launch, partial = _weight_band_launch(draft, problem, input, output, config)
        total = draft.fresh(problem.weight_shape, sum_dtype)
        return draft.form(total, launch, _band_sum(draft, problem, partial, total, config))
    assert isinstance(config, Sums)
    # Lanes are pixels, and want them next to each other.
    input, output = _in_rows(draft, input), _in_rows(draft, output)
    partial = draft.fresh((splits, problem.out_channels, channels, down, across), sum_dtype)
    chunks = -(-down // config.down), -(-across // config.across)
    launch = draft.launch(
        "weight_taps",
        config,
        prod(chunks) * channels * problem.out_channels * splits,
        (
            *(input, output, partial, rows, columns, strides_of(input), strides_of(output)),
            *(problem.batch, problem.out_channels, channels, problem.group_out),
            *(*chunks, per_split),
        ),
        {
            "LANES": config.lanes,
            "HEIGHT": config.height,
            "DOWN": min(config.down, down),
            "ACROSS": min(config.across, across),
            "STEP": rows.mult,
            "TAP": rows.tap,
            # The last split counts lanes on to its end, past the last pixel.
            "WIDE": passes_32_bits(
                (rows, columns), input, output, partial, splits * per_split * config.lanes
            ),
            "SUM": sums_in(input.dtype),
        },
    )
    return draft.form(partial, launch)


def _in_rows(draft: Draft, operand: Tensor) -> Tensor:
    """An operand whose channels lie next to each other, moved apart; any other as it is."""
    return draft.packed(operand, operand) if is_channels_last(operand) else operand


def _weight_band_launch(
    draft: Draft, problem: Problem, input: Tensor, output: Tensor, config: Band
) -> tuple[Launch, Tensor]:
    """The first stage, and (splits, O, output columns, kH, input columns), which it fills."""
    rows, columns = axes("grad_weight", problem)
    splits, per_split = splits_of(problem, config)
    groups, down, across, out = band_shape(problem)
    sum_dtype = accumulation_dtype(input.dtype)
    partial = draft.fresh((splits, groups, out, down, across), sum_dtype)
    tiles = -(-out // config.m) * -(-down * across // config.n)
    input_strides, output_strides = (
        (each.stride(0), 1, each.stride(2), 0) for each in (input, output)
    )
    wide = passes_32_bits((rows, columns), input, output, partial, splits * per_split)
    return draft.launch(
        "weight_dot",
        config,
        tiles * groups * splits,
        (
            *(input, output, partial, rows, STILL, input_strides, output_strides),
            (input.stride(1), output.stride(1)),
            *(problem.batch, groups, across, out, per_split),
        ),
        dot_constants(config, input) | {"WIDE": wide},
    ), partial


def _band_sum(
    draft: Draft, problem: Problem, partial: Tensor, total: Tensor, config: Band
) -> Launch:
    """The second stage of ``grad_weight`` by bands, from (splits, O, ...) to (O, 1, kH, kW)."""
    _, columns = axes("grad_weight", problem)
    lanes = 32
    blocks = -(-columns.taps // lanes)
    return draft.launch(
        "sum_bands",
        config,
        problem.groups * problem.kernel[0] * blocks,
        (partial, total, columns, problem.groups, problem.kernel[0], partial.shape[0]),
        {
            "LANES": lanes,
            "WIDE": passes_32_bits((columns, columns), partial.numel()),
            "SUM": sums_in(partial.dtype),
        },
    )


def splits_of(problem: Problem, config: Config) -> tuple[int, int]:
    """How many splits of the pixels, and how much of them (in the config's unit) has each."""
    rows, columns = axes("grad_weight", problem)
    channels, (down, taps) = problem.group_in, problem.kernel
    if isinstance(config, Dot):
        pixels = problem.batch * rows.dest * columns.dest
        tiles = -(-problem.group_out // config.m) * -(-channels * down * taps // config.n)
        blocks, programs = -(-pixels // config.k), tiles * problem.groups
        unit = config.k
    elif isinstance(config, Band):
        groups, _, across, out = band_shape(problem)
        tiles = -(-out // config.m) * -(-down * across // config.n)
        blocks, programs = -(-problem.batch * rows.dest // config.k), tiles * groups
        unit = config.k
    else:
        assert isinstance(config, Sums)
        lanes = problem.batch * -(-rows.dest // config.height) * columns.dest
        chunks = -(-down // config.down) * -(-taps // config.across)
        blocks, programs = -(-lanes // config.lanes), chunks * channels * problem.out_channels
        unit = 1
    per_split = -(-blocks // max(1, min(blocks, -(-PROGRAMS // programs))))
    return -(-blocks // per_split), per_split * unit
