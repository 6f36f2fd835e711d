"""What ``auto`` takes: the quickest, by prediction, measurement or wisdom, as it was told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_corr import FFT, MAPS, Aten, Auto, Naive, Problem, Unfold, corr2d, wisdom
from torch_corr import auto as auto_module
from torch_corr.algorithms import Algorithm, Cost, Guarded, MapName
from torch_corr.auto import PREJUDICE, Candidate, _quickest
from torch_corr.machine import SHIPPED, Machine, Rates, calibration_path, current_machine
from torch_corr.planner import forget_plans, make_plan
from torch_corr.stopwatch import time_algorithms
from torch_corr.wisdom import WISDOM, Key

CPU = torch.device("cpu")
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
    clear = [candidate(Aten(), 1.0), candidate(Unfold(), PREJUDICE - 0.01)]
    close = [candidate(Aten(), 1.0), candidate(Unfold(), PREJUDICE + 0.01)]
    assert _quickest(clear) == Unfold()
    assert _quickest(close) == Aten()


def test_a_transform_is_taken_where_it_is_clearly_ahead() -> None:
    """Measured or not: its error is worse."""
    for source in ("predicted", "measured"):
        clear = [candidate(Unfold(), 1.0, source), candidate(FFT(), PREJUDICE - 0.01, source)]
        close = [candidate(Unfold(), 1.0, source), candidate(FFT(), PREJUDICE + 0.01, source)]
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

    def cost(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> Cost:
        return Cost()


def test_measuring_finds_out_what_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm that promises to cost nothing is found out by the stopwatch alone."""
    monkeypatch.setattr(auto_module, "ALGORITHMS", (Aten(), Sleeper(pause=0.05)))
    monkeypatch.setattr(auto_module, "WORTH_A_CHOICE", 0)
    forget_plans()
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == Sleeper(pause=0.05)
    measured = make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    assert measured.forward == Aten()
    assert len(WISDOM) == len(MAPS)
    # What one has measured, the other heeds.
    forget_plans()
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == Aten()


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
    key = Key.of(SMALL, "forward", CPU, torch.float32)
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
    forget_plans()
    before = make_plan(SMALL, CPU, torch.float32, "auto").forward
    chosen = Unfold() if before != Unfold() else Aten()
    WISDOM.remember(Key.of(SMALL, "forward", CPU, torch.float32), {chosen.name: 1e-9})
    wisdom.save(tmp_path / "wisdom.json")
    wisdom.load(tmp_path / "wisdom.json")
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == chosen
    # It holds for as many threads as there were.
    torch.set_num_threads(2)
    forget_plans()
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == before


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
            each.algorithm.name: each.refusals
            for each in strict.survey(map, LARGE_KERNEL, CPU, torch.float32)
        }
        assert "Auto(error='componentwise') was asked for" in names["fft"][0]
        chosen = strict.choose(map, LARGE_KERNEL, CPU, torch.float32)
        assert chosen is not None
        assert chosen.error_class == "componentwise"
        free = {
            each.algorithm.name: each.refusals
            for each in loose.survey(map, LARGE_KERNEL, CPU, torch.float32)
        }
        assert free["fft"] == ()


def test_the_workspace_limit_is_kept() -> None:
    """By the algorithms that have one, and by leaving out those that go past it."""
    auto = Auto(workspace_limit=2**20)
    for map in MAPS:
        for each in auto.survey(map, LARGE_KERNEL, CPU, torch.float32):
            if not each.refusals:
                assert each.workspace <= 2**20
        chosen = auto.choose(map, LARGE_KERNEL, CPU, torch.float32)
        assert chosen is not None
        assert chosen.workspace(LARGE_KERNEL, map, torch.float32) <= 2**20


@pytest.mark.parametrize("field", [{"error": "componentwize"}, {"workspace_limit": "1 GB"}])
def test_options_that_make_no_sense(field: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        Auto(**field)
    assert str(next(iter(field.values()))) in str(caught.value)


# -- transforms under auto ------------------------------------------------------------------------


GUARDED = Guarded(FFT(), Unfold())


def operands(problem: Problem, map: MapName) -> tuple[Tensor, Tensor]:
    """Normal numbers for a map, in the order that it takes them."""
    x, w, y = problem.input_shape, problem.weight_shape, problem.output_shape
    first, second = {"forward": (x, w), "grad_input": (y, w), "grad_weight": (x, y)}[map]
    return torch.randn(first), torch.randn(second)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("map", MAPS)
def test_what_is_not_finite_stays_in_its_windows(map: MapName, bad: float) -> None:
    """Where a transform would spread it over a tile, the sure algorithm's result is returned."""
    problem = Problem.parse("n1c2-x24-o2-k7-p3")
    first, second = operands(problem, map)
    clean = getattr(GUARDED, map)(problem, first, second)
    assert torch.equal(clean, getattr(FFT(), map)(problem, first, second))
    first[0, 0, 2, 3] = bad
    spread, sure = (
        getattr(algorithm, map)(problem, first, second) for algorithm in (FFT(), Unfold())
    )
    if map != "grad_weight":  # of which each window sees nearly the whole image
        assert (~spread.isfinite()).sum() > (~sure.isfinite()).sum()
    result = getattr(GUARDED, map)(problem, first, second)
    torch.testing.assert_close(result, sure, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("map", MAPS)
def test_faint_numbers_beside_bright_ones_are_not_drowned(map: MapName) -> None:
    """1e30 beside 1e-30 in one image: every result within the sure algorithm's own bound."""
    problem = Problem.parse("n1c1-x40-o1-k7-p3")
    first, second = operands(problem, map)
    first *= 1e-30
    assert torch.equal(
        getattr(GUARDED, map)(problem, first, second), getattr(FFT(), map)(problem, first, second)
    )
    first[0, 0, 0, 0] = 1e30
    sure = getattr(Unfold(), map)(problem, first, second)
    assert not torch.allclose(getattr(FFT(), map)(problem, first, second), sure, atol=0)
    assert torch.equal(getattr(GUARDED, map)(problem, first, second), sure)


def test_a_bright_pixel_does_not_ruin_the_faint_ones() -> None:
    """1e30 beside 1e-30 in one image, on the path that auto takes: as exact as the sure one."""
    problem = Problem.parse("n1c1-x64-o1-k15-p7")
    x, w = 1e-30 * torch.rand(problem.input_shape), torch.rand(problem.weight_shape)
    x[0, 0, 3, 3] = 1e30
    faint = (..., slice(30, None), slice(30, None))
    exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=7)
    assert not torch.allclose(FFT().forward(problem, x, w)[faint].double(), exact[faint], rtol=0.1)
    for result in (GUARDED.forward(problem, x, w), corr2d(x, w, padding=7)):
        torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=0)


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
    times = time_algorithms([Unfold(), Sleeper()], SMALL, "forward", CPU, torch.float32)
    assert times["sleeper"] > times["unfold"] > 0
