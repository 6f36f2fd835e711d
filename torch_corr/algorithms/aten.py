"""PyTorch's own convolution as an algorithm.

It runs oneDNN on x86, cuDNN on CUDA, and PyTorch's own loops elsewhere.  This module adds what
PyTorch lacks: asymmetric padding, gradient maps for complex numbers, float16 on the CPU, and sums
over no channels, for which ``conv2d`` returns no output channels instead of zeros.  Where PyTorch's
kernels are slow, wrong, or access memory out of bounds, the problem is first rewritten into an
equivalent one: see :func:`_rewrite`, :func:`_computed_in_float32`, :func:`_needs_subsampling` and
:func:`with_regular_strides`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._torch_compat import onednn_has_bfloat16
from ..problem import Pair, Problem
from ..request import MAPS, SLOTS, MapName, Request, dtype_name, shape_of
from .base import (
    COMPLEX,
    FEW_CHANNEL_PAIRS,
    FLOATS,
    INTEGERS,
    Algorithm,
    Cost,
    UniformMaps,
    complex_from_real,
    definition_flops,
    dtype_refusal,
    is_channels_last,
    matrix_speed,
)
from .cost import (
    Fitted,
    Work,
    im2col_bytes,
    page_fault_bytes,
    round_up_ratio,
    traffic_bytes,
    valid_row_pairs,
)

H200_PRODUCTS_PER_PICOSECOND = 33.5
"""Products per picosecond of a large float32 matrix product on an H200."""


def _cuda_slowdown(request: Request) -> float:
    """How many times longer than a large matrix product PyTorch takes on CUDA, at least.

    Fitted to the times of the benchmark suite's cases on an H200 (PyTorch 2.11, cuDNN 9.19,
    2026-11-27), float32 with TF32 off.  Most take no longer than this, the worst twice as long
    (three input channels under 5x5).  PyTorch has its own kernels for depthwise layers, and cuDNN
    has some for half precision under small kernels.  For many channels in float64 only one layer
    was measured; other dtypes are close to a matrix product.
    """
    problem, map, dtype = request.problem, request.map, request.dtype
    few, side = (
        problem.group_in * problem.group_out <= FEW_CHANNEL_PAIRS,
        prod(problem.kernel) ** 0.5,
    )
    if not few:
        if dtype != torch.float64:
            return 1.0
        rate = 0.6 if map == "grad_input" else 3.0
    elif problem.groups == 1:
        alone = problem.in_channels * problem.out_channels == 1
        forward, weight = (min(0.35, 0.045 * side), min(0.55, 0.035 * side)) if alone else (1, 0.55)
        rate = {"forward": forward, "grad_input": 0.9, "grad_weight": weight}[map]
    elif dtype.itemsize == 2 and side <= 5:
        rate = 4.0
    else:
        per_side = {"forward": (0.75, 0.1), "grad_input": (0.65, 0.04), "grad_weight": (0.75, 0.0)}
        rate = per_side[map][0] + per_side[map][1] * side
    return H200_PRODUCTS_PER_PICOSECOND / rate * matrix_speed(dtype)


def quick_in_channels_last(problem: Problem, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN is at least as fast as any algorithm once a compiler chooses channels_last:
    depthwise layers up to 3x3.

    Inductor converts the inputs of convolutions to channels_last.  In that layout 144 channels of
    4x28x28 take oneDNN 77, 81 and 84 us (forward and gradients), in NCHW 135, 136 and 122, and
    ``direct`` 111 to 123; with ``direct`` in MobileNetV2's graph a step took 52 ms instead of 44.
    Under 5x5 and larger kernels oneDNN's gradients are much slower.  False for symbolic sizes,
    since inductor might compile another graph for each size.
    """
    return (
        not problem.is_symbolic
        and device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and max(problem.kernel) <= 3
        and _depthwise(problem)
    )


CACHED_BYTES = 2**23
"""Bytes of operands and result up to which oneDNN's copies of them stay in the caches: there
MobileNet's layers of 28x28 and less take a third of the time that the regime for all sizes
predicts."""


def is_slow_in_channels_last(request: Request) -> bool:
    """Whether PyTorch is slow on channels_last images: wide depthwise kernels on CUDA.

    On an H200 (cuDNN 9.19, 2026-11-27) ConvNeXt's 7x7 took PyTorch 0.7, 0.7 and 31 ms in float32
    and 0.27, 0.67 and 0.2 in float16, RepLKNet's 31x31 59, 25 and 160, and 59, 24 and 31;
    ``triton`` took 0.2 to 0.8 and 0.6 to 1.9.  For 3x3, and for the weight's gradient of 7x7 in
    half precision, cuDNN has kernels that run at memory speed.
    """
    problem, side = request.problem, prod(request.problem.kernel) ** 0.5
    quick = request.map == "grad_weight" and request.dtype.itemsize == 2 and side <= 7
    return request.device.type == "cuda" and _depthwise(problem) and side >= 7 and not quick


@dataclass(frozen=True)
class Aten(UniformMaps, Fitted):
    """``torch.conv2d`` and ``aten::convolution_backward``."""

    name = "aten"
    is_pytorch = True
    has_cuda_cost_model = True

    def refusals(self, request: Request) -> tuple[str, ...]:
        dtype = request.dtype
        able = FLOATS + COMPLEX + (INTEGERS if request.device.type in ("cpu", "meta") else ())
        refusals = dtype_refusal(dtype, able)
        small_integer = dtype in INTEGERS and dtype != torch.int64
        if small_integer and request.problem.dilation != (1, 1):
            refusals += (f"PyTorch has no dilated convolution in {dtype_name(dtype)}",)
        return refusals

    def call_seconds(self, request: Request, cost: Cost) -> tuple[float, float]:
        """Zero: the overhead of others is relative to PyTorch's."""
        return 0.0, 0.0

    def keeps_channels_last(self, request: Request) -> bool:
        """Everywhere except for the layers in which PyTorch is slow in that layout."""
        return not is_slow_in_channels_last(request)

    def runs_as_conv2d(self, request: Request) -> bool:
        """Whether PyTorch's convolution computes this problem without any rewriting."""
        return (
            not request.problem.is_empty
            and not _needs_subsampling(request)
            and not any(
                _computed_in_float32(each) or _rewrite(each).problem != each.problem
                for each in map(request.with_map, MAPS)
            )
        )

    def needs_sizes(self, request: Request) -> bool:
        """Whether the rewriting depends on sizes that are symbolic.

        Those of the batch do not matter.  The image's width matters with a stride, since there may
        be a single column of output, and its height with much padding, since the kernel may be
        taller.
        """
        problem = request.problem
        if request.device.type != "cpu" or request.dtype not in _BY_ONEDNN:
            return False
        channels = problem.in_channels, problem.out_channels, problem.groups
        numbers = *channels, *problem.kernel, *problem.stride, *problem.dilation
        if _any_symbol(*numbers, *problem.padding[0], *problem.padding[1]):
            return True
        height, width = map(_any_symbol, problem.size)
        return (problem.stride[1] > 1 and width) or (min(problem.padding[0]) >= TALL and height)

    def forward_with_bias(
        self, problem: Problem, input: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        if problem.is_empty:
            return super().forward_with_bias(problem, input, weight, bias)
        return _compute("forward", _rewrite_for(problem, "forward", input), input, weight, bias)

    def run_map(self, problem: Problem, map: MapName, first: Tensor, second: Tensor) -> Tensor:
        if problem.is_empty:
            return first.new_zeros(shape_of(problem, SLOTS[map][2]))
        if map != "forward" and first.is_complex():
            return complex_from_real(getattr(self, map), problem, first, second)
        return _compute(map, _rewrite_for(problem, map, first), first, second)

    def has_both_gradients(self, request: Request) -> bool:
        """Where PyTorch's own backward runs without any rewriting."""
        return not request.dtype.is_complex and self.runs_as_conv2d(request)

    def gradients(
        self, problem: Problem, input: Tensor, weight: Tensor, output: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both gradients by one call of PyTorch's, which reorders their common operand once."""
        if are_misread(input, weight):
            input, weight = with_regular_strides(input), with_regular_strides(weight)
        return _backward(problem, output, input, weight, (True, True))

    def workspace(self, request: Request) -> int:
        """The copies made here: all operands and the result in float32, or the padded input.

        PyTorch's own scratch is unknown.  The sizes do not show whether an output is in
        channels_last, for which a CUDA device also gets an empty input with that layout.
        """
        problem = request.problem
        height, width = problem.padded_size
        padded = problem.batch * problem.in_channels * height * width
        if _computed_in_float32(request):
            return torch.float32.itemsize * (padded + sum(map(prod, request.shapes)))
        return padded * request.dtype.itemsize if any(_rewrite(request).extra) else 0

    def cost(self, request: Request) -> Cost:
        """By fitted factors on the CPU, by measured slowdowns on CUDA; the definition's cost
        elsewhere."""
        if request.device.type == "cpu":
            return super().cost(request)
        ideal = Algorithm.cost(self, request)
        if request.device.type != "cuda" or torch.version.hip is not None:
            return ideal
        return ideal._replace(matmul_flops=ideal.matmul_flops * _cuda_slowdown(request))

    def work(self, request: Request) -> Work:
        """The work of what PyTorch calls: oneDNN, which rounds channels up to 16, or im2col and
        matrix products."""
        problem, map, dtype = request.problem, request.map, request.dtype
        if dtype.is_complex:
            # PyTorch's forward takes three real convolutions; the gradients here take four.
            regime, ideal = self.work(replace(request, dtype=dtype.to_real()))
            times = 3 if map == "forward" else 4
            return Work(regime, Cost(*(times * amount for amount in ideal)))
        ins, outs, flops = problem.group_in, problem.group_out, definition_flops(problem, dtype)
        bytes = traffic_bytes(request)
        if dtype == torch.float64:
            # im2col copies the windows of all images of a group at once; few filters make a thin
            # product.
            regime = "im2col" if problem.groups == 1 else "grouped im2col"
            regime += ", channels_last" if request.channels_last and ins == 1 else ""
            columns = im2col_bytes(problem, dtype)
            bytes += columns + problem.groups * page_fault_bytes(columns / problem.groups)
            return Work(regime, Cost(flops * round_up_ratio(outs, 8), 0, bytes, problem.groups))
        # oneDNN skips rows of taps that fall into the padding.
        flops *= valid_row_pairs(problem) / max(1, problem.output_size[0] * problem.kernel[0])
        if _depthwise(problem):
            narrow = map == "forward" or max(*problem.padding[0], *problem.padding[1]) <= 8
            plain = narrow and problem.dilation == (1, 1)
            small = max(problem.kernel) <= 3
            if request.channels_last:
                size = "3x3" if small else "5x5" if max(problem.kernel) <= 5 else "larger"
                regime = f"depthwise, {size}, channels_last"
                regime = regime if plain else f"{regime}, reference kernel"
                flops *= round_up_ratio(problem.groups, 16)
                return Work(regime, Cost(vector_flops=flops, bytes=bytes, calls=1))
            regime = "depthwise, 3x3" if small else "depthwise, larger"
            cached = max(problem.kernel) <= 5 and plain and bytes < CACHED_BYTES
            if cached:
                regime = f"depthwise, {'3x3' if small else '5x5'}, cached"
            regime = regime if plain else f"{regime}, reference kernel"
            # oneDNN uses blocks of 16 channels: 3 channels take as long as 16.
            fill = round_up_ratio(problem.groups, 16)
            for shape in (problem.input_shape, problem.output_shape):
                blocked = dtype.itemsize * prod(shape) * fill
                bytes += blocked + page_fault_bytes(blocked)
            flops *= fill
            if cached:
                return Work(regime, Cost(vector_flops=flops, cached_bytes=bytes, calls=1))
            return Work(regime, Cost(vector_flops=flops, bytes=bytes, calls=1))
        if problem.groups > 1 and (ins % 16 or outs % 16):
            regime = "grouped, channels_last" if request.channels_last else "grouped"
            fill = round_up_ratio(ins, 4) * round_up_ratio(outs, 8)
        elif ins <= 4:
            # Outputs are copied to blocks of 16 channels; in grad_input, inputs are too.
            regime = "one channel" if ins == 1 else "few channels"
            regime += ", few filters" if outs < 16 else ""
            fill = round_up_ratio(outs, 16) * (
                round_up_ratio(ins, 16) if map == "grad_input" else 1
            )
            blocked = prod(problem.output_shape) * round_up_ratio(outs, 16)
            if map == "grad_input":
                blocked += prod(problem.input_shape) * round_up_ratio(ins, 16)
            bytes += dtype.itemsize * blocked + page_fault_bytes(dtype.itemsize * blocked)
        elif outs <= 4:
            regime, fill = "few filters", round_up_ratio(ins, 16)
        else:
            regime, fill = "dense", round_up_ratio(ins, 16) * round_up_ratio(outs, 16)
        return Work(regime, Cost(conv_flops=flops * fill, bytes=bytes, calls=1))


PadWidths: TypeAlias = tuple[int, int, int, int]
"""Left, right, top and bottom, as ``pad`` takes them."""

_ONEDNN_HAS_BFLOAT16 = onednn_has_bfloat16()
"""Whether oneDNN computes bfloat16 on this processor; PyTorch's own loops are slow and less
accurate."""

_BY_ONEDNN = (torch.float32, torch.bfloat16, torch.float16, torch.complex64)
"""Dtypes that oneDNN may compute on a CPU; complex numbers as real ones."""


def conv2d(problem: Problem, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.conv2d`` on a problem, rewritten where PyTorch would be wrong or slow."""
    return _conv2d(_rewrite(Request.of(problem, "forward", input)), input, weight, bias)


def _conv2d(
    rewritten: _Rewrite, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    problem = rewritten.problem
    return torch.conv2d(
        _pad_or_crop(input, rewritten.extra),
        with_regular_strides(weight),
        bias,
        problem.stride,
        _pair(problem),
        problem.dilation,
        problem.groups,
    )


def _grad_input(rewritten: _Rewrite, output: Tensor, weight: Tensor) -> Tensor:
    input = _placeholder_of_input(output, rewritten.problem.input_shape)
    result, _ = _backward(
        rewritten.problem, output, input, with_regular_strides(weight), (True, False)
    )
    if is_channels_last(output):
        # PyTorch's own backward does the same, by the layout of the input.
        result = result.contiguous(memory_format=torch.channels_last)
    return _undo_pad_or_crop(result, rewritten.extra)


def _grad_weight(rewritten: _Rewrite, input: Tensor, output: Tensor) -> Tensor:
    problem, input = rewritten.problem, _pad_or_crop(input, rewritten.extra)
    if rewritten.subsampled:
        problem, input = _subsampled(problem, input)
    weight = _placeholder(output, problem.weight_shape)
    return _backward(problem, output, input, weight, (False, True))[1]


_COMPUTE: dict[MapName, Callable[..., Tensor]] = {
    "forward": _conv2d,
    "grad_input": _grad_input,
    "grad_weight": _grad_weight,
}


def _compute(map: MapName, rewritten: _Rewrite, *operands: Tensor) -> Tensor:
    """A rewritten map of its operands, with a bias after those of a forward."""
    compute = _COMPUTE[map]
    if rewritten.in_float32:
        result = compute(rewritten, *(each.float() for each in operands))
        return result.to(operands[0].dtype)
    return compute(rewritten, *operands)


def with_regular_strides(value: Tensor) -> Tensor:
    """The tensor, copied if :func:`is_irregular`."""
    if not is_irregular(value):
        return value
    layout = torch.contiguous_format if value.is_complex() else torch.channels_last
    return value.clone(memory_format=layout)


def is_irregular(value: Tensor) -> bool:
    """Whether PyTorch may misread the tensor's layout.

    This concerns two kinds of tensors: channels_last with an unusual stride along an axis of length
    1, and complex tensors that are neither contiguous nor channels_last. Examples are
    ``weight.unsqueeze(-1)`` of a transposed weight and ``image.permute(2, 0, 1).unsqueeze(0)``.
    PyTorch determines their layout in two ways, and gets two answers.  It then reads the weights of
    groups in a wrong order, and returns wrong gradients for them.

    PyTorch copies the real and imaginary parts of complex tensors in the order of their strides:
    channels cut from a channels_last tensor become such irregular tensors on the way.
    """
    if value.is_contiguous():
        return False
    if not (value.is_complex() or value.is_contiguous(memory_format=torch.channels_last)):
        return False
    channels, height, width = value.shape[1:]
    return value.stride() != (height * width * channels, 1, width * channels, channels)


def are_misread(input: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch may misread the layout of a layer's operands: see :func:`is_irregular`.

    An irregular image matters only with groups, and only if the weight is channels_last; a 1x1
    weight may be contiguous and channels_last at the same time.
    """
    if is_irregular(weight):
        return True
    return input.dim() == 4 and weight.shape[1] != input.shape[1] and is_irregular(input)


class _Rewrite(NamedTuple):
    """An equivalent problem whose padding is the same on both sides, as PyTorch's convolution
    needs."""

    problem: Problem
    extra: PadWidths
    """Padding to add to the image first; negative numbers crop it."""
    subsampled: bool = False
    """Whether to drop pixels that a strided 1x1 kernel skips: :func:`_needs_subsampling`."""
    in_float32: bool = False
    """Whether to convert the operands to float32 first: :func:`_computed_in_float32`."""


def _rewrite_for(problem: Problem, map: MapName, operand: Tensor) -> _Rewrite:
    """The problem to pass to PyTorch for a map of such operands; cached."""
    arguments = problem, map, operand.device, operand.dtype, is_channels_last(operand)
    try:
        return _cached_rewrite(*arguments)
    except TypeError:  # a symbol has no hash
        return _cached_rewrite.__wrapped__(*arguments)


@lru_cache(maxsize=4096)
def _cached_rewrite(
    problem: Problem,
    map: MapName,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
) -> _Rewrite:
    request = Request(problem, map, device, dtype, channels_last)
    if _computed_in_float32(request):
        return _rewrite(replace(request, dtype=torch.float32))._replace(in_float32=True)
    return _rewrite(request)


def _rewrite(request: Request) -> _Rewrite:
    """The problem to pass to PyTorch instead.

    The rules for right results do not use the layout, since a compiler may choose another one than
    that of the operands.
    """
    rewritten = _replace_padding(request)
    if request.map != "grad_weight":
        return rewritten
    steps_over = _needs_subsampling(replace(request, problem=rewritten.problem))
    return rewritten._replace(subsampled=steps_over and _pair(rewritten.problem) == (0, 0))


def _replace_padding(request: Request) -> _Rewrite:
    problem, map, dtype = request.problem, request.map, request.dtype
    (top, bottom), (left, right) = problem.padding
    if _any_symbol(top, bottom, left, right):
        # Comparing symbols would add guards that specialize a captured graph.
        return _move_padding(problem, (0, 0), (left, right, top, bottom))
    down, across = min(top, bottom), min(left, right)
    extra = left - across, right - across, top - down, bottom - down
    if request.device.type != "cpu" or dtype not in _BY_ONEDNN:
        return _move_padding(problem, (down, across), extra)
    if not _any_symbol(*problem.kernel) and problem.dilation != problem.effective_dilation:
        # Dilation has no effect along an axis with one tap.  Yet oneDNN then chooses other kernels;
        # that for 1x1 with a stride, in bfloat16 and channels_last, gives a wrong gradient of the
        # input.
        problem = replace(problem, dilation=problem.effective_dilation)
    if map == "grad_weight" and down >= TALL and _covers_image(problem):
        down, extra = 0, (*extra[:2], top, bottom)
    reach = problem.dilation[1] * (problem.kernel[1] - 1)
    if problem.stride[1] > 1 and not _any_symbol(*problem.size) and problem.output_size[1] == 1:
        # There is one column of windows, so the stride has no effect.
        extra = left, reach + 1 - left - problem.size[1], *extra[2:]
        problem = replace(problem, stride=(problem.stride[0], 1))
        return _move_padding(problem, (down, 0), extra)
    slow = _needs_explicit_padding(replace(request, problem=problem))
    if slow or _pads_too_far(problem, map, across):
        across, extra = 0, (left, right, *extra[2:])
    return _move_padding(problem, (down, across), extra)


def _move_padding(problem: Problem, padding: Pair, extra: PadWidths) -> _Rewrite:
    """The same problem with part of the padding, ``extra``, made part of the image."""
    (down, across), (left, right, top, bottom) = padding, extra
    (height, width), sides = problem.size, ((down, down), (across, across))
    if _any_symbol(*extra) or any(extra) or problem.padding != sides:
        size = height + top + bottom, width + left + right
        problem = replace(problem, size=size, padding=sides)
    return _Rewrite(problem, extra)


def _any_symbol(*numbers: int) -> bool:
    return any(isinstance(number, torch.SymInt) for number in numbers)


def _pair(problem: Problem) -> Pair:
    """The padding as PyTorch takes it, for a problem with the same padding on both sides."""
    (down, _), (across, _) = problem.padding
    return down, across


def _pad_or_crop(image: Tensor, extra: PadWidths) -> Tensor:
    """The image with this many columns and rows of zeros added, or cropped if negative."""
    if _any_symbol(*extra):
        return pad(image, extra)
    if any(each > 0 for each in extra):
        image = pad(image, [max(0, each) for each in extra])
    left, right, top, bottom = (min(0, each) for each in extra)
    if left or right or top or bottom:
        height, width = image.shape[2:]
        image = image[..., -top : height + bottom, -left : width + right]
    return image


def _undo_pad_or_crop(image: Tensor, extra: PadWidths) -> Tensor:
    """The adjoint of :func:`_pad_or_crop`: crops what it padded, and pads what it cropped with
    zeros."""
    left, right, top, bottom = extra
    return _pad_or_crop(image, (-left, -right, -top, -bottom))


def _computed_in_float32(request: Request) -> bool:
    """Whether a half-precision map on the CPU is computed in float32.

    PyTorch's own float16 convolution on the CPU sums the weight's gradient over the batch in
    float16, and takes 5 to 35 times as long (dense 3x3, 8x64x56x56).  The input's gradient of a
    strided depthwise layer in bfloat16 takes 4 times as long (5x5, 2x64x56x56).  bfloat16 is summed
    in bfloat16 where oneDNN does not support it, as on processors without AVX-512.  The weight's
    gradient in bfloat16 may contain uninitialized memory: :func:`_has_taps_on_padding_alone`. It is
    also wrong with a dilation of the rows, if images are channels_last, the output has more than
    about 28 columns, and the channels of a group are not a multiple of 16.  A depthwise forward in
    bfloat16 and channels_last does not end, from 15 taps across and 32 columns of output on: oneDNN
    generates code without bound.
    """
    problem, map, dtype = request.problem, request.map, request.dtype
    if request.device.type != "cpu":
        return False
    if dtype != torch.bfloat16 or not _ONEDNN_HAS_BFLOAT16:
        return dtype in (torch.float16, torch.bfloat16)
    if map == "grad_input":
        return _depthwise(problem) and problem.stride != (1, 1)
    if map == "forward":
        return _depthwise(problem) and problem.kernel[1] >= 15 and problem.stride[1] == 1
    tails = problem.group_in % 16 != 0 or problem.group_out % 16 != 0
    return (tails and problem.dilation[0] > 1) or _has_taps_on_padding_alone(problem)


def _has_taps_on_padding_alone(problem: Problem) -> bool:
    """Whether oneDNN's weight gradient in bfloat16 reads or returns uninitialized memory.

    With a horizontal stride it does, for taps that meet only padding, as both outer columns of a
    3x3 kernel with padding 1 do on an image one pixel wide; and, rarely, where the output has one
    column.  Found by the law ``memory_formats``; see docs/what-the-kit-finds.md.
    """
    step, gap, columns = problem.stride[1], problem.dilation[1], problem.output_size[1]
    if step == 1 or columns == 1:
        return step > 1
    for tap in range(problem.kernel[1]):
        start = tap * gap - problem.padding[1][0]
        first, last = max(0, -(start // step)), (problem.size[1] - 1 - start) // step
        if first > min(last, columns - 1):
            return True
    return False


def _needs_explicit_padding(request: Request) -> bool:
    """Whether the horizontal padding is too wide for oneDNN's fast kernels.

    They keep a few columns of output in registers and accept no padding wider than that. Otherwise
    PyTorch falls back on slower code.  Times of the fallback / of explicit padding first, on two
    Zen 4 cores in float32: depthwise 31x31 with padding 15, 128x56x56: 113 ms / 6; 17x17 with
    padding 7: 61 / 2.3, but with 6 equal; 32 to 32 channels of 64x64, 21x21 with padding 10: 50 /
    18, but 15x15 equal; one 512x512 image, 101x101 with padding 50: 8.1 s / 0.4, but 51x51 with
    padding 25 equal.  Vertical padding does not matter, nor does any padding to the gradients (0.9
    to 1.3 times).  Depthwise kernels in channels_last take any padding: 4x256x7x7 with 27x27 takes
    0.3 ms, with explicit padding 0.6.
    """
    problem, map, dtype = request.problem, request.map, request.dtype
    if map != "forward" or dtype not in (torch.float32, torch.bfloat16):
        return False
    across, channels = max(problem.padding[1]), min(problem.group_in, problem.group_out)
    if _depthwise(problem):
        return across > 6 and not request.channels_last
    return across > 28 or (across > 7 and channels >= 16 and problem.kernel[1] > 20)


def _pads_too_far(problem: Problem, map: MapName, across: int) -> bool:
    """Whether oneDNN is wrong with such wide horizontal padding.

    Its forward crashes if a window reads no pixel, which with several windows takes padding beyond
    the kernel's reach.  The weight's gradient with a stride loses sums in float32 with more than 14
    columns of padding and more than 28 of output, and reads out of bounds in bfloat16 with more
    than 16.
    """
    if map == "grad_weight" and problem.stride[1] > 1 and across > 14:
        return True
    return map == "forward" and across > problem.dilation[1] * (problem.kernel[1] - 1)


TALL = 9
"""Rows of padding from which :func:`_covers_image` matters.

From ten rows of output on, oneDNN sums in a different way. With stride 1 it is wrong there if the
kernel has as many rows as the image and the padding above together, with a larger stride if it has
more than the image; ten rows of output then take at least nine rows of padding.
"""


def _covers_image(problem: Problem) -> bool:
    """Whether the kernel is taller than the image, so that a window meets padding on both sides.

    With the padding above and nine rows of output or more, oneDNN's weight gradient in float32 then
    treats the rows of padding as rows of the image (``compute_oh_loop_partial``), writes that many
    rows beyond the weight, and crashes.
    """
    return not _any_symbol(problem.size[0]) and problem.span[0] > problem.size[0]


def _needs_subsampling(request: Request) -> bool:
    """Whether to drop the pixels that a strided 1x1 kernel skips, before its gradient is computed.

    oneDNN drops them itself, into a workspace that is too small if the image is channels_last and
    has fewer channels than oneDNN's block, 16 (8 with AVX2).  It then writes out of bounds, and the
    process crashes or continues with overwritten data (oneDNN issue 6035, version 3.12).  A
    compiler may convert any image to that layout.  The remaining pixels give the same sums.
    """
    problem, dtypes = request.problem, (torch.float32, torch.bfloat16, torch.complex64)
    onednn = request.device.type == "cpu" and request.dtype in dtypes
    steps = problem.kernel == (1, 1) and problem.stride != (1, 1)
    return onednn and steps and problem.group_in < 16


def _subsampled(problem: Problem, input: Tensor) -> tuple[Problem, Tensor]:
    """The same sums over only those pixels of the padded ``input`` that a 1x1 kernel reads."""
    down, across = problem.stride
    dense = replace(problem, size=problem.output_size, stride=(1, 1), padding=((0, 0), (0, 0)))
    return dense, input[..., ::down, ::across]


def _depthwise(problem: Problem) -> bool:
    return problem.group_in == problem.group_out == 1 < problem.groups


def _placeholder(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor for the operand whose shape alone the backward reads.

    On a CPU untouched memory costs nothing, whereas PyTorch would copy an expanded tensor into a
    full one (8x144x56x56: 25 ms instead of 20, two Zen 4 cores).
    """
    return like.new_empty(shape) if like.device.type == "cpu" else like.new_empty(1).expand(shape)


def _placeholder_of_input(output: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A placeholder for the input, in the layout of the output.

    It decides in which layout PyTorch computes.  For a 3x3 depthwise layer of 2x144x56x56 in
    channels_last a contiguous one takes 2.6 ms instead of 0.34 (two Zen 4 cores).  On CUDA an
    expanded tensor is never channels_last: 110 us instead of 14 (H200).
    """
    if not is_channels_last(output):
        return _placeholder(output, shape)
    layout = torch.channels_last
    return torch.empty(shape, dtype=output.dtype, device=output.device, memory_format=layout)


def _backward(
    problem: Problem,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """The requested gradients of input and weight from ``aten::convolution_backward``."""
    gradients = torch.ops.aten.convolution_backward(
        output,
        input,
        weight,
        None,
        problem.stride,
        _pair(problem),
        problem.dilation,
        False,  # transposed
        (0, 0),  # output padding
        problem.groups,
        (*wanted, False),
    )
    return cast("tuple[Tensor, Tensor]", gradients[:2])
