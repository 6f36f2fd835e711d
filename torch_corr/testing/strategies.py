"""What to try: Hypothesis strategies for problems, and operands for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..problem import Problem, window_span


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    max_batch: int = 3,
    max_channels: int = 3,
    max_groups: int = 3,
    max_size: int = 12,
    max_kernel: int = 5,
    max_stride: int = 4,
    max_padding: int = 4,
    max_dilation: int = 3,
    allow_empty: bool = True,
) -> Problem:
    """Problems of every kind that conv2d takes, small enough to try thousands.

    Args:
        max_channels: most channels of one group, on either side.
        allow_empty: whether the batch, or the channels, or then the image may be empty.
    """
    least = 0 if allow_empty else 1
    batch = draw(st.integers(least, max_batch), label="batch")
    groups = draw(st.integers(1, max_groups), label="groups")
    group_in = draw(st.integers(least, max_channels), label="input channels of a group")
    group_out = draw(st.integers(1, max_channels), label="output channels of a group")
    kernel, stride, dilation = (
        (draw(st.integers(1, most)), draw(st.integers(1, most)))
        for most in (max_kernel, max_stride, max_dilation)
    )
    side = st.integers(0, max_padding)
    padding = (draw(side), draw(side)), (draw(side), draw(side))
    smallest = 0 if batch == 0 or group_in == 0 else 1
    rows, columns = (
        draw(st.integers(fits, max(fits, max_size)))
        for fits in (
            max(smallest, span - sum(sides))
            for span, sides in zip(window_span(kernel, dilation), padding)
        )
    )

    return Problem(
        batch=batch,
        in_channels=groups * group_in,
        size=(rows, columns),
        out_channels=groups * group_out,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


class Operands(NamedTuple):
    """A value for each slot of the form."""

    input: Tensor
    weight: Tensor
    output: Tensor


LAYOUTS = ("contiguous", "channels_last", "transposed", "every_second", "expanded")


@st.composite
def operands(
    draw: st.DrawFn,
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    layouts: tuple[str, ...] = LAYOUTS,
) -> Operands:
    """Normal numbers (small integers for integer dtypes) for all three slots, in any layout."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1), label="seed"))
    slots = []
    for shape in (problem.input_shape, problem.weight_shape, problem.output_shape):
        if dtype.is_floating_point or dtype.is_complex:
            wide = torch.complex128 if dtype.is_complex else torch.float64
            value = torch.randn(shape, generator=generator, dtype=wide)
        else:
            low = 0 if dtype == torch.uint8 else -9
            value = torch.randint(low, 10, shape, generator=generator)
        layout = draw(st.sampled_from(layouts))
        slots.append(in_layout(value.to(device=device, dtype=dtype), layout))
    return Operands(*slots)


def in_layout(value: Tensor, layout: str) -> Tensor:
    """The 4-D ``value`` with other strides; ``expanded`` repeats its first row and column."""
    if layout == "channels_last":
        return value.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return value.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    if layout == "every_second":
        wider = value.new_zeros(*value.shape[:2], 2 * value.shape[2] + 1, 2 * value.shape[3] + 1)
        wider[:, :, 1::2, 1::2] = value
        return wider[:, :, 1::2, 1::2]
    if layout == "expanded" and value.numel():
        return value[:1, :1, :1, :1].expand(value.shape)
    return value.contiguous()
