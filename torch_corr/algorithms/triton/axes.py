"""Which source pixel a tap of a dest pixel reads, along one image axis."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from ...problem import Problem
from ...request import MapName


class Axis(NamedTuple):
    """One image axis of a map: ``source * div = dest * mult + base + tap_step * u`` for tap u.

    Attributes:
        source: pixels of the operand that is read.
        dest: pixels of the result (of the output, in ``grad_weight``).
        mult, div: the stride and 1; in ``grad_input`` 1 and the stride.
        base: position of tap 0 for ``dest`` = 0.
        tap_step: from tap to tap; negative in ``grad_input``.
        taps: the kernel's size.
        period: taps whose position is divisible by ``div`` are ``period`` apart.
    """

    source: int
    dest: int
    mult: int
    div: int
    base: int
    tap_step: int
    taps: int
    period: int

    @property
    def classes(self) -> int:
        """Residue classes of dest pixels, modulo ``div``; each has taps of its own."""
        return min(self.div, self.dest)

    @property
    def class_length(self) -> int:
        """Dest pixels of the largest class."""
        return cdiv(self.dest, self.div)

    @property
    def outside_share(self) -> float:
        """The share of all pairs (dest pixel, tap) whose source pixel is outside the image.

        Only for div = 1.
        """
        inside = sum(self._pixels_inside(self.base + self.tap_step * u) for u in range(self.taps))
        return 1 - inside / (self.dest * self.taps)

    def _pixels_inside(self, first: int) -> int:
        """Dest pixels for which a tap lies in the source; for ``dest`` = 0 it is at ``first``."""
        before = -(first // self.mult)
        after = (self.source - 1 - first) // self.mult
        return max(0, min(after, self.dest - 1) - max(before, 0) + 1)

    @property
    def max_position(self) -> int:
        """An upper bound of all positions that a kernel computes along the axis."""
        taps = (self.taps + self.period) * abs(self.tap_step)
        return self.dest * self.mult + abs(self.base) + taps


ONE_PIXEL = Axis(source=1, dest=1, mult=1, div=1, base=0, tap_step=1, taps=1, period=1)
"""The column axis of bands, where the image's columns are channels."""


def axes(map: MapName, problem: Problem) -> tuple[Axis, Axis]:
    """Rows and columns of a map; ``grad_weight`` has those of ``forward``."""
    rows, columns = (_axis(map, problem, dim) for dim in (0, 1))
    return rows, columns


def _axis(map: MapName, problem: Problem, dim: int) -> Axis:
    size, output, taps = problem.size[dim], problem.output_size[dim], problem.kernel[dim]
    # Along an axis of one element any step is correct; 1 keeps positions small.
    stride = problem.stride[dim] if output > 1 else 1
    step, before = problem.effective_dilation[dim], problem.padding[dim][0]
    if map == "grad_input":
        return Axis(output, size, 1, stride, before, -step, taps, stride // gcd(stride, step))
    return Axis(size, output, stride, 1, -before, step, taps, 1)


def band_shape(problem: Problem) -> tuple[int, int, int, int]:
    """(groups, kH, input columns, output columns)"""
    return problem.groups, problem.kernel[0], problem.size[1], problem.output_size[1]


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
