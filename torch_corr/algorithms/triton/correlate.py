"""The launches of ``forward``, and of ``grad_input``, which is ``forward`` read backwards.

Rows of sums, a matrix product, or one of bands; and a launch that mends what zeros have spoilt.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from ...problem import Problem
from ...request import MapName
from ..base import accumulation_dtype, is_channels_last
from .axes import STILL, axes, dest_shape
from .configs import Band, Config, Dot, Taps, by_name, leaves_out
from .draft import Draft, dot_constants, passes_32_bits, strides_of, sums_in
from .form import Form, Launch, interpreted


def _channel_axes(map: MapName) -> tuple[int, int]:
    """Of dest and source channels in (groups, O/G, C/G, kH, kW)."""
    return (1, 2) if map == "forward" else (2, 1)


def correlate_form(
    draft: Draft, map: MapName, problem: Problem, source: Tensor, weight: Tensor
) -> Form:
    """Of ``forward``, or of ``grad_input``, whose source is the output."""
    config = draft.config
    result = draft.fresh(
        dest_shape(map, problem),
        # The interpreter truncates to bfloat16 where devices round.
        accumulation_dtype(source.dtype) if interpreted() else source.dtype,
        torch.channels_last if is_channels_last(source) else torch.contiguous_format,
    )
    # (groups, O/G, C/G, kH, kW)
    shape = (problem.groups, problem.group_out, problem.group_in, *problem.kernel)
    weight = draft.packed(weight, weight)
    grouped = draft.packed(weight, weight.view(shape))
    launch: Launch
    if isinstance(config, Band):
        source = draft.packed(source, source)
        return draft.form(
            result, *_band_launches(draft, map, problem, source, grouped, result, config)
        )
    if isinstance(config, Dot):
        source = draft.packed(source, source, torch.channels_last)
        launch = _dot_launch(draft, map, problem, source, grouped, result, config)
    else:
        launch = _taps_launch(draft, map, problem, source, grouped, result, config)
    by_one = isinstance(config, Taps) and config.height == 1
    if map == "forward" or by_one or max(problem.kernel) == 1:
        return draft.form(result, launch)
    # No pixel may meet a tap beyond the edges, were it only to multiply NaN by zero.
    mend = _mend_launch(draft, map, problem, source, grouped, result, edges=True)
    return draft.form(result, launch, mend)


def _taps_launch(
    draft: Draft,
    map: MapName,
    problem: Problem,
    source: Tensor,
    grouped: Tensor,
    result: Tensor,
    config: Config,
) -> Launch:
    assert isinstance(config, Taps)
    rows, columns = axes(map, problem)
    dest, summed = _channel_axes(map)
    # Lanes that are channels want theirs next to each other.
    lanes_are_channels = is_channels_last(result)
    order = (summed, 3, 4, 0, dest) if lanes_are_channels else (0, dest, summed, 3, 4)
    packed = draft.packed(grouped, grouped.permute(order))
    step = dict(zip(order, packed.stride()))
    weight_strides = tuple(step[each] for each in (0, dest, summed, 3, 4))
    channels = result.shape[1]
    high = -(-rows.of_class // config.height)
    lanes = problem.batch * high * columns.of_class
    blocks = -(-lanes * (channels if lanes_are_channels else 1) // config.lanes)
    strides = strides_of(source), strides_of(result), weight_strides
    shared, left_out = config.height > 1, leaves_out(config, problem, map)
    chunk = rows.taps if left_out else min(config.chunk, rows.taps)
    constants = {
        "LANES": config.lanes,
        "HEIGHT": rows.dest if left_out else config.height,
        "CHUNK": chunk,
        "CHUNKS": rows.taps // chunk if shared else 0,
        "REST": rows.taps % chunk if shared else 0,
        "STEP": rows.mult if shared else 0,
        "TAP": rows.tap if shared else 0,
        "FIRST": rows.base if left_out else 0,
        "INSIDE": rows.source if left_out else 0,
        # As the kernel finds its first row, which a single row's own stride would miss.
        "ROW_STRIDE": strides[0][2] if left_out else 0,
        "TAP_STRIDE": weight_strides[3] if left_out else 0,
        "CHANNELS_FIRST": lanes_are_channels,
        "WIDE": passes_32_bits((rows, columns), source, packed, result, lanes * channels),
        "SUM": sums_in(source.dtype),
    }
    numbers = (problem.batch, channels, grouped.shape[summed], grouped.shape[dest], blocks)
    return draft.launch(
        "correlate_taps",
        config,
        blocks * (1 if lanes_are_channels else channels) * rows.classes * columns.classes,
        (source, packed, result, rows, columns, *strides, *numbers),
        constants,
    )


def _mend_launch(
    draft: Draft,
    map: MapName,
    problem: Problem,
    source: Tensor,
    grouped: Tensor,
    result: Tensor,
    edges: bool,
) -> Launch:
    """What sums again the pixels that are not finite, near an edge or all."""
    rows, columns = axes(map, problem)
    dest, summed = _channel_axes(map)
    lanes = 1024
    length = result.numel()
    strides = strides_of(source), tuple(grouped.stride(each) for each in (0, dest, summed, 3, 4))
    numbers = (result.shape[1], grouped.shape[summed], grouped.shape[dest], length)
    return draft.launch(
        "mend",
        by_name("taps-1"),
        -(-length // lanes),
        (source, grouped, result, rows, columns, *strides, *numbers),
        {
            "LANES": lanes,
            "CHANNELS_FIRST": is_channels_last(result),
            "EDGES": edges,
            "WIDE": passes_32_bits((rows, columns), source, grouped.numel(), result, length),
            "SUM": sums_in(source.dtype),
        },
    )


def _dot_launch(
    draft: Draft,
    map: MapName,
    problem: Problem,
    source: Tensor,
    grouped: Tensor,
    result: Tensor,
    config: Dot,
) -> Launch:
    rows, columns = axes(map, problem)
    classes = rows.classes * columns.classes
    dest, summed = _channel_axes(map)
    group_dest, group_source = grouped.shape[dest], grouped.shape[summed]
    # 16 bytes at a time: along the channels for halves; matrix units take TF32 along the sum.
    if source.dtype == torch.float32:
        packed = draft.packed(grouped, grouped.permute(0, dest, 3, 4, summed))
        weight_strides = (1, packed.stride(1))
    else:
        packed = draft.packed(grouped, grouped.permute(0, 3, 4, summed, dest))
        weight_strides = (group_dest, 1)
    pixels = problem.batch * rows.of_class * columns.of_class
    tiles = -(-pixels // config.m) * -(-group_dest // config.n)
    part = _plane_part(result, classes)
    plane = rows.dest * columns.dest // part if part else 0
    constants = dot_constants(config, source) | {
        "FLAT": group_source < config.k,
        "PLANE_PART": part,
        "WIDE": passes_32_bits((rows, columns), source, packed, result),
    }
    numbers = (problem.batch, problem.groups, group_source, group_dest, plane)
    strides = (strides_of(source), strides_of(result), weight_strides)
    group_strides = (group_source * source.stride(1), group_dest * result.stride(1))
    return draft.launch(
        "correlate_dot",
        config,
        tiles * problem.groups * classes,
        (source, packed, result, rows, columns, *strides, group_strides, *numbers),
        constants,
    )


def _band_launches(
    draft: Draft,
    map: MapName,
    problem: Problem,
    source: Tensor,
    grouped: Tensor,
    result: Tensor,
    config: Band,
) -> tuple[Launch, ...]:
    """The bands, the product, and the pixels that zeros of a band have met as NaN or infinity."""
    rows, columns = axes(map, problem)
    groups, (down, _) = problem.groups, problem.kernel
    # As in _dot_launch: along the dest for halves, along the sum for TF32.
    if source.dtype == torch.float32:
        band = draft.fresh((groups, columns.dest, down, columns.source), source.dtype)
        per_group, per_dest, per_row, per_source = band.stride()
        weight_strides = (1, per_dest)
    else:
        band = draft.fresh((groups, down, columns.source, columns.dest), source.dtype)
        per_group, per_row, per_source, per_dest = band.stride()
        weight_strides = (per_source, 1)
    wide = passes_32_bits((rows, columns), band.numel(), grouped.numel(), source, result)
    lanes = 1024
    blocks = -(-columns.source * columns.dest // lanes)
    spread = draft.launch(
        "spread_taps",
        config,
        groups * down * blocks,
        (grouped, band, columns, per_source, per_dest, per_row, per_group, down, blocks),
        {"LANES": lanes, "WIDE": wide},
    )
    pixels = problem.batch * rows.of_class
    tiles = -(-pixels // config.m) * -(-columns.dest // config.n)
    source_strides, result_strides = (
        (each.stride(0), each.stride(3), each.stride(2), 0) for each in (source, result)
    )
    product = draft.launch(
        "correlate_dot",
        config,
        tiles * groups * rows.classes,
        (
            *(source, band, result, rows, STILL),
            *(source_strides, result_strides, weight_strides),
            (source.stride(1), result.stride(1)),
            *(problem.batch, groups, columns.source, columns.dest, 0),
        ),
        dot_constants(config, source) | {"FLAT": False, "PLANE_PART": 0, "WIDE": wide},
    )
    mend = _mend_launch(draft, map, problem, source, grouped, result, edges=False)
    return spread, product, mend


def _plane_part(result: Tensor, classes: int) -> int:
    """The power of two, at most 16, that the pixels of a plane are a multiple of; 0 unless the
    pixels of a plane follow each other."""
    if classes > 1 or not result.is_contiguous() or result.shape[1] == 1:
        return 0
    plane = result.shape[2] * result.shape[3]
    return gcd(plane, 16)
