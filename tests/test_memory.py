"""unfold stays within its workspace, and says how much that is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.maps import request
from support.memory import Peak
from torch_corr import ALGORITHMS, MAPS, Problem, Unfold
from torch_corr.testing import operands, problems


def test_the_meter_measures() -> None:
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
def test_unfold_stays_within_its_limit(data: st.DataObject, problem: Problem, limit: int) -> None:
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


def test_a_whole_layer_in_a_sixteenth_of_its_columns() -> None:
    problem = Problem.parse("n4c16-x64x64-o8-k5x5-p2")
    columns = 4 * 16 * 25 * 64 * 64 * 4
    x, w, y = (
        torch.randn(shape)
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    small, large = Unfold(workspace_limit=columns // 16), Unfold(workspace_limit=4 * columns)
    for map, pair in (("forward", (x, w)), ("grad_input", (y, w)), ("grad_weight", (x, y))):
        with Peak() as peak:
            result = getattr(small, map)(problem, *pair)
        assert peak.most - result.numel() * 4 < columns // 16 + 2 * w.numel() * 4
        torch.testing.assert_close(
            result, getattr(large, map)(problem, *pair), rtol=1e-4, atol=1e-3
        )


def test_every_algorithm_states_its_workspace() -> None:
    problem = Problem.parse("n2c4-x9x8-o6-k3x2-s2x1-p1,0x2,1-g2")
    for algorithm in ALGORITHMS:
        for map in MAPS:
            for dtype in (torch.float32, torch.float16):
                assert algorithm.workspace(request(problem, map, dtype=dtype)) >= 0
