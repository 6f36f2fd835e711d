"""The definition as loops, written to be read.

Every output pixel (i, j) has one window of the padded input, and each map is one step per window:

    forward      y[i, j]  = sum(window * kernel)
    grad_input   window  += y[i, j] * kernel
    grad_weight  kernel  += y[i, j] * window

It is slow: one Python step per output pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor
from torch.nn.functional import pad

from ..problem import Problem
from ..request import Request, accumulation_dtype
from .base import (
    COMPLEX,
    FLOATS,
    INTEGERS,
    Algorithm,
    Cost,
    dtype_refusal,
)


@dataclass(frozen=True)
class Naive(Algorithm):
    """Explicit loops over output pixels."""

    name = "naive"
    is_reference = True

    def is_worth_planning(self, request: Request) -> bool:
        """Never: it takes a Python step per output pixel."""
        return False

    def refusals(self, request: Request) -> tuple[str, ...]:
        return dtype_refusal(request.dtype, FLOATS + COMPLEX + INTEGERS)

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        image, kernel = _padded_image(problem, input), _kernel(problem, weight)
        result = image.new_empty(_grouped_output_shape(problem))
        for i, j, rows, columns in _windows(problem):
            window = image[:, :, None, :, rows, columns]
            result[..., i, j] = (window * kernel).sum((-3, -2, -1), dtype=result.dtype)
        return result.reshape(problem.output_shape).to(input.dtype)

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        pixels, kernel = _grouped_output(problem, output), _kernel(problem, weight)
        (top, _), (left, _) = problem.padding
        height, width = problem.size
        image = pixels.new_zeros(
            (problem.batch, problem.groups, problem.group_in, *problem.padded_size)
        )
        for i, j, rows, columns in _windows(problem):
            pixel = pixels[:, :, :, None, i, j, None, None]
            image[..., rows, columns] += (pixel * kernel).sum(2, dtype=image.dtype)
        result = image[..., top : top + height, left : left + width]
        return result.reshape(problem.input_shape).to(output.dtype)

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        image, pixels = _padded_image(problem, input), _grouped_output(problem, output)
        result = image.new_zeros(
            (problem.groups, problem.group_out, problem.group_in, *problem.kernel)
        )
        for i, j, rows, columns in _windows(problem):
            window = image[:, :, None, :, rows, columns]
            pixel = pixels[:, :, :, None, i, j, None, None]
            result += (pixel * window).sum(0, dtype=result.dtype)
        return result.reshape(problem.weight_shape).to(input.dtype)

    def cost(self, request: Request) -> Cost:
        """A few PyTorch calls per output pixel, which write and read every product."""
        products = request.problem.multiplications * request.dtype.itemsize
        return Cost(0, 0, 3.0 * products, 15.0 * prod(request.problem.output_size))

    def workspace(self, request: Request) -> int:
        """The padded image and one window's products, in the accumulation dtype."""
        problem = request.problem
        height, width = problem.padded_size
        image = problem.batch * problem.in_channels * height * width
        products = problem.batch * problem.out_channels * problem.group_in
        products *= problem.kernel[0] * problem.kernel[1]
        return (image + products) * accumulation_dtype(request.dtype).itemsize


def _windows(problem: Problem) -> Iterator[tuple[int, int, slice, slice]]:
    """Each output pixel (i, j) with the rows and columns of its window."""
    stride_down, stride_across = problem.stride
    dilation_down, dilation_across = problem.dilation
    span_down, span_across = problem.span
    height, width = problem.output_size
    for i in range(height):
        top = i * stride_down
        for j in range(width):
            left = j * stride_across
            yield (
                i,
                j,
                slice(top, top + span_down, dilation_down),
                slice(left, left + span_across, dilation_across),
            )


def _padded_image(problem: Problem, input: Tensor) -> Tensor:
    """(N, G, C/G, H + top + bottom, W + left + right), padded with zeros."""
    (top, bottom), (left, right) = problem.padding
    image = pad(input.to(accumulation_dtype(input.dtype)), (left, right, top, bottom))
    return image.reshape(problem.batch, problem.groups, problem.group_in, *problem.padded_size)


def _kernel(problem: Problem, weight: Tensor) -> Tensor:
    """The weight as (G, O/G, C/G, kH, kW)."""
    return weight.to(accumulation_dtype(weight.dtype)).reshape(
        problem.groups, problem.group_out, problem.group_in, *problem.kernel
    )


def _grouped_output(problem: Problem, output: Tensor) -> Tensor:
    return output.to(accumulation_dtype(output.dtype)).reshape(_grouped_output_shape(problem))


def _grouped_output_shape(problem: Problem) -> tuple[int, ...]:
    return (problem.batch, problem.groups, problem.group_out, *problem.output_size)
