"""The definition once more, in float64, sharing no code with any algorithm.

Whatever tap (u, v) of output pixel (i, j) meets is looked up in a table of pixel numbers,
``i*s + u*d - p``, one for the rows and one for the columns; a number outside the image
looks up a zero.  With the looked-up pixels ``x[n,g,c,u,i,v,j]`` in hand, the form is

    T(x, w, y) = sum over n,g,o,c,u,i,v,j of x[n,g,c,u,i,v,j] * w[g,o,c,u,v] * y[n,g,o,i,j]

and each map is that sum over the indices that its result lacks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem


class Reference(NamedTuple):
    """What a map must return, and what its rounding errors are measured by."""

    value: Tensor
    """The result: complex128 for complex operands, int64 for integers, else float64."""
    magnitude: Tensor
    """sum |a||b| over the products of each result, float64."""
    terms: Tensor
    """How many products each result sums, taps on the padding left out, float64."""
    integral: bool
    """Whether all operands are integers (of whatever dtype), so that sums may be exact."""
    at: tuple[Tensor, ...] | None = None
    """Which elements of the result these are, an index tensor for each axis; None for all."""


def oracle(
    problem: Problem,
    input: Tensor | None = None,
    weight: Tensor | None = None,
    output: Tensor | None = None,
) -> Reference:
    """The slot that is None, from the two that are not; operands of any dtype and device.

    Integer dtypes are computed exactly, modulo 2**64; so are integers of a float dtype, as
    long as sums stay below 2**53.  Else each result is within
    ``gamma(terms, 2**-53) * magnitude`` of the exact one: for float32 and below, some 2**-29
    of what their own bound allows; for float64 as much again, which the bounds count in.
    """
    slots = [value if value is None else _exact(value) for value in (input, weight, output)]
    sizes = [value if value is None else value.abs().to(torch.float64) for value in slots]
    ones = [value if value is None else torch.ones_like(value) for value in sizes]
    integral = all(value is None or _is_integral(value) for value in slots)
    value, magnitude, terms = (_form(problem, *each) for each in (slots, sizes, ones))
    return Reference(value, magnitude, terms, integral)


def _form(
    problem: Problem, input: Tensor | None, weight: Tensor | None, output: Tensor | None
) -> Tensor:
    p, (rows, columns) = problem, (_pixel_numbers(problem, axis) for axis in (0, 1))
    grouped = p.groups, p.group_out, p.group_in
    looked_up = p.batch, p.groups, p.group_in, *rows.shape, *columns.shape
    if weight is not None:
        weight = weight.reshape(*grouped, *p.kernel)
    if output is not None:
        output = output.reshape(p.batch, p.groups, p.group_out, *p.output_size)
    if input is not None:
        # One row and one column of zeros beyond the image are what lies outside of it.
        framed = torch.nn.functional.pad(input, (0, 1, 0, 1))
        seen = framed[:, :, rows.flatten()][..., columns.flatten()].reshape(looked_up)
        if weight is not None:
            return torch.einsum("ngcuivj,gocuv->ngoij", seen, weight).reshape(p.output_shape)
        assert output is not None
        return torch.einsum("ngcuivj,ngoij->gocuv", seen, output).reshape(p.weight_shape)
    assert weight is not None
    assert output is not None
    seen = torch.einsum("gocuv,ngoij->ngcuivj", weight, output)
    height, width = p.size
    image = seen.new_zeros(p.batch, p.in_channels, height + 1, columns.numel())
    image.index_add_(
        2, rows.flatten(), seen.reshape(p.batch, p.in_channels, rows.numel(), columns.numel())
    )
    framed = seen.new_zeros(p.batch, p.in_channels, height + 1, width + 1)
    framed.index_add_(3, columns.flatten(), image)
    return framed[:, :, :height, :width]


def _pixel_numbers(problem: Problem, axis: int) -> Tensor:
    """(k, outputs): the pixel under each tap of each output; ``size`` when outside."""
    taps = torch.arange(problem.kernel[axis])[:, None] * problem.dilation[axis]
    starts = torch.arange(problem.output_size[axis])[None, :] * problem.stride[axis]
    number = starts + taps - problem.padding[axis][0]
    size = problem.size[axis]
    return torch.where((number >= 0) & (number < size), number, size)


def _exact(value: Tensor) -> Tensor:
    """On the CPU, in a dtype that holds every value of ``value``'s own."""
    value = value.detach().cpu().resolve_conj()
    if value.is_complex():
        return value.to(torch.complex128)
    return value.to(torch.float64 if value.is_floating_point() else torch.int64)


def _is_integral(value: Tensor) -> bool:
    parts = torch.view_as_real(value) if value.is_complex() else value
    return not parts.is_floating_point() or bool((parts == parts.round()).all())
