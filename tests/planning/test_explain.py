"""What ``explain`` and a printed plan say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.maps import request
from torch_corr import ALGORITHMS, MAPS, Auto, Direct, Problem, explain, plan
from torch_corr.algorithms.triton import algorithm as triton_module
from torch_corr.algorithms.triton import runtime as triton_runtime
from torch_corr.planning.machine import SHIPPED, current_machine
from torch_corr.planning.plan import make_plan
from torch_corr.planning.wisdom import WISDOM, Key

CPU = torch.device("cpu")
SMALL = Problem.parse("n1c2-x9-o2-k3")


def test_docs_show_what_explain_prints(monkeypatch):
    """With the shipped rates, two threads and the compiled kernels, without Triton."""
    problem = Problem.parse("n1c1-x1024-o1-k51-p25")
    if Direct().refusals(request(problem)) or current_machine() != SHIPPED[0]:
        pytest.skip("direct is not compiled, or another machine's rates were kept here")
    # As if Triton were not installed; the answers are cached.
    monkeypatch.setattr(triton_runtime, "find_spec", lambda _: None)
    uncached = triton_runtime.import_refusal.__wrapped__, triton_runtime.device_refusals.__wrapped__
    monkeypatch.setattr(triton_runtime, "import_refusal", uncached[0])
    monkeypatch.setattr(triton_module, "device_refusals", uncached[1])
    torch.set_num_threads(2)
    printed = str(make_plan(problem, CPU, torch.float32, "auto"))
    page = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert f"$ python -m torch_corr explain n1c1-x1024-o1-k51-p25\n{printed}\n```" in page


def test_printed_plan_shows_times_of_its_choice():
    """Printing does not time again, which could change the fastest algorithm."""
    plan = make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    keys = [Key.of(request(SMALL, map)) for map in MAPS]
    before = [dict(WISDOM.seconds(key)) for key in keys]
    assert all("fft" in "".join(times) for times in before)
    printed = str(plan)
    for key, times in zip(keys, before):
        assert times.items() <= WISDOM.seconds(key).items()
        assert f"  > {getattr(plan, key.map).spelling}" in printed


def test_plan_lists_every_algorithm_and_map():
    x = torch.ones(1, 2, 5, 5, dtype=torch.int8)
    text = str(plan(x, torch.ones(2, 2, 2, 2, dtype=torch.int8), dilation=2))
    head, *lines = text.splitlines()
    assert head.endswith("-d2x2-g1 on cpu/int8, algorithm=auto")
    for algorithm in ALGORITHMS:
        # At least one, because an algorithm may refuse for several reasons.
        assert sum(line[4:].startswith(f"{algorithm.name} ") for line in lines) >= len(MAPS)
    assert sum("> unfold" in line for line in lines) == len(MAPS)
    assert "aten      refuses: PyTorch has no dilated convolution in int8" in text


def test_explain_prints_the_plan(capsys):
    x, w = torch.ones(1, 1, 6, 8), torch.ones(1, 1, 1, 2)
    explain(x, w, algorithm="naive")
    assert capsys.readouterr().out == f"{plan(x, w, algorithm='naive')}\n"
