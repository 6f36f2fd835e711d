"""The oracle: the definition of correlation in float64, without code of any algorithm.

The pixel under tap (u, v) of output pixel (i, j) is looked up in two tables of pixel numbers
``i*s + u*d - p``, for the rows and for the columns.  A number outside the image gives zero.  With
the pixels ``x[n,g,c,u,i,v,j]``, the trilinear form is

    T(x, w, y) = sum over n,g,o,c,u,i,v,j of x[n,g,c,u,i,v,j] * w[g,o,c,u,v] * y[n,g,o,i,j]

and each map is this sum over the indices that its result lacks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem


class Reference(NamedTuple):
    """The exact result of a map, and the quantities in its error bound."""

    value: Tensor
    """The result, in complex128 for complex operands, int64 for integers, else float64."""
    magnitude: Tensor
    """sum |a||b| over the products of each element, in float64."""
    terms: Tensor
    """The number of products of each element, without taps on the padding, in float64."""
    integral: bool
    """Whether all operands hold integers, in any dtype."""
    at: tuple[Tensor, ...] | None = None
    """The indices of a subset of elements, a tensor for each axis; None for all elements."""


def oracle(
    problem: Problem,
    input: Tensor | None = None,
    weight: Tensor | None = None,
    output: Tensor | None = None,
) -> Reference:
    """Compute the slot that is None from the other two, of any dtype and device.

    Integer dtypes are exact modulo 2**64, and integers in a float dtype are exact while sums are
    below 2**53.  Otherwise the error is at most ``gamma(terms, 2**-53) * magnitude``.  That is
    2**-29 of the bound for float32, and as large as the bound for float64; the bounds include it.

    Args:
        problem: the geometry.
        input: (N, C, H, W) or None.
        weight: (O, C/groups, kH, kW) or None.
        output: (N, O, H', W') or None.

    Returns:
        A :class:`Reference`, on the CPU.

    Example:
        >>> x, w = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 2)
        >>> result = oracle(Problem.parse("n1c1-x2-o1-k1x2"), input=x, weight=w)
        >>> result.value.flatten(), result.terms.flatten()
        (tensor([2., 2.], dtype=torch.float64), tensor([2., 2.], dtype=torch.float64))
    """
    slots = [value if value is None else exact(value) for value in (input, weight, output)]
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
    windows_shape = p.batch, p.groups, p.group_in, *rows.shape, *columns.shape
    if weight is not None:
        weight = weight.reshape(*grouped, *p.kernel)
    if output is not None:
        output = output.reshape(p.batch, p.groups, p.group_out, *p.output_size)
    if input is not None:
        # Pixels outside the image are in an additional row and column of zeros.
        padded = torch.nn.functional.pad(input, (0, 1, 0, 1))
        windows = padded[:, :, rows.flatten()][..., columns.flatten()].reshape(windows_shape)
        if weight is not None:
            return torch.einsum("ngcuivj,gocuv->ngoij", windows, weight).reshape(p.output_shape)
        assert output is not None
        return torch.einsum("ngcuivj,ngoij->gocuv", windows, output).reshape(p.weight_shape)
    assert weight is not None
    assert output is not None
    windows = torch.einsum("gocuv,ngoij->ngcuivj", weight, output)
    height, width = p.size
    image = windows.new_zeros(p.batch, p.in_channels, height + 1, columns.numel())
    image.index_add_(
        2, rows.flatten(), windows.reshape(p.batch, p.in_channels, rows.numel(), columns.numel())
    )
    padded = windows.new_zeros(p.batch, p.in_channels, height + 1, width + 1)
    padded.index_add_(3, columns.flatten(), image)
    return padded[:, :, :height, :width]


def _pixel_numbers(problem: Problem, axis: int) -> Tensor:
    """(taps, outputs): the pixel under each tap of each output; ``size`` if it is outside."""
    taps = torch.arange(problem.kernel[axis])[:, None] * problem.dilation[axis]
    starts = torch.arange(problem.output_size[axis])[None, :] * problem.stride[axis]
    number = starts + taps - problem.padding[axis][0]
    size = problem.size[axis]
    return torch.where((number >= 0) & (number < size), number, size)


def exact(value: Tensor) -> Tensor:
    """``value`` on the CPU, in complex128, float64 or int64."""
    value = value.detach().cpu().resolve_conj()
    if value.is_complex():
        return value.to(torch.complex128)
    return value.to(torch.float64 if value.is_floating_point() else torch.int64)


def _is_integral(value: Tensor) -> bool:
    parts = torch.view_as_real(value) if value.is_complex() else value
    return not parts.is_floating_point() or bool((parts == parts.round()).all())
