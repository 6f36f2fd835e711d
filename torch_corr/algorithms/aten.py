"""PyTorch's own convolution as one more algorithm.

oneDNN on x86, cuDNN on CUDA, and PyTorch's own loops elsewhere.  What PyTorch lacks is
put around it here: asymmetric padding, gradient maps for complex numbers, float16 on the
CPU, and sums over no channel, of which ``conv2d`` makes an output without channels instead
of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..problem import Pair, Problem
from .base import (
    COMPLEX,
    FLOATS,
    INTEGERS,
    Algorithm,
    MapName,
    complex_from_real,
    dtype_name,
    dtype_refusal,
)


@dataclass(frozen=True)
class Aten(Algorithm):
    """``torch.conv2d`` and ``aten::convolution_backward``."""

    name = "aten"

    def refusals(
        self, problem: Problem, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        able = FLOATS + COMPLEX + (INTEGERS if device.type in ("cpu", "meta") else ())
        refusals = dtype_refusal(dtype, able)
        small_integer = dtype in INTEGERS and dtype != torch.int64
        if small_integer and problem.dilation != (1, 1):
            refusals += (f"PyTorch has no dilated convolution in {dtype_name(dtype)}",)
        return refusals

    @staticmethod
    def adds_nothing(problem: Problem, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether PyTorch's convolution does this problem without any of what is put around it."""
        return (
            0 not in problem.input_shape
            and _split_padding(problem)[1] is None
            and not _computed_in_float32(device, dtype)
        )

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        if 0 in problem.input_shape:
            return input.new_zeros(problem.output_shape)
        if _computed_in_float32(input.device, input.dtype):
            return self.forward(problem, input.float(), weight.float()).half()
        padding, extra = _split_padding(problem)
        if extra:
            input = pad(input, extra)
        return torch.conv2d(
            input, weight, None, problem.stride, padding, problem.dilation, problem.groups
        )

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        if 0 in problem.input_shape:
            return output.new_zeros(problem.input_shape)
        if _computed_in_float32(output.device, output.dtype):
            return self.grad_input(problem, output.float(), weight.float()).half()
        if output.is_complex():
            return complex_from_real(self.grad_input, problem, output, weight)
        _, extra = _split_padding(problem)
        (height, width), (left, right, top, bottom) = problem.size, extra or (0, 0, 0, 0)
        # Only the input's shape is read, so a tensor without memory of its own stands for it.
        shape = (problem.batch, problem.in_channels, height + top + bottom, width + left + right)
        input = output.new_empty(1).expand(shape)
        result = _backward(problem, output, input, weight, wanted=0)
        return result[..., top : top + height, left : left + width] if extra else result

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        if 0 in problem.input_shape:
            return input.new_zeros(problem.weight_shape)
        if _computed_in_float32(input.device, input.dtype):
            return self.grad_weight(problem, input.float(), output.float()).half()
        if input.is_complex():
            return complex_from_real(self.grad_weight, problem, input, output)
        _, extra = _split_padding(problem)
        if extra:
            input = pad(input, extra)
        weight = output.new_empty(1).expand(problem.weight_shape)
        return _backward(problem, output, input, weight, wanted=1)

    def workspace(self, problem: Problem, map: MapName, dtype: torch.dtype) -> int:
        """The copies made here, of all slots in float32 or of the padded input; PyTorch's own
        scratch is not known."""
        height, width = problem.padded_size
        padded = problem.batch * problem.in_channels * height * width
        if dtype == torch.float16:
            slots = problem.input_shape, problem.weight_shape, problem.output_shape
            return torch.float32.itemsize * (padded + sum(prod(shape) for shape in slots))
        return padded * dtype.itemsize if _split_padding(problem)[1] else 0


def _computed_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """PyTorch's own float16 convolution on the CPU sums the weight's gradient over the batch
    in float16, and takes 3 to 18 times as long."""
    return dtype == torch.float16 and device.type == "cpu"


def _split_padding(problem: Problem) -> tuple[Pair, tuple[int, int, int, int] | None]:
    """The part of the padding that PyTorch's convolution does, and the rest for ``pad``."""
    (top, bottom), (left, right) = problem.padding
    down, across = min(top, bottom), min(left, right)
    extra = (left - across, right - across, top - down, bottom - down)
    return (down, across), extra if any(extra) else None


def _backward(
    problem: Problem, output: Tensor, input: Tensor, weight: Tensor, wanted: int
) -> Tensor:
    """One of the gradients of ``aten::convolution_backward``: 0 the input's, 1 the weight's."""
    gradients = torch.ops.aten.convolution_backward(
        output,
        input,
        weight,
        None,
        problem.stride,
        _split_padding(problem)[0],
        problem.dilation,
        False,  # transposed
        (0, 0),  # output padding
        problem.groups,
        (wanted == 0, wanted == 1, False),
    )
    return cast(Tensor, gradients[wanted])
