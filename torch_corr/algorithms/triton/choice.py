"""The rules that choose a configuration.

They go by sizes, dtype and PyTorch's setting of TF32, never by the device: so results repeat.
"""

from __future__ import annotations

from math import prod

import torch

from ...problem import Problem
from ...request import MapName
from ..base import FEW_CHANNEL_PAIRS, may_use_tf32
from .axes import axes, dest_shape
from .configs import CONFIGS, Config, Sums, Taps, by_name, most_sums, unsuited
from .costs import instructions, work

BANDED = 2**28
"""Products from which bands pay for the launches that make them and mend what they spoil."""


def choose_correlate(map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
    """The configuration of ``forward`` or ``grad_input`` by size.

    Few pairs of channels: the rows of sums that take the fewest instructions where there are
    warps enough (:func:`instructions`).  Many: the narrowest tile that holds the channels; a tall
    one for matrix units, where there are rows of pixels enough to fill a device.  One channel
    under a wide kernel: bands, where matrix units multiply their zeros quicker than rows of sums
    leave them out.
    """
    rows, columns = axes(map, problem)
    if band := _choose_band(map, problem, dtype):
        return band
    if _is_few(map, problem, dtype):
        return _fewest_instructions(map, problem, dtype, Taps)
    channels = problem.group_out if map == "forward" else problem.group_in
    pixels = problem.batch * rows.dest * columns.dest
    if dtype == torch.float64 and channels > 16:
        return by_name("dot-64x32")
    return _dot(map, dtype, channels, pixels)


def choose_weight(map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
    """The configuration of ``grad_weight`` by size: as :func:`choose_correlate`."""
    if band := _choose_band(map, problem, dtype):
        return band
    if problem.group_in * problem.group_out <= FEW_CHANNEL_PAIRS:
        return _fewest_instructions(map, problem, dtype, Sums)
    across = problem.group_in * prod(problem.kernel)
    if dtype == torch.float64:
        return by_name(f"dot-64x{_least(across, 16, 32)}-k16")
    return _dot(map, dtype, across, problem.group_out)


def _is_few(map: MapName, problem: Problem, dtype: torch.dtype) -> bool:
    """Whether ``forward`` or ``grad_input`` sums in lanes rather than multiplies matrices.

    Ordinary arithmetic gains little by a matrix product: one of 64 x 64 channels does 6 products a
    picosecond on an H200, rows of sums under five rows of taps and more 10 to 16, where there are
    pixels enough for the lanes.
    """
    if problem.group_in * problem.group_out <= FEW_CHANNEL_PAIRS:
        return True
    enough = prod(dest_shape(map, problem)) >= 2**15
    whole = dtype == torch.float32 and not may_use_tf32(dtype)
    return whole and problem.kernel[0] >= 5 and enough


def _fewest_instructions(
    map: MapName, problem: Problem, dtype: torch.dtype, kind: type[Taps] | type[Sums]
) -> Config:
    able = [
        each
        for each in CONFIGS
        if isinstance(each, kind) and not unsuited(each, problem, map, dtype)
    ]
    return min(able, key=lambda each: instructions(each, map, problem))


def _dot(map: MapName, dtype: torch.dtype, across: int, down: int) -> Config:
    """The tile for a product of ``down`` rows and ``across`` columns."""
    if _is_wide(dtype):
        wide = _least(across, 16, 32, 64)
        deep = wide == 64 and dtype == torch.float32
        return by_name(f"dot-64x{wide}" if deep else f"dot-64x{wide}-k16")
    width = _least(across, 16, 32, 64, 128)
    # 132 tiles of 128 rows: one for each multiprocessor of an H100.
    if width < 64 or down * across < 132 * 128 * width:
        return by_name(f"dot-64x{min(width, 64)}")
    most = most_sums(32, map, dtype)
    return by_name(next((f"dot-128x{n}" for n in (width, 64) if 128 * n <= most), "dot-64x64"))


def _choose_band(map: MapName, problem: Problem, dtype: torch.dtype) -> Config | None:
    """A band where it is predicted to take less than rows of sums, else None."""
    widths = problem.size[1], problem.output_size[1]
    # Only of rows in multiples of 16 does the compiler know that 16 bytes may be loaded at once.
    if problem.multiplications < BANDED or any(width % 16 for width in widths):
        return None
    if map != "grad_weight" and dtype == torch.float32 and not may_use_tf32(dtype):
        return None  # 7.3 ms where rows of sums take 1.5: RepLKNet's 31x31 on an H200
    narrow = (problem.size if map == "grad_input" else problem.output_size)[1] <= 32
    if dtype == torch.float64:
        name = "band-32x64" if narrow and map == "grad_weight" else "band-64x32"
    elif not narrow:
        name = "band-64x64"
    elif map == "grad_weight":
        name = "band-32x128"
    else:
        name = "band-64x32" if _is_wide(dtype) else "band-128x32"
    band = by_name(name)
    if unsuited(band, problem, map, dtype):
        return None
    sums = _fewest_instructions(map, problem, dtype, Sums if map == "grad_weight" else Taps)
    return band if work(band, map, problem, dtype) < work(sums, map, problem, dtype) else None


def _least(number: int, *sizes: int) -> int:
    return next((size for size in sizes if size >= number), sizes[-1])


def _is_wide(dtype: torch.dtype) -> bool:
    """Whether a matrix product's tile has to be small: float64, and float32 without TF32."""
    return dtype == torch.float64 or (dtype == torch.float32 and not may_use_tf32(dtype))
