"""What the laws do not ask of unfold: which rows its strips hold, and its blocks in the caches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.maps import request
from torch_corr import MAPS, Problem, Unfold
from torch_corr.algorithms.unfold import algorithm as unfold
from torch_corr.algorithms.unfold.strips import rows_read, rows_written
from torch_corr.testing import problems

CPU = torch.device("cpu")


@given(problem=problems(), data=st.data())
def test_strips_hold_the_rows_that_each_tap_meets_and_no_others(
    problem: Problem, data: st.DataObject
) -> None:
    height, count = problem.size[0], problem.output_size[0]
    outputs = range(data.draw(st.integers(0, count - 1)), count)
    pixels = range(data.draw(st.integers(0, max(height - 1, 0))), height)
    for rows in (rows_read(problem, outputs), rows_written(problem, pixels)):
        held = [row for run in rows.runs for row in run]
        assert len(held) == len(set(held)) == rows.held
        met = set()
        for u, (seen, start) in enumerate(zip(rows.outputs, rows.starts)):
            shift = u * problem.dilation[0] - problem.padding[0][0]
            expected = [i * problem.stride[0] + shift for i in seen]
            assert held[start : start + len(seen)] == expected
            met.update(expected)
        assert met == set(held)
    assert set(held) <= set(pixels)
    assert all(set(seen) == set(outputs) for seen in rows_read(problem, outputs).outputs)


def test_a_large_dilation_takes_no_more_room_than_the_windows_themselves() -> None:
    near, far = (Problem.parse(f"n1c2-x4001x8-o2-k3x3-d{d}x1") for d in (1, 2000))
    for map in MAPS:
        taken = [
            Unfold().workspace(request(each, map, dtype=torch.float64)) for each in (near, far)
        ]
        assert taken[1] <= taken[0]


@pytest.mark.parametrize("map", MAPS)
def test_blocks_fit_the_caches_or_repeat_few_rows(map: str) -> None:
    dense, large = Problem.parse("n4c64-x56-o64-k3-p1"), Problem.parse("n1c1-x1024-o1-k31-p15")
    for problem in (dense, large):
        images, rows, columns = Unfold()._lengths(request(problem, map))
        assert images == 1
        assert columns == problem.size[1]
        most = max(unfold.CACHED, unfold._strips_bytes(request(problem, map), (1, 1, columns)) * 3)
        assert unfold._strips_bytes(request(problem, map), (1, rows, columns)) <= most
        assert map == "grad_input" or 2 * rows > problem.kernel[0]
