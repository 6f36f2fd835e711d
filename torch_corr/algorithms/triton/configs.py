"""The configurations of the kernels, and which of them can run a map.

:mod:`.choice` chooses among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

from ...problem import Problem
from ...request import MapName, dtype_name
from ..base import may_use_tf32
from .axes import Axis, axes


@dataclass(frozen=True)
class Taps:
    """A configuration of ``correlate_taps``.

    Attributes:
        name: its name for users, tests and tables.
        lanes: adjacent pixels in a program.
        height: rows of sums in every lane.
        chunk: taps of a column of the kernel that are in registers at a time.
        warps: of a program.
    """

    name: str
    lanes: int
    height: int
    chunk: int
    warps: int = 4


@dataclass(frozen=True)
class Sums:
    """A configuration of ``weight_taps``: ``down`` x ``across`` taps in a lane; else as Taps."""

    name: str
    lanes: int
    height: int
    down: int
    across: int
    warps: int = 4


@dataclass(frozen=True)
class Product:
    """A configuration of ``correlate_dot`` and ``weight_dot``: (m, n) tiles, k at a time.

    At most 4 warps: Triton miscompiles a single loop over taps and channels with 8
    (pytorch/pytorch#177823).
    """

    name: str
    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3


class Dot(Product):
    """Tiles of (pixels, channels); in ``grad_weight`` of (channels, taps x channels)."""


class Band(Product):
    """Tiles of (image rows, columns); in ``grad_weight`` of (columns, kernel rows x columns)."""


Config: TypeAlias = Taps | Sums | Dot | Band

CONFIGS: tuple[Config, ...] = (
    Taps("taps-1", lanes=256, height=1, chunk=1),
    Taps("taps-4", lanes=256, height=4, chunk=4),
    Taps("taps-8", lanes=128, height=8, chunk=8),
    Taps("taps-14", lanes=64, height=14, chunk=16, warps=2),
    Taps("taps-16", lanes=128, height=16, chunk=16),
    Taps("taps-28", lanes=64, height=28, chunk=32, warps=2),
    Taps("taps-32", lanes=64, height=32, chunk=32, warps=2),
    Sums("sums-1x4x4", lanes=128, height=1, down=4, across=4),
    Sums("sums-4x4x4", lanes=128, height=4, down=4, across=4),
    Sums("sums-8x8x4", lanes=128, height=8, down=8, across=4),
    Sums("sums-14x7x7", lanes=64, height=14, down=7, across=7, warps=2),
    Dot("dot-64x16", 64, 16, 32),
    Dot("dot-64x32", 64, 32, 32),
    Dot("dot-64x64", 64, 64, 32),
    Dot("dot-128x64", 128, 64, 32),
    Dot("dot-128x128", 128, 128, 32),
    Dot("dot-64x16-k16", 64, 16, 16, stages=2),
    Dot("dot-64x32-k16", 64, 32, 16, stages=2),
    Dot("dot-64x64-k16", 64, 64, 16, stages=2),
    Band("band-64x32", 64, 32, 32),
    Band("band-128x32", 128, 32, 32),
    Band("band-64x64", 64, 64, 32),
    Band("band-32x64", 32, 64, 32),
    Band("band-32x128", 32, 128, 32),
)
"""All configurations; each is tested and compiled, even if :mod:`.choice` never chooses it."""

MAX_BAND_RATIO = 16
"""Bands are used for images up to so many times as wide as the kernel; wider bands are mostly
zeros."""

MAX_ROW_SPAN = 64
"""Source rows that a block of sums may span; with larger strides and dilations rows of sums share
no source rows."""

MIN_OUTSIDE_SHARE = 0.1
"""Kernels skip rows outside the image if at least this share of all products has such a row."""

MIN_SPECIALIZED_PRODUCTS = 2**26
"""Products from which a kernel is compiled for one geometry.  That takes seconds and saves some
microseconds a call."""


def by_name(name: str) -> Config:
    """The configuration of that name.

    Raises:
        StopIteration: there is none.
    """
    return next(config for config in CONFIGS if config.name == name)


def skips_outside_rows(config: Taps, problem: Problem, map: MapName) -> bool:
    """Whether the compiled kernel leaves out the products with rows outside the image.

    Only if one block holds all rows: then these products are the same in every lane.
    """
    rows, _ = axes(map, problem)
    return (
        problem.multiplications >= MIN_SPECIALIZED_PRODUCTS
        and rows.div == 1
        and 1 < rows.dest <= config.height
        and _row_span(rows.dest, rows.taps, rows) <= 2 * MAX_ROW_SPAN
        and rows.outside_share >= MIN_OUTSIDE_SHARE
    )


def config_refusal(config: Config, problem: Problem, map: MapName, dtype: torch.dtype) -> str:
    """Why a configuration cannot run a map; empty if it can."""
    if isinstance(config, Product):
        fits = _band_fits if isinstance(config, Band) else _dot_fits
        if not fits(config, map, dtype):
            return f"{config.name}: its sums do not fit in registers in {dtype_name(dtype)}"
        return _band_refusal(config, problem) if isinstance(config, Band) else ""
    if isinstance(config, Sums) != (map == "grad_weight"):
        return f"{config.name} is not for {map}"
    if isinstance(config, Sums) and config.down * config.across > 32 and dtype == torch.float64:
        return f"{config.name}: its sums do not fit in registers in {dtype_name(dtype)}"
    rows, _ = axes(map, problem)
    taps = min(config.down if isinstance(config, Sums) else config.chunk, rows.taps)
    if config.height > 1 and rows.div > 1:
        return f"{config.name} shares rows, which {map} with a stride does not"
    if config.height > 1 and _row_span(config.height, taps, rows) > MAX_ROW_SPAN:
        return (
            f"{config.name}: {config.height} rows of sums span more than {MAX_ROW_SPAN} pixels "
            f"under this stride and dilation"
        )
    return ""


def _band_refusal(config: Band, problem: Problem) -> str:
    if problem.group_in * problem.group_out != 1:
        return f"{config.name} is for one channel to one, as in depthwise layers"
    width = max(problem.size[1], problem.output_size[1])
    if width > MAX_BAND_RATIO * problem.kernel[1]:
        return (
            f"{config.name}: rows of {width} pixels are more than {MAX_BAND_RATIO} times as wide "
            f"as the kernel, and bands for them mostly zeros"
        )
    return ""


def _dot_fits(config: Product, map: MapName, dtype: torch.dtype) -> bool:
    return config.m * config.n <= max_tile(config.k, map, dtype)


def _band_fits(config: Product, map: MapName, dtype: torch.dtype) -> bool:
    """Whether no register spills on sm_80 and sm_90; two tiles spill on sm_80."""
    if dtype == torch.float64:
        return config.m * config.n <= 64 * 32
    if dtype != torch.float32 or map == "grad_weight":
        return True
    return config.name != ("band-64x32" if may_use_tf32(dtype) else "band-128x32")


def max_tile(k: int, map: MapName, dtype: torch.dtype) -> int:
    """The largest m * n of a Dot for which no register spills on sm_80 and sm_90."""
    if dtype == torch.float64:
        size = 64 * 64 if k == 16 else 64 * 32
        return size // 2 if map == "grad_weight" else size
    if dtype != torch.float32:
        return 128 * 128
    if may_use_tf32(dtype):
        return 64 * 64 if map == "grad_weight" else 128 * 64
    return 64 * 32 if k == 16 and map != "grad_weight" else 64 * 64


def _row_span(height: int, taps: int, rows: Axis) -> int:
    """Source rows from the first to the last that ``height`` dest rows read."""
    return (height - 1) * rows.mult + (taps - 1) * abs(rows.tap_step) + 1
