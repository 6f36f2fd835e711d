"""The launches of ``forward`` and ``grad_input``: row sums, a matrix product, or bands.

Where a zero may meet NaN or infinity, a last launch recomputes the results that are not finite.
"""

from __future__ import annotations

from math import gcd, prod
from typing import Any

import torch
from torch import Tensor

from ...problem import Problem
from ...request import SLOTS, MapName, accumulation_dtype, shape_of
from ..base import is_channels_last
from .axes import ONE_PIXEL, axes, cdiv
from .configs import Band, Dot, Product, Taps, by_name, skips_outside_rows
from .launch_plan import Launch, LaunchPlan
from .launch_plan_builder import (
    LaunchPlanBuilder,
    dot_constants,
    needs_int64,
    strides_of,
    sum_dtype,
)
from .runtime import is_interpreted

LANES = 1024
"""Elements of a program of the kernels that copy or scan."""


def plan_correlate(
    builder: LaunchPlanBuilder, map: MapName, problem: Problem, source: Tensor, weight: Tensor
) -> LaunchPlan:
    """The plan of ``forward``, or of ``grad_input``, whose source is the output."""
    return _Correlation(builder, map, problem, source, weight).plan()


class _Correlation:
    """What the launches of ``forward`` and ``grad_input`` have in common.

    Attributes:
        rows, columns: the axes of the map.
        source, result: the operand that is read and the result.
        weight: contiguous, (groups, O/G, C/G, kH, kW).
        dest_dim, source_dim: the dimensions of dest and source channels in ``weight``.
        group_dest, group_source: their sizes.
    """

    def __init__(
        self,
        builder: LaunchPlanBuilder,
        map: MapName,
        problem: Problem,
        source: Tensor,
        weight: Tensor,
    ) -> None:
        self.builder, self.map, self.problem, self.source = builder, map, problem, source
        self.rows, self.columns = axes(map, problem)
        self.result = builder.allocate(
            shape_of(problem, SLOTS[map][2]),
            # The interpreter truncates to bfloat16; devices round.
            accumulation_dtype(source.dtype) if is_interpreted() else source.dtype,
            torch.channels_last if is_channels_last(source) else torch.contiguous_format,
        )
        shape = (problem.groups, problem.group_out, problem.group_in, *problem.kernel)
        weight = builder.contiguous(weight)
        self.weight = builder.contiguous(weight, weight.view(shape))
        self.dest_dim, self.source_dim = (1, 2) if map == "forward" else (2, 1)
        self.group_dest = self.weight.shape[self.dest_dim]
        self.group_source = self.weight.shape[self.source_dim]

    def plan(self) -> LaunchPlan:
        """The plan in the builder's configuration."""
        config = self.builder.config
        if isinstance(config, Band):
            self.source = self.builder.contiguous(self.source)
            return self.builder.build(self.result, *self._band_launches(config))
        if isinstance(config, Dot):
            self.source = self.builder.contiguous(self.source, layout=torch.channels_last)
            launch = self._dot_launch(config)
        else:
            assert isinstance(config, Taps)
            launch = self._taps_launch(config)
        sums_single_taps = isinstance(config, Taps) and config.height == 1
        if self.map == "forward" or sums_single_taps or max(self.problem.kernel) == 1:
            return self.builder.build(self.result, launch)
        # The first launch multiplies a zero beyond the edges by taps, which may be NaN.
        return self.builder.build(self.result, launch, self._recompute_launch(edges=True))

    def _taps_launch(self, config: Taps) -> Launch:
        rows, columns, problem, result = self.rows, self.columns, self.problem, self.result
        lanes_are_channels = is_channels_last(result)
        # If lanes are channels, the weight's dest channels are contiguous.
        if lanes_are_channels:
            order = (self.source_dim, 3, 4, 0, self.dest_dim)
        else:
            order = (0, self.dest_dim, self.source_dim, 3, 4)
        weight = self.builder.contiguous(self.weight, self.weight.permute(order))
        step = dict(zip(order, weight.stride()))
        strides = strides_of(self.source), strides_of(result), self._weight_strides(step)
        channels = result.shape[1]
        lanes = problem.batch * cdiv(rows.class_length, config.height) * columns.class_length
        blocks = cdiv(lanes * (channels if lanes_are_channels else 1), config.lanes)
        shares_rows = config.height > 1
        skips_rows = skips_outside_rows(config, problem, self.map)
        chunk = rows.taps if skips_rows else min(config.chunk, rows.taps)
        constants = {
            "LANES": config.lanes,
            "HEIGHT": rows.dest if skips_rows else config.height,
            "CHUNK": chunk,
            "CHUNKS": rows.taps // chunk if shares_rows else 0,
            "REST": rows.taps % chunk if shares_rows else 0,
            "MULT": rows.mult if shares_rows else 0,
            "TAP_STEP": rows.tap_step if shares_rows else 0,
            "FIRST_ROW": rows.base if skips_rows else 0,
            "SOURCE_ROWS": rows.source if skips_rows else 0,
            # The stride that the kernel gets for its first row, also where there is only one row.
            "ROW_STRIDE": strides[0][2] if skips_rows else 0,
            "TAP_STRIDE": step[3] if skips_rows else 0,
            "CHANNELS_LAST": lanes_are_channels,
            "USE_INT64": self._needs_int64(self.source, weight, result, lanes * channels),
            "SUM": sum_dtype(self.source.dtype),
        }
        programs = blocks * (1 if lanes_are_channels else channels)
        return self.builder.launch(
            "correlate_taps",
            programs * rows.classes * columns.classes,
            (
                *(self.source, weight, result, rows, columns, *strides),
                *(problem.batch, channels, self.group_source, self.group_dest, blocks),
            ),
            constants,
        )

    def _recompute_launch(self, edges: bool) -> Launch:
        """Recomputes non-finite pixels: with ``edges`` those near an edge, otherwise all."""
        result, length = self.result, self.result.numel()
        return self.builder.launch(
            "recompute_nonfinite",
            cdiv(length, LANES),
            (
                *(self.source, self.weight, result, self.rows, self.columns),
                *(strides_of(self.source), self._weight_strides(self.weight.stride())),
                *(result.shape[1], self.group_source, self.group_dest, length),
            ),
            {
                "LANES": LANES,
                "CHANNELS_LAST": is_channels_last(result),
                "EDGES": edges,
                "USE_INT64": self._needs_int64(self.source, self.weight.numel(), result, length),
                "SUM": sum_dtype(self.source.dtype),
            },
            by_name("taps-1"),
        )

    def _dot_launch(self, config: Dot) -> Launch:
        rows, columns, problem = self.rows, self.columns, self.problem
        source, result, classes = self.source, self.result, rows.classes * columns.classes
        # The contiguous axis is loaded 16 bytes at a time: dest channels for halves; source
        # channels for float32, because matrix units read TF32 along the sum.
        sum_is_contiguous = source.dtype == torch.float32
        inner = (self.dest_dim, 3, 4, self.source_dim)
        order = (0, *inner) if sum_is_contiguous else (0, *inner[1:], self.dest_dim)
        weight = self.builder.contiguous(self.weight, self.weight.permute(order))
        weight_strides = (1, weight.stride(1)) if sum_is_contiguous else (self.group_dest, 1)
        part = _plane_part(result, classes)
        plane = rows.dest * columns.dest // part if part else 0
        return self._product_launch(
            config,
            problem.batch * rows.class_length * columns.class_length,
            classes,
            (
                *(source, weight, result, rows, columns),
                *(strides_of(source), strides_of(result), weight_strides),
                (self.group_source * source.stride(1), self.group_dest * result.stride(1)),
                *(problem.batch, problem.groups, self.group_source, self.group_dest, plane),
            ),
            {
                "FLAT": self.group_source < config.k,
                "PLANE_PART": part,
                "USE_INT64": self._needs_int64(source, weight, result),
            },
        )

    def _band_launches(self, config: Band) -> tuple[Launch, ...]:
        """Builds the bands, multiplies, and recomputes what a zero times NaN or infinity spoils."""
        builder, rows, columns = self.builder, self.rows, self.columns
        source, result = self.source, self.result
        groups, row_taps = self.problem.groups, rows.taps
        # The contiguous axis is chosen as in _dot_launch.
        if source.dtype == torch.float32:
            band = builder.allocate((groups, columns.dest, row_taps, columns.source), source.dtype)
            group_stride, dest_stride, row_stride, source_stride = band.stride()
        else:
            band = builder.allocate((groups, row_taps, columns.source, columns.dest), source.dtype)
            group_stride, row_stride, source_stride, dest_stride = band.stride()
        use_int64 = self._needs_int64(band.numel(), self.weight.numel(), source, result)
        blocks = cdiv(columns.source * columns.dest, LANES)
        build = builder.launch(
            "build_bands",
            groups * row_taps * blocks,
            (
                *(self.weight, band, columns),
                *(source_stride, dest_stride, row_stride, group_stride, row_taps, blocks),
            ),
            {"LANES": LANES, "USE_INT64": use_int64},
        )
        source_strides, result_strides = (
            (each.stride(0), each.stride(3), each.stride(2), 0) for each in (source, result)
        )
        product = self._product_launch(
            config,
            self.problem.batch * rows.class_length,
            rows.classes,
            (
                *(source, band, result, rows, ONE_PIXEL),
                *(source_strides, result_strides, (source_stride, dest_stride)),
                (source.stride(1), result.stride(1)),
                *(self.problem.batch, groups, columns.source, columns.dest, 0),
            ),
            {"FLAT": False, "PLANE_PART": 0, "USE_INT64": use_int64},
        )
        return build, product, self._recompute_launch(edges=False)

    def _product_launch(
        self,
        config: Product,
        pixels: int,
        classes: int,
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
    ) -> Launch:
        """A launch of ``correlate_dot``; its last argument but one is the product's width."""
        tiles = cdiv(pixels, config.m) * cdiv(arguments[-2], config.n)
        return self.builder.launch(
            "correlate_dot",
            tiles * self.problem.groups * classes,
            arguments,
            dot_constants(config, self.source) | constants,
        )

    def _weight_strides(self, strides: Any) -> tuple[int, ...]:
        """Of group, dest channel, source channel, tap row and tap column."""
        return tuple(strides[dim] for dim in (0, self.dest_dim, self.source_dim, 3, 4))

    def _needs_int64(self, *tensors: Tensor | int) -> bool:
        return needs_int64((self.rows, self.columns), *tensors)


def _plane_part(result: Tensor, classes: int) -> int:
    """The largest power of two, at most 16, that divides the pixels of a plane.

    0 unless the pixels of a plane are contiguous.
    """
    if classes > 1 or not result.is_contiguous() or result.shape[1] == 1:
        return 0
    return gcd(prod(result.shape[2:]), 16)
