"""What of ``triton`` needs neither Triton nor a kernel: axes, configurations and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from support.maps import request
from support.processes import run_python
from torch_corr import MAPS, Problem, Triton
from torch_corr.algorithms.triton import algorithm as algorithm_module
from torch_corr.algorithms.triton import launch_plan_builder
from torch_corr.algorithms.triton.axes import axes
from torch_corr.algorithms.triton.configs import CONFIGS, Band, Dot, Sums, Taps
from torch_corr.testing import problems


def test_needs_int64_for_large_tensors_and_axes() -> None:
    problem = Problem.parse("n3c1-x32768-o1-k3-p1")
    x = torch.empty(1, device="meta").expand(problem.input_shape)
    both = axes("forward", problem)
    assert not launch_plan_builder.needs_int64(both, x)
    assert launch_plan_builder.needs_int64(both, torch.empty(problem.input_shape, device="meta"))
    far = axes("forward", Problem.parse("n1c1-x3-o1-k2-p3000000000-d3000000000"))
    assert launch_plan_builder.needs_int64(far, torch.empty(1, 1, 3, 3, device="meta"))


def test_config_names_are_unique() -> None:
    assert len({config.name for config in CONFIGS}) == len(CONFIGS)
    assert {type(config) for config in CONFIGS} == {Taps, Sums, Dot, Band}


def test_configs_have_at_most_4_warps() -> None:
    """Triton miscompiles one loop over taps and channels with 8."""
    assert all(config.warps <= 4 for config in CONFIGS)


@pytest.mark.parametrize("map", ["forward", "grad_input"])
@settings(max_examples=200)
@given(problem=problems(allow_empty=False, max_stride=6))
def test_axes_match_definition(map: Any, problem: Problem) -> None:
    """``source * div = dest * mult + base + tap_step * u`` wherever ``i*s + u*d - p = h``."""
    for dim, axis in enumerate(axes(map, problem)):
        outputs, pixels = range(problem.output_size[dim]), range(problem.size[dim])
        stride, dilation = problem.stride[dim], problem.dilation[dim]
        expected = {
            (i, u, i * stride + u * dilation - problem.padding[dim][0])
            for i in outputs
            for u in range(problem.kernel[dim])
        }
        found = set()
        for dest in range(axis.dest):
            for u in range(axis.taps):
                at, rest = divmod(dest * axis.mult + axis.base + axis.tap_step * u, axis.div)
                if rest == 0 and 0 <= at < axis.source:
                    found.add((dest, u, at) if map == "forward" else (at, u, dest))
        assert found == {each for each in expected if each[2] in pixels}


def test_workspace_does_not_need_triton() -> None:
    problem = Problem.parse("n2c64-x8-o64-k3-p1")
    for map in MAPS:
        assert Triton().workspace(request(problem, map, "cuda")) > 0


def test_refusal_of_too_large_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm_module, "device_refusals", lambda _: ())
    problem = Problem.parse("n1000000c1000000-x1-o1000000-k1-g1000000")
    (sentence,) = Triton().refusals(request(problem, device="cuda"))
    assert "more than the 2**31 - 1 of a CUDA grid" in sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "Triton is not installed; PyTorch's builds for CUDA bring it"),
        ("__version__ = '3.1.0'", "what is installed as Triton (3.1.0) has no triton.knobs"),
        ("raise ImportError('libtriton.so: no GLIBC')", "cannot be imported (libtriton.so: no"),
    ],
    ids=["absent", "old", "broken"],
)
def test_unusable_triton_is_refused(content: str | None, sentence: str, tmp_path: Path) -> None:
    """Other algorithms still run, also under 'auto', which asks every algorithm."""
    hide = "sys.modules['triton'] = None" if content is None else ""
    if content is not None:
        (tmp_path / "triton").mkdir()
        (tmp_path / "triton" / "__init__.py").write_text(content)
    code = (
        f"import sys; {hide}\n"
        "import torch, torch_corr\n"
        "x, w = torch.ones(1, 1, 64, 64), torch.ones(1, 1, 5, 5)\n"
        "print(torch_corr.corr2d(x, w).mean().item())\n"
        "try: torch_corr.corr2d(x, w, algorithm='triton')\n"
        "except RuntimeError as error: print(error)"
    )
    run = run_python("-c", code, ahead=tmp_path)
    assert run.stdout.startswith("25.0\n"), run.stderr
    assert sentence in run.stdout
