"""Operands of every kind that has broken a convolution, each drawn from a seed.

What an operand holds (``DATA``) and how it lies in memory (``LAYOUTS``) are chosen apart;
both are functions of a name, so that a counterexample can say in two words what it took.
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
    """All three slots of a problem, from a seed: the same on every machine.

    Args:
        data: what they hold, one of ``DATA``:

            - ``normal``: standard normal numbers.
            - ``integers``: integers so small that every sum of products is exact.
            - ``wide``: either sign, magnitudes over the widest range of powers of two
              whose sums of products stay finite.
            - ``cancelling``: sums of terms far larger than the sum itself.
            - ``subnormal``: an input below the smallest normal number; the others at most
              1, so that whoever flushes subnormals to zero loses no more than the bound.
            - ``special``: zeros of either sign, the smallest normal numbers, and up to two
              NaN or infinities an operand, among normal numbers.

            Integer dtypes hold small integers whatever is asked, and ``normal`` ones
            integers over the dtype's whole range, which wrap around.
        layouts: how each slot lies in memory, of ``LAYOUTS``.
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
            # The dtype first: not every device has float64.
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
    """The real numbers (a real or an imaginary part) of one slot, in float64 or int64."""
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
        # A plateau under noise, seen through signs that alternate along a row.
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
    """``normal``, with a quarter of it 0, -0, tiny or -tiny, and at most two NaN or infinities."""
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
    """The most products that any result of the three maps sums."""
    taps, pixels = prod(problem.kernel), prod(problem.output_size)
    return max(1, problem.group_in * taps, problem.group_out * taps, max(1, problem.batch) * pixels)


def exact_integer(problem: Problem, dtype: torch.dtype) -> int:
    """The largest k <= 9 such that sums of products of integers up to k are exact, at least 1.

    They are while ``terms * k**2 <= 2**p``, p the digits of the significand, since then no
    partial sum, in any order, needs more digits than there are.
    """
    terms = most_terms(problem) * (4 if dtype.is_complex else 1)
    return max(1, min(9, isqrt(round(2 / torch.finfo(dtype).eps) // terms)))


def _exponents(problem: Problem, dtype: torch.dtype) -> tuple[int, int]:
    """Least and largest power of two of ``wide`` numbers: sums of products stay finite.

    ``2**(high+1)`` is the largest number, so ``terms * 2**(2*high+2)``, doubled for complex
    products and again for rounding, must not pass the dtype's largest.
    """
    info = torch.finfo(dtype)
    largest = torch.tensor(info.max, dtype=torch.float64).log2().floor().int().item()
    high = (int(largest) - most_terms(problem).bit_length() - 4) // 2
    high = min(high, 60)
    return -abs(high) - 8, high


def in_layout(value: Tensor, layout: str) -> Tensor:
    """The 4-D ``value`` with other strides.

    - ``channels_last``: the channels of a pixel side by side, and the strides say so even where
      the shape leaves open which layout it is, as those of a permuted NHWC image with one channel
      do.
    - ``channel_slice``: every second channel of a larger channels_last image.
    - ``singleton_strides``: contiguous, but with a stride of 0 on each axis of size 1, as a slice
      of an expanded tensor has.
    - ``transposed``: axes in another order.
    - ``every_second``: every second pixel of a larger image.
    - ``cropped``: cut out of a larger block on all four axes, hence with an offset.
    - ``offset``: starts inside a larger block, at an odd element.
    - ``repeated``: another value, which repeats the first image and row with strides of 0.
    - ``expanded``: another value, the first element everywhere, with no stride but 0.

    The block around a value is full of NaN (integers: the largest), as other data may be.
    """
    if layout == "channels_last":
        # Not ``contiguous``, which returns the value as it is where the shape leaves both open.
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
    """Memory of another shape, full of what no result may be made of."""
    if value.dtype.is_floating_point or value.dtype.is_complex:
        return value.new_full(shape, float("nan"))
    return value.new_full(shape, torch.iinfo(value.dtype).max)
