"""Where a map's pixels lie, by one rule along each image axis; and the shapes that maps fill."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from ...problem import Problem
from ...request import MapName


class Axis(NamedTuple):
    """One image axis of a map: ``source * div = dest * mult + base + tap * u``.

    Attributes:
        source: pixels of the operand that is read.
        dest: pixels of the result (of the output, in ``grad_weight``).
        mult, div: the stride and 1, or 1 and the stride.
        base: where the first tap lies for ``dest`` = 0.
        tap: from tap to tap, negative in ``grad_input``.
        taps: the kernel's size.
        period: every how many taps the division by ``div`` comes out.
    """

    source: int
    dest: int
    mult: int
    div: int
    base: int
    tap: int
    taps: int
    period: int

    @property
    def classes(self) -> int:
        """Residues of dest pixels, each with taps of its own."""
        return min(self.div, self.dest)

    @property
    def of_class(self) -> int:
        """Dest pixels of the largest class."""
        return -(-self.dest // self.div)

    @property
    def beyond(self) -> float:
        """The part of all pairs of a dest pixel and a tap for which the tap lies outside of source;
        div is 1."""
        met = sum(self._met(self.base + self.tap * u) for u in range(self.taps))
        return 1 - met / (self.dest * self.taps)

    def _met(self, first: int) -> int:
        """Dest pixels for which a tap lies in source, the first one's at ``first``."""
        before = -(first // self.mult)
        after = (self.source - 1 - first) // self.mult
        return max(0, min(after, self.dest - 1) - max(before, 0) + 1)

    @property
    def reach(self) -> int:
        """No position that is computed along the axis is larger."""
        return self.dest * self.mult + abs(self.base) + (self.taps + self.period) * abs(self.tap)


STILL = Axis(source=1, dest=1, mult=1, div=1, base=0, tap=1, taps=1, period=1)
"""The columns of images whose columns are channels."""


def axes(map: MapName, problem: Problem) -> tuple[Axis, Axis]:
    """Rows and columns of a map; ``grad_weight`` pairs pixels as ``forward`` does."""
    rows, columns = (_axis(map, problem, dim) for dim in (0, 1))
    return rows, columns


def _axis(map: MapName, problem: Problem, dim: int) -> Axis:
    size, output, taps = problem.size[dim], problem.output_size[dim], problem.kernel[dim]
    # A step that is never taken may be any; 1 keeps positions small.
    stride = problem.stride[dim] if output > 1 else 1
    tap = problem.dilation[dim] if taps > 1 else 1
    before = problem.padding[dim][0]
    if map == "grad_input":
        return Axis(output, size, 1, stride, before, -tap, taps, stride // gcd(stride, tap))
    return Axis(size, output, stride, 1, -before, tap, taps, 1)


def band_shape(problem: Problem) -> tuple[int, int, int, int]:
    """(groups, kH, input columns, output columns)"""
    return problem.groups, problem.kernel[0], problem.size[1], problem.output_size[1]


def dest_shape(map: MapName, problem: Problem) -> tuple[int, int, int, int]:
    """Of the result of ``forward`` or ``grad_input``."""
    return problem.output_shape if map == "forward" else problem.input_shape
