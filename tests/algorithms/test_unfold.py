"""Unfold's strips of rows, its blocks and its workspace."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.maps import all_operands, request
from support.memory import Peak
from torch_corr import MAPS, Problem, Unfold
from torch_corr.algorithms.unfold import algorithm as unfold
from torch_corr.algorithms.unfold.strips import rows_read, rows_written
from torch_corr.testing import operands, problems

CPU = torch.device("cpu")


@given(problem=problems(), data=st.data())
def test_strips_hold_exactly_the_rows_of_each_tap(problem, data):
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


def test_large_dilation_does_not_increase_workspace():
    near, far = (Problem.parse(f"n1c2-x4001x8-o2-k3x3-d{d}x1") for d in (1, 2000))
    for map in MAPS:
        assert Unfold().workspace(request(far, map, dtype=torch.float64)) <= Unfold().workspace(
            request(near, map, dtype=torch.float64)
        )


@pytest.mark.parametrize("map", MAPS)
def test_blocks_fit_the_caches_or_repeat_few_rows(map):
    dense, large = Problem.parse("n4c64-x56-o64-k3-p1"), Problem.parse("n1c1-x1024-o1-k31-p15")
    for problem in (dense, large):
        images, rows, columns = Unfold()._lengths(request(problem, map))
        assert images == 1
        assert columns == problem.size[1]
        one_row = unfold._strips_bytes(request(problem, map), (1, 1, columns))
        most = max(unfold.CACHED_STRIP_BYTES, one_row * 3)
        assert unfold._strips_bytes(request(problem, map), (1, rows, columns)) <= most
        assert map == "grad_input" or 2 * rows > problem.kernel[0]


def test_peak_measures_memory():
    with Peak() as peak:
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b.view(10, 100)
        assert peak.now == 4000, (peak.now, c.shape)
    assert peak.most == 8000


@pytest.mark.parametrize("limit", [40_000, 200_000])
@settings(max_examples=40)
@given(data=st.data(), problem=problems(max_batch=8, max_channels=8, max_size=24))
def test_memory_stays_within_stated_workspace(data, problem, limit):
    algorithm = Unfold(workspace_limit=limit)
    if algorithm.refusals(request(problem)):
        return
    x, w, y = data.draw(operands(problem, torch.float32, layouts=("contiguous",)))
    pairs = {"forward": (x, w), "grad_input": (y, w), "grad_weight": (x, y)}
    for map in MAPS:
        with Peak() as peak:
            result = getattr(algorithm, map)(problem, *pairs[map])
        stated = algorithm.workspace(request(problem, map))
        assert peak.most - result.numel() * 4 <= stated
        assert stated <= limit


def test_layer_with_a_sixteenth_of_its_columns():
    problem = Problem.parse("n4c16-x64x64-o8-k5x5-p2")
    columns = 4 * 16 * 25 * 64 * 64 * 4
    x, w, y = all_operands(problem)
    small, large = Unfold(workspace_limit=columns // 16), Unfold(workspace_limit=4 * columns)
    for map, pair in (("forward", (x, w)), ("grad_input", (y, w)), ("grad_weight", (x, y))):
        with Peak() as peak:
            result = getattr(small, map)(problem, *pair)
        assert peak.most - result.numel() * 4 < columns // 16 + 2 * w.numel() * 4
        torch.testing.assert_close(
            result, getattr(large, map)(problem, *pair), rtol=1e-4, atol=1e-3
        )
