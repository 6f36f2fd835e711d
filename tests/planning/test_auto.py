"""What ``auto`` chooses, by prediction, measurement or wisdom."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from support.algorithms import Paused, Sleeper
from support.maps import request
from support.needs import KERNELS, needs
from torch_corr import FFT, MAPS, Aten, Auto, Direct, Naive, Problem, Unfold, corr2d
from torch_corr.planning import auto as auto_module
from torch_corr.planning import wisdom
from torch_corr.planning.auto import SWITCH_RATIO, Candidate, _fastest
from torch_corr.planning.machine import SHIPPED
from torch_corr.planning.plan import clear_plans, make_plan
from torch_corr.planning.wisdom import WISDOM, Key
from torch_corr.request import Request

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


SMALL = Problem.parse("n1c2-x9-o2-k3")


LARGE_KERNEL = Problem.parse("n1c1-x256-o1-k63-p31")
LARGE_KERNEL_RGB = Problem.parse("n2c3-x64-o3-k15")


def candidate(algorithm, seconds, source="predicted"):
    return Candidate(algorithm, (), 0, seconds, source)


@pytest.mark.parametrize(
    ("preferred", "other", "source"),
    [
        (Aten(), Unfold(), "predicted"),
        (Unfold(), FFT(), "predicted"),
        (Unfold(), FFT(), "measured"),
    ],
    ids=str,
)
def test_preferred_algorithm_wins_if_close(preferred, other, source):
    """PyTorch because a prediction may be wrong; direct sums because fft has larger errors."""
    for ratio, expected in ((SWITCH_RATIO - 0.01, other), (SWITCH_RATIO + 0.01, preferred)):
        race = [candidate(preferred, 1.0, source), candidate(other, ratio, source)]
        assert _fastest(race) == expected


def test_measured_time_beats_predictions():
    race = [candidate(Aten(), 1.0, "measured"), candidate(Unfold(), 0.1)]
    assert _fastest(race) == Aten()
    assert _fastest([*race, candidate(Naive(), 0.99, "measured")]) == Naive()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("map", MAPS)
def test_depthwise_rgb_does_not_run_aten(map, dtype, monkeypatch):
    """PyTorch's kernels take as long for 3 depthwise channels as for 16."""
    if Direct().refusals(request(SMALL, dtype=dtype)):
        pytest.skip("direct is not compiled")
    monkeypatch.setattr(auto_module, "machine_of", lambda device, dtype: SHIPPED[0])
    photograph = Problem.parse("n1c3-x618x530-o3-k19-g3")
    chosen = Auto().choose(request(photograph, map, dtype=dtype))
    assert not isinstance(chosen, Aten)


def test_measurement_corrects_wrong_prediction(monkeypatch):
    """``Sleeper`` is slow but predicts no cost."""
    monkeypatch.setattr(auto_module, "ALGORITHMS", (Aten(), Sleeper(pause=0.05)))
    monkeypatch.setattr(auto_module, "PLANNING_THRESHOLD", 0)
    clear_plans()
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == Sleeper(pause=0.05)
    measured = make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    assert measured.forward == Aten()
    assert len(WISDOM) == len(MAPS)
    # Plans of plain 'auto' use the measurements from then on.
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == Aten()


def test_componentwise_error_excludes_fft():
    loose, strict = Auto(), Auto(error="componentwise")
    for map in MAPS:
        names, free = (
            {
                each.algorithm.name: each.refusals
                for each in auto.candidates(request(LARGE_KERNEL, map))
            }
            for auto in (strict, loose)
        )
        assert "Auto(error='componentwise') excludes it" in names["fft, checked"][0]
        chosen = strict.choose(request(LARGE_KERNEL, map))
        assert chosen is not None
        assert chosen.error_class == "componentwise"
        assert free["fft, checked"] == ()


def test_auto_respects_workspace_limit():
    """Algorithms with a limit of their own use less; the others are left out."""
    auto = Auto(workspace_limit=2**20)
    for map in MAPS:
        for each in auto.candidates(request(LARGE_KERNEL, map)):
            if not each.refusals:
                assert each.workspace <= 2**20
        chosen = auto.choose(request(LARGE_KERNEL, map))
        assert chosen is not None
        assert chosen.workspace(request(LARGE_KERNEL, map)) <= 2**20


def test_measured_variant_is_chosen(monkeypatch, tmp_path):
    """Variants have spellings of their own; without wisdom ``auto`` ignores them."""
    monkeypatch.setattr(auto_module, "ALGORITHMS", (Paused(),))
    monkeypatch.setattr(auto_module, "PLANNING_THRESHOLD", 0)
    clear_plans()
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == Paused()
    measured = make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    assert measured.forward == Paused(pause=0.0)
    assert "  > paused 0.0" in str(measured)
    times = WISDOM.seconds(Key.of(request(SMALL)))
    assert set(times) == {"paused", "paused 0.0"}
    wisdom.save(tmp_path / "wisdom.json")
    wisdom.forget()
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == Paused()
    wisdom.load(tmp_path / "wisdom.json")
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == Paused(pause=0.0)


def test_wisdom_of_channels_last_decides_there():
    """Also for algorithms without kernels for that layout, which predictions leave out."""
    before = [
        make_plan(LARGE_KERNEL_RGB, CPU, torch.float32, "auto", last) for last in (False, True)
    ]
    assert isinstance(before[True].forward, Aten)
    for map in MAPS:
        timed = replace(request(LARGE_KERNEL_RGB, map), channels_last=True)
        WISDOM.remember(Key.of(timed), {"unfold": 1e-6, "aten": 1.0})
    contiguous, last = (
        make_plan(LARGE_KERNEL_RGB, CPU, torch.float32, "auto", last) for last in (False, True)
    )
    assert contiguous == before[False]
    assert all(isinstance(getattr(last, map), Unfold) for map in MAPS)


@needs(KERNELS)
@pytest.mark.parametrize(
    ("case", "chosen"),
    [
        ("n8c96-x56-o96-k7-p3-g96", ("direct", "direct", "direct")),
        ("n1c1-x1024-o1-k15", ("direct", "direct", "direct")),
        ("n8c64-x56-o64-k3-p1", ("aten", "aten", "aten")),
        ("n1c4-x8-o4-k3-p1", ("aten", "aten", "aten")),
    ],
)
def test_choice_for_each_map(case, chosen):
    made = make_plan(Problem.parse(case), CPU, torch.float32, "auto")
    assert (made.forward.name, made.grad_input.name, made.grad_weight.name) == chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_large_depthwise_layer_equals_conv2d(dtype):
    x = torch.randn(2, 24, 40, 40, dtype=dtype, requires_grad=True)
    w = torch.randn(24, 1, 9, 9, dtype=dtype, requires_grad=True)
    b = torch.randn(24, dtype=dtype, requires_grad=True)
    results = [function(x, w, b, 1, 4, 1, 24) for function in (corr2d, F.conv2d)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(y.square().mean(), (x, w, b)) for y in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_concurrent_threads_plan_and_measure():
    problems = [(c, k) for c in (1, 2, 5) for k in (3, 5, 11)]

    def work(number):
        channels, kernel = problems[number % len(problems)]
        draw = torch.Generator().manual_seed(number)
        x = torch.randn(1, channels, 60, 61, generator=draw, dtype=torch.float64)
        w = torch.randn(channels, 1, kernel, kernel, generator=draw, dtype=torch.float64)
        requested = Auto(measure=number % 2 == 0)
        return [
            (
                corr2d(x + i, w, groups=channels, algorithm=requested),
                F.conv2d(x + i, w, groups=channels),
            )
            for i in range(3)
        ]

    with ThreadPoolExecutor(8) as pool:
        for pairs in pool.map(work, range(2 * len(problems))):
            for ours, theirs in pairs:
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(("times", "expected"), [(0.7, "aten"), (0.5, "unfold")])
def test_gradients_stay_together_in_pytorch_unless_both_gain(times, expected, monkeypatch):
    """PyTorch computes both in one call.  Here unfold takes ``times`` as long for grad_input."""
    requests = Request.of_each_map(Problem.parse("n4c8-x32-o8-k3"), CPU, torch.float32)

    def candidates(self, algorithms):
        seconds = times if self.request.map == "grad_input" else 1.5
        return [Candidate(Aten(), (), 0, 1.0), Candidate(Unfold(), (), 0, seconds)]

    monkeypatch.setattr(auto_module._Selection, "candidates", candidates)
    names = [each.name for each in Auto().choose_each(requests)]
    assert names == ["aten", expected, "aten"]
