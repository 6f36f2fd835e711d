"""A correct correlation, and the bugs that the kit must find in it.

``right`` sums shifted images tap by tap, and PyTorch differentiates it.  Each bug is one
change to it, or around it, of a kind that some library has shipped.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from torch_corr.problem import Problem


def right(x, w, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """The correlation, with nothing wrong."""
    return assemble(problem_of(x, w, stride, padding, dilation, groups), x, w, bias)


def problem_of(
    x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Problem:
    if w.dtype != x.dtype:
        raise TypeError("input and weight differ in dtype")
    if (x.dim(), w.dim()) != (4, 4):
        raise TypeError("input and weight must have four axes")
    return Problem.of(x.shape, w.shape, stride, padding, dilation, groups)


def pad_zeros(p: Problem, x: Tensor) -> Tensor:
    (top, bottom), (left, right_) = p.padding
    return F.pad(x, (left, right_, top, bottom))


def tap(p: Problem, image: Tensor, u: int, v: int) -> Tensor:
    """The pixels of the padded image that the tap (u, v) meets, one for each output."""
    rows = slice(u * p.dilation[0], u * p.dilation[0] + (p.output_size[0] - 1) * p.stride[0] + 1)
    cols = slice(v * p.dilation[1], v * p.dilation[1] + (p.output_size[1] - 1) * p.stride[1] + 1)
    return image[:, :, rows, cols][:, :, :: p.stride[0], :: p.stride[1]]


def summing(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def assemble(
    p: Problem,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    pad: Callable[[Problem, Tensor], Tensor] = pad_zeros,
    tap: Callable[[Problem, Tensor, int, int], Tensor] = tap,
    accumulate: Callable[[torch.dtype], torch.dtype] = summing,
) -> Tensor:
    """``right``, with parts that a bug may exchange."""
    if bias is not None and bias.shape != (p.out_channels,):
        raise ValueError("bias of the wrong length")
    dtype = accumulate(x.dtype)
    image, kernel = pad(p, x.to(dtype)), w.to(dtype)
    kernel = kernel.reshape(p.groups, p.group_out, p.group_in, *p.kernel)
    y = image.new_zeros(p.batch, p.groups, p.group_out, *p.output_size)
    for u in range(p.kernel[0]):
        for v in range(p.kernel[1]):
            seen = tap(p, image, u, v).reshape(p.batch, p.groups, p.group_in, *p.output_size)
            for c in range(p.group_in):
                y = y + seen[:, :, None, c] * kernel[None, :, :, c, u, v, None, None]
    return add(y.reshape(p.output_shape), bias).to(x.dtype)


def add(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def shaped(p: Problem, x: Tensor, w: Tensor, **changes: Any) -> Problem:
    """The problem of other operands, or with another stride."""
    geometry = {"stride": p.stride, "padding": p.padding, "dilation": p.dilation, **changes}
    return Problem.of(x.shape, w.shape, groups=p.groups, **geometry)


@dataclass(frozen=True)
class Bug:
    """A wrong correlation, and the law that finds it.

    Attributes:
        law: its name.
        what: a description of the bug, in one line.
        dtype: of the operands that show the bug.
        claims: laws that the callable claims.
        errors: what it promises about rounding.
    """

    fn: Callable[..., Tensor]
    law: str
    name: str
    what: str
    dtype: torch.dtype = torch.float32
    claims: tuple[str, ...] = ()
    errors: str = "componentwise"


BUGS: list[Bug] = []


def plant_all(*rows: tuple[Any, ...]) -> None:
    """Make a bug of each row: law, name, description, ``change(p, x, w, bias) -> y``, others."""
    for law, name, what, change, *others in rows:
        BUGS.append(Bug(callable_of(change, name), law, name, what, *others))


def callable_of(change: Callable[..., Tensor], name: str = "fn") -> Callable[..., Tensor]:
    """``change(p, x, w, bias)`` with the signature of ``F.conv2d``."""

    def fn(x, w, bias=None, stride=1, padding=0, dilation=1, groups=1):
        return change(problem_of(x, w, stride, padding, dilation, groups), x, w, bias)

    fn.__name__ = name
    return fn


def bug(law: str, *others: Any, **more: Any) -> Any:
    """Make a bug of a change, whose docstring describes the bug."""

    def decorate(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = change.__name__
        BUGS.append(Bug(callable_of(change, name), law, name, change.__doc__, *others, **more))
        return change

    return decorate


def raw(law: str) -> Any:
    """Make a bug of a callable with the whole signature."""

    def decorate(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        BUGS.append(Bug(fn, law, fn.__name__, fn.__doc__))
        return fn

    return decorate


def cast(b: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if b is None else b.to(dtype)


def through(dtype: torch.dtype) -> Callable[..., Tensor]:
    """Operands and sums in another dtype."""

    def change(p, x, w, b, spoil=lambda y: y):
        return spoil(assemble(p, x.to(dtype), w.to(dtype), cast(b, dtype))).to(x.dtype)

    return change


# --- values


def one_late(axis: int) -> Callable[..., Tensor]:
    """Padding whose last line comes first."""

    def pad(p: Problem, x: Tensor) -> Tensor:
        image = pad_zeros(p, x)
        return image.roll(1, 2 + axis) if p.padding[axis][1] else image

    return lambda p, x, w, b: assemble(p, x, w, b, pad=pad)


def one_missing(axis: int) -> Callable[..., Tensor]:
    """Padding whose first line behind the image still holds the image's last."""

    def pad(p: Problem, x: Tensor) -> Tensor:
        image = pad_zeros(p, x)
        last = p.padding[axis][0] + p.size[axis] - 1
        if p.padding[axis][1] == 0:
            return image
        lines = list(image.split(1, 2 + axis))
        lines[last + 1] = lines[last]
        return torch.cat(lines, 2 + axis)

    return lambda p, x, w, b: assemble(p, x, w, b, pad=pad)


def tail_dropped(axis: int, block: int) -> Callable[..., Tensor]:
    """Outputs beyond the last whole block along an axis are zero."""

    def change(p, x, w, b):
        length = p.output_size[axis]
        kept = torch.arange(length) < (length - length % block if length > block else length)
        y = assemble(p, x, w, b)
        return y * (kept if axis else kept[:, None]).to(y.dtype)

    return change


def weight_cut(kept: Callable[[Problem], Tensor]) -> Callable[..., Tensor]:
    """Only some channels or taps are summed."""
    return lambda p, x, w, b: assemble(p, x, w * kept(p).to(w.dtype), b)


def whole_eights(p: Problem) -> Tensor:
    keep = p.group_in - p.group_in % 8 if p.group_in > 8 else p.group_in
    return (torch.arange(p.group_in) < keep)[:, None, None]


def depthwise_tail(p, x, w, b):
    y, whole = assemble(p, x, w, b), p.out_channels // 16 * 16
    if p.group_in > 1 or p.groups == 1 or not whole:
        return y
    return y * (torch.arange(p.out_channels) < whole)[:, None, None].to(y.dtype)


def training_tail(p, x, w, b):
    y = assemble(p, x, w, b)
    if p.output_size[1] <= 8 or not (x.requires_grad or w.requires_grad):
        return y
    kept = torch.arange(p.output_size[1]) < p.output_size[1] // 8 * 8
    return y - (y * ~kept).detach()


def dense_columns(p, image, u, v):
    return tap(p, image.roll(v * (p.dilation[1] - 1), 3), u, v)


def in_own_dtype(p, x, w, b):
    return assemble(p, x, w, b, accumulate=lambda dtype: dtype)


def tf32(value: Tensor) -> Tensor:
    kept = (value.detach().view(torch.int32) & ~0x1FFF).view(torch.float32)
    return value + (kept - value).detach()


def strides_swapped(p, x, w, b):
    return assemble(shaped(p, x, w, stride=p.stride[::-1]), x, w, b)


# fmt: off
plant_all(
    ("values", "kernel_flipped", "Convolution instead of correlation.",
     lambda p, x, w, b: assemble(p, x, w.flip(-2, -1), b)),
    ("values", "kernel_transposed_when_square",
     "Rows and columns of the kernel swapped, if it is square.",
     lambda p, x, w, b: assemble(p, x, w.mT if p.kernel[0] == p.kernel[1] else w, b)),
    ("values", "padding_off_by_one_at_the_top",
     "One zero row too many at the top, one too few at the bottom.", one_late(0)),
    ("values", "padding_off_by_one_at_the_left",
     "One zero column too many at the left, one too few at the right.", one_late(1)),
    ("values", "padding_off_by_one_at_the_bottom",
     "The first row of padding at the bottom still holds the last row of the image.",
     one_missing(0)),
    ("values", "padding_off_by_one_at_the_right",
     "The first column of padding at the right still holds the last column of the image.",
     one_missing(1)),
    ("values", "row_tail_dropped",
     "Rows of the output beyond the last whole block of four are zero.",
     tail_dropped(0, 4)),
    ("values", "column_tail_dropped",
     "Columns of the output beyond the last whole vector of sixteen are zero.",
     tail_dropped(1, 16)),
    ("values", "column_tail_of_a_wide_block_dropped",
     "Columns of the output beyond the last whole block of sixty-four are zero.",
     tail_dropped(1, 64)),
    ("values", "channels_beyond_a_block_dropped", "Input channels beyond 128 are not summed.",
     weight_cut(lambda p: (torch.arange(p.group_in) < 128)[:, None, None])),
    ("values", "channel_tail_dropped",
     "Input channels beyond the last whole block of eight are not summed.",
     weight_cut(whole_eights)),
    ("values", "depthwise_tail_dropped",
     "Channels of a depthwise layer beyond the last whole vector of sixteen are zero.",
     depthwise_tail),
    ("values", "taps_beyond_a_row_of_eight_dropped",
     "Taps beyond the eighth of a row are not summed.",
     weight_cut(lambda p: torch.arange(p.kernel[1]) < 8)),
    ("values", "column_tail_dropped_in_training",
     "With gradients, columns beyond the last whole vector of eight are zero.", training_tail),
    ("values", "dilation_ignored_on_columns",
     "The shape uses the dilation of the columns, the taps do not.",
     partial(assemble, tap=dense_columns)),
    ("values", "summed_in_float16",
     "Products of halves are summed in halves.", in_own_dtype, torch.float16),
    ("values", "summed_in_bfloat16", "Products of bfloat16 are summed in bfloat16.",
     in_own_dtype, torch.bfloat16),
    ("values", "int64_through_float64", "int64 goes through float64, which has 53 digits.",
     through(torch.float64), torch.int64),
    ("values", "int64_through_int32",
     "int64 is summed in 32 bits.", through(torch.int32), torch.int64),
    ("values", "summed_in_float32", "float64 goes through float32, as on hardware without it.",
     partial(assemble, accumulate=lambda _: torch.float32), torch.float64),
    ("values", "operands_rounded_to_tf32", "Operands lose 13 digits, as in TF32.",
     lambda p, x, w, b: assemble(p, tf32(x), tf32(w), b)),
    ("accepts", "strides_swapped",
     "The stride of the rows is used for the columns, and the other way round.",
     strides_swapped),
)
# fmt: on


@bug("values")
def fourier_that_claims_to_be_direct(p, x, w, b):
    """Errors relative to the whole image, under the promise of errors relative to the window."""
    if p.stride != (1, 1) or p.dilation != (1, 1) or p.groups > 1:
        return assemble(p, x, w, b)
    image = pad_zeros(p, x)
    spectrum = torch.fft.rfft2(image)[:, None] * torch.fft.rfft2(w, image.shape[2:]).conj()
    y = torch.fft.irfft2(spectrum.sum(2), image.shape[2:])
    y = y[..., : p.output_size[0], : p.output_size[1]]
    return add(y, b)


@bug("values", errors="normwise")
def fourier_wraps_around(p, x, w, b):
    """A transform of the image's own size: what leaves at the bottom comes in at the top."""
    if p.stride != (1, 1) or p.dilation != (1, 1) or p.groups > 1:
        return assemble(p, x, w, b)
    (top, _), (left, _) = p.padding
    size = [max(pair) for pair in zip(p.size, p.output_size)]
    spectrum = torch.fft.rfft2(x, size)[:, None] * torch.fft.rfft2(w, size).conj()
    y = torch.fft.irfft2(spectrum.sum(2), size).roll((top, left), (2, 3))
    y = y[..., : p.output_size[0], : p.output_size[1]]
    return add(y, b)


# F(4, 3) as published: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 4.3.
# fmt: off
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
_B = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
      [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
      [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
# fmt: on


def winograd(
    p: Problem, x: Tensor, w: Tensor, b: Tensor | None = None, tiles: int | None = None
) -> Tensor:
    """Winograd's F(4x4, 3x3), where it applies.

    Args:
        tiles: how many tiles along either axis, if not all.
    """
    if (p.kernel, p.stride, p.dilation) != ((3, 3), (1, 1), (1, 1)) or not x.is_floating_point():
        return assemble(p, x, w, b)
    dtype = summing(x.dtype)
    A, B, G = (torch.tensor(matrix, dtype=dtype) for matrix in (_A, _B, _G))
    counts = [-(-side // 4) for side in p.output_size]
    rest = [4 * n + 2 - side for n, side in zip(counts, p.padded_size)]
    image = F.pad(pad_zeros(p, x.to(dtype)), (0, max(0, rest[1]), 0, max(0, rest[0])))
    image = image.unfold(2, 6, 4).unfold(3, 6, 4).reshape(p.batch, p.groups, -1, *counts, 6, 6)
    seen = torch.einsum("ka,lb,ngcijab->ngcijkl", B, B, image)
    kernel = w.to(dtype).reshape(p.groups, p.group_out, p.group_in, 3, 3)
    kernel = torch.einsum("ka,lb,gocab->gockl", G, G, kernel)
    product = torch.einsum("ngcijkl,gockl->ngoijkl", seen, kernel)
    y = torch.einsum("ak,bl,ngoijkl->ngoiajb", A, A, product)
    y = y.reshape(p.batch, p.out_channels, 4 * counts[0], 4 * counts[1])
    if tiles is not None:
        y = torch.cat([y[:, :, : 4 * tiles], 0 * y[:, :, 4 * tiles :]], 2)
    y = y[..., : p.output_size[0], : p.output_size[1]]
    return add(y, b).to(x.dtype)


def mean_bias_gradient(p, x, w, b):
    if b is None:
        return assemble(p, x, w)
    held = b / max(p.batch, 1)
    return assemble(p, x, w, held + (b - held).detach())


# fmt: off
plant_all(
    ("values", "winograd_that_claims_to_be_direct",
     "Winograd's F(4x4, 3x3), whose errors are relative to the tile, promising better.", winograd),
    ("values", "winograd_forgets_the_last_tiles",
     "Rows of the last tiles are zero, when they are not full.",
     lambda p, x, w, b: winograd(p, x, w, b, tiles=p.output_size[0] // 4 or None),
     torch.float32, (), "winograd"),
    ("values", "integers_saturate", "int8 sums stop at 127 instead of wrapping around.",
     lambda p, x, w, b: through(torch.int64)(p, x, w, b, lambda y: y.clamp(-128, 127)), torch.int8),
    ("accepts", "result_in_float32", "bfloat16 comes back as float32.",
     lambda p, x, w, b: assemble(p, x.float(), w.float(), cast(b, torch.float32)), torch.bfloat16),
    ("bias", "bias_added_once_a_group", "The bias is added by every group.",
     lambda p, x, w, b: assemble(p, x, w, None if b is None else b * p.groups)),
    ("bias", "bias_gradient_is_the_mean", "The gradient of the bias is averaged over the batch.",
     mean_bias_gradient),
    ("bias", "bias_stands_in_the_way_of_the_weight", "With a bias, the weight gets no gradient.",
     lambda p, x, w, b: assemble(p, x, w if b is None else w.detach(), b)),
    ("bias", "bias_without_a_gradient", "The bias is detached on the way.",
     lambda p, x, w, b: assemble(p, x, w, None if b is None else b.detach())),
    ("bias", "weight_stands_in_the_way_of_the_bias",
     "The bias gets a gradient of zeros where the weight gets one.",
     lambda p, x, w, b:
        assemble(p, x, w, 0 * b + b.detach() if b is not None and w.requires_grad else b)),
    ("bias", "bias_read_as_dense",
     "The bias' numbers are read one behind the other, whatever its stride.",
     lambda p, x, w, b: assemble(p, x, w, b if b is None else b.as_strided(b.shape, (1,)))),
    ("zero_sizes", "no_channels_give_no_channels",
     "An output without channels where there are none in the input, as F.conv2d.",
     lambda p, x, w, b: assemble(p, x, w, b)[:, : None if p.in_channels else 0]),
    ("batch", "later_images_read_the_first",
     "The stride of the batch is forgotten: every image is the first.",
     lambda p, x, w, b: assemble(p, x[:1].expand_as(x) if p.batch else x, w, b)),
    ("linearity", "large_pixels_clipped",
     "Pixels beyond 6 are clipped, as a quantised kernel would.",
     lambda p, x, w, b: assemble(p, x.clamp(-6, 6), w, b)),
    ("translation", "first_row_counts_half",
     "The first row of the image is weighted as if half of it lay outside.",
     lambda p, x, w, b: assemble(p, torch.cat([x[:, :, :1] / 2, x[:, :, 1:]], 2), w, b)),
    ("differentiable", "no_gradient_for_the_weight", "The weight is detached on the way.",
     lambda p, x, w, b: assemble(p, x, w.detach(), b)),
    ("non_finite", "infinity_counts_as_the_largest_number",
     "Infinities are clipped to the largest finite number.",
     lambda p, x, w, b: assemble(p, torch.where(x.isinf(), x.sign() * 1e29, x), w, b)),
    ("non_finite", "padding_by_multiplication",
     "Outside of the image is the image times zero: NaN and infinity come along.",
     partial(assemble, pad=lambda p, x: pad_zeros(p, x) + x.sum() * 0)),
    ("non_finite", "nan_swallowed", "NaN in the image counts as zero.",
     lambda p, x, w, b: assemble(p, torch.where(x.isnan(), torch.zeros_like(x), x), w, b)),
)
# fmt: on


@bug("accepts")
def refuses_even_kernels(p, x, w, b):
    """A valid problem raises."""
    if p.kernel[0] % 2 == 0:
        raise NotImplementedError("even kernels")
    return assemble(p, x, w, b)


@bug("zero_sizes")
def no_images_raise(p, x, w, b):
    """An empty batch is refused."""
    if p.batch == 0:
        raise RuntimeError("empty batch")
    return assemble(p, x, w, b)


@bug("large_numbers")
def pixel_numbers_in_int32(p, x, w, b):
    """The number of outputs is computed from a stride of 32 bits, which wraps around."""
    stride = tuple((s + 2**31) % 2**32 - 2**31 for s in p.stride)
    if min(stride) < 1:
        stride = tuple(max(s, 1) for s in stride)
    return assemble(shaped(p, x, w, stride=stride), x, w, b)


# --- structure


@bug("groups")
def groups_interleaved(p, x, w, b):
    """Output channel o reads group o % G."""
    y = assemble(p, x, w)
    y = y.reshape(p.batch, p.groups, p.group_out, *p.output_size).transpose(1, 2)
    y = y.reshape(p.output_shape)
    return add(y, b)


@bug("batch_invariance", claims=("batch_invariance",))
def order_of_sums_depends_on_the_batch(p, x, w, b):
    """A batch of several sums its channels and taps in another order."""
    if p.batch > 1:
        return assemble(p, x, w, b)
    columns = F.unfold(pad_zeros(p, x), p.kernel, p.dilation, 0, p.stride)
    columns = columns.reshape(p.batch, p.groups, -1, columns.shape[-1]).flip(2)
    kernel = w.reshape(1, p.groups, p.group_out, -1).flip(3)
    y = (kernel @ columns).reshape(p.output_shape)
    return add(y, b)


# --- gradients


class _Custom(Function):
    """A function of tensors with its own rules for derivatives.

    ``backward(needs, *values, gradient)`` and ``jvp(*values, *tangents)``.
    """

    @staticmethod
    def forward(ctx, forward, backward, jvp, *values):
        ctx.backward_rule, ctx.jvp_rule = backward, jvp
        ctx.save_for_backward(*values)
        ctx.save_for_forward(*values)
        return forward(*values)

    @staticmethod
    def backward(ctx, g):
        needs = ctx.needs_input_grad[3:]
        return None, None, None, *ctx.backward_rule(needs, *ctx.saved_tensors, g)

    @staticmethod
    def jvp(ctx, _, __, ___, *tangents):
        return ctx.jvp_rule(*ctx.saved_tensors, *tangents)


def adjoints(p, x, w, g, create_graph=True):
    """The right gradients, differentiable themselves."""
    with torch.enable_grad():
        a, b = x.detach().requires_grad_(), w.detach().requires_grad_()
        if create_graph and (x.requires_grad or w.requires_grad):
            a, b = x.view_as(x), w.view_as(w)
            a, b = (v if v.requires_grad else v.requires_grad_() for v in (a, b))
        return torch.autograd.grad(assemble(p, a, b), (a, b), g, create_graph=create_graph)


def pulled_back(pullback: Callable[..., Any], p: Problem, x: Tensor, w: Tensor) -> Tensor:
    """The right forward with a given ``pullback(p, x, w, gradient)``."""
    backward = lambda _, x, w, g: pullback(p, x, w, g)  # noqa: E731
    return _Custom.apply(partial(assemble, p), backward, None, x, w)


def pulls_back(wrong: Callable[..., Any]) -> Callable[..., Tensor]:
    """A change whose gradients are those of a pullback."""
    return lambda p, x, w, b: add(pulled_back(wrong, p, x, w), b)


def pullback(law: str, *others: Any) -> Any:
    """Make a bug of a pullback."""

    def decorate(wrong: Callable[..., Any]) -> Callable[..., Any]:
        plant_all((law, wrong.__name__, wrong.__doc__, pulls_back(wrong), *others))
        return wrong

    return decorate


@pullback("gradients")
def pixels_behind_the_last_window_get_the_wrong_gradient(p, x, w, g):
    """grad_input as a transposed convolution without output padding: the rest is repeated."""
    grad_input, grad_weight = adjoints(p, x, w, g)
    reached = (p.output_size[0] - 1) * p.stride[0] + p.span[0] - p.padding[0][0]
    if 0 < reached < p.size[0]:
        grad_input = torch.cat([grad_input[:, :, :reached], grad_input[:, :, reached - 1 : -1]], 2)
        grad_input = grad_input[:, :, : p.size[0]]
    return grad_input, grad_weight


@pullback("gradients")
def grad_weight_of_the_first_image_only(p, x, w, g):
    """grad_weight forgets to sum over the batch."""
    grad_input, _ = adjoints(p, x, w, g)
    alone = shaped(p, x[:1], w)
    return grad_input, adjoints(alone, x[:1], w, g[:1])[1]


@pullback("gradients", torch.complex64)
def conjugate_missing(p, x, w, g):
    """Complex gradients without conjugation of the other operand."""
    return adjoints(p, x.conj(), w.conj(), g)


@pullback("gradients", torch.float16)
def grad_weight_summed_in_float16(p, x, w, g):
    """The weight's gradient is summed over the images in halves."""
    grad_input, grad_weight = adjoints(p, x, w, g)
    alone = shaped(p, x[:1], w)
    for n in range(p.batch):
        part = adjoints(alone, x[n : n + 1], w, g[n : n + 1])[1]
        grad_weight = part if n == 0 else grad_weight + part
    return grad_input, grad_weight


@bug("frozen_operands")
def frozen_operand_takes_the_gradient(p, x, w, b):
    """A gradient is computed only if the other operand wants one."""

    def mixed_up(needs, x, w, g):
        return [each if need else 0 * each for each, need in zip(adjoints(p, x, w, g), needs[::-1])]

    return add(_Custom.apply(partial(assemble, p), mixed_up, None, x, w), b)


def negated_in_the_weight(p, x, w, g):
    """The right gradients, but that of the input has the wrong derivative by the weight."""
    negated = 2 * w.detach() - w
    return adjoints(p, x, w, g)[0] * 0 + adjoints(p, x, negated, g)[0], adjoints(p, x, w, g)[1]


def hidden_bias_gradient(p, x, w, b):
    y = assemble(p, x, w)
    hidden = lambda _, y, b, g: (g, g.detach().sum((0, 2, 3)))  # noqa: E731
    return y if b is None else _Custom.apply(add, hidden, None, y, b)


# fmt: off
plant_all(
    ("second_order", "second_conjugate_missing",
     "Complex gradients are right, but their own gradients see the operand unconjugated.",
     pulls_back(lambda p, x, w, g: adjoints(p, x, w + (w.conj().detach() - w.conj()), g)),
     torch.complex64),
    ("second_order", "gradients_without_gradients",
     "The backward pass is hidden from autograd (once_differentiable).",
     pulls_back(lambda p, *values: adjoints(p, *(v.detach() for v in values), create_graph=False))),
    ("second_order", "second_derivative_has_the_wrong_sign",
     "The gradient's own gradient in the weight is negated.", pulls_back(negated_in_the_weight)),
    ("second_order_bias", "bias_gradient_without_a_gradient",
     "The bias' gradient is hidden from autograd.", hidden_bias_gradient),
    ("second_order_bias", "second_derivative_has_the_wrong_sign_beside_a_bias",
     "With a bias, the gradient's own gradient in the weight is negated.",
     lambda p, x, w, b:
        assemble(p, x, w) if b is None else pulls_back(negated_in_the_weight)(p, x, w, b)),
)
# fmt: on


@pullback("finite_differences", torch.float64)
def gradient_a_little_too_large(p, x, w, g):
    """Off by one part in a hundred."""
    grad_input, grad_weight = adjoints(p, x, w, g)
    return grad_input * 1.01, grad_weight


@pullback("trilinear")
def gradients_of_the_flipped_kernel(p, x, w, g):
    """The adjoint of convolution under the forward of correlation."""
    grad_input, grad_weight = adjoints(p, x, w.flip(-2, -1), g)
    return grad_input, grad_weight.flip(-2, -1)


@bug("forward_mode", claims=("forward_mode",))
def tangent_of_the_weight_forgotten(p, x, w, b):
    """Forward mode knows the image's tangent alone."""

    def half(x, w, dx, _):
        return assemble(p, x.detach() * 0 if dx is None else dx, w)

    backward = lambda _, x, w, g: adjoints(p, x, w, g)  # noqa: E731
    return add(_Custom.apply(partial(assemble, p), backward, half, x, w), b)


@bug("forward_mode", claims=("forward_mode",))
def tangent_of_the_bias_forgotten(p, x, w, b):
    """Forward mode does not know that the output moves with the bias."""
    y = assemble(p, x, w)
    backward = lambda _, y, b, g: (g, g.sum((0, 2, 3)))  # noqa: E731
    unmoved = lambda y, b, dy, _: torch.zeros_like(y) if dy is None else dy  # noqa: E731
    return y if b is None else _Custom.apply(add, backward, unmoved, y, b)


# --- memory


@bug("memory_formats")
def channels_last_read_as_contiguous(p, x, w, b):
    """The image's memory is read in order, whatever its strides."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        x = x.permute(0, 2, 3, 1).reshape(x.shape)
    return assemble(p, x, w, b)


@bug("memory_formats")
def storage_offset_ignored(p, x, w, b):
    """The weight is read from the start of its storage."""
    start = w.detach().as_strided(w.shape, w.stride(), 0)
    return assemble(p, x, w + (start - w).detach() if w.storage_offset() else w, b)


@pullback("gradient_memory_formats")
def expanded_gradient_read_as_dense(p, x, w, g):
    """A gradient with strides of zero (from ``sum().backward()``) is read as if it had none."""
    if g.numel() > 1 and set(g.stride()) == {0}:
        g = torch.cat([g.flatten()[:1], g.flatten()[1:] * 0]).view(g.shape)
    return adjoints(p, x, w, g)


@bug("memory_formats")
def a_row_too_many_is_read_and_masked(p, x, w, b):
    """The row behind the image is read and multiplied by zero: harmless, unless NaN lies there."""
    y = assemble(p, x, w, b)
    after = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride())) + x.stride(2)
    if x.numel() and after < x.untyped_storage().nbytes() // x.element_size():
        y = y + 0 * x.detach().as_strided((), (), after)
    return y


# --- regions of few problems, as three kernels of oneDNN had them in PyTorch 2.13


def skips_padding_first(axis: int, steps: int) -> Callable[..., Any]:
    """A pullback whose grad_weight leaves out the first outputs, which it takes to see padding.

    It computes ``steps`` outputs at a time, along rows (axis 0) or columns.
    """

    def pullback(p, x, w, g):
        grad_input, grad_weight = adjoints(p, x, w, g)
        apart = min(p.stride[axis], p.dilation[axis]) > 1
        wide = p.padding[axis][0] > p.span[axis] // 2 and p.output_size[axis] > steps
        if not (apart and wide and p.groups == 1):
            return grad_input, grad_weight
        first = p.padding[axis][0] // p.stride[axis]
        skipped = torch.arange(p.output_size[axis]) < first
        kept = torch.where(skipped if axis else skipped[:, None], torch.zeros_like(g), g)
        return grad_input, adjoints(p, x, w, kept)[1]

    return pullback


# fmt: off
plant_all(
    ("gradients", "grad_weight_skips_columns_that_see_padding",
     "With stride and dilation, grad_weight skips columns whose first tap alone meets padding.",
     pulls_back(skips_padding_first(axis=1, steps=28))),
    ("gradients", "grad_weight_skips_rows_that_see_padding",
     "With stride and dilation, grad_weight skips rows whose first tap alone meets padding.",
     pulls_back(skips_padding_first(axis=0, steps=16))),
)
# fmt: on


@pullback("gradients")
def grad_input_wraps_beyond_the_reach_of_the_kernel(p, x, w, g):
    """Where padding is longer than the window, grad_input of 33 columns or more is shifted."""
    grad_input, grad_weight = adjoints(p, x, w, g)
    if p.padding[1][1] >= p.span[1] > 1 and p.output_size[1] > 32:
        grad_input = grad_input.roll(1, 3)
    return grad_input, grad_weight


@bug("values")
def last_columns_wrong_beyond_the_reach_of_the_kernel(p, x, w, b):
    """Padding on the right that is longer than the window still sees the image's last column."""
    y = assemble(p, x, w, b)
    if p.padding[1][1] < p.span[1] + 4 or p.output_size[1] <= 32:
        return y
    return torch.cat([y[..., :-1], y[..., -1:] + x.sum()], 3)


def lies_channels_last(value: Tensor) -> bool:
    """Whether the strides are those of channels_last and not those of contiguous memory."""
    _, channels, height, width = value.shape
    last = (height * width * channels, 1, width * channels, channels)
    first = (channels * height * width, height * width, width, 1)
    return value.stride() == last != first


@pullback("gradient_memory_formats", torch.bfloat16)
def grad_weight_wrong_in_channels_last_with_dilated_rows(p, x, w, g):
    """In channels_last, grad_weight of wide rows under a dilation reads the wrong row."""
    grad_input, grad_weight = adjoints(p, x, w, g)
    wide = p.groups > 1 and p.output_size[1] > 28 and p.dilation[0] > 1 and p.stride[0] == 1
    if wide and (lies_channels_last(x) or lies_channels_last(w)):
        grad_weight = adjoints(p, x.roll(1, 2), w, g)[1] + 1
    return grad_input, grad_weight


@pullback("gradient_memory_formats")
def gradient_in_channels_last_read_as_contiguous(p, x, w, g):
    """One channel of gradients whose strides are those of channels_last is read transposed."""
    if g.shape[1] == 1 and lies_channels_last(g):
        g = g.flatten(2).flip(2).view(g.shape)
    return adjoints(p, x, w, g)


@pullback("gradient_memory_formats")
def grad_weight_of_one_column_in_channels_last(p, x, w, g):
    """grad_weight sees only the first row of a gradient in channels_last that has one column."""
    grad_input, grad_weight = adjoints(p, x, w, g)
    if p.output_size[1] == 1 < p.stride[1] and lies_channels_last(g):
        kept = torch.cat([g[:, :, :1], 0 * g[:, :, 1:]], 2)
        grad_weight = adjoints(p, x, w, kept)[1]
    return grad_input, grad_weight


def reads_beyond(axis: int, p: Problem, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Outputs of one line along an axis, computed as if lines were a stride shorter."""
    y = assemble(p, x, w, b)
    gray = p.in_channels == 1 and (lies_channels_last(x) or lies_channels_last(w))
    if p.output_size[axis] > 1 or p.stride[axis] == 1 or p.output_size[1 - axis] == 1 or not gray:
        return y
    late = y.roll(1, 3 - axis)
    return torch.cat(
        [y.narrow(3 - axis, 0, 1), late.narrow(3 - axis, 1, y.shape[3 - axis] - 1)], 3 - axis
    )


# fmt: off
plant_all(
    ("memory_formats", "one_column_reads_beyond_the_image",
     "One column of outputs, of a gray image in channels_last with a column stride, is misread.",
     partial(reads_beyond, 1)),
    ("memory_formats", "one_row_reads_beyond_the_image",
     "One row of outputs, of a gray image in channels_last with a row stride, is misread.",
     partial(reads_beyond, 0)),
)
# fmt: on


@bug("memory_formats")
def strides_of_single_channels_trusted(p, x, w, b):
    """The stride of a channel axis of size 1 is used as the size of a plane."""
    plane = p.size[0] * p.size[1]
    if p.in_channels == 1 and x.stride(1) not in (plane, 1) and x.stride()[2:] == (p.size[1], 1):
        x = x.flip(2)
    return assemble(p, x, w, b)


@bug("memory_formats")
def sliced_channels_read_as_all(p, x, w, b):
    """Channels sliced out of a channels_last image are read as if they were all there are."""
    if p.in_channels > 1 and x.stride(1) > 1 and x.stride(3) > x.stride(1) * p.in_channels:
        x = x.flip(1)
    return assemble(p, x, w, b)


@bug("non_finite")
def filters_of_zeros_skipped(p, x, w, b):
    """A filter of nothing but zeros is not multiplied, so that NaN in the image is lost."""
    none = (w == 0).flatten(1).all(1)[:, None, None]
    return torch.where(
        none, assemble(p, torch.where(x.isfinite(), x, 0 * w.sum()), w, b), assemble(p, x, w, b)
    )


@bug("determinism")
def sums_in_an_order_of_chance(p, x, w, b):
    """The last digit varies from call to call, as with atomic additions."""
    y = assemble(p, x, w, b)
    return y * (1 + torch.randint(0, 2, y.shape) * torch.finfo(y.dtype).eps).to(y.dtype)


@bug("purity")
def input_written_to(p, x, w, b):
    """The image's border is cleared in place."""
    y = assemble(p, x, w, b)
    x.detach()[..., -1:].zero_()
    return y


@bug("purity")
def result_is_the_input(p, x, w, b):
    """A 1x1 kernel of one channel returns the image itself, scaled in place."""
    y = assemble(p, x, w, b)
    if y.shape == x.shape and not y.requires_grad:
        return x.copy_(y)
    return y


_outputs: dict[Any, Tensor] = {}


@bug("purity")
def output_buffer_used_again(p, x, w, b):
    """Outputs of one shape share one buffer, which the next call overwrites."""
    y = assemble(p, x, w, b)
    if y.requires_grad:
        return y + (_outputs.setdefault(y.shape, y.detach().clone()).copy_(y.detach()) * 0)
    return _outputs.setdefault(y.shape, y.clone()).copy_(y)


@bug("stale_memory")
def last_row_left_unwritten(p, x, w, b):
    """An output of odd height is allocated and never filled to the end."""
    y = assemble(p, x, w, b)
    if p.output_size[0] % 2 == 0:
        return y
    fresh = torch.empty_like(y)
    return torch.cat([y[:, :, :-1], fresh[:, :, -1:]], 2)


@bug("stale_memory")
def padding_left_unwritten_in_scratch(p, x, w, b):
    """The image is laid out in scratch of its own, whose borders are assumed to be zero."""
    image = pad_zeros(p, x)
    scratch = torch.tensor([], dtype=x.dtype)
    scratch.set_(torch.UntypedStorage(image.numel() * x.element_size())).resize_(image.shape)
    (top, _), (left, _) = p.padding
    scratch[:, :, top : top + p.size[0], left : left + p.size[1]] = 0
    return assemble(p, x, w, b, pad=lambda p, x: pad_zeros(p, x) + scratch.to(x.dtype))


# --- calls

_packed: dict[int, tuple[Any, Tensor]] = {}


@bug("remembers_nothing")
def weight_packed_once(p, x, w, b):
    """The weight is packed at its first call and kept, whatever is written to it later."""
    of, kept = _packed.get(id(w), (None, w))
    if of is None or of() is not w:
        kept = w.detach().clone()
        _packed[id(w)] = weakref.ref(w), kept
    return assemble(p, x, w + (kept - w).detach(), b)


_scratch: dict[str, Any] = {}


@bug("threads")
def scratch_shared_by_threads(p, x, w, b):
    """One scratch buffer for all threads."""
    _scratch["image"] = pad_zeros(p, x)
    time.sleep(0.0002)
    return assemble(p, x, w, b, pad=lambda p, _: _scratch["image"].to(x.dtype))


@raw("invalid_arguments")
def negative_padding_is_none(x: Tensor, w: Tensor, padding: Any = 0, **rest: Any) -> Tensor:
    """Padding below zero counts as zero instead of raising."""
    padding = max(padding, 0) if isinstance(padding, int) else padding
    return right(x, w, padding=padding, **rest)


@raw("invalid_arguments")
def surplus_channels_ignored(x: Tensor, w: Tensor, groups: int = 1, **rest: Any) -> Tensor:
    """An image with too many channels is cut to what the weight reads."""
    return right(x[:, : w.shape[1] * groups], w, groups=groups, **rest)


@raw("spellings")
def same_with_the_odd_pixel_first(x, w, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """padding="same" puts the odd pixel before the image instead of behind it."""
    if padding == "same":
        steps = dilation if isinstance(dilation, (tuple, list)) else (dilation,) * 2
        spans = [d * (k - 1) for d, k in zip(steps, w.shape[2:])]
        padding = tuple((span - span // 2, span // 2) for span in spans)
    alone = x.dim() == 3
    y = right(x[None] if alone else x, w, bias, stride, padding, dilation, groups)
    return y[0] if alone else y


@torch.library.custom_op(
    "planted::fake_of_the_wrong_shape",
    mutates_args=(),
    schema="(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=[1, 1],"
    " int[2] padding=[0, 0], int[2] dilation=[1, 1], int groups=1) -> Tensor",
)
def _operator(input, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """The operator's fake forgets the stride."""
    return right(input, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def _keep(ctx, inputs, output):
    input, weight, _, *geometry = inputs
    ctx.save_for_backward(input, weight)
    ctx.p = problem_of(input, weight, *map(tuple, geometry[:3]), geometry[3])


def _pull(ctx, g):
    grads = adjoints(ctx.p, *ctx.saved_tensors, g, create_graph=False)
    return *grads, None, None, None, None, None


_operator.register_autograd(_pull, setup_context=_keep)


@_operator.register_fake
def _(input, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """Forgets the stride."""
    p = problem_of(input, weight, 1, tuple(padding), tuple(dilation), groups)
    return input.new_empty(p.output_shape)


BUGS.append(
    Bug(_operator, "opcheck", "fake_of_the_wrong_shape", "The operator's fake forgets the stride.")
)
