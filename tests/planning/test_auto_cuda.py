"""What ``auto`` chooses on CUDA, tested with the properties of a device that need not exist."""

from __future__ import annotations

import pytest
import torch

from support.maps import request
from torch_corr import FFT, MAPS, Aten, Auto, Problem, Triton, Unfold
from torch_corr.algorithms import CheckedFFT
from torch_corr.algorithms.triton import algorithm as triton_module
from torch_corr.planning import auto as auto_module
from torch_corr.planning import plan as planner_module
from torch_corr.planning.plan import clear_plans, make_plan
from torch_corr.planning.wisdom import WISDOM, Key

CUDA = torch.device("cuda")


def test_explain_shows_cuda_prediction_and_wisdom_overrides_it(pretend_device):
    """Without Triton only PyTorch has predictions."""
    pretend_device("H100")
    problem = Problem.parse("n8c64-x56-o64-k3-p1")
    plan = make_plan(problem, CUDA, torch.float16, "auto")
    assert {type(getattr(plan, map)) for map in MAPS} == {Aten}
    words = str(plan)
    assert "predicted for H100 from its clock, multiprocessors and memory bus" in words
    # Operations at the peak of halves, plus bytes, plus a call.  The limit does not exclude
    # copies that PyTorch makes only on a CPU.
    flops, moved = 2 * problem.multiplications, 2 * (2 * 8 * 64 * 56**2 + 64 * 64 * 9)
    least = 1e6 * (flops / 989.4e12 + moved / 3.352e12) + 4
    (row,) = {line for line in words.splitlines() if "> aten" in line}
    assert row.split() == f"> aten {least:.3g} us predicted 0.0 MiB componentwise".split()
    WISDOM.remember(
        Key.of(request(problem, device=CUDA, dtype=torch.float16)), {"aten": 2.0, "unfold": 1.0}
    )
    clear_plans()
    plan = make_plan(problem, CUDA, torch.float16, "auto")
    assert isinstance(plan.forward, Unfold)
    assert isinstance(plan.grad_input, Aten)


@pytest.mark.parametrize("measured", [False, True], ids=["predicted", "measured"])
def test_large_kernel_takes_checked_fft_with_triton_fallback(measured, with_triton):
    """In double precision, which an H100's matrix units compute at full rate."""
    problem, dtype = Problem.parse("n4c64-x128-o64-k32"), torch.float32
    if measured:
        for map in MAPS:
            seen = {"fft, checked": 0.4, "triton taps-4": 4.0, "aten": 5.0}
            WISDOM.remember(Key.of(request(problem, map, CUDA, dtype)), seen)
    plan = make_plan(problem, CUDA, dtype, "auto")
    for map in MAPS:
        chosen = getattr(plan, map)
        assert isinstance(chosen, CheckedFFT), str(plan)
        assert not chosen.refusals(request(problem, device=CUDA, dtype=dtype))
        assert chosen.workspace(request(problem, map, CUDA, dtype)) <= Auto().workspace_limit
    assert str(plan).count("normwise; each result is checked, else triton") == 3
    plan = make_plan(problem, CUDA, dtype, Auto(error="componentwise"))
    assert not any(isinstance(getattr(plan, map), CheckedFFT) for map in MAPS)
    # Predicted with TF32, PyTorch is faster than both.
    clear_plans()
    torch.backends.cudnn.allow_tf32 = True
    assert isinstance(make_plan(problem, CUDA, dtype, "auto").forward, Aten) or measured
    assert not with_triton


@pytest.mark.parametrize("spelling", ["n0c1-x64-o1-k9", "n1c0-x64-o1-k9"])
def test_empty_problem_is_planned_without_division_by_zero(spelling, with_triton):
    """Planned, explained and measured."""
    problem = Problem.parse(spelling)
    for requested in ("auto", Auto(measure=True)):
        plan = make_plan(problem, CUDA, torch.float32, requested)
        assert str(plan).count("fft") >= 3


def test_checked_fft_needs_a_fallback(with_triton, monkeypatch):
    """Triton refuses, or needs more memory than the limit."""
    problem, dtype = Problem.parse("n4c64-x128-o64-k16"), torch.float32
    WISDOM.remember(
        Key.of(request(problem, device=CUDA, dtype=dtype)), {"fft, checked": 0.4, "aten": 5.0}
    )
    limit = FFT().workspace(request(problem, device=CUDA, dtype=dtype))
    workspace = Triton().workspace
    monkeypatch.setattr(Triton, "workspace", lambda *_: limit + 1)
    assert isinstance(
        Auto(workspace_limit=limit).choose(request(problem, device=CUDA, dtype=dtype)), Aten
    )
    monkeypatch.setattr(Triton, "workspace", workspace)
    monkeypatch.setattr(triton_module, "device_refusals", lambda _: ("not today",))
    clear_plans()
    plan = make_plan(problem, CUDA, dtype, "auto")
    assert isinstance(plan.forward, Aten)
    assert "triton must recompute what fails its check, and refuses: not today" in str(plan)


@pytest.mark.parametrize("spelling", ["n24c64-x128-o64-k16", "n64c1-x1024-o1-k63-p31"])
def test_checked_fft_and_fallback_respect_workspace_limit(spelling, with_triton):
    problem, dtype = Problem.parse(spelling), torch.float64
    for limit in (Auto().workspace_limit, 16 * Auto().workspace_limit):
        plan = make_plan(problem, CUDA, dtype, Auto(workspace_limit=limit))
        for map in MAPS:
            chosen = getattr(plan, map)
            assert chosen.workspace(request(problem, map, CUDA, dtype)) <= limit, map
    assert isinstance(plan.forward, CheckedFFT)


def test_fft_respects_deterministic_mode_and_ignores_tf32(with_triton, monkeypatch):
    """Double precision has no TF32; cuBLAS may be nondeterministic."""
    problem = Problem.parse("n4c64-x128-o64-k32")
    monkeypatch.setattr(planner_module, "_MAY_BE_CUDA", True)

    def planned():
        plan = make_plan(problem, CUDA, torch.float32, "auto")
        return plan.forward, str(plan)

    for allowed in (False, True, False):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        assert isinstance(planned()[0], CheckedFFT)
    torch.set_deterministic_debug_mode("error")
    assert isinstance(planned()[0], CheckedFFT)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    clear_plans()
    chosen, words = planned()
    assert not isinstance(chosen, CheckedFFT)
    assert "unless CUBLAS_WORKSPACE_CONFIG is :4096:8 or :16:8" in words
    torch.set_deterministic_debug_mode("default")
    assert isinstance(planned()[0], CheckedFFT)


@pytest.mark.parametrize("setting", ["tf32", "deterministic"])
def test_matrix_products_respect_tf32_and_deterministic_mode(setting, with_triton, monkeypatch):
    """Otherwise measuring unfold would raise an error of cuBLAS, and running it would use TF32."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    allowed = setting == "tf32"
    torch.set_deterministic_debug_mode("default" if allowed else "error")
    torch.backends.cuda.matmul.allow_tf32 = allowed
    make_plan(Problem.parse("n4c64-x32-o64-k3"), CUDA, torch.float32, Auto(measure=True))
    assert "aten" in with_triton
    assert not {"unfold", "fft"} & {*with_triton}
    # TF32 is exact for halves, and float64 has none; complex products are as real ones.
    for dtype in (torch.float16, torch.float64):
        assert bool(auto_module._matrix_product_refusal(dtype)) != allowed
    torch.backends.cudnn.allow_tf32 = True
    for dtype in (torch.float32, torch.complex64):
        assert bool(auto_module._matrix_product_refusal(dtype)) != allowed


def test_cuda_plan_respects_workspace_limit(with_triton):
    """aten's copy for an even kernel exceeds the limit; unfold is next, not the reference."""
    plan = make_plan(Problem.parse("n64c64-x256-o64-k4-p1,2x1,2"), CUDA, torch.float32, "auto")
    assert {type(getattr(plan, map)) for map in MAPS} == {Unfold}


FLOAT, HALF = torch.float32, torch.float16


# The maps that Triton computes, of contiguous images and in channels_last; None: not timed.
@pytest.mark.parametrize(
    ("spelling", "dtype", "contiguous", "last"),
    [
        ("n64c384-x32-o384-k31-p15-g384", FLOAT, None, MAPS),
        ("n64c384-x32-o384-k31-p15-g384", HALF, MAPS, MAPS),
        ("n128c96-x56-o96-k7-p3-g96", FLOAT, MAPS, MAPS),
        # In channels_last cuDNN's kernels for these are bound by memory.
        ("n128c96-x56-o96-k7-p3-g96", HALF, None, ("forward", "grad_input")),
        ("n16c64-x56-o64-k3-p1", torch.float64, MAPS, ()),
        ("n1c1-x2048-o1-k3", FLOAT, ("forward", "grad_weight"), ()),
        ("n8c64-x56-o64-k3-p1", FLOAT, (), None),
        ("n64c512-x14-o512-k3-p1", HALF, (), None),
        # cuDNN has kernels for halves under small kernels; and for small layers the host's time
        # counts.
        ("n8c144-x56-o144-k3-p1-g144", HALF, (), None),
        ("n8c144-x56-o144-k3-p1-g144", FLOAT, (), ()),
        ("n1c1-x64-o1-k5", FLOAT, (), None),
        ("n1c8-x16-o8-k7-p3-g8", FLOAT, None, ()),
    ],
)
def test_triton_is_predicted_faster_where_pytorch_measured_slow(
    spelling, dtype, contiguous, last, with_triton
):
    """As timed on an H200; the plans measure nothing.

    Wisdom of contiguous images does not count in channels_last.
    """
    problem = Problem.parse(spelling)
    plans = [make_plan(problem, CUDA, dtype, "auto", layout) for layout in (False, True)]
    for expected, plan in zip((contiguous, last), plans):
        if expected is not None:
            assert {map for map in MAPS if isinstance(getattr(plan, map), Triton)} == {*expected}
            assert {type(getattr(plan, map)) for map in MAPS} <= {Aten, Triton}
    assert not with_triton
    for map in MAPS:
        WISDOM.remember(Key.of(request(problem, map, CUDA, dtype)), {"unfold": 1e-9, "aten": 1.0})
    clear_plans()
    wise, again = (make_plan(problem, CUDA, dtype, "auto", layout) for layout in (False, True))
    for map in MAPS:
        assert isinstance(getattr(wise, map), Unfold)
        assert getattr(again, map) == getattr(plans[1], map)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_slow_prediction_does_not_prevent_measurement(dtype, with_triton):
    """PyTorch's prediction assumes the matrix units' peak and is 25 times too short here."""
    problem = Problem.parse("n64c384-x32-o384-k31-p15-g384")
    plan = make_plan(problem, CUDA, dtype, Auto(measure=True))
    assert {getattr(plan, map).name for map in MAPS} == {"triton"}
    assert {"aten", "unfold", "triton"} <= {*with_triton}
    assert "naive" not in with_triton
