"""Searches all tilings and engines for the plan of least predicted time.

A plan depends on the problem, the dtype, the limit and the kind of device, never on the operands'
values, so it is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

from ...problem import Problem
from ...request import MapName
from . import engine_batched, engine_fft, engine_matrix
from .engine_batched import QUANTUM
from .error_bound import error_units
from .plans import CPU, RATES_OF, Engine, Task, TransformPlan, rank
from .tiling import (
    GradInputAxis,
    TiledAxis,
    aligned_length,
    axis_of,
    axis_of_length,
    fast_length,
    grad_input_as_forward,
)


@lru_cache(maxsize=4096)
def plan(
    problem: Problem,
    map: MapName,
    itemsize: int,
    operand_itemsize: int,
    is_complex: bool,
    tile: int | None,
    limit: int,
    device: str = "cpu",
) -> TransformPlan:
    """The plan of least predicted time within the limit; if none fits, that of least workspace.

    Args:
        problem: the geometry.
        map: which map.
        itemsize: bytes of one number in the dtype to compute in.
        operand_itemsize: bytes of one number of the operands and of the result.
        is_complex: whether they are complex, so that the whole spectrum is needed.
        tile: length of both transforms, or None to search.
        limit: bytes of workspace.
        device: the type of device.
    """
    rates = RATES_OF.get(device, CPU)
    made = (
        _PLANNERS[engine](
            Task(problem, map, itemsize, operand_itemsize, is_complex, axes), limit, rates
        )
        for engine in rates.engines
        for axes in _tilings_of(problem, map, tile, engine)
    )
    able = (each for each in made if each is not None)  # engine_fft always has a plan
    best = min(able, key=lambda each: rank(each, limit, rates))
    return replace(best, error=error_units(best.task, best.engine))


def _tilings_of(
    problem: Problem, map: MapName, tile: int | None, engine: Engine
) -> Iterator[tuple[TiledAxis, TiledAxis]]:
    """The problem's tilings, and for an input's gradient those by overlap-save too."""
    fast = _FAST[engine]
    yield from tilings(problem, tile, fast)
    if engine == "batched" and map == "grad_input" and (other := grad_input_as_forward(problem)):
        for rows, columns in tilings(other, tile, fast):
            yield GradInputAxis.of(rows), GradInputAxis.of(columns)


@lru_cache(maxsize=64)
def tilings(
    problem: Problem, tile: int | None, fast: Callable[[int], int]
) -> tuple[tuple[TiledAxis, TiledAxis], ...]:
    """Tilings of rows and columns at fast lengths; cached, since maps and engines share them."""
    if tile is not None:
        return ((axis_of_length(problem, 0, tile, fast), axis_of_length(problem, 1, tile, fast)),)
    choices = [_axis_choices(problem, dim, fast) for dim in (0, 1)]
    pairs = [(rows, columns) for rows in choices[0] for columns in choices[1]]
    if 1 in map(len, choices):
        return tuple(pairs)  # a short axis must not restrict the other
    # Nearly square tiles; there are none if a kernel is far longer than the image is wide.
    most = max(2.0, min(_oblong(*pair) for pair in pairs))
    return tuple(pair for pair in pairs if _oblong(*pair) <= most)


def _oblong(rows: TiledAxis, columns: TiledAxis) -> float:
    """The aspect ratio of a tile, at least 1."""
    return max(rows.length, columns.length) / min(rows.length, columns.length)


def _axis_choices(problem: Problem, dim: int, fast: Callable[[int], int]) -> list[TiledAxis]:
    """Tilings of one axis, from four windows per tile up to a single tile."""
    whole = axis_of(problem, dim, 1, fast)
    found = {whole}
    length = problem.span[dim] + problem.stride[dim] * 3
    while length < whole.length:
        found.add(axis_of_length(problem, dim, length, fast))
        if fast is aligned_length:
            # The next length that fills a device's matrix products.
            length = QUANTUM // 2 * (length * 5 // 4 // (QUANTUM // 2) + 1)
        else:
            length = length * 5 // 4 + 1
    return sorted(found, key=lambda axis: axis.length)


_PLANNERS = {
    "matrix": engine_matrix.make_plan,
    "batched": engine_batched.make_plan,
    "fft": engine_fft.make_plan,
}
_FAST: dict[Engine, Callable[[int], int]] = {
    "matrix": fast_length,
    "batched": aligned_length,
    "fft": fast_length,
}
"""For each engine, its planner and the function that rounds a length up to one it supports."""
