"""What ``auto`` takes: the quickest, by prediction, measurement or wisdom, as it was told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from support.maps import request
from torch_corr import FFT, MAPS, Aten, Auto, Direct, Naive, Problem, Triton, Unfold, corr2d
from torch_corr.algorithms import Algorithm, CheckedFFT, Cost, MapName
from torch_corr.algorithms.triton import algorithm as triton_module
from torch_corr.algorithms.triton import form as triton_form
from torch_corr.dispatch import fast_path
from torch_corr.planning import auto as auto_module
from torch_corr.planning import machine as machine_module
from torch_corr.planning import plan as planner_module
from torch_corr.planning import timing as stopwatch
from torch_corr.planning import wisdom
from torch_corr.planning.auto import SWITCH_RATIO, Candidate, _quickest
from torch_corr.planning.machine import (
    SHIPPED,
    Machine,
    Rates,
    calibration_path,
    current_machine,
    machine_of,
)
from torch_corr.planning.plan import clear_plans, make_plan
from torch_corr.planning.timing import time_algorithms
from torch_corr.planning.wisdom import WISDOM, Key
from torch_corr.request import Request

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = Problem.parse("n1c2-x9-o2-k3")
LARGE_KERNEL = Problem.parse("n1c1-x256-o1-k63-p31")


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """And one thread: two that share a busy machine's core wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wisdom.forget()
    yield
    wisdom.forget()
    torch.set_num_threads(threads)


def candidate(algorithm: Algorithm, seconds: float, source: Any = "predicted") -> Candidate:
    return Candidate(algorithm, (), 0, seconds, source)


def test_the_least_predicted_time_is_taken_unless_pytorch_is_close() -> None:
    clear = [candidate(Aten(), 1.0), candidate(Unfold(), SWITCH_RATIO - 0.01)]
    close = [candidate(Aten(), 1.0), candidate(Unfold(), SWITCH_RATIO + 0.01)]
    assert _quickest(clear) == Unfold()
    assert _quickest(close) == Aten()


def test_a_transform_is_taken_where_it_is_clearly_ahead() -> None:
    """Measured or not: its error is worse."""
    for source in ("predicted", "measured"):
        clear = [candidate(Unfold(), 1.0, source), candidate(FFT(), SWITCH_RATIO - 0.01, source)]
        close = [candidate(Unfold(), 1.0, source), candidate(FFT(), SWITCH_RATIO + 0.01, source)]
        assert _quickest(clear) == FFT()
        assert _quickest(close) == Unfold()


def test_a_measured_time_beats_any_prediction() -> None:
    race = [candidate(Aten(), 1.0, "measured"), candidate(Unfold(), 0.1)]
    assert _quickest(race) == Aten()
    assert _quickest([*race, candidate(Naive(), 0.99, "measured")]) == Naive()


@dataclass(frozen=True)
class Sleeper(Unfold):
    """Unfold, after a pause: slow, and predicted to cost nothing."""

    name = "sleeper"
    pause: float = 0.002

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        threading.Event().wait(self.pause)
        return super().forward(problem, input, weight)

    def cost(self, request: Request) -> Cost:
        return Cost()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("map", MAPS)
def test_red_green_and_blue_are_not_left_to_blocks_of_sixteen(
    map: MapName, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's kernels take as long for 3 channels, each filtered by itself, as for 16."""
    if Direct().refusals(request(SMALL, dtype=dtype)):
        pytest.skip("direct is not compiled")
    monkeypatch.setattr(auto_module, "machine_of", lambda device, dtype: SHIPPED)
    photograph = Problem.parse("n1c3-x618x530-o3-k19-g3")
    chosen = Auto().choose(request(photograph, map, dtype=dtype))
    assert not isinstance(chosen, Aten)


def test_the_docs_show_what_explain_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rates that are shipped, two threads and the compiled kernels; without Triton."""
    problem = Problem.parse("n1c1-x1024-o1-k51-p25")
    if Direct().refusals(request(problem)) or machine_of(CPU, torch.float32) != SHIPPED:
        pytest.skip("direct is not compiled, or another machine's rates were kept here")
    # Not installed, wherever this runs: asked anew, as the answer is kept.
    monkeypatch.setattr(triton_form, "find_spec", lambda _: None)
    monkeypatch.setattr(triton_module, "missing", triton_form.missing.__wrapped__)
    monkeypatch.setattr(triton_module, "_where_refusals", triton_module._where_refusals.__wrapped__)
    torch.set_num_threads(2)
    printed = str(make_plan(problem, CPU, torch.float32, "auto"))
    page = (Path(__file__).parent.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert f"$ python -m torch_corr explain n1c1-x1024-o1-k51-p25\n{printed}\n```" in page


def test_measuring_finds_out_what_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm that promises to cost nothing is found out by the stopwatch alone."""
    monkeypatch.setattr(auto_module, "ALGORITHMS", (Aten(), Sleeper(pause=0.05)))
    monkeypatch.setattr(auto_module, "WORTH_A_CHOICE", 0)
    clear_plans()
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == Sleeper(pause=0.05)
    measured = make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    assert measured.forward == Aten()
    assert len(WISDOM) == len(MAPS)
    # What one has measured, the other heeds from then on.
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == Aten()


def test_a_printed_plan_shows_the_times_by_which_it_was_made() -> None:
    """Nothing is timed a second time, by which the quickest might become another."""
    plan = make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    keys = [Key.of(request(SMALL, map)) for map in MAPS]
    before = [dict(WISDOM.seconds(key)) for key in keys]
    assert all("fft" in "".join(times) for times in before)
    printed = str(plan)
    for key, times in zip(keys, before):
        assert times.items() <= WISDOM.seconds(key).items()
        assert f"  > {getattr(plan, key.map).spelling}" in printed


def test_measuring_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    assert torch.equal(torch.rand(3), expected)


def test_measuring_under_a_transform() -> None:
    """The operands that are timed are none of the transform's."""
    x, w = torch.randn(3, 1, 2, 9, 9), torch.randn(2, 2, 3, 3)
    mapped = torch.func.vmap(lambda image: corr2d(image, w, algorithm=Auto(measure=True)))(x)
    assert torch.allclose(mapped[1], corr2d(x[1], w), atol=1e-5)


def test_wisdom_goes_through_a_file(tmp_path: Path) -> None:
    make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    key = Key.of(request(SMALL))
    times = dict(WISDOM.seconds(key))
    assert min(times.values()) > 0
    assert wisdom.save(tmp_path / "wisdom.json") == len(MAPS)
    wisdom.forget()
    assert WISDOM.seconds(key) == {}
    assert wisdom.load(tmp_path / "wisdom.json") == len(MAPS)
    assert WISDOM.seconds(key) == times


def test_loaded_wisdom_decides_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a plan was made before."""
    monkeypatch.setattr(auto_module, "WORTH_A_CHOICE", 0)
    clear_plans()
    before = make_plan(SMALL, CPU, torch.float32, "auto").forward
    chosen = Unfold() if before != Unfold() else Aten()
    WISDOM.remember(Key.of(request(SMALL)), {chosen.name: 1e-9})
    wisdom.save(tmp_path / "wisdom.json")
    wisdom.load(tmp_path / "wisdom.json")
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == chosen
    # It holds for as many threads as there were.
    torch.set_num_threads(2)
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == before
    torch.set_num_threads(1)
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == chosen


def test_a_plan_is_made_for_pytorchs_setting_of_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_module, "_MAY_BE_CUDA", True)
    made: list[bool] = []
    planned = planner_module.cached_plan(lambda: made.append(True))
    before = torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False, True, False):
            torch.backends.cudnn.allow_tf32 = allowed
            planned()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert len(made) == 2


def test_a_plan_that_wisdom_overtakes_is_not_kept() -> None:
    """Another thread measures while it is made."""

    def plan_slowly() -> int:
        clear_plans()
        made.append(len(made))
        return made[-1]

    made: list[int] = []
    planned = planner_module.cached_plan(plan_slowly)
    assert [planned(), planned()] == [0, 1]


@dataclass(frozen=True)
class Listed(Unfold):
    """An algorithm with an option that has no hash."""

    numbers: Any = ()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Auto(workspace_limit=-1), ValueError, "workspace_limit=-1 is negative"),
        (lambda: FFT(workspace_limit=-1), ValueError, "workspace_limit=-1 is negative"),
        (lambda: Unfold(workspace_limit=-1), ValueError, "workspace_limit=-1 is negative"),
        (lambda: Unfold(workspace_limit=1.5), TypeError, "workspace_limit must be an integer"),  # type: ignore[arg-type]
        (
            lambda: Auto(workspace_limit=torch.tensor(5)),
            TypeError,
            "workspace_limit=.* is a tensor",
        ),  # type: ignore[arg-type]
        (lambda: Unfold(workspace_limit=torch.tensor(5)), TypeError, "take its .item()"),  # type: ignore[arg-type]
        (lambda: FFT(tile=torch.tensor(64)), TypeError, "tile=.* is a tensor"),  # type: ignore[arg-type]
        (lambda: Auto(measure="no"), TypeError, "measure must be True or False, got 'no'"),  # type: ignore[arg-type]
        (lambda: Auto(channels_last=1), TypeError, "channels_last must be True or False, got 1"),  # type: ignore[arg-type]
        (
            lambda: Auto(measure=True, channels_last=True),
            ValueError,
            "contiguous images are timed.*leave one of the two out",
        ),
        (lambda: FFT(tile=0), ValueError, "tile=0 must be at least 1, or None"),
        (lambda: FFT(tile=[64, 64]), TypeError, r"option that cannot be hashed .*'list'"),  # type: ignore[arg-type]
        (lambda: FFT(tile=64.0), TypeError, "tile must be an integer, got 64.0"),  # type: ignore[arg-type]
        (lambda: Direct(isa=2), TypeError, "isa must be a string, as 'avx2', got 2"),  # type: ignore[arg-type]
        (lambda: Listed(numbers=[1]), TypeError, r"numbers=\[1\]\) has an option that cannot be"),
    ],
)
def test_options_that_are_none_are_refused_where_they_are_given(
    make: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        "{}",
        '{"format": 99, "entries": []}',
        '{"format": 1, "entries": [{"problem": "n1"}]}',
        '{"format": 1, "entries": 7}',
    ],
)
def test_a_file_without_wisdom_is_refused_whole(tmp_path: Path, content: str) -> None:
    path = tmp_path / "wisdom.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"holds no wisdom .* torch_corr\.wisdom\.save"):
        wisdom.load(path)
    assert len(WISDOM) == 0


def test_nothing_of_a_bad_file_is_taken(tmp_path: Path) -> None:
    make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    path = tmp_path / "wisdom.json"
    wisdom.save(path)
    content = json.loads(path.read_text())
    content["entries"][-1]["seconds"] = {"aten": -1.0}
    path.write_text(json.dumps(content))
    wisdom.forget()
    with pytest.raises(ValueError, match="not all positive"):
        wisdom.load(path)
    assert len(WISDOM) == 0


def test_componentwise_never_takes_a_transform() -> None:
    loose, strict = Auto(), Auto(error="componentwise")
    for map in MAPS:
        names = {
            each.algorithm.name: each.refusals for each in strict.survey(request(LARGE_KERNEL, map))
        }
        assert "Auto(error='componentwise') was asked for" in names["fft, checked"][0]
        chosen = strict.choose(request(LARGE_KERNEL, map))
        assert chosen is not None
        assert chosen.error_class == "componentwise"
        free = {
            each.algorithm.name: each.refusals for each in loose.survey(request(LARGE_KERNEL, map))
        }
        assert free["fft, checked"] == ()


def test_the_workspace_limit_is_kept() -> None:
    """By the algorithms that have one, and by leaving out those that go past it."""
    auto = Auto(workspace_limit=2**20)
    for map in MAPS:
        for each in auto.survey(request(LARGE_KERNEL, map)):
            if not each.refusals:
                assert each.workspace <= 2**20
        chosen = auto.choose(request(LARGE_KERNEL, map))
        assert chosen is not None
        assert chosen.workspace(request(LARGE_KERNEL, map)) <= 2**20


@pytest.mark.parametrize("field", [{"error": "componentwize"}, {"workspace_limit": "1 GB"}])
def test_options_that_make_no_sense(field: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        Auto(**field)
    assert str(next(iter(field.values()))) in str(caught.value)


# -- machines -------------------------------------------------------------------------------------


def test_a_calibration_is_read_where_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_CORR_MACHINE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert calibration_path() == tmp_path / "torch_corr" / "machine.json"
    mine = replace(SHIPPED, name="mine", float64=Rates(1e9, 2e9, 3e9, 4e9))
    current_machine.cache_clear()
    try:
        assert current_machine() == SHIPPED
        current_machine.cache_clear()
        mine.save(calibration_path())
        assert current_machine() == mine
    finally:
        current_machine.cache_clear()


DEVICES = {
    # Properties as CUDA gives them (kHz, bits), and what the maker states: bytes/s; FLOP/s in
    # float32, TF32, halves and float64.
    "A100": ((8, 0, 108, 1_410_000, 1_593_000, 5120), (2.04e12, 19.5e12, 156e12, 312e12, 19.5e12)),
    "H100": ((9, 0, 132, 1_830_000, 2_619_000, 5120), (3.35e12, 61.8e12, 494e12, 989e12, 61.8e12)),
    # As one that shares the host's memory and states no clock of it; rates by its units.
    "GB10": ((12, 1, 48, 2_418_000, 0, 0), (200e9, 29.7e12, 59.4e12, 119e12, 0.464e12)),
    "4090": ((8, 9, 128, 2_520_000, 10_501_000, 384), (1.01e12, 82.6e12, 165e12, 330e12, 1.29e12)),
}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A CUDA device that is not there, by its properties."""
    forget_refusals = triton_module._where_refusals.cache_clear

    def there(name: str) -> None:
        keys = "major", "minor", "multi_processor_count", "clock_rate", "memory_clock_rate"
        values = DEVICES[name][0]
        found = SimpleNamespace(name=name, **dict(zip((*keys, "memory_bus_width"), values)))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(triton_module, "_launcher_refusals", lambda: ())
        forget_refusals()
        machine_module._device_machine.cache_clear()
        machine_module.device_name.cache_clear()

    before = torch.backends.cudnn.allow_tf32
    yield there
    torch.backends.cudnn.allow_tf32 = before
    forget_refusals()
    machine_module._device_machine.cache_clear()
    machine_module.device_name.cache_clear()


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_is_known_by_its_own_figures(name: str, pretend: Any) -> None:
    """To 1% what its maker states, of which nothing is written down but units and their width."""
    pretend(name)
    stated = DEVICES[name][1]
    dtypes = (torch.float32, torch.float32, torch.bfloat16, torch.float64)
    for tf32, dtype, flops in zip((False, True, True, True), dtypes, stated[1:]):
        torch.backends.cudnn.allow_tf32 = tf32
        rates = machine_of(CUDA, dtype).rates(dtype)
        assert rates.matmul_flops == pytest.approx(flops, rel=0.01)
        assert rates.bytes == pytest.approx(stated[0], rel=0.01)


def test_what_a_device_does_not_state_is_told(
    pretend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And predicted all the same: 'auto' asks for the times of every call."""
    pretend("GB10")
    problem = Problem.parse("n1c1-x64-o1-k3")
    printed = str(make_plan(problem, CUDA, torch.float32, "auto"))
    assert "predicted for GB10 (no memory clock stated: 200 GB/s assumed)" in printed
    monkeypatch.setitem(DEVICES, "GB10", ((12, 1, 48, 0, 0, 0), DEVICES["GB10"][1]))
    pretend("GB10")
    clear_plans()
    printed = str(make_plan(problem, CUDA, torch.float32, "auto"))
    assert "assumed) (no clock stated: 1.5 GHz assumed) by its clock" in printed


def test_pytorch_computes_the_same_peaks(pretend: Any) -> None:
    """Its own, private, limits of a device, for those it knows."""
    limits = pytest.importorskip("torch.cuda._device_limits")
    torch.backends.cudnn.allow_tf32 = True
    for name in ("A100", "H100"):
        pretend(name)
        theirs = limits.GPULimits(CUDA)
        for dtype in (torch.float32, torch.float16, torch.float64):
            rates = machine_of(CUDA, dtype).rates(dtype)
            assert rates.matmul_flops == pytest.approx(1e12 * theirs.get_tflops_per_second(dtype))
            assert rates.bytes == theirs.get_memory_bandwidth_Bps()


def test_on_cuda_predictions_are_told_and_measurements_overrule_them(pretend: Any) -> None:
    """The plan says what they are made of; without Triton nothing but PyTorch is foretold."""
    pretend("H100")
    problem = Problem.parse("n8c64-x56-o64-k3-p1")
    clear_plans()
    plan = make_plan(problem, CUDA, torch.float16, "auto")
    assert {type(getattr(plan, map)) for map in MAPS} == {Aten}
    words = str(plan)
    assert "predicted for H100 by its clock, multiprocessors and memory bus" in words
    # The definition's operations at the peak of halves, its bytes, and a call; no limit rules out
    # what PyTorch copies on a CPU alone.
    flops, moved = 2 * problem.multiplications, 2 * (2 * 8 * 64 * 56**2 + 64 * 64 * 9)
    least = 1e6 * (flops / 989.4e12 + moved / 3.352e12) + 4
    (row,) = {line for line in words.splitlines() if "> aten" in line}
    assert row.split() == f"> aten {least:.3g} us predicted 0.0 MiB componentwise".split()
    key = Key.of(request(problem, device=CUDA, dtype=torch.float16))
    WISDOM.remember(key, {"aten": 2.0, "unfold": 1.0})
    clear_plans()
    plan = make_plan(problem, CUDA, torch.float16, "auto")
    assert isinstance(plan.forward, Unfold)
    assert isinstance(plan.grad_input, Aten)
    WISDOM.forget()
    clear_plans()


@pytest.mark.parametrize("way", [Aten(), Triton()], ids=lambda each: each.name)
def test_what_no_matrix_unit_does_takes_as_long_where_those_are_quicker(
    way: Algorithm, pretend: Any
) -> None:
    """ConvNeXt's layer in halves and with TF32, whose costs are told in quicker matrix products."""
    pretend("H100")
    problem = Problem.parse("n128c96-x56-o96-k7-p3-g96")

    def seconds(dtype: torch.dtype, tf32: bool) -> float:
        torch.backends.cudnn.allow_tf32 = tf32
        cost = way.cost(request(problem, device=CUDA, dtype=dtype))._replace(bytes=0)
        return machine_of(CUDA, dtype).seconds(cost, dtype)

    whole = seconds(torch.float32, False)
    assert seconds(torch.float16, False) == pytest.approx(whole, rel=0.1)
    assert seconds(torch.float32, True) == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("measured", [False, True], ids=["foretold", "measured"])
def test_on_cuda_a_transform_is_taken_with_triton_behind_it(
    measured: bool, with_triton: list[str]
) -> None:
    """A large dense kernel, in double precision, which matrix units of an H100 do at full rate."""
    torch.backends.cudnn.allow_tf32 = False
    problem, dtype = Problem.parse("n4c64-x128-o64-k32"), torch.float32
    if measured:
        for map in MAPS:
            seen = {"fft, checked": 0.4, "triton taps-4": 4.0, "aten": 5.0}
            WISDOM.remember(Key.of(request(problem, map, CUDA, dtype)), seen)
    clear_plans()
    plan = make_plan(problem, CUDA, dtype, "auto")
    for map in MAPS:
        chosen = getattr(plan, map)
        assert isinstance(chosen, CheckedFFT), str(plan)
        assert not chosen.refusals(request(problem, device=CUDA, dtype=dtype))
        assert chosen.workspace(request(problem, map, CUDA, dtype)) <= Auto().workspace_limit
    assert str(plan).count("normwise; each result is checked, else triton") == 3
    plan = make_plan(problem, CUDA, dtype, Auto(error="componentwise"))
    assert not any(isinstance(getattr(plan, map), CheckedFFT) for map in MAPS)
    # Predicted with TF32, PyTorch is quicker than either.
    clear_plans()
    torch.backends.cudnn.allow_tf32 = True
    assert isinstance(make_plan(problem, CUDA, dtype, "auto").forward, Aten) or measured
    assert not with_triton
    clear_plans()


@pytest.mark.parametrize("spelling", ["n0c1-x64-o1-k9", "n1c0-x64-o1-k9"])
def test_on_cuda_nothing_is_looked_at_where_there_is_nothing(
    spelling: str, with_triton: list[str]
) -> None:
    """No images, or no channels: to plan for them, to explain and to measure divides by neither."""
    problem = Problem.parse(spelling)
    clear_plans()
    for requested in ("auto", Auto(measure=True)):
        plan = make_plan(problem, CUDA, torch.float32, requested)
        assert str(plan).count("fft") >= 3
    clear_plans()


def test_on_cuda_no_transform_is_taken_that_nothing_stands_behind(
    with_triton: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton refuses, or takes more memory than there may be; the host waits for neither."""
    torch.backends.cudnn.allow_tf32 = False
    problem, dtype = Problem.parse("n4c64-x128-o64-k16"), torch.float32
    here = request(problem, device=CUDA, dtype=dtype)
    WISDOM.remember(Key.of(here), {"fft, checked": 0.4, "aten": 5.0})
    limit = FFT().workspace(here)
    taken = Triton().workspace
    monkeypatch.setattr(Triton, "workspace", lambda *_: limit + 1)
    assert isinstance(Auto(workspace_limit=limit).choose(here), Aten)
    monkeypatch.setattr(Triton, "workspace", taken)
    monkeypatch.setattr(triton_module, "_where_refusals", lambda _: ("not today",))
    clear_plans()
    plan = make_plan(problem, CUDA, dtype, "auto")
    assert isinstance(plan.forward, Aten)
    assert "triton must recompute what fails its check, and refuses: not today" in str(plan)
    clear_plans()


@pytest.mark.parametrize("spelling", ["n24c64-x128-o64-k16", "n64c1-x1024-o1-k63-p31"])
def test_on_cuda_there_is_memory_for_both_results(spelling: str, with_triton: list[str]) -> None:
    """The transform's and Triton's: either way alone takes no more than it may."""
    torch.backends.cudnn.allow_tf32 = False
    problem, dtype = Problem.parse(spelling), torch.float64
    clear_plans()
    for limit in (Auto().workspace_limit, 16 * Auto().workspace_limit):
        plan = make_plan(problem, CUDA, dtype, Auto(workspace_limit=limit))
        for map in MAPS:
            chosen = getattr(plan, map)
            assert chosen.workspace(request(problem, map, CUDA, dtype)) <= limit, map
    assert isinstance(plan.forward, CheckedFFT)
    clear_plans()


def test_on_cuda_a_transform_keeps_to_the_settings_of_convolutions(
    with_triton: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In double precision TF32 does not matter; cuBLAS may not be deterministic."""
    problem = Problem.parse("n4c64-x128-o64-k32")
    monkeypatch.setattr(planner_module, "_MAY_BE_CUDA", True)
    clear_plans()

    def planned() -> tuple[Algorithm, str]:
        plan = make_plan(problem, CUDA, torch.float32, "auto")
        return plan.forward, str(plan)

    torch.backends.cudnn.allow_tf32 = False
    assert isinstance(planned()[0], CheckedFFT)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert isinstance(planned()[0], CheckedFFT)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert isinstance(planned()[0], CheckedFFT)
    mode = torch.get_deterministic_debug_mode()
    try:
        torch.set_deterministic_debug_mode("error")
        assert isinstance(planned()[0], CheckedFFT)
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        clear_plans()
        taken, words = planned()
        assert not isinstance(taken, CheckedFFT)
        assert "unless CUBLAS_WORKSPACE_CONFIG is :4096:8 or :16:8" in words
        torch.set_deterministic_debug_mode("default")
        assert isinstance(planned()[0], CheckedFFT)
    finally:
        torch.set_deterministic_debug_mode(mode)
    clear_plans()


@pytest.mark.parametrize("setting", ["tf32", "deterministic"])
def test_on_cuda_whatever_multiplies_matrices_keeps_to_those_settings(
    setting: str, with_triton: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfold too: timed it would end in cuBLAS's error, and taken it would be TF32 unasked."""
    torch.backends.cudnn.allow_tf32 = False
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before, mode = torch.backends.cuda.matmul.allow_tf32, torch.get_deterministic_debug_mode()
    try:
        torch.set_deterministic_debug_mode("error" if setting == "deterministic" else "default")
        torch.backends.cuda.matmul.allow_tf32 = setting == "tf32"
        clear_plans()
        make_plan(Problem.parse("n4c64-x32-o64-k3"), CUDA, torch.float32, Auto(measure=True))
        assert "aten" in with_triton
        assert not {"unfold", "fft"} & {*with_triton}
        # Products of halves are exact in TF32, float64 has none, and complex ones are as real ones.
        allowed = setting == "tf32"
        for dtype in (torch.float16, torch.float64):
            assert bool(auto_module._against_products(dtype)) != allowed
        torch.backends.cudnn.allow_tf32 = True
        for dtype in (torch.float32, torch.complex64):
            assert bool(auto_module._against_products(dtype)) != allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
        torch.set_deterministic_debug_mode(mode)
        clear_plans()


def test_on_cuda_what_is_foretold_may_take_too_much_memory(with_triton: list[str]) -> None:
    """An even kernel whose padded copy passes the limit: not for the reference, for all that."""
    clear_plans()
    plan = make_plan(Problem.parse("n64c64-x256-o64-k4-p1,2x1,2"), CUDA, torch.float32, "auto")
    assert {type(getattr(plan, map)) for map in MAPS} == {Unfold}
    clear_plans()


@pytest.mark.parametrize(
    ("spelling", "dtype", "triton"),
    [
        ("n64c384-x32-o384-k31-p15-g384", torch.float16, MAPS),
        ("n128c96-x56-o96-k7-p3-g96", torch.float32, MAPS),
        ("n1c1-x2048-o1-k3", torch.float32, ("forward", "grad_weight")),
        ("n16c64-x56-o64-k3-p1", torch.float64, MAPS),
        ("n8c64-x56-o64-k3-p1", torch.float32, ()),
        ("n64c512-x14-o512-k3-p1", torch.float16, ()),
        # cuDNN has kernels for halves under small kernels; and for small layers the host's time
        # counts.
        ("n8c144-x56-o144-k3-p1-g144", torch.float16, ()),
        ("n8c144-x56-o144-k3-p1-g144", torch.float32, ()),
        ("n1c1-x64-o1-k5", torch.float32, ()),
    ],
)
def test_on_cuda_triton_is_foretold_where_pytorch_was_seen_to_be_slow(
    spelling: str, dtype: torch.dtype, triton: tuple[str, ...], with_triton: list[str]
) -> None:
    """As timed on an H200; nothing is measured for it."""
    torch.backends.cudnn.allow_tf32 = False
    clear_plans()
    plan = make_plan(Problem.parse(spelling), CUDA, dtype, "auto")
    assert {map for map in MAPS if isinstance(getattr(plan, map), Triton)} == {*triton}
    assert {type(getattr(plan, map)) for map in MAPS} <= {Aten, Triton}
    assert not with_triton
    clear_plans()


@pytest.mark.parametrize(
    ("spelling", "dtype", "triton"),
    [
        ("n64c384-x32-o384-k31-p15-g384", torch.float32, MAPS),
        ("n64c384-x32-o384-k31-p15-g384", torch.float16, MAPS),
        ("n128c96-x56-o96-k7-p3-g96", torch.float32, MAPS),
        # cuDNN has kernels for these as quick as memory; of the rest there nothing is known.
        ("n128c96-x56-o96-k7-p3-g96", torch.float16, ("forward", "grad_input")),
        ("n8c144-x56-o144-k3-p1-g144", torch.float32, ()),
        ("n16c64-x56-o64-k3-p1", torch.float64, ()),
        ("n1c1-x2048-o1-k3", torch.float32, ()),
        # A small layer, for the host's sake.
        ("n1c8-x16-o8-k7-p3-g8", torch.float32, ()),
    ],
)
def test_in_channels_last_triton_takes_what_pytorch_was_seen_to_be_slow_at(
    spelling: str, dtype: torch.dtype, triton: tuple[str, ...], with_triton: list[str]
) -> None:
    """As timed on an H200; what is known of contiguous images does not count."""
    torch.backends.cudnn.allow_tf32 = False
    problem = Problem.parse(spelling)
    for map in MAPS:
        WISDOM.remember(Key.of(request(problem, map, CUDA, dtype)), {"unfold": 1e-9, "aten": 1.0})
    plan = make_plan(problem, CUDA, dtype, Auto(channels_last=True))
    assert {map for map in MAPS if isinstance(getattr(plan, map), Triton)} == {*triton}
    assert {type(getattr(plan, map)) for map in MAPS} <= {Aten, Triton}
    assert {type(getattr(make_plan(problem, CUDA, dtype, "auto"), map)) for map in MAPS} == {Unfold}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_what_was_measured_of_contiguous_images_sends_no_others_to_conv2d(
    layout: torch.memory_format, with_triton: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call whose plan, made for how the images lie, has algorithms of ours in it."""
    torch.backends.cudnn.allow_tf32 = False
    problem, dtype = Problem.parse("n64c384-x32-o384-k31-p15-g384"), torch.float32
    for map in MAPS:
        key = Key.of(request(problem, map, CUDA, dtype))
        WISDOM.remember(key, {"aten": 1e-9, "triton taps-4": 1.0})
    monkeypatch.setattr(torch, "conv2d", lambda *_: "conv2d")
    with FakeTensorMode():
        x = torch.empty(problem.input_shape, device=CUDA, memory_format=layout)
        w = torch.empty(problem.weight_shape, device=CUDA)
    result: Any = fast_path.conv2d_if_chosen(x, w, None, 1, 15, 1, 384)
    assert (result == "conv2d") == (layout == torch.contiguous_format)


@pytest.fixture
def with_triton(pretend: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An H100 that is not there, with Triton; a list of what is timed, Triton the quickest."""
    pretend("H100")
    timed: list[str] = []

    def times(algorithms: Any, *_: Any) -> dict[str, float]:
        timed.extend(each.spelling for each in algorithms)
        return {each.spelling: 2.0 - (each.name == "triton") for each in algorithms}

    monkeypatch.setattr(triton_module, "_where_refusals", lambda _: ())
    monkeypatch.setattr(auto_module, "time_algorithms", times)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    WISDOM.forget()
    yield timed
    WISDOM.forget()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_on_cuda_nobody_is_left_unmeasured_for_its_prediction(
    dtype: torch.dtype, with_triton: list[str]
) -> None:
    """PyTorch is predicted at matrix units' peak, 25 times ahead, where its own kernel runs."""
    problem = Problem.parse("n64c384-x32-o384-k31-p15-g384")
    plan = make_plan(problem, CUDA, dtype, Auto(measure=True))
    assert {getattr(plan, map).name for map in MAPS} == {"triton"}
    assert {"aten", "unfold", "triton"} <= {*with_triton}
    assert "naive" not in with_triton


def test_nothing_is_timed_while_a_graph_is_captured(
    with_triton: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem.parse("n8c64-x56-o64-k3-p1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"while a CUDA graph is captured.*once before"):
        make_plan(problem, CUDA, torch.float32, Auto(measure=True))
    assert not with_triton
    assert isinstance(make_plan(problem, CUDA, torch.float32, "auto").forward, Aten)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    chosen = make_plan(problem, CUDA, torch.float32, Auto(measure=True))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    clear_plans()
    assert make_plan(problem, CUDA, torch.float32, Auto(measure=True)) == chosen


def test_wisdom_of_tf32_is_kept_apart(pretend: Any) -> None:
    pretend("H100")
    torch.backends.cudnn.allow_tf32 = True
    assert Key.of(request(SMALL, device=CUDA)).dtype == "tf32"
    assert Key.of(request(SMALL, device=CUDA, dtype=torch.float16)).dtype == "float16"
    assert Key.of(request(SMALL)).dtype == "float32"
    complexes = (request(SMALL, device=CUDA, dtype=d) for d in (torch.complex64, torch.complex128))
    assert [Key.of(each).dtype for each in complexes] == [
        "complex64, convolutions in tf32",
        "complex128",
    ]
    torch.backends.cudnn.allow_tf32 = False
    assert Key.of(request(SMALL, device=CUDA)).dtype == "float32"
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        told = Key.of(request(SMALL, device=CUDA)).dtype
        assert told == "float32, products in tf32"
        assert Key.of(request(SMALL, device=CUDA, dtype=torch.float16)).dtype == "float16"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("algorithm", [Aten(), FFT(), Unfold(), Naive()], ids=lambda a: a.name)
@pytest.mark.parametrize("case", ["n2c4-x20x18-o4-k7x5-s2-p3,2x1,2-g2", "n2c2-x70-o2-k31-p15-g2"])
def test_no_map_asks_a_tensor_for_a_value(algorithm: Algorithm, case: str) -> None:
    """A CUDA device would be waited for; on meta, where there are no values, it would raise."""
    problem = Problem.parse(case)
    x, w, y = (
        torch.empty(shape, device="meta")
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    assert algorithm.forward(problem, x, w).shape == y.shape
    assert algorithm.grad_input(problem, y, w).shape == x.shape
    assert algorithm.grad_weight(problem, x, y).shape == w.shape


@dataclass(frozen=True)
class Paused(Sleeper):
    """An algorithm in two variants, of which the one that it takes itself is the slower."""

    name = "paused"
    pause: float = 0.02

    @property
    def spelling(self) -> str:
        return self.name if self.pause == 0.02 else f"paused {self.pause}"

    def variants(self, request: Request) -> tuple[Algorithm, ...]:
        return (Paused(pause=0.0),)


def test_variants_are_measured_remembered_and_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One by one, under spellings of their own; without wisdom there is only the algorithm."""
    monkeypatch.setattr(auto_module, "ALGORITHMS", (Paused(),))
    monkeypatch.setattr(auto_module, "WORTH_A_CHOICE", 0)
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
    clear_plans()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "name": 1}'])
def test_a_file_without_rates_says_the_way_out(tmp_path: Path, content: str) -> None:
    path = tmp_path / "machine.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"does not hold a machine's rates .* calibrate"):
        Machine.load(path)


def test_a_machine_twice_as_fast_predicts_half_the_time() -> None:
    cost = Cost(1e9, 2e9, 3e9, 4)
    rates = Rates(1e9, 1e9, 1e9, 1)
    assert rates.seconds(cost) == 1 + 2 + 3 + 4
    assert Rates(*(2 * rate for rate in rates)).seconds(cost) == 5


def test_the_stopwatch_tells_the_slow_from_the_quick() -> None:
    times = time_algorithms([Unfold(), Sleeper()], request(SMALL))
    assert times["sleeper"] > times["unfold"] > 0


def test_a_device_that_works_by_itself_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time would be that of telling it what to do."""
    heard: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda where: heard.append(str(where)))
    for device, waits in (("mps", ["mps"]), ("xpu:1", ["xpu:1"]), ("cpu", []), ("meta", [])):
        heard.clear()
        stopwatch._timed(torch.device(device), lambda: heard.append("work"))  # type: ignore
        assert heard == [*waits, "work", *waits]


def test_what_takes_long_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "_LONG", 0.01)
    runs: list[float] = []
    slow = Sleeper(pause=0.02)
    monkeypatch.setattr(
        Sleeper, "forward", lambda self, *of: (runs.append(self.pause), Unfold().forward(*of))[1]
    )
    monkeypatch.setattr(stopwatch, "_timed", lambda device, work: (work(), runs[-1])[1])
    quick = Sleeper(pause=0.001)
    times = time_algorithms([quick, slow], request(SMALL))
    assert times == {quick.spelling: 0.001, slow.spelling: 0.02}
    assert runs.count(0.02) == 1 < runs.count(0.001)


@pytest.mark.parametrize(
    ("dtype", "kernel", "stride"), [(torch.float32, 5, 64), (torch.bfloat16, 31, 97)], ids=str
)
def test_more_than_2_31_pixels(dtype: torch.dtype, kernel: int, stride: int) -> None:
    """Of zeros, whose pages are not there until they are written; the last window is not zero."""
    side = 46_400
    try:
        plane = np.zeros(side * side * dtype.itemsize, np.uint8)
    except MemoryError:
        pytest.skip("no room")
    x = torch.from_numpy(plane).view(dtype).view(1, 1, side, side)
    assert x.numel() > 2**31
    rows = (side - kernel) // stride + 1
    last = slice((rows - 1) * stride, (rows - 1) * stride + kernel)
    small = torch.randint(-4, 5, (kernel, kernel)).to(dtype)
    x[0, 0, last, last] = small
    w = torch.randint(-4, 5, (1, 1, kernel, kernel)).to(dtype)
    y = corr2d(x, w, stride=stride)
    assert y.shape == (1, 1, rows, rows)
    assert y[0, 0, -1, -1] == (small.double() * w[0, 0].double()).sum().to(dtype)
    assert (y != 0).sum() <= 1
    # All windows summed, of which the last alone sees anything.
    gradient = torch.autograd.grad(corr2d(x, w.requires_grad_(), stride=stride).sum(), w)[0]
    assert torch.equal(gradient[0, 0], small)
