"""Random operands of the kinds of data and layouts that expose bugs in convolutions.

``DATA`` names the kinds of numbers and ``LAYOUTS`` the memory layouts.  A seed gives the same
operands on every machine.
"""

from __future__ import annotations

from math import isqrt, prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem

DATA = ("normal", "integers", "wide", "cancelling", "subnormal", "special")
LAYOUTS = (
    "contiguous",
    "channels_last",
    "channel_slice",
    "singleton_strides",
    "transposed",
    "every_second",
    "cropped",
    "offset",
    "repeated",
    "expanded",
)
SLOTS = ("input", "weight", "output")


class Operands(NamedTuple):
    """A value for each slot of the form ``T(x, w, y) = sum(y * corr(x, w))``."""

    input: Tensor
    weight: Tensor
    output: Tensor


def make_operands(
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    data: str = "normal",
    layouts: tuple[str, ...] = ("contiguous",) * 3,
    seed: int = 0,
) -> Operands:
    """Input, weight and output of a problem, the same for a seed on every machine.

    Args:
        problem: the geometry.
        dtype: of the operands.
        device: of the operands; they are drawn on the CPU and copied.
        data: the kind of numbers, one of ``DATA``:

            - ``normal``: standard normal numbers.
            - ``integers``: integers small enough that every sum of products is exact.
            - ``wide``: both signs, with magnitudes over the widest range of powers of two for
              which sums of products stay finite.
            - ``cancelling``: the terms of a sum are far larger than the sum.
            - ``subnormal``: the input is below the smallest normal number.  The other operands
              are at most 1, so that flushing subnormals to zero stays within the bound.
            - ``special``: normal numbers with zeros of both signs, the smallest normal numbers,
              and at most two NaN or infinities per operand.

            Integer dtypes always hold small integers, except that ``normal`` draws from the
            dtype's whole range, so that sums wrap around.
        layouts: the memory layouts of input, weight and output, of ``LAYOUTS``.
        seed: of the random numbers.

    Raises:
        ValueError: the kind of data or a layout is unknown.

    Example:
        >>> x, w, y = make_operands(Problem.parse("n2c3-x5-o4-k3"), torch.float32, seed=1)
        >>> x.shape, w.shape, y.shape
        (torch.Size([2, 3, 5, 5]), torch.Size([4, 3, 3, 3]), torch.Size([2, 4, 3, 3]))
    """
    if data not in DATA:
        raise ValueError(f"unknown data {data!r}; use one of {', '.join(DATA)}")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for slot, shape in zip(
        SLOTS, (problem.input_shape, problem.weight_shape, problem.output_shape)
    ):
        if dtype.is_complex:
            parts = [_real(problem, slot, shape, dtype, data, generator) for _ in "ri"]
            values.append(torch.complex(*parts))
        else:
            values.append(_real(problem, slot, shape, dtype, data, generator))
    return Operands(
        *(
            # Convert the dtype first, because not every device supports float64.
            in_layout(value.to(dtype).to(device), layout)
            for value, layout in zip(values, layouts)
        )
    )


def _real(
    problem: Problem,
    slot: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    data: str,
    generator: torch.Generator,
) -> Tensor:
    """The numbers of one slot, or their real or imaginary parts, in float64 or int64."""
    if not (dtype.is_floating_point or dtype.is_complex):
        info = torch.iinfo(dtype)
        least, most = max(info.min, -9), 9
        if data == "normal":
            least, most = max(info.min, -(2**40)), min(info.max, 2**40)
        return torch.randint(least, most + 1, shape, generator=generator)
    if data == "integers":
        most = exact_integer(problem, dtype)
        return torch.randint(-most, most + 1, shape, generator=generator).double()
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if data == "wide":
        low, high = _exponents(problem, dtype)
        power = torch.randint(low, high + 1, shape, generator=generator)
        return normal.sign() * torch.ldexp(1 + normal.abs().frac(), power)
    if data == "cancelling":
        # A constant with noise; the signs of the weight alternate along a row.
        if slot == "input":
            return 64 + normal
        signs = 1 - 2 * (torch.arange(shape[-1]) % 2).double()
        return signs * (1 + normal / 64)
    if data == "subnormal":
        if slot == "input":
            return normal * torch.finfo(dtype).tiny / 4
        return normal.clamp(-1, 1)
    if data == "special":
        return _with_special_values(normal, torch.finfo(dtype).tiny, generator)
    return normal


def _with_special_values(normal: Tensor, tiny: float, generator: torch.Generator) -> Tensor:
    """Replace a quarter of the numbers by 0, -0, tiny or -tiny, and at most two by NaN or inf."""
    small = torch.tensor([0.0, -0.0, tiny, -tiny], dtype=normal.dtype)
    large = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=normal.dtype)
    choice = torch.randint(0, 16, normal.shape, generator=generator)
    value = torch.where(choice < 4, small[choice.clamp(max=3)], normal)
    count = int(torch.randint(0, 3, (), generator=generator))
    where = torch.randint(0, max(1, value.numel()), (count,), generator=generator)
    which = torch.randint(0, 3, (count,), generator=generator)
    if value.numel():
        value.view(-1)[where] = large[which]
    return value


def most_terms(problem: Problem) -> int:
    """The largest number of products in a sum of any of the three maps."""
    taps, pixels = prod(problem.kernel), prod(problem.output_size)
    return max(1, problem.group_in * taps, problem.group_out * taps, max(1, problem.batch) * pixels)


def exact_integer(problem: Problem, dtype: torch.dtype) -> int:
    """The largest k from 1 to 9 for which sums of products of integers up to k are exact.

    They are exact if ``terms * k**2 <= 2**p``, where p is the number of bits of the significand,
    because then every partial sum fits.
    """
    terms = most_terms(problem) * (4 if dtype.is_complex else 1)
    return max(1, min(9, isqrt(round(2 / torch.finfo(dtype).eps) // terms)))


def _exponents(problem: Problem, dtype: torch.dtype) -> tuple[int, int]:
    """The smallest and largest exponent of ``wide`` numbers.

    The largest number is ``2**(high+1)``.  So ``terms * 2**(2*high+2)``, doubled for complex
    products and again for rounding, must not exceed the dtype's largest number.
    """
    info = torch.finfo(dtype)
    largest = torch.tensor(info.max, dtype=torch.float64).log2().floor().int().item()
    high = (int(largest) - most_terms(problem).bit_length() - 4) // 2
    high = min(high, 60)
    return -abs(high) - 8, high


def in_layout(value: Tensor, layout: str) -> Tensor:
    """A 4-D tensor in another memory layout.

    - ``channels_last``: the strides of a permuted NHWC image, also for shapes that have several
      layouts, such as one channel or one pixel.
    - ``channel_slice``: every second channel of a larger channels_last image.
    - ``singleton_strides``: contiguous, but with a stride of 0 on each axis of size 1, as in a
      slice of an expanded tensor.
    - ``transposed``: axes in another order.
    - ``every_second``: every second pixel of a larger image.
    - ``cropped``: cut from a larger block along all four axes, with an offset.
    - ``offset``: starts at an odd element of a larger block.
    - ``repeated``: the first image and row are repeated with strides of 0; this changes the values.
    - ``expanded``: the first element is repeated with strides of 0; this changes the values.

    Larger blocks are filled with NaN (for integers, the largest number).

    Raises:
        ValueError: the layout is unknown.

    Example:
        >>> in_layout(torch.zeros(1, 2, 3, 4), "channels_last").stride()
        (24, 1, 8, 2)
    """
    if layout == "channels_last":
        # ``contiguous`` would return the value unchanged if its shape has several layouts.
        return torch.empty_like(value, memory_format=torch.channels_last).copy_(value)
    if layout == "channel_slice":
        images, channels, height, width = value.shape
        block = _block(value, (images, height, width, 2 * channels + 1))
        return block[..., 1::2].permute(0, 3, 1, 2).copy_(value)
    if layout == "singleton_strides":
        value = value.contiguous()
        pairs = zip(value.shape, value.stride())
        return value.as_strided(value.shape, [step * (size != 1) for size, step in pairs])
    if layout == "transposed":
        return value.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    if layout == "every_second":
        height, width = value.shape[2:]
        block = _block(value, (*value.shape[:2], 2 * height + 1, 2 * width + 1))
        return block[:, :, 1::2, 1::2].copy_(value)
    if layout == "cropped":
        block = _block(value, tuple(side + 3 for side in value.shape))
        return block[1:-2, 2:-1, 1:-2, 2:-1].copy_(value)
    if layout == "offset":
        block = _block(value, (value.numel() + 8,))
        return block[3 : 3 + value.numel()].view(value.shape).copy_(value)
    if layout == "repeated" and value.numel():
        return value[:1, :, :1].expand(value.shape)
    if layout == "expanded" and value.numel():
        return value[:1, :1, :1, :1].expand(value.shape)
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; use one of {', '.join(LAYOUTS)}")
    return value.contiguous()


def _block(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of another shape, filled with NaN or the largest integer."""
    if value.dtype.is_floating_point or value.dtype.is_complex:
        return value.new_full(shape, float("nan"))
    return value.new_full(shape, torch.iinfo(value.dtype).max)
