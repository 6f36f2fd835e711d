"""The rules that choose a configuration.

They depend on sizes, dtype and PyTorch's TF32 setting, but not on the device, so results repeat.
"""

from __future__ import annotations

from math import prod

import torch

from ...problem import Problem
from ...request import SLOTS, MapName, shape_of
from ..base import FEW_CHANNEL_PAIRS, may_use_tf32
from .axes import axes
from .configs import CONFIGS, Config, Sums, Taps, by_name, config_refusal, max_tile
from .costs import instructions_per_output, relative_cost

MIN_BAND_PRODUCTS = 2**28
"""Bands need two more launches, which build them and recompute non-finite results.  From so many
products on that pays off."""


def choose_correlate(map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
    """The configuration of ``forward`` or ``grad_input``.

    - Bands, where matrix units multiply all of a band faster than row sums skip its zeros.
    - Row sums for few pairs of channels: those with the fewest instructions.
    - Else a matrix product.  Its tile is the narrowest that holds the channels; it is tall for
      matrix units, if there are enough pixels for all multiprocessors.
    """
    if band := _choose_band(map, problem, dtype):
        return band
    if _uses_row_sums(map, problem, dtype):
        return _fewest_instructions(map, problem, dtype, Taps)
    rows, columns = axes(map, problem)
    channels = problem.group_out if map == "forward" else problem.group_in
    if dtype == torch.float64 and channels > 16:
        return by_name("dot-64x32")
    return _choose_dot(map, dtype, channels, problem.batch * rows.dest * columns.dest)


def choose_weight(map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
    """The configuration of ``grad_weight``, by the rules of :func:`choose_correlate`."""
    if band := _choose_band(map, problem, dtype):
        return band
    if problem.group_in * problem.group_out <= FEW_CHANNEL_PAIRS:
        return _fewest_instructions(map, problem, dtype, Sums)
    width = problem.group_in * prod(problem.kernel)
    if dtype == torch.float64:
        return by_name(f"dot-64x{_first_at_least(width, 16, 32)}-k16")
    return _choose_dot(map, dtype, width, problem.group_out)


def _uses_row_sums(map: MapName, problem: Problem, dtype: torch.dtype) -> bool:
    """Whether ``forward`` or ``grad_input`` computes row sums instead of a matrix product.

    Without matrix units a matrix product gains little: for 64 x 64 channels it computes 6 products
    per picosecond on an H200.  Row sums under five or more rows of taps compute 10 to 16, if there
    are enough pixels.
    """
    if problem.group_in * problem.group_out <= FEW_CHANNEL_PAIRS:
        return True
    enough_pixels = prod(shape_of(problem, SLOTS[map][2])) >= 2**15
    full_float32 = dtype == torch.float32 and not may_use_tf32(dtype)
    return full_float32 and problem.kernel[0] >= 5 and enough_pixels


def _fewest_instructions(
    map: MapName, problem: Problem, dtype: torch.dtype, kind: type[Taps] | type[Sums]
) -> Config:
    candidates = [
        config
        for config in CONFIGS
        if isinstance(config, kind) and not config_refusal(config, problem, map, dtype)
    ]
    return min(candidates, key=lambda config: instructions_per_output(config, map, problem))


def _choose_dot(map: MapName, dtype: torch.dtype, width: int, height: int) -> Config:
    """The tile for a product with a result of (height, width)."""
    if _needs_small_tile(dtype):
        n = _first_at_least(width, 16, 32, 64)
        deep = n == 64 and dtype == torch.float32
        return by_name(f"dot-64x{n}" if deep else f"dot-64x{n}-k16")
    n = _first_at_least(width, 16, 32, 64, 128)
    # 132 tiles of 128 rows: one for each multiprocessor of an H100.
    if n < 64 or height * width < 132 * 128 * n:
        return by_name(f"dot-64x{min(n, 64)}")
    size = max_tile(32, map, dtype)
    return by_name(next((f"dot-128x{n}" for n in (n, 64) if 128 * n <= size), "dot-64x64"))


def _choose_band(map: MapName, problem: Problem, dtype: torch.dtype) -> Config | None:
    """A band if it is predicted to be faster than row sums, else None."""
    widths = problem.size[1], problem.output_size[1]
    # The compiler emits 16-byte loads only for row lengths that are multiples of 16.
    if problem.multiplications < MIN_BAND_PRODUCTS or any(width % 16 for width in widths):
        return None
    if map != "grad_weight" and dtype == torch.float32 and not may_use_tf32(dtype):
        return None  # RepLKNet's 31x31 on an H200: 7.3 ms, row sums 1.5 ms
    narrow = (problem.size if map == "grad_input" else problem.output_size)[1] <= 32
    if dtype == torch.float64:
        name = "band-32x64" if narrow and map == "grad_weight" else "band-64x32"
    elif not narrow:
        name = "band-64x64"
    elif map == "grad_weight":
        name = "band-32x128"
    else:
        name = "band-64x32" if _needs_small_tile(dtype) else "band-128x32"
    band = by_name(name)
    if config_refusal(band, problem, map, dtype):
        return None
    sums = _fewest_instructions(map, problem, dtype, Sums if map == "grad_weight" else Taps)
    costs = [relative_cost(config, map, problem, dtype) for config in (band, sums)]
    return band if costs[0] < costs[1] else None


def _first_at_least(number: int, *sizes: int) -> int:
    """The first size that is at least ``number``, else the last."""
    return next((size for size in sizes if size >= number), sizes[-1])


def _needs_small_tile(dtype: torch.dtype) -> bool:
    """Whether larger tiles would spill registers: float64, and float32 without TF32."""
    return dtype == torch.float64 or (dtype == torch.float32 and not may_use_tf32(dtype))
