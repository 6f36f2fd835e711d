"""Random cases for ``scan``: small problems, operands surrounded by NaN, and how to write them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from torch_corr import Problem
from torch_corr.request import SLOTS

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64)
}
MAPS = ("forward", "grad_input", "grad_weight", "gradients")
READS: dict[str, set[str]] = {map: {*slots[:2]} for map, slots in SLOTS.items()}
READS["gradients"] = {"input", "weight", "output"}
"""The slots that each map reads."""

ELEMENTS, PRODUCTS = 30_000, 400_000
"""The largest operand, in elements, and the largest number of multiplications of a case."""

GUARD = 256
"""Elements of NaN before and after each operand."""

Strides = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    """One map of one problem on operands of given dtype, strides and values.

    Attributes:
        problem: the geometry.
        map: ``forward``, ``grad_input``, ``grad_weight``, or ``gradients`` for both by one call.
        dtype: of all operands.
        bias: whether the forward has one.
        values: ``ones``, or a number for random integers; after ``<`` or ``>`` only the left or
            right half of the input and the output differs from zero.
        strides: of input, weight and output.
    """

    problem: Problem
    map: str
    dtype: str
    bias: bool
    values: str
    strides: tuple[Strides, Strides, Strides]

    def __str__(self) -> str:
        strides = " ".join(",".join(map(str, each)) for each in self.strides)
        bias = "bias" if self.bias else "plain"
        return f"{self.problem} {self.map} {self.dtype} {bias} {self.values} {strides}"

    @classmethod
    def parse(cls, text: str) -> Case:
        problem, map, dtype, bias, values, *strides = text.split()
        first, second, third = (_strides(each) for each in strides)
        return cls(
            Problem.parse(problem), map, dtype, bias == "bias", values, (first, second, third)
        )

    @property
    def operands(self) -> dict[str, Tensor]:
        """The operands that the map reads, each surrounded by NaN."""
        number = int(re.sub(r"\D", "", self.values) or 0)
        generator = torch.Generator().manual_seed(number)
        p, found = self.problem, {}
        for name, shape, strides in zip(
            ("input", "weight", "output"),
            (p.input_shape, p.weight_shape, p.output_shape),
            self.strides,
        ):
            if name not in READS[self.map]:
                continue
            size = [1 if stride == 0 else length for length, stride in zip(shape, strides)]
            value = torch.ones(size)
            if "ones" not in self.values:
                value = torch.randint(-2, 4, size, generator=generator).float()
            if name != "weight" and strides[3]:
                half = (shape[3] + 1) // 2
                if self.values[0] == "<":
                    value[..., half:] = 0
                elif self.values[0] == ">":
                    value[..., :-half] = 0
            found[name] = _surrounded_by_nan(value.to(DTYPES[self.dtype]).expand(shape), strides)
        return found


def _strides(text: str) -> Strides:
    a, b, c, d = map(int, text.split(","))
    return a, b, c, d


def _surrounded_by_nan(value: Tensor, strides: Strides) -> Tensor:
    """The values in memory with the given strides, and NaN in all other elements."""
    reach = sum((length - 1) * stride for length, stride in zip(value.shape, strides)) + 1
    memory = torch.full((reach + 2 * GUARD,), float("nan"), dtype=value.dtype)
    placed = memory.as_strided(value.shape, strides, GUARD)
    # PyTorch does not write to a tensor with a stride of zero.
    one = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)
    placed[one].copy_(value[one])
    return placed


def draw(seed: int, number: int, maps: Sequence[str], dtypes: Sequence[str]) -> Case:
    """The case with this number; the same in each run with this seed and these options."""
    rng = random.Random(f"{seed}/{number}")
    while True:
        problem = _draw_problem(rng)
        if problem is not None:
            break
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    last = rng.random() < 0.5
    first, second, third = (_draw_strides(rng, shape, last) for shape in shapes)
    values = rng.choice(["ones", str(rng.randrange(1000))])
    return Case(
        problem,
        rng.choice(list(maps)),
        rng.choice(list(dtypes)),
        rng.random() < 0.5,
        rng.choice(["", "", "", "<", ">"]) + values,
        (first, second, third),
    )


CHANNELS = (1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9, 12, 13, 15, 16, 16, 17, 20, 24, 32, 33, 40)
GROUPS = (2, 2, 3, 4, 5, 8, 16, 17, 20, 32)


def _draw_problem(rng: random.Random) -> Problem | None:
    """A problem; None if the drawn sizes are invalid or too large."""
    kind = rng.choice(["dense", "dense", "dense", "grouped", "depthwise", "multiplied"])
    groups = 1 if kind == "dense" else rng.choice(GROUPS)
    ins, outs = rng.choice(CHANNELS), rng.choice(CHANNELS)
    if kind == "depthwise":
        ins = outs = 1
    elif kind == "multiplied":
        ins, outs = 1, rng.choice((2, 3, 4))
    rows, columns = _draw_axis(rng, wide=0.05), _draw_axis(rng, wide=0.3)
    try:
        problem = Problem(
            batch=rng.choice((1, 1, 2, 2, 3)),
            in_channels=groups * ins,
            size=(rows["size"], columns["size"]),
            out_channels=groups * outs,
            kernel=(rows["kernel"], columns["kernel"]),
            stride=(rows["stride"], columns["stride"]),
            padding=(rows["padding"], columns["padding"]),
            dilation=(rows["dilation"], columns["dilation"]),
            groups=groups,
        )
    except RuntimeError:
        return None
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    small = max(map(prod, shapes)) <= ELEMENTS and problem.multiplications <= PRODUCTS
    return problem if small else None


def _draw_axis(rng: random.Random, wide: float) -> dict[str, Any]:
    """Sizes along one axis.  The size of the image follows from that of the output if possible."""
    kernel = rng.choice((1, 1, 2, 3, 3, 3, 4, 5, 6, 7))
    if rng.random() < 0.08:
        kernel = rng.randrange(8, 33)
    stride = rng.choice((1, 1, 1, 2, 2, 3, 4, 5))
    dilation = rng.choice((1, 1, 1, 2, 2, 3, 4))
    if rng.random() < 0.08:
        dilation = rng.randrange(5, 17)
    reach = dilation * (kernel - 1)
    padding = rng.choice(
        (0, 0, 1, reach // 2, reach, rng.randint(0, reach + 3), rng.randint(0, reach + 3))
    )
    if rng.random() < 0.05:
        padding = rng.randint(0, 30)
    outputs = rng.choice((1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16))
    if rng.random() < wide:
        outputs = rng.randrange(20, 81)
    size = (outputs - 1) * stride + reach + 1 - 2 * padding + rng.randrange(stride)
    if size < 1:
        size = rng.choice((1, 1, 2, 3, 4))
    return {
        "kernel": kernel,
        "stride": stride,
        "dilation": dilation,
        "padding": (padding, padding),
        "size": size,
    }


def _draw_strides(rng: random.Random, shape: Sequence[int], last: bool) -> Strides:
    """Usually NCHW or NHWC; rarely another order of the axes, an expanded axis, or gaps.

    The stride of an axis of length 1 has no meaning, but PyTorch and oneDNN derive layouts from it,
    so it is often random.
    """
    order = [0, 2, 3, 1] if (last if rng.random() < 0.7 else rng.random() < 0.5) else [0, 1, 2, 3]
    if rng.random() < 0.05:
        rng.shuffle(order)
    strides, step = [0, 0, 0, 0], 2 if rng.random() < 0.03 else 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    if rng.random() < 0.04:
        strides[rng.randrange(4)] = 0
    if rng.random() < 0.4:
        for axis, length in enumerate(shape):
            if length == 1:
                strides[axis] = rng.choice((1, shape[1], shape[3], shape[2] * shape[3], step))
    a, b, c, d = strides
    return a, b, c, d
