"""PyTorch's own convolution as one more algorithm.

oneDNN on x86, cuDNN on CUDA, and PyTorch's own loops elsewhere.  What PyTorch lacks is
put around it here: asymmetric padding, gradient maps for complex numbers, float16 on the
CPU, and sums over no channel, of which ``conv2d`` makes an output without channels instead
of zeros.  Where its kernels are slow, wrong, or read and write beyond their memory, the problem
is first rewritten into an equal one: see :func:`_rewritten`, :func:`_computed_in_float32`,
:func:`_thinned_first` and :func:`regular`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._torch_compat import onednn_has_bfloat16
from ..problem import Pair, Problem
from ..request import MAPS, MapName, Request, dtype_name
from .base import (
    COMPLEX,
    FEW,
    FLOATS,
    INTEGERS,
    Algorithm,
    Cost,
    complex_from_real,
    definition_flops,
    dtype_refusal,
    is_channels_last,
    matrix_speed,
)
from .cost import Fitted, Work, columns_bytes, filled, fresh, moved, rows_met

PEAK = 33.5
"""Products that an H200 does in a picosecond, as a large matrix product in float32 would."""


def _cuda_slowdown(request: Request) -> float:
    """How many times longer than a large matrix product PyTorch takes on CUDA, at the least.

    Fitted to what it took of the benchmark suite's cases on an H200 (PyTorch 2.11, cuDNN 9.19,
    2026-11-27), float32 with TF32 off: as a rule no more than that, at worst twice as much (an
    image's three channels under 5x5).  PyTorch has kernels of its own for depthwise layers, and
    cuDNN for those of halves under small kernels.  What it takes for many channels in float64 is
    known of one layer; of other dtypes it is near enough to a matrix product.
    """
    problem, map, dtype = request.problem, request.map, request.dtype
    few, side = problem.group_in * problem.group_out <= FEW, prod(problem.kernel) ** 0.5
    if not few:
        if dtype != torch.float64:
            return 1.0
        done = 0.6 if map == "grad_input" else 3.0
    elif problem.groups == 1:
        alone = problem.in_channels * problem.out_channels == 1
        forward, weight = (min(0.35, 0.045 * side), min(0.55, 0.035 * side)) if alone else (1, 0.55)
        done = {"forward": forward, "grad_input": 0.9, "grad_weight": weight}[map]
    elif dtype.itemsize == 2 and side <= 5:
        done = 4.0
    else:
        per_side = {"forward": (0.75, 0.1), "grad_input": (0.65, 0.04), "grad_weight": (0.75, 0.0)}
        done = per_side[map][0] + per_side[map][1] * side
    return PEAK / done * matrix_speed(dtype)


def quick_in_channels_last(problem: Problem, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN is as quick as anything where a compiler lays images out: 3x3 depthwise.

    Inductor puts what convolutions read in channels_last.  There 144 channels of 4x28x28 take it
    77, 81 and 84 us (forward and gradients), in NCHW 135, 136 and 122, and ``direct`` 111 to 123;
    with that in MobileNetV2's graph a step took 52 ms instead of 44.  Under 5x5 and more oneDNN's
    gradients are far behind.  Not of sizes that are symbols, for each of which inductor might make
    another graph.
    """
    return (
        not problem.is_symbolic
        and device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and max(problem.kernel) <= 3
        and _depthwise(problem)
    )


NEAR = 2**23
"""Bytes of operands and result up to which oneDNN's copies of them stay in the caches: MobileNet's
layers of 28x28 and less take it a third of what the regime of all sizes predicts."""


def lags_in_channels_last(request: Request) -> bool:
    """Whether PyTorch was seen to lag where images lie in channels_last: wide depthwise kernels.

    On an H200 (cuDNN 9.19, 2026-11-27) ConvNeXt's 7x7 took it 0.7, 0.7 and 31 ms in float32 and
    0.27, 0.67 and 0.2 in float16, RepLKNet's 31x31 59, 25 and 160, and 59, 24 and 31; ``triton``
    0.2 to 0.8 and 0.6 to 1.9.  For 3x3, and for the weight's gradient of 7x7 in halves, cuDNN has
    kernels as quick as memory.
    """
    problem, side = request.problem, prod(request.problem.kernel) ** 0.5
    quick = request.map == "grad_weight" and request.dtype.itemsize == 2 and side <= 7
    return request.device.type == "cuda" and _depthwise(problem) and side >= 7 and not quick


@dataclass(frozen=True)
class Aten(Fitted):
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
        """Nothing is added: it is what others are compared with."""
        return 0.0, 0.0

    def keeps_channels_last(self, request: Request) -> bool:
        """Everywhere but for the layers in which PyTorch is slow in that layout."""
        return not lags_in_channels_last(request)

    def runs_as_conv2d(self, request: Request) -> bool:
        """Whether PyTorch's convolution does this problem without any of what is put around it."""
        return (
            not request.problem.is_empty
            and not _needs_subsampling(request)
            and not any(
                _computed_in_float32(each) or _rewritten(each).problem != each.problem
                for each in map(request.with_map, MAPS)
            )
        )

    def needs_sizes(self, request: Request) -> bool:
        """Whether only numbers tell how the problem is to be rewritten, and it has symbols.

        Those of the batch do not matter.  The image's width does with a stride, since there may be
        a single column of output, and its height with much padding, since the kernel may be taller.
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

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        if problem.is_empty:
            return input.new_zeros(problem.output_shape)
        given = _rewritten_for(problem, "forward", input)
        if given.in_float32:
            return _conv2d(given, input.float(), weight.float(), None).to(input.dtype)
        return _conv2d(given, input, weight, None)

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        if problem.is_empty:
            return output.new_zeros(problem.input_shape)
        if output.is_complex():
            return complex_from_real(self.grad_input, problem, output, weight)
        given = _rewritten_for(problem, "grad_input", output)
        if given.in_float32:
            return _grad_input(given, output.float(), weight.float()).to(output.dtype)
        return _grad_input(given, output, weight)

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        if problem.is_empty:
            return input.new_zeros(problem.weight_shape)
        if input.is_complex():
            return complex_from_real(self.grad_weight, problem, input, output)
        given = _rewritten_for(problem, "grad_weight", input)
        if given.in_float32:
            return _grad_weight(given, input.float(), output.float()).to(input.dtype)
        return _grad_weight(given, input, output)

    def has_both_gradients(self, request: Request) -> bool:
        """Where nothing is put around PyTorch's own backward."""
        return not request.dtype.is_complex and self.runs_as_conv2d(request)

    def gradients(
        self, problem: Problem, input: Tensor, weight: Tensor, output: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both gradients by one call of PyTorch's, which lays out once what both of them read."""
        if are_misread(input, weight):
            input, weight = regular(input), regular(weight)
        return _backward(problem, output, input, weight, (True, True))

    def workspace(self, request: Request) -> int:
        """The copies made here, of all slots in float32 or of the padded input.

        PyTorch's own scratch is not known; nor do sizes tell whether an output is in
        channels_last, beside which a device is given an input for its layout's sake.
        """
        problem = request.problem
        height, width = problem.padded_size
        padded = problem.batch * problem.in_channels * height * width
        if _computed_in_float32(request):
            return torch.float32.itemsize * (padded + sum(map(prod, request.shapes)))
        return padded * request.dtype.itemsize if any(_rewritten(request).extra) else 0

    def cost(self, request: Request) -> Cost:
        """By fitted factors on the CPU, by what was timed on CUDA; elsewhere the definition's."""
        if request.device.type == "cpu":
            return super().cost(request)
        ideal = Algorithm.cost(self, request)
        if request.device.type != "cuda" or torch.version.hip is not None:
            return ideal
        return ideal._replace(matmul_flops=ideal.matmul_flops * _cuda_slowdown(request))

    def work(self, request: Request) -> Work:
        """By what PyTorch calls: oneDNN, which fills channels up to 16, or columns and products."""
        problem, map, dtype = request.problem, request.map, request.dtype
        if dtype.is_complex:
            # PyTorch's forward is three real ones, of sums; our gradients are four.
            regime, ideal = self.work(replace(request, dtype=dtype.to_real()))
            times = 3 if map == "forward" else 4
            return Work(regime, Cost(*(times * amount for amount in ideal)))
        ins, outs, flops = problem.group_in, problem.group_out, definition_flops(problem, dtype)
        bytes = moved(request)
        if dtype == torch.float64:
            # The columns of all images of a group are laid out at once; few filters make a thin
            # product.
            regime = "columns" if problem.groups == 1 else "columns of groups"
            columns = columns_bytes(problem, dtype)
            bytes += columns + problem.groups * fresh(columns / problem.groups)
            return Work(regime, Cost(flops * filled(outs, 8), 0, bytes, problem.groups))
        # oneDNN passes over rows of taps that fall into the padding.
        flops *= rows_met(problem) / max(1, problem.output_size[0] * problem.kernel[0])
        if _depthwise(problem):
            narrow = map == "forward" or max(*problem.padding[0], *problem.padding[1]) <= 8
            plain = narrow and problem.dilation == (1, 1)
            small = max(problem.kernel) <= 3
            regime = "depthwise, 3x3" if small else "depthwise, larger"
            if max(problem.kernel) <= 5 and plain and bytes < NEAR:
                regime = f"depthwise, {'3x3' if small else '5x5'}, near"
            regime = regime if plain else f"{regime}, by the reference"
            # All is laid out in blocks of 16 channels: red, green and blue take as long as 16.
            fill = filled(problem.groups, 16)
            for shape in (problem.input_shape, problem.output_shape):
                blocked = dtype.itemsize * prod(shape) * fill
                bytes += blocked + fresh(blocked)
        elif problem.groups > 1 and (ins % 16 or outs % 16):
            regime, fill = "groups", filled(ins, 4) * filled(outs, 8)
        elif ins <= 4:
            # Inputs stay as they are but in grad_input; outputs are laid out in blocks of 16.
            regime = "one channel" if ins == 1 else "few channels"
            regime += ", few filters" if outs < 16 else ""
            fill = filled(outs, 16) * (filled(ins, 16) if map == "grad_input" else 1)
            blocked = prod(problem.output_shape) * filled(outs, 16)
            if map == "grad_input":
                blocked += prod(problem.input_shape) * filled(ins, 16)
            bytes += dtype.itemsize * blocked + fresh(dtype.itemsize * blocked)
        elif outs <= 4:
            regime, fill = "few filters", filled(ins, 16)
        else:
            regime, fill = "dense", filled(ins, 16) * filled(outs, 16)
        return Work(regime, Cost(flops * fill, 0, bytes, 1))


Sides: TypeAlias = tuple[int, int, int, int]
"""Left, right, top and bottom, as ``pad`` takes them."""

_ONEDNN_HAS_BFLOAT16 = onednn_has_bfloat16()
"""Whether oneDNN computes bfloat16 on this processor; PyTorch's own loops are slow and rough."""

_BY_ONEDNN = (torch.float32, torch.bfloat16, torch.float16, torch.complex64)
"""What oneDNN may compute on a CPU; complex numbers as real ones."""


def conv2d(problem: Problem, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.conv2d`` on a problem, rewritten where that would be wrong or slow."""
    return _conv2d(_rewritten(Request.of(problem, "forward", input)), input, weight, bias)


def _conv2d(given: _Rewritten, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    problem = given.problem
    return torch.conv2d(
        _with(input, given.extra),
        regular(weight),
        bias,
        problem.stride,
        _pair(problem),
        problem.dilation,
        problem.groups,
    )


def _grad_input(given: _Rewritten, output: Tensor, weight: Tensor) -> Tensor:
    input = _placeholder_of_input(output, given.problem.input_shape)
    result, _ = _backward(given.problem, output, input, regular(weight), (True, False))
    if is_channels_last(output):
        # As PyTorch's own backward, which sees the layout of the input itself.
        result = result.contiguous(memory_format=torch.channels_last)
    return _without(result, given.extra)


def _grad_weight(given: _Rewritten, input: Tensor, output: Tensor) -> Tensor:
    problem, input = given.problem, _with(input, given.extra)
    if given.subsampled:
        problem, input = _subsampled(problem, input)
    weight = _placeholder(output, problem.weight_shape)
    return _backward(problem, output, input, weight, (False, True))[1]


def regular(value: Tensor) -> Tensor:
    """The tensor, copied if :func:`is_irregular`."""
    if not is_irregular(value):
        return value
    layout = torch.contiguous_format if value.is_complex() else torch.channels_last
    return value.clone(memory_format=layout)


def is_irregular(value: Tensor) -> bool:
    """Whether PyTorch may misread its layout: channels_last, but for an unusual stride of some axis
    of length 1; or complex, and neither contiguous nor channels_last.

    As ``weight.unsqueeze(-1)`` of a transposed weight, or ``image.permute(2, 0, 1).unsqueeze(0)``.
    PyTorch asks such tensors for their layout in two ways, and gets two answers.  It reads the
    weights of groups in a wrong order then, and gives back wrong gradients of them.

    PyTorch copies the real and imaginary parts of complex tensors, in the order of their strides:
    those of channels cut from channels_last become such tensors on the way.
    """
    if value.is_contiguous():
        return False
    if not (value.is_complex() or value.is_contiguous(memory_format=torch.channels_last)):
        return False
    channels, height, width = value.shape[1:]
    return value.stride() != (height * width * channels, 1, width * channels, channels)


def are_misread(input: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch may mistake the layout of a layer's operands: see :func:`is_irregular`.

    Of an image where there are groups, whose weight is channels_last besides; which a weight of
    1x1 may be, and contiguous at the same time.
    """
    if is_irregular(weight):
        return True
    return input.dim() == 4 and weight.shape[1] != input.shape[1] and is_irregular(input)


class _Rewritten(NamedTuple):
    """An equal problem, of which PyTorch's convolution does the same padding on both sides."""

    problem: Problem
    extra: Sides
    """What the image is padded by first; negative: cut off."""
    subsampled: bool = False
    """Whether pixels that a 1x1 kernel steps over are left out: :func:`_needs_subsampling`."""
    in_float32: bool = False
    """Whether operands are first converted to float32: :func:`_computed_in_float32`."""


def _rewritten_for(problem: Problem, map: MapName, operand: Tensor) -> _Rewritten:
    """The problem that PyTorch is given to compute a map of such operands; kept by sizes."""
    try:
        return _kept(problem, map, operand.device, operand.dtype)
    except TypeError:  # a symbol has no hash
        return _kept.__wrapped__(problem, map, operand.device, operand.dtype)


@lru_cache(maxsize=4096)
def _kept(problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype) -> _Rewritten:
    request = Request(problem, map, device, dtype)
    if _computed_in_float32(request):
        return _rewritten(replace(request, dtype=torch.float32))._replace(in_float32=True)
    return _rewritten(request)


def _rewritten(request: Request) -> _Rewritten:
    """The problem that PyTorch is given instead.

    Rules look at the geometry and the dtype alone: in which layout a convolution runs is not
    known here, since PyTorch and its compilers choose it.
    """
    given = _with_other_padding(request)
    if request.map != "grad_weight":
        return given
    steps_over = _needs_subsampling(replace(request, problem=given.problem))
    return given._replace(subsampled=steps_over and _pair(given.problem) == (0, 0))


def _with_other_padding(request: Request) -> _Rewritten:
    problem, map, dtype = request.problem, request.map, request.dtype
    (top, bottom), (left, right) = problem.padding
    if _any_symbol(top, bottom, left, right):
        # Comparing symbols would hold a captured graph to what they compare to now.
        return _with_padding(problem, (0, 0), (left, right, top, bottom))
    down, across = min(top, bottom), min(left, right)
    extra = left - across, right - across, top - down, bottom - down
    if request.device.type != "cpu" or dtype not in _BY_ONEDNN:
        return _with_padding(problem, (down, across), extra)
    if not _any_symbol(*problem.kernel):
        # One tap has no gaps.  oneDNN chooses other kernels by the dilation all the same; that of
        # 1x1 with a stride, in bfloat16 and channels_last, gives a wrong gradient of the input.
        (rows, columns), (height, width) = problem.dilation, problem.kernel
        gaps = rows if height > 1 else 1, columns if width > 1 else 1
        if problem.dilation != gaps:
            problem = replace(problem, dilation=gaps)
    if map == "grad_weight" and down >= TALL and _covers_image(problem):
        down, extra = 0, (*extra[:2], top, bottom)
    reach = problem.dilation[1] * (problem.kernel[1] - 1)
    if problem.stride[1] > 1 and not _any_symbol(*problem.size) and problem.output_size[1] == 1:
        # One window, which no step leaves.
        extra = left, reach + 1 - left - problem.size[1], *extra[2:]
        problem = replace(problem, stride=(problem.stride[0], 1))
        return _with_padding(problem, (down, 0), extra)
    if _needs_explicit_padding(problem, map, dtype) or _pads_too_far(problem, map, across):
        across, extra = 0, (left, right, *extra[2:])
    return _with_padding(problem, (down, across), extra)


def _with_padding(problem: Problem, padding: Pair, extra: Sides) -> _Rewritten:
    """A problem of which a part of the padding, ``extra``, becomes part of the image."""
    (down, across), (left, right, top, bottom) = padding, extra
    (height, width), sides = problem.size, ((down, down), (across, across))
    if _any_symbol(*extra) or any(extra) or problem.padding != sides:
        size = height + top + bottom, width + left + right
        problem = replace(problem, size=size, padding=sides)
    return _Rewritten(problem, extra)


def _any_symbol(*numbers: int) -> bool:
    return any(isinstance(number, torch.SymInt) for number in numbers)


def _pair(problem: Problem) -> Pair:
    """The padding as PyTorch takes it, of a problem with the same on both sides."""
    (down, _), (across, _) = problem.padding
    return down, across


def _with(image: Tensor, extra: Sides) -> Tensor:
    """The image with so many more columns and rows, of zeros; or fewer."""
    if _any_symbol(*extra):
        return pad(image, extra)
    if any(each > 0 for each in extra):
        image = pad(image, [max(0, each) for each in extra])
    left, right, top, bottom = (min(0, each) for each in extra)
    if left or right or top or bottom:
        height, width = image.shape[2:]
        image = image[..., -top : height + bottom, -left : width + right]
    return image


def _without(image: Tensor, extra: Sides) -> Tensor:
    """The adjoint of :func:`_with`: what was padded is cut off, what was cut off gets zeros."""
    left, right, top, bottom = extra
    return _with(image, (-left, -right, -top, -bottom))


def _computed_in_float32(request: Request) -> bool:
    """Where a half-precision map on the CPU goes through float32.

    PyTorch's own float16 convolution there sums the weight's gradient over the batch in
    float16, and takes 5 to 35 times as long (dense 3x3, 8x64x56x56).  The input's gradient of
    a strided depthwise layer in bfloat16 takes 4 times as long (5x5, 2x64x56x56).  bfloat16 is
    summed in bfloat16 where oneDNN does not support it, as on processors without AVX-512.  The
    weight's gradient in bfloat16 may hold what was left in memory: :func:`_meets_too_little`.
    It is also wrong with a dilation of the rows, where images are channels_last, the output has
    more than about 28 columns, and the channels of a group are no multiple of 16.  A depthwise
    forward in bfloat16 and channels_last does not end, from 15 taps across and 32 columns of
    output on: oneDNN generates code without bound.
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
    """Whether oneDNN's weight gradient in bfloat16 reads or returns memory that nobody wrote.

    It does with a stride across, for taps that meet padding alone, as both outer columns of a
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


def _needs_explicit_padding(problem: Problem, map: MapName, dtype: torch.dtype) -> bool:
    """Whether oneDNN's kernels do not take so wide a padding to the left and right.

    They hold a few columns of output in registers and take no padding wider than those.  What
    PyTorch then falls back on takes, on two Zen 4 cores in float32, against padding first:
    depthwise 31x31 with padding 15, 128x56x56: 113 ms / 6; 17x17 with padding 7: 61 / 2.3, but
    with 6 even; 32 to 32 channels of 64x64, 21x21 with padding 10: 50 / 18, but 15x15 even; one
    512x512 image, 101x101 with padding 50: 8.1 s / 0.4, but 51x51 with padding 25 even.  Padding
    of rows does not matter, nor does any to the gradients (0.9 to 1.3 times).
    """
    if map != "forward" or dtype not in (torch.float32, torch.bfloat16):
        return False
    across, channels = max(problem.padding[1]), min(problem.group_in, problem.group_out)
    if _depthwise(problem):
        return across > 6
    return across > 28 or (across > 7 and channels >= 16 and problem.kernel[1] > 20)


def _pads_too_far(problem: Problem, map: MapName, across: int) -> bool:
    """Whether oneDNN is wrong with so wide a padding to the left and right.

    In its forward the process dies where no window meets a pixel, which with several windows takes
    a padding beyond the kernel's reach.  The weight's gradient with a stride loses sums in float32
    with more than 14 columns of padding and more than 28 of output, and reads memory of others in
    bfloat16 with more than 16.
    """
    if map == "grad_weight" and problem.stride[1] > 1 and across > 14:
        return True
    return map == "forward" and across > problem.dilation[1] * (problem.kernel[1] - 1)


TALL = 9
"""Rows of padding from which :func:`_covers_image` matters.

oneDNN sums in another way from ten rows of output on. With stride 1 it is wrong there if the kernel
has as many rows as the image and the padding above together, with a larger stride if it has more
than the image; ten rows of output then take at least nine rows of padding."""


def _covers_image(problem: Problem) -> bool:
    """Whether the kernel is taller than the image, so that a window meets padding on both sides.

    With the padding above and nine rows of output or more, oneDNN's weight gradient in float32 then
    takes the rows of padding for rows of the image (``compute_oh_loop_partial``), writes as many
    rows beyond the weight, and the process dies.
    """
    return not _any_symbol(problem.size[0]) and problem.span[0] > problem.size[0]


def _needs_subsampling(request: Request) -> bool:
    """Whether to leave out pixels that a 1x1 kernel steps over, before its gradient is taken.

    oneDNN does so itself, into a workspace that is too small where the image is channels_last and
    has fewer channels than its block, 16 (8 with AVX2): it then writes beyond that, and the
    process dies or computes on with what it has overwritten (oneDNN issue 6035, version 3.12).  A
    compiler may lay out any image so.  The pixels that are left give the same sums.
    """
    problem, dtypes = request.problem, (torch.float32, torch.bfloat16, torch.complex64)
    onednn = request.device.type == "cpu" and request.dtype in dtypes
    steps = problem.kernel == (1, 1) and problem.stride != (1, 1)
    return onednn and steps and problem.group_in < 16


def _subsampled(problem: Problem, input: Tensor) -> tuple[Problem, Tensor]:
    """The same sums over the pixels alone that a 1x1 kernel meets; ``input`` is padded."""
    down, across = problem.stride
    dense = replace(problem, size=problem.output_size, stride=(1, 1), padding=((0, 0), (0, 0)))
    return dense, input[..., ::down, ::across]


def _depthwise(problem: Problem) -> bool:
    return problem.group_in == problem.group_out == 1 < problem.groups


def _placeholder(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """For the operand of which the backward reads the shape alone.

    On a CPU memory that nobody touches costs nothing, and PyTorch would copy a tensor without
    memory of its own into such as has (8x144x56x56: 25 ms instead of 20, two Zen 4 cores).
    """
    return like.new_empty(shape) if like.device.type == "cpu" else like.new_empty(1).expand(shape)


def _placeholder_of_input(output: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same, in the layout of the output.

    On CUDA it decides in which layout cuDNN computes, and a tensor without memory is never in
    channels_last: the gradient of a 3x3 depthwise layer took 110 us, instead of 14, on an H200.
    """
    if output.device.type == "cpu" or not is_channels_last(output):
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
    """Those gradients of ``aten::convolution_backward`` that are wanted, of input and weight."""
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
