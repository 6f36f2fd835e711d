"""``fit``: factors are recovered from invented times, and written as Python."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import pytest
import torch

from benchmarks import fit
from support.maps import request
from torch_corr import MAPS, Direct, Problem
from torch_corr.algorithms import Cost
from torch_corr.algorithms.cost import Factors, factors_key, valid_row_pairs
from torch_corr.algorithms.fft.checked import CheckedFFT
from torch_corr.planning.auto import Auto
from torch_corr.planning.machine import SHIPPED

pytest.importorskip("scipy", reason="least squares are scipy's")

PLANTED = (1.7, 1.0, 2.5, 9.0)


def timings(number: int) -> list[fit.Timing]:
    """Times that follow exactly from the planted factors."""
    made = []
    for each in islice(fit.corpus(0, channels_last=False), 3 * number):
        requested = replace(each, dtype=torch.float32)
        _, ideal = Direct().work(requested)
        seconds = SHIPPED[0].float32.seconds(
            Cost(*(f * a for f, a in zip(Factors(*PLANTED).of_each, ideal)))
        )
        made.append(fit.Timing(requested, {"direct": seconds, "aten": 1}))
    return made


def test_fit_recovers_planted_factors() -> None:
    found = fit.fit(timings(140))
    for map in MAPS:
        flops, _, moved, calls = found[factors_key("direct", "few channels", map, "float32")]
        assert math.isclose(flops, PLANTED[0], rel_tol=0.1)
        assert math.isclose(moved, PLANTED[2], rel_tol=0.3)
        assert math.isclose(calls, PLANTED[3], rel_tol=0.3)


@pytest.mark.parametrize(
    "name",
    [
        "n1c1-x9x5-o1-k4x2-p3,2x0",
        "n2c2-x5-o3-k7-p9-d2",
        "n1c1-x4-o1-k2-s3-p7",
        "n1c1-x6-o1-k3",
        "n3c1-x20-o1-k5-s4-p1-d3",
    ],
)
def test_rows_met_counts_pairs_inside_the_image(name: str) -> None:
    problem = Problem.parse(name)
    (stride, _), (dilation, _), ((before, _), _) = problem.stride, problem.dilation, problem.padding
    pairs = product(range(problem.output_size[0]), range(problem.kernel[0]))
    rows = [i * stride + u * dilation - before for i, u in pairs]
    assert valid_row_pairs(problem) == sum(0 <= row < problem.size[0] for row in rows)


def test_corpus_depends_only_on_the_seed() -> None:
    for last in (False, True):
        first, again, other = ({*islice(fit.corpus(seed, last), 40)} for seed in (0, 0, 1))
        assert first == again
        assert not first & other
        assert {each.channels_last for each in first} == {last}


def test_written_factors_are_python_and_accept_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "cost_factors.py"
    target.write_text(fit.TARGET.read_text())
    monkeypatch.setattr(fit, "TARGET", target)
    target.write_text(fit.source_of({"direct, planes, forward, float32": PLANTED}, 7))
    for verdict in ("good", "better"):
        fit.record(verdict)
        module = ast.parse(target.read_text())
        assert (ast.get_docstring(module) or "").endswith(f": {verdict}")
    scope: dict[str, object] = {}
    exec(target.read_text(), scope)
    assert scope["FACTORS"] == {**fit.FACTORS, "direct, planes, forward, float32": PLANTED}
    assert "1 regimes from 7 timings" in target.read_text()
    assert "From 1950 timings" in target.read_text()


@pytest.mark.parametrize(("others", "slower"), [(1e-4, 0), (1.0, 1)])
def test_judge_counts_losses_to_pytorch(others: float, slower: int) -> None:
    """For one map, where auto chooses ``direct`` or ``unfold``."""
    problem = Problem.parse("n8c96-x56-o96-k7-p3-g96")
    seconds = {"aten": 1e-2, "direct": others, "unfold": others}
    verdict, _ = fit.judge([fit.Timing(request(problem, "grad_weight"), seconds)])
    assert verdict.startswith("Of 1 maps")
    assert verdict.endswith(f"more than 5 % slower in {slower}.")


def test_judge_counts_the_transform_of_a_checked_choice() -> None:
    problem = Problem.parse("n1c1-x512-o1-k51")
    chosen = Auto().choose(request(problem, "forward"))
    assert isinstance(chosen, CheckedFFT)
    seconds = {"aten": 1.0, "fft": 1e-2}
    verdict, _ = fit.judge([fit.Timing(request(problem, "forward"), seconds)])
    assert verdict.startswith("Of 1 maps")


def test_verdict_replaces_that_of_the_shipped_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fit.TARGET.read_text()
    monkeypatch.setattr(fit, "TARGET", tmp_path / "cost_factors.py")
    fit.TARGET.write_text(source)
    fit.record("good")
    renewed = fit.TARGET.read_text()
    assert (ast.get_docstring(ast.parse(renewed)) or "").endswith(": good")
    assert renewed.partition("FACTORS")[2] == source.partition("FACTORS")[2]
    assert renewed.partition(fit._VERDICT)[0] == source.partition(fit._VERDICT)[0]
