"""Direct: compiled sums over taps, for depthwise and grouped layers and few channels, any kernel.

Depthwise layers also have kernels for channels_last, which read images in that layout in place.

The kernels (``torch_corr/native``) keep a tile of outputs (or of taps, in ``grad_weight``) in
registers and read the image in place.  So the cost is the multiplications themselves, at the
machine's matrix-product rate, and the workspace does not grow with the image.  The kernels do not
use torch: they get addresses and sizes, which both sides check.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite, prod
from typing import ClassVar

import torch
from torch import Tensor

from .. import native
from ..problem import Problem
from ..request import SLOTS, MapName, Request, accumulation_dtype, shape_of
from .base import (
    COMPLEX,
    FLOATS,
    Cost,
    UniformMaps,
    complex_from_real,
    dtype_refusal,
    is_channels_last,
)
from .cost import Fitted, Work, round_up_ratio, traffic_bytes, valid_row_pairs

_CODES = {dtype: code for code, dtype in enumerate(FLOATS)}
"""The same codes as ``enum class Dtype`` in ``native/geometry.hpp``."""

_THREAD_SCRATCH = 800 * 2**10
"""Bytes of scratch memory of each thread, unless packed rows are wide: ``kThreadScratch`` in
``native/kernels.hpp``."""


@dataclass(frozen=True)
class Direct(UniformMaps, Fitted):
    """Compiled kernels on the CPU.

    Attributes:
        isa: ``"avx512"``, ``"avx2"`` or ``"baseline"``; by default the environment variable
            ``TORCH_CORR_ISA``, or the best instruction set of this machine.

    Raises:
        TypeError: ``isa`` is not a string.
    """

    name: ClassVar[str] = "direct"
    isa: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.isa, str):
            raise TypeError(f"isa must be a string, as 'avx2', got {self.isa!r}")

    def refusals(self, request: Request) -> tuple[str, ...]:
        """Why the kernels cannot run here: not compiled, not a CPU, not a floating dtype."""
        problem, device = request.problem, request.device
        reasons: list[str] = []
        if native.compiled is None:
            reasons.append(
                f"its kernels were not compiled when torch_corr was installed "
                f"({native.why_missing}); reinstall with a C++17 compiler (GCC or Clang) at hand"
            )
        elif (isa := self._isa()) and isa not in (able := native.compiled.isas()):
            reasons.append(f"no instruction set {isa!r} on this machine; it has {', '.join(able)}")
        if device.type != "cpu":
            reasons.append(f"no kernels for {device.type}; it runs on the cpu")
        if not native.can_count(problem):
            reasons.append("a stride, dilation or padding past 2**48; its kernels count no further")
        reasons.extend(dtype_refusal(request.dtype, FLOATS + COMPLEX))
        return tuple(reasons)

    def run_map(self, problem: Problem, map: MapName, first: Tensor, second: Tensor) -> Tensor:
        if first.is_complex():
            return complex_from_real(getattr(self, map), problem, first, second)
        result = self._call(problem, map, first, second)
        if map == "grad_input" and second.numel() and not isfinite(second.sum().item()):
            # The kernels multiply zeros outside the output by every tap, and zero times a tap that
            # is not finite is NaN.  Pixels that no such tap reaches must not change.
            finite = second.isfinite()
            infinite = (~finite).to(second.dtype)
            reached = self._call(problem, map, torch.ones_like(first), infinite) != 0
            without = self._call(problem, map, first, second.where(finite, 0))
            result = torch.where(reached, result, without)
        return result

    def forward_with_bias(
        self, problem: Problem, input: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        if input.is_complex():
            return super().forward_with_bias(problem, input, weight, bias)
        return self._call(problem, "forward", input, weight, bias)

    def workspace(self, request: Request) -> int:
        """Scratch of every thread and copies of the weights; it does not grow with images."""
        problem, map, dtype = request.problem, request.map, request.dtype
        taps = prod(problem.weight_shape)
        width = accumulation_dtype(dtype).itemsize
        if request.channels_last and self.keeps_channels_last(request):
            # Weights in whole vectors of channels, and for the weight's gradient parts of sums, 32
            # vectors or more (``kJobs`` in channels_last_weight.hpp).
            lanes, filters = 64 // width, problem.group_out
            channels = lanes * ceil(problem.groups / lanes)
            copies = max(channels, 32 * lanes) if map == "grad_weight" else channels * filters
            numbers = prod(problem.kernel) * copies + 2 * channels
            apart = dtype.itemsize * prod(problem.output_shape) if filters > 1 else 0
            return torch.get_num_threads() * _THREAD_SCRATCH + width * numbers + apart
        weights = {"forward": taps if dtype.itemsize == 2 else 0, "grad_input": taps}
        copies = weights.get(map, min(32 * taps, taps + 2**20))
        # 32 is ``kSplitJobs``, 2**20 ``kPartialSums``.
        scratch = _THREAD_SCRATCH + _scratch_of_wide_rows(problem, map, width)
        return torch.get_num_threads() * scratch + width * copies

    def work(self, request: Request) -> Work:
        """Products of a row of pixels with a row of taps.  Rows in the padding are skipped, columns
        there are not.  Idle lanes and rows of the register tiles count as work, and so does the
        start of a row."""
        problem, map, dtype = request.problem, request.map, request.dtype
        lanes = 8 if dtype in (torch.float64, torch.complex128) else 16
        strided = (problem.stride, problem.effective_dilation) != ((1, 1), (1, 1))
        if request.channels_last and self.keeps_channels_last(request):
            rows = problem.batch * problem.out_channels * valid_row_pairs(problem)
            flops = 2.0 * rows * problem.output_size[1] * problem.kernel[1]
            flops *= round_up_ratio(problem.groups, lanes)
            regime = "channels_last, strided or dilated" if strided else "channels_last"
            return Work(regime, Cost(vector_flops=flops, bytes=traffic_bytes(request), calls=1))
        if map == "grad_weight":
            rows, columns = problem.output_size
            tiles = round_up_ratio(problem.kernel[0], 4) * round_up_ratio(problem.kernel[1], 5)
            vectors = problem.batch * rows * ceil(columns / lanes)
            fill = (
                round_up_ratio(columns, lanes) * tiles * (1 + 24 / max(vectors, 1)) * (1 + 1 / rows)
            )
        else:
            # grad_input is a forward for each residue of the stride, with the taps that reach it.
            steps = problem.stride if map == "grad_input" else (1, 1)
            size = problem.size if map == "grad_input" else problem.output_size
            rows, columns = (ceil(length / step) for length, step in zip(size, steps))
            down, across = (max(1, taps / step) for taps, step in zip(problem.kernel, steps))
            fill = (
                round_up_ratio(columns, lanes)
                * round_up_ratio(rows, 4)
                * (1 + 1 / down)
                * (1 + 3 / across)
            )
        lines = problem.batch * problem.out_channels * problem.group_in * valid_row_pairs(problem)
        flops = (8 if dtype.is_complex else 2) * lines * columns * problem.kernel[1] * fill
        regime = "few channels" if problem.group_in <= 4 else "many channels"
        if strided:
            regime += ", strided or dilated"
        return Work(regime, Cost(vector_flops=flops, bytes=traffic_bytes(request), calls=1))

    def keeps_channels_last(self, request: Request) -> bool:
        """For depthwise layers with as many channels as a vector has lanes, or more."""
        problem, lanes = request.problem, 8 if request.dtype == torch.float64 else 16
        is_able = request.dtype in FLOATS and request.device.type == "cpu"
        depthwise = problem.group_in == 1 <= problem.group_out and problem.groups >= lanes
        return is_able and depthwise and problem.span[1] <= native.LARGEST_SPAN

    def _call(
        self,
        problem: Problem,
        map: MapName,
        first: Tensor,
        second: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """A map of real operands, in channels_last if an image is."""
        last = is_channels_last(first) or (map == "grad_weight" and is_channels_last(second))
        if last and self.keeps_channels_last(Request.of(problem, map, first)):
            return self._call_in_channels_last(problem, map, first, second, bias)
        first, second = _readable(first), _readable(second)
        result = first.new_empty(shape_of(problem, SLOTS[map][2]))
        self._run(problem, map, first, second, bias, result, channels_last=False)
        return result

    def _call_in_channels_last(
        self, problem: Problem, map: MapName, first: Tensor, second: Tensor, bias: Tensor | None
    ) -> Tensor:
        slots = SLOTS[map]
        shape = shape_of(problem, slots[2])
        filters, last = problem.group_out, torch.channels_last
        first, second = (
            _readable(operand, torch.contiguous_format if slot == "weight" else last)
            for slot, operand in zip(slots, (first, second))
        )
        # The kernels take an image for each of the filters of a channel.
        if map == "grad_input":
            first = _apart(first, filters).contiguous()
        elif map == "grad_weight":
            second = _apart(second, filters).contiguous()
        if map == "grad_weight":
            result = first.new_empty(shape)
        else:
            result = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=last)
        written = result
        if map == "forward" and filters > 1:
            written = result.new_empty(_apart(result, filters).shape)
        self._run(problem, map, first, second, bias, written, channels_last=True)
        if written is not result:
            _apart(result, filters).copy_(written)
        return result

    def _run(
        self,
        problem: Problem,
        map: MapName,
        first: Tensor,
        second: Tensor,
        bias: Tensor | None,
        result: Tensor,
        channels_last: bool,
    ) -> None:
        if bias is not None:
            bias = _readable(bias)
        getattr(native.compiled, map)(
            first.data_ptr(),
            first.numel(),
            second.data_ptr(),
            second.numel(),
            result.data_ptr(),
            result.numel(),
            0 if bias is None else bias.data_ptr(),
            0 if bias is None else bias.numel(),
            native.sizes(problem),
            _CODES[first.dtype],
            channels_last,
            torch.get_num_threads(),
            self._isa(),
        )

    def _isa(self) -> str:
        return self.isa or native.requested_isa()


def _readable(values: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """A tensor that the kernels can read: itself, or a copy."""
    if native.can_address(values, layout):
        return values
    return values.resolve_neg().clone(memory_format=layout)


def _apart(output: Tensor, filters: int) -> Tensor:
    """A view of outputs in channels_last, (filter of a channel, N, H, W, channel)."""
    batch, channels, height, width = output.shape
    apart = output.permute(0, 2, 3, 1).view(batch, height, width, channels // filters, filters)
    return apart.movedim(-1, 0)


def _scratch_of_wide_rows(problem: Problem, map: MapName, itemsize: int) -> int:
    """Bytes that a thread takes above :data:`_THREAD_SCRATCH` where taps are many or far apart.

    A packed row then has up to 512 bytes for each tap (``kNarrowVectors`` in maps.cpp),
    or, if that is less, all columns from the first tap of a tile's first column to the last tap of
    its last; and two vectors at its end.  At least 19 rows are packed in ``kPackBytes``
    (correlate.hpp), and there is a row of zeros.  For the weight's gradient one row of each of
    ``kChannelBlock`` channels is packed in ``kPackedBytes`` (kernels.hpp), and a row of taps has 64
    bytes for each tap in ``kSumBytes`` (reduce.hpp).  A tap also has a ``Span`` of 40 bytes, and
    for the other maps 8 masks.
    """
    taps, end = problem.kernel[1], 128
    if map == "grad_weight":
        rows = (512 * taps + end) * min(4, problem.group_in)
        return max(0, rows - 512 * 2**10) + max(0, 64 * taps - 256 * 2**10) + 40 * taps
    row = min(512 * taps, 512 * problem.stride[1] + itemsize * problem.span[1]) + end
    return max(0, 20 * row - 128 * 2**10) + 56 * taps
