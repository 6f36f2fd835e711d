"""The benchmark suite is itself held: what is wrong is caught, what is slow shows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.spies import Sees

# The suite is run from the checkout and not installed; what is installed comes first.
sys.path.append(str(Path(__file__).parent.parent))

import benchmarks
from benchmarks import compare, measure, memory, merge, peers, readme, report
from benchmarks.__main__ import main
from benchmarks.cases import CASES, GROUPS, SWEEPS, WORKS, Case, Work, select
from benchmarks.check import (
    SOUGHT,
    Expected,
    expected,
    judge,
    reference_at,
    sample,
    shape_of,
)
from benchmarks.contenders import (
    Contender,
    Ours,
    Prepared,
    PyTorch,
    our_contenders,
    torch_contenders,
)
from benchmarks.machine import describe, slug
from benchmarks.memory import random_operands, try_once
from benchmarks.results import Results, Row
from torch_corr import ALGORITHMS, FFT, Aten, Auto, Problem
from torch_corr.algorithms import MAPS
from torch_corr.testing import Componentwise, Fourier, declared, oracle, problems

CPU = torch.device("cpu")
SMALL = Case("small", "n2c4-x9x11-o6-k3x2-p1-g2", "tiny", "test")
LARGE = Case("large", "n2c4-x20x22-o4-k7-p3", "dense", "test")
BRIEF = measure.Settings(budget=0.002, sample=0.0005, most=3, memory=False, seed=7)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Other tests may hold the other cores; and a run's settings are not for the tests after it."""
    threads = torch.get_num_threads()
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32


# Planted algorithms -------------------------------------------------------------------


class Planted(Aten):
    """PyTorch's own, to be spoilt."""

    name: ClassVar[str] = "planted"


class Flipped(Planted):
    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        return super().grad_weight(problem, input, output).flip(-1)


class DropsLastColumn(Planted):
    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        result = super().forward(problem, input, weight)
        result[-1, -1, -1, -1] = 0
        return result


class Imprecise(Planted):
    """Sums in half precision."""

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        return super().forward(problem, input.bfloat16(), weight.bfloat16()).to(input.dtype)


class LeavesNaN(Planted):
    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        result = super().forward(problem, input, weight)
        result[0, 0, 3, 3] = torch.nan
        return result


@dataclass(frozen=True)
class Remembers(Planted):
    """Returns what it computed for the same memory before."""

    seen: dict[int, Tensor] = field(default_factory=dict, hash=False, compare=False)

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        if input.data_ptr() not in self.seen:
            self.seen[input.data_ptr()] = super().forward(problem, input, weight)
        return self.seen[input.data_ptr()]


@dataclass(frozen=True)
class Tires(Planted):
    """Right for its first calls."""

    calls: list[int] = field(default_factory=list, hash=False, compare=False)

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        self.calls.append(1)
        result = super().forward(problem, input, weight)
        return result if len(self.calls) < 3 else result * 1.001


class Slow(Planted):
    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        time.sleep(0.01)
        return super().forward(problem, input, weight)


class Raises(Planted):
    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        raise ValueError("no such kernel\nand more")


def run(algorithm: Any, case: Case = SMALL, work: Work = "forward") -> Row:
    """The row of one algorithm of ours, beside PyTorch."""
    torch_row, row = measure.measure(
        case, work, [PyTorch("torch", "torch"), Ours("planted", "ours", requested=algorithm)], BRIEF
    )
    assert torch_row.verdict == "right", torch_row
    assert len(torch_row.samples) == 3
    return row


@pytest.mark.parametrize("case", [SMALL, LARGE], ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("planted", "work"),
    [
        (Flipped(), "grad_weight"),
        (DropsLastColumn(), "forward"),
        (Imprecise(), "forward"),
        (LeavesNaN(), "forward"),
        (Remembers(), "forward"),
        (Tires(), "forward"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Planted) else "",
)
def test_a_wrong_algorithm_is_caught_and_not_timed(planted: Planted, work: Work, case: Case):
    """Wrong from the start, at one corner, in precision, later, or by remembering."""
    row = run(planted, case, work)
    assert row.verdict == "wrong"
    assert row.note
    assert row.samples == []


def test_what_raises_is_told_and_the_others_go_on():
    row = run(Raises())
    assert (row.verdict, row.note) == ("failed", "ValueError: no such kernel")


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("case", [SMALL, LARGE], ids=lambda case: case.name)
def test_what_is_right_is_timed(case: Case, work: Work):
    """Every algorithm, on every piece of work that it does not refuse."""
    for row in measure.measure(case, work, our_contenders(), BRIEF):
        assert row.verdict in ("right", "refused"), row
        assert bool(row.samples) == (row.verdict == "right")
        assert row.error is None or row.error <= 1


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "complex64"])
def test_every_dtype_is_judged_by_its_own_bound(dtype: str):
    case = Case("typed", SMALL.spelling, "tiny", "test", dtype)
    contenders = [PyTorch("torch", "torch"), Ours("auto", "ours")]
    for work in MAPS:
        for row in measure.measure(case, work, contenders, BRIEF):
            assert row.verdict in ("right", "rough"), row
            assert row.samples


def test_a_slow_algorithm_shows(tmp_path: Path):
    """In its samples, in the ratio, and as a loss in the report."""
    rows = measure.measure(
        SMALL,
        "forward",
        [PyTorch("torch", "torch"), Ours("auto", "ours", requested=Slow())],
        BRIEF,
    )
    assert rows[1].seconds >= 0.01
    (line,) = report.lines(results_of(rows))
    assert line.speedup is not None
    assert line.speedup < 0.5
    tables = report.markdown(results_of(rows)).partition("## Means")[2]  # after what marks mean
    assert "▼" in tables


def test_contenders_take_turns_in_an_order_that_rotates():
    """One sample each; who has had enough leaves the ring, who is wrong is never in it."""

    @dataclass
    class Entry:
        name: str
        left: int
        alive: bool = True

        @property
        def wants_more(self) -> bool:
            return self.left > 0

    ring: list[Any] = [Entry("a", 3), Entry("b", 3), Entry("x", 3, alive=False), Entry("c", 1)]
    seen = ""
    for entry in measure._turns(ring):
        seen += entry.name
        entry.left -= 1
    assert seen == "abcbaab"


def test_settings_are_applied():
    """Threads as asked, subnormals off, TF32 in one state."""
    tiny = torch.full((64,), 1e-39)
    assert bool((tiny * 1.0 != 0).all())
    for tf32 in (True, False):
        measure.Settings(threads=1, tf32=tf32).apply()
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
    assert torch.get_num_threads() == 1
    assert bool((tiny * 1.0 == 0).all())


@pytest.mark.parametrize("work", ["grad_input", "grad_weight"])
def test_pytorch_is_given_nothing_that_it_would_copy(work: Work):
    """A copy on its clock would be a win of ours that no user sees."""
    operands = random_operands(SMALL.problem, work, torch.float32, torch.Generator())
    with Sees() as seen:
        PyTorch("torch", "torch").prepare(SMALL.problem, work, operands).run()
    assert [tuple(each.shape) for each in seen.given] == [
        shape_of(SMALL.problem, slot) for slot in ("output", "input", "weight")
    ]
    assert all(each.is_contiguous() for each in seen.given)


def test_on_cuda_pytorch_takes_part_with_cudnns_search_and_without():
    assert [each.name for each in torch_contenders(CPU)] == ["torch"]
    names = [each.name for each in torch_contenders(torch.device("cuda"))]
    assert names == ["torch", "torch, cudnn.benchmark"]


# The sample ---------------------------------------------------------------------------


@settings(max_examples=30)
@given(problem=problems(), seed=st.integers(0, 2**32), complex_=st.booleans())
def test_index_arithmetic_agrees_with_the_oracle(problem: Problem, seed: int, complex_: bool):
    """Value, magnitude and number of terms of any element of any slot."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.complex128 if complex_ else torch.float64
    for map in MAPS:
        operands = random_operands(problem, map, dtype, generator)
        (slot,) = SOUGHT[map]
        if 0 in shape_of(problem, slot):
            continue
        at = sample(problem, slot, random.Random(seed))[:12]
        found = reference_at(problem, slot, operands, at)
        truth = oracle(problem, **operands)
        index = tuple(torch.tensor(axis) for axis in zip(*at))
        for mine, theirs in zip(found[:3], truth[:3]):  # value, magnitude, terms
            torch.testing.assert_close(mine, theirs[index], rtol=1e-12, atol=1e-12)


def test_the_sample_holds_corners_and_fits_its_budget():
    problem = Problem.parse("n2c1-x2048-o3-k9-p4")
    at = sample(problem, "output", random.Random(0))
    n, o, i, j = zip(*at)
    assert {0, 1} <= set(n)
    assert {0, 2} <= set(o)
    assert {0, 2047} <= set(i) & set(j)
    assert 8 <= len(sample(problem, "weight", random.Random(0))) < len(at)


def test_normwise_contenders_are_allowed_transforms_and_no_more():
    """A plain FFT passes as normwise; so does no result that is a hundredth off."""
    problem = Problem.parse("n1c1-x64-o1-k9")
    generator = torch.Generator().manual_seed(0)
    operands = random_operands(problem, "forward", torch.float32, generator)
    truth = expected(problem, "forward", operands, random.Random(0))
    spectrum = torch.fft.rfft2(operands["input"])
    kernel = torch.fft.rfft2(operands["weight"], s=problem.size)
    result = torch.fft.irfft2(spectrum * kernel.conj(), s=problem.size)[..., :56, :56]
    assert judge(problem, truth, (result,), Fourier(), "ours").verdict == "right"
    assert judge(problem, truth, (result * 1.01,), Fourier(), "ours").verdict == "wrong"
    declares = declared(FFT())
    assert judge(problem, truth, (result,), declares, "ours").verdict == "right"
    assert judge(problem, truth, (result * 1.001,), declares, "ours").verdict == "wrong"


def test_rough_is_for_rounding_of_others_only():
    problem, value = Problem.parse("n1c1-x1-o1-k1"), torch.ones(1, 1, 1, 1)
    given = {"input": value, "weight": value}
    truth = (Expected("output", given, oracle(problem, **given)),)
    off = value * (1 + 8 * torch.finfo(torch.float16).eps)
    off = off.half()
    assert judge(problem, truth, (off,), Componentwise(), "peer").verdict == "rough"
    assert judge(problem, truth, (off,), Componentwise(), "ours").verdict == "wrong"
    assert judge(problem, truth, (off * 2,), Componentwise(), "peer").verdict == "wrong"


# Peers --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # what peers warn of is not ours
@pytest.mark.parametrize("peer", peers.peers(), ids=lambda peer: peer.name)
def test_peers_are_called_rightly(peer: Contender):
    """On each kind of padding and loop that a peer can do, and on each of its maps."""
    if (why := peer.absent()) is not None:
        pytest.skip(why)
    spellings = [
        "n1c1-x20x23-o1-k5",
        "n1c1-x20x23-o1-k5-p2",
        "n1c1-x20x23-o1-k5x3-p4x2",
        "n1c1-x20x23-o1-k4-p1,2x0,3",
        "n2c3-x12-o6-k3-p1-g3",
        "n2c4-x12x13-o6-k3x2-s2-p1-d2-g2",
    ]
    done = 0
    for spelling in spellings:
        for work in MAPS:
            case = Case("peer", spelling, "tiny", "test")
            (row,) = measure.measure(case, work, [peer], BRIEF)
            assert row.verdict in ("right", "refused"), row
            done += row.verdict == "right"
    assert done


@pytest.mark.parametrize(
    "name", ["scipy correlate fft", "scipy oaconvolve", "scipy correlate auto"]
)
def test_scipy_has_as_many_workers_as_pytorch_threads(name: str, monkeypatch: pytest.MonkeyPatch):
    """At every call of a run, the first and those on the clock."""
    fft = pytest.importorskip("scipy.fft")
    (peer,) = peers.peers([name])
    make, seen = peers.PLANE_FUNCTIONS[peer.function], []

    def watched(module: Any, problem: Problem) -> Any:
        one = make(module, problem)

        def called(plane: Any, kernel: Any) -> Any:
            seen.append(fft.get_workers())
            return one(plane, kernel)

        return called

    monkeypatch.setitem(peers.PLANE_FUNCTIONS, peer.function, watched)
    torch.set_num_threads(2)
    case = Case("plane", "n1c1-x32-o1-k15", "tiny", "test")
    (row,) = measure.measure(case, "forward", [peer], replace(BRIEF, threads=2))
    assert row.verdict == "right", row
    assert len(seen) > 3
    assert set(seen) == {2}
    assert fft.get_workers() == 1


def test_an_absent_peer_is_listed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    for peer in peers.peers():
        assert "pip install" in str(peer.absent())
    assert measure.measure(SMALL, "forward", peers.peers(), BRIEF) == []


def test_a_peer_that_cannot_be_imported_is_absent(monkeypatch: pytest.MonkeyPatch):
    """As OpenCV's wheel with windows is, in a container without a graphics library."""

    def broken(name: str) -> None:
        raise ImportError("libGL.so.1: no such file\nand more")

    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(peers.importlib, "import_module", broken)
    peers._import_failure.cache_clear()
    try:
        for peer in peers.peers():
            assert str(peer.absent()).endswith("cannot be imported: libGL.so.1: no such file")
        peers.set_peer_threads(1)
    finally:
        peers._import_failure.cache_clear()


def test_every_algorithm_takes_part_and_auto_both_ways():
    names = [each.name for each in our_contenders()]
    assert names == ["auto", "auto-measured", *(each.name for each in ALGORITHMS)]
    requested = [each.requested for each in our_contenders() if isinstance(each, Ours)]
    assert requested == ["auto", Auto(measure=True), *ALGORITHMS]


def test_auto_does_not_heed_what_its_measuring_twin_found(monkeypatch: pytest.MonkeyPatch):
    """Each is timed with what it knows itself."""
    problem = Problem.parse("n8c16-x24-o16-k3")
    operands = random_operands(problem, "forward", torch.float32, torch.Generator())

    def times(algorithms: Any, *_: Any) -> dict[str, float]:
        return {each.spelling: 1.0 + (each.name != "unfold") for each in algorithms}

    monkeypatch.setattr("torch_corr.planning.auto.time_algorithms", times)
    auto, measured = our_contenders()[:2]
    before = auto.prepare(problem, "forward", operands).chose
    assert before != "unfold"
    for _ in range(2):
        assert measured.prepare(problem, "forward", operands).chose == "unfold"
        assert auto.prepare(problem, "forward", operands).chose == before
    assert "auto" in measured.refusals(problem, "call", torch.device("cpu"), torch.float32)[0]


# The trial process --------------------------------------------------------------------


@dataclass(frozen=True)
class Acts(Contender):
    """Takes 48 MiB and gives them back, dies, or hangs, in the trial process."""

    name: str = "acts"
    kind: Any = "peer"

    def refusals(self, *_: Any) -> tuple[str, ...]:
        return ()

    def settings(self) -> Any:
        return torch.autocast("cpu")  # whatever shows from within

    def prepare(self, problem: Problem, work: Work, operands: Any) -> Prepared:
        def run() -> Tensor:
            assert torch.is_autocast_enabled("cpu"), "without the contender's settings"
            if problem.size == (4, 4):  # the first, tiny run
                return operands["input"]
            if self.name == "dies":
                os._exit(3)
            if self.name == "hangs":
                time.sleep(60)
            if self.name == "raises":
                raise MemoryError("none left")
            result = torch.ones(problem.output_shape)
            for _ in range(3):
                torch.ones(48 * 2**18)
            return result

        return Prepared(run, lambda result: (result,))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_a_trial_measures_memory_and_survives_the_worst(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_PRELOAD", ["benchmarks.memory"])  # peers are slow to import
    problem = Problem.parse("n1c1-x2048-o1-k1")  # a result of 16 MiB, which does not count

    def trial(name: str, patience: float = 60.0) -> Any:
        return try_once(Acts(name), problem, "forward", torch.float32, 1, patience)

    found = trial("takes")
    assert not found.failure
    assert 47 * 2**20 < found.memory < 51 * 2**20
    assert "exit code 3" in trial("dies").failure
    assert "none left" in trial("raises").failure
    hung = trial("hangs", patience=1.0)
    assert hung.timed_out


# Cases --------------------------------------------------------------------------------

GOALS = """
n8c64-x56-o64-k3-p1 float32 | n4c64-x56-o64-k3-p1 float64 | n8c64-x56-o64-k3-p1 bfloat16
n8c64-x56-o64-k3-p1 float16 | n8c3-x224-o64-k7-s2-p3 float32 | n8c256-x56-o64-k1 float32
n4c512-x14-o512-k3-p1 float32 | n2c256-x64-o256-k3-p4-d4 float32
n8c144-x56-o144-k3-p1-g144 float32 | n8c144-x56-o144-k3-p1-g144 bfloat16
n8c144-x56-o144-k3-p1-g144 float16 | n8c144-x56-o144-k5-s2-p2-g144 float32
n8c96-x56-o96-k7-p3-g96 float32 | n8c96-x56-o96-k7-p3-g96 float64
n4c128-x28-o128-k13-p6-g128 float32 | n1c128-x56-o128-k31-p15-g128 float32
n4c128-x56-o128-k3-p1-g32 float32 | n1c1-x1024-o2-k3-p1 float32 | n16c1-x256-o2-k3-p1 float32
n1c3-x1024-o3-k5-p2-g3 float32 | n1c1-x512-o32-k15-p7 float32 | n1c1-x2048-o1-k3 float32
n1c1-x2048-o1-k5 float32 | n1c1-x2048-o1-k9 float32 | n1c1-x1024-o1-k15 float32
n1c1-x1024-o1-k31-p15 float32 | n1c1-x512-o1-k101-p50 float32 | n64c1-x28-o32-k5 float32
n1c2048-x22-o8-k6-g8 float32 | n1c2048-x29-o2048-k5-g2048 float32
n1c2-x256-o2-k51-p25 float64 | n2c16-x56-o16-k3-p1 complex64 | n1c4-x8-o4-k3-p1 float32
n4c64-x128-o64-k8 float32 | n4c64-x128-o64-k16 float32 | n2c128-x256-o128-k16 float32
n1c128-x256-o128-k32 float32
"""
"""The cases in which the speed goals are stated."""


def test_every_case_of_the_speed_goals_is_there():
    here = {(str(case.problem), case.dtype) for case in CASES if set(MAPS) <= set(case.works)}
    for goal in GOALS.replace("\n", "|").split("|"):
        if goal.strip():
            spelling, dtype = goal.split()
            assert (str(Problem.parse(spelling)), dtype) in here, goal
    sides = {case.problem.size[0] for case in CASES if case.group == "image sweep"}
    assert {256, 8192} <= sides


def test_cases_are_whole():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.group in GROUPS
        assert case.source
        assert set(case.quick) <= set(case.works)
        assert case.torch_dtype.is_floating_point or case.torch_dtype.is_complex


def test_cases_are_picked_by_name_glob_dtype_or_spelling():
    assert [case.name for case in select(["gabor"])] == ["gabor bank 15x15"]
    assert {case.dtype for case in select(["*float16"])} == {"float16", "bfloat16"}
    assert select(["n1c1-x3x3"])[0].name == "textbook 2x2"
    assert 5 < len(select([], quick=True)) < len(select([])) == len(CASES)


# Results, report, comparison, README --------------------------------------------------


def results_of(rows: list[Row], **settings: Any) -> Results:
    names = dict.fromkeys(row.contender for row in rows)
    cases = {case.name: case for case in (*CASES, SMALL, LARGE)}
    kinds = {"torch": "torch", "opencv filter2D": "peer"}
    return Results(
        machine=describe(CPU),
        settings={
            "command": "python -m benchmarks",
            "started": "2020-01-01 00:00 UTC",
            "seconds": 60,
            "threads": 2,
            "quick": False,
            "tf32": False,
            **settings,
        },
        peaks={"matmul float32": 1e11, "copy": 1e10},
        cases=[
            {
                "name": name,
                "problem": str(cases[name].problem),
                "group": cases[name].group,
                "dtype": cases[name].dtype,
                "source": cases[name].source,
            }
            for name in dict.fromkeys(row.case for row in rows)
        ],
        contenders=[
            {"name": name, "kind": kinds.get(name, "ours"), "version": "1", "absent": None}
            for name in names
        ],
        rows=rows,
    )


def noisy_run(
    seed: int, slower: float = 1.0, drift: float = 1.0, count: int = 15, noise: float = 0.04
) -> Results:
    """Made-up samples with noise; ``auto`` slower on one case, the machine on all."""
    rng = random.Random(seed)
    rows = []
    for case in CASES:
        if case.group not in ("dense", "image filters", "kernel sweep", "image sweep"):
            continue
        for work in case.works:
            base = 1e-9 * case.problem.multiplications**0.9 * drift
            for name, factor in (
                ("torch", 1.0),
                ("auto", 0.3 * (slower if case.name == "photo 9x9" else 1)),
                ("fft", 3 / case.problem.kernel[0]),
                ("unfold", 0.3),
                ("opencv filter2D", 0.5),
            ):
                samples = [base * factor * rng.lognormvariate(0, noise) for _ in range(count)]
                row = Row(case.name, work, name, samples=samples, number=1, memory=2**24)
                rows.append(row)
    return results_of(rows)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three runs: one, one that is 25% slower on one case, and one on a busier machine."""
    made = {}
    for name, run in {
        "old": noisy_run(1),
        "slower": noisy_run(2, slower=1.25),
        "drifted": noisy_run(3, drift=1.5),
    }.items():
        made[name] = tmp_path_factory.mktemp(name) / "results.json"
        run.save(made[name])
    return made


def test_a_planted_regression_is_flagged(runs: dict[str, Path], capsys: Any):
    assert compare.main([str(runs["old"]), str(runs["slower"])]) == 1
    flagged = [line for line in capsys.readouterr().out.splitlines() if "slower or" in line]
    assert len(flagged) == 3
    assert all("auto, photo 9x9" in line for line in flagged)


def test_noise_is_not_flagged(runs: dict[str, Path], capsys: Any):
    """Nor a machine that is slower for all; in seconds it is."""
    assert compare.main([str(runs["old"]), str(runs["drifted"])]) == 0
    assert ", 0 worse, 0 better" in capsys.readouterr().out
    assert compare.main([str(runs["old"]), str(runs["drifted"]), "--absolute"]) == 1


@pytest.mark.parametrize("count", [3, 5, 15])
def test_few_and_noisy_samples_raise_no_alarm(count: int):
    """Where the noise is three times the threshold; what is far beyond it still shows."""
    old, same = (noisy_run(seed, count=count, noise=0.3) for seed in (1, 2))
    every = compare.changes(old, same)
    assert len(every) > 200
    assert sum(change.beyond_noise(0.1) for change in every) <= 0.01 * len(every)
    slower = noisy_run(3, slower=300, count=count, noise=0.3)
    flagged = [each for each in compare.changes(old, slower) if each.beyond_noise(0.1)]
    assert {"forward", "grad_input", "grad_weight"} <= {
        each.work for each in flagged if each.case == "photo 9x9" and each.contender == "auto"
    }


def test_a_single_sample_shows_nothing(runs: dict[str, Path]):
    old, new = (Results.load(runs[name]) for name in ("old", "slower"))
    for row in new.rows:
        row.samples = row.samples[:1]
    assert not any(change.beyond_noise(0.1) for change in compare.changes(old, new))


def test_runs_with_nothing_in_common_are_told(runs: dict[str, Path], tmp_path: Path):
    """A guard that compared nothing must not pass."""
    other = Results.load(runs["old"])
    other.rows = [row for row in other.rows if row.contender == "torch"]
    other.save(tmp_path / "results.json")
    with pytest.raises(SystemExit, match="nothing was timed in"):
        compare.main([str(runs["old"]), str(tmp_path)])
    with pytest.raises(SystemExit, match="nothing of 'atuo' was timed in"):
        compare.main([str(runs["old"]), str(runs["slower"]), "--only", "atuo"])


def test_what_cannot_be_compared_is_told(runs: dict[str, Path], tmp_path: Path, capsys: Any):
    """Another machine, rows that are missing, and seconds where PyTorch has none."""
    new = Results.load(runs["old"])
    new.machine["cpu"] = "another CPU"
    new.settings["threads"] = 3
    new.settings["unfinished"] = "5 of 9 pieces of work were measured"
    new.rows = [
        row
        for row in new.rows
        if row.contender != "fft" and (row.case, row.contender) != ("photo 9x9", "torch")
    ]
    for row in new.rows:
        if row.case == "photo 9x9":
            row.samples = [3 * sample for sample in row.samples]
    new.save(tmp_path / "results.json")
    assert compare.main([str(runs["old"]), str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "note: the CPU was " in told
    assert ", and is another CPU" in told
    assert "note: the number of threads was 2, and is 3" in told
    assert "is unfinished, 5 of 9" in told
    assert "note: not in " in told
    assert ": fft at " in told
    assert "3.00 × the time, in seconds, as PyTorch was not timed in both" in told  # noqa: RUF001


def test_what_broke_is_flagged(runs: dict[str, Path], tmp_path: Path, capsys: Any):
    new = Results.load(runs["old"])
    row = next(row for row in new.rows if row.contender == "auto")
    row.verdict, row.note, row.samples = "wrong", "off by one", []
    new.save(tmp_path / "results.json")
    assert compare.main([str(runs["old"]), str(tmp_path)]) == 1
    assert "broken" in capsys.readouterr().out


def test_what_was_run_again_takes_its_place(runs: dict[str, Path], tmp_path: Path, capsys: Any):
    """Whole pieces, told in the report; never another machine's."""
    old, new = Results.load(runs["old"]), Results.load(runs["slower"])
    new.rows = [row for row in new.rows if row.case == "photo 9x9" and row.work == "forward"]
    new.settings["command"] = "python -m benchmarks --cases 'photo 9x9' --maps forward"
    old.save(tmp_path / "old" / "results.json")
    new.save(tmp_path / "new" / "results.json")
    assert merge.main([str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert "python -m benchmarks report" in capsys.readouterr().out
    both = Results.load(tmp_path / "old")
    assert [(row.case, row.work, row.contender) for row in both.rows] == [
        (row.case, row.work, row.contender) for row in old.rows
    ]
    for row, before in zip(both.rows, old.rows):
        again = (row.case, row.work) == ("photo 9x9", "forward")
        assert (row.samples != before.samples) == again
    assert "Pieces of work measured again: 1, by `python -m" in report.conditions(both)
    line = readme.settings(both)
    assert "parts measured again, last 2020-01-01 00:00 UTC" in line
    assert new.settings["command"] not in line

    new.machine["cpu"] = "another CPU"
    new.cases[0]["dtype"] = "float64"
    new.save(tmp_path / "new" / "results.json")
    with pytest.raises(SystemExit, match=r"another CPU; '.*' is another case now"):
        merge.main([str(tmp_path / "old"), str(tmp_path / "new")])


def test_what_an_earlier_run_did_not_reach_goes_where_it_belongs(runs: dict[str, Path]):
    """Not to the end, where a case's maps would stand apart; until then the report says so."""
    old, new = Results.load(runs["old"]), Results.load(runs["slower"])
    pieces = [(row.case, row.work) for row in old.rows]
    late = [("vgg 3x3 128", work) for work in MAPS] + [("photo 9x9", "forward")]
    old.rows = [row for row in old.rows if (row.case, row.work) not in late]
    new.rows = [row for row in new.rows if (row.case, row.work) in late]
    assert "- **not reached**: vgg 3x3 128" in report.markdown(old).splitlines()
    old.cases = [case for case in old.cases if case["name"] != "vgg 3x3 128"]
    both = merge.merged(old, new)
    assert [(row.case, row.work) for row in both.rows] == pieces
    assert [case["name"] for case in both.cases] == list(dict.fromkeys(dict(pieces)))
    assert "not reached" not in report.markdown(both)


def test_results_come_back_as_they_were_saved(runs: dict[str, Path]):
    text = runs["old"].read_text(encoding="utf-8")
    results = Results.load(runs["old"])
    again = runs["old"].with_name("again.json")
    results.save(again)
    assert again.read_text(encoding="utf-8") == text
    assert len(json.loads(text)["rows"]) == len(results.rows)


def test_a_file_that_is_no_results_is_refused(tmp_path: Path):
    with pytest.raises(SystemExit, match="cannot read"):
        Results.load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match="no results file"):
        Results.load(tmp_path / "other.json")
    (tmp_path / "later.json").write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(SystemExit, match="has format 99, this version reads 1"):
        Results.load(tmp_path / "later.json")
    with pytest.raises(SystemExit, match="cannot read"):
        Results.load(tmp_path)  # a folder without results.json


def test_the_report_tells_wins_and_losses(runs: dict[str, Path]):
    results = Results.load(runs["old"])
    text = report.markdown(results)
    assert "photo 9x9" in text
    assert "geometric mean" in text
    count, mean = next(each[1:3] for each in report.means(results) if each[0] == "all")
    assert 3.2 < mean < 3.5
    sweeps = {case.name for case in CASES if case.group in SWEEPS}
    assert count == len({(row.case, row.work) for row in results.rows if row.case not in sweeps})


def test_the_roof_is_the_higher_of_two_times():
    results = results_of(
        [Row("photo 3x3", "forward", "auto"), Row("photo 31x31", "forward", "auto")]
    )
    few, many = (report.roof_seconds(results, case, "forward") for case in results.cases)
    assert few == (pytest.approx(4 * (2048**2 + 9 + 2046**2) / 1e10), "copy")
    assert many == (pytest.approx(2 * 1024**2 * 961 / 1e11), "compute")


def test_beside_pytorch_in_the_same_settings():
    """``cudnn.benchmark`` is the process's setting: it helps ``auto`` where that takes PyTorch."""
    seconds = {"torch": 4.0, "torch, cudnn.benchmark": 2.0, "auto": 2.5}
    rows = [Row("photo 3x3", "forward", name, samples=[each] * 3) for name, each in seconds.items()]
    results = results_of(rows, device="cuda")
    (line,) = report.lines(results)
    assert line.speedup == 1.6
    assert line.searched_speedup == 0.8
    assert "| 4 s | 2 s ▽ | 2.5 s |" in report.markdown(results)
    assert "Where cuDNN searches" in report.markdown(results)
    rows[-1].note, rows[-1].samples = "aten", [5.0] * 3
    (line,) = report.lines(results)
    assert line.searched_speedup == 0.8
    rows[-1].samples = [2.5] * 3
    (line,) = report.lines(results)
    assert line.searched_speedup == 1
    assert "▽ |" not in report.markdown(results)
    assert "searches" not in report.markdown(results_of(rows[::2]))


def test_a_crossover_stands_where_two_curves_meet():
    """One that grows with the taps and one that does not, between two measurements."""
    figures = pytest.importorskip("matplotlib.figure")
    from benchmarks import charts

    rows = [
        Row(f"one plane k{k}", "forward", name, samples=[seconds] * 3)
        for k in (9, 13)
        for name, seconds in (("direct", 1e-6 * k**2), ("fft", 1e-6 * 11**2))
    ]
    axes = figures.Figure().subplots()
    charts._crossovers(axes, report.lines(results_of(rows)))
    ((at, _),) = (line.get_xdata() for line in axes.lines)
    assert at == pytest.approx(11)
    assert [text.get_text() for text in axes.texts] == ["direct → fft"]


def test_who_refused_everything_is_told_with_the_reason():
    rows = [
        Row("photo 3x3", "forward", "triton", "refused", "no kernels for cpu"),
        Row("photo 3x3", "forward", "fft", "refused", "too few taps"),
        Row("photo 31x31", "forward", "fft", samples=[1.0] * 3),
    ]
    told = report.markdown(results_of(rows)).partition("## Not timed")[2]
    assert "- **refused everything**: triton, no kernels for cpu" in told
    assert "fft" not in told


def test_without_matplotlib_there_is_a_report(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "benchmarks.charts", raising=False)
    monkeypatch.delattr(benchmarks, "charts", raising=False)
    Results.load(runs["old"]).save(tmp_path / "results.json")
    assert report.write(tmp_path / "results.json") == [tmp_path / "report.md"]
    assert benchmarks.INSTALL in capsys.readouterr().err


def test_without_hypothesis_the_way_out_is_told():
    code = "import sys; sys.modules['hypothesis'] = None; import benchmarks"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "pip install hypothesis" in run.stderr
    assert "Traceback" not in run.stderr


SHORT = ["--maps", "forward", "--peers", "none", "--algorithms", "auto,triton", "--threads", "1"]
SHORT += ["--cases", "photo 3x3", "--cases", "photo 5x5", "--no-charts"]


def stops_at_second(monkeypatch: pytest.MonkeyPatch, how: BaseException) -> None:
    """Measuring takes no time, and comes to an end in the second piece of work."""
    calls = []

    def measured(case: Case, work: Work, *_: Any) -> list[Row]:
        calls.append(case)
        if len(calls) == 2:
            raise how
        return [Row(case.name, work, name, samples=[1.0] * 3) for name in ("auto", "torch")]

    monkeypatch.setattr("benchmarks.__main__.measure", measured)
    monkeypatch.setattr("benchmarks.__main__.measure_peaks", lambda *_: {})


def test_an_interrupted_run_reports_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    stops_at_second(monkeypatch, KeyboardInterrupt())
    assert main([*SHORT, "--out", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {"results.json", "report.md"}
    assert {row.case for row in Results.load(folder).rows} == {"photo 3x3"}
    told = (folder / "report.md").read_text(encoding="utf-8")
    assert "**The run did not finish: 1 of 2 pieces of work were measured.**" in told
    assert "takes no part: triton: " in capsys.readouterr().err


def test_a_run_that_is_cut_off_leaves_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stops_at_second(monkeypatch, RuntimeError("the machine is going down"))
    with pytest.raises(RuntimeError, match="going down"):
        main([*SHORT, "--out", str(tmp_path)])
    (draft,) = tmp_path.glob("*/*")
    assert draft.name == "unfinished.json"
    assert report.main([str(draft), "--no-charts"]) == 0
    assert "1 of 2 pieces" in draft.with_name("report.md").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stops_at_second(monkeypatch, AssertionError("it ran"))
    monkeypatch.setattr("benchmarks.__main__.measure_peaks", lambda *_: pytest.fail("it ran"))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match="--out: cannot write in"):
        main([*SHORT, "--out", str(tmp_path / "file")])


def test_one_command_runs_reports_and_draws(tmp_path: Path, capsys: Any):
    words = ["--cases", "textbook", "--cases", "5x5 on 256", "--cases", "5x5 on 512"]
    words += ["--maps", "forward", "--peers", "none", "--algorithms", "auto,unfold"]
    words += ["--out", str(tmp_path), "--threads", "1", "--no-memory", "--budget", "0.01"]
    assert main(words) == 0
    (folder,) = tmp_path.iterdir()
    results = Results.load(folder / "results.json")
    assert folder.name == slug(results.machine, 1)
    assert {row.verdict for row in results.rows} == {"right"}
    assert {"auto", "unfold", "torch"} == {row.contender for row in results.rows}
    report_text = (folder / "report.md").read_text(encoding="utf-8")
    for chart in ("speedup", "image-size"):
        assert f"({chart}.svg)" in report_text
        assert (folder / f"{chart}.svg").stat().st_size > 5000
        assert (folder / f"{chart}.png").stat().st_size > 5000
    assert "geometric mean" in capsys.readouterr().out


def test_a_mistaken_command_is_answered(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="finds no CUDA device"):
        main(["--device", "cuda"])
    with pytest.raises(SystemExit, match="unknown algorithm 'foo'; there are auto"):
        main(["--algorithms", "foo"])
    with pytest.raises(SystemExit, match="no case matches"):
        main(["--cases", "no such case"])
    with pytest.raises(SystemExit, match="no case matches 'resnett'"):
        main(["--cases", "tiny", "--cases", "resnett"])  # not the others alone
    with pytest.raises(SystemExit, match=r"nothing to measure.*leave --quick out"):
        main(["--cases", "gabor", "--quick"])
    with pytest.raises(SystemExit, match=r"nothing to measure.*tiny cases alone"):
        main(["--cases", "gabor", "--maps", "call"])
    with pytest.raises(SystemExit, match="unknown peer 'opencv'; there are opencv filter2D"):
        main(["--peers", "opencv"])
    for words, answer in (
        (["--maps", "sideways"], "none of forward"),
        (["--maps", ","], "',' names nothing"),
        (["--algorithms", ""], "'' names nothing"),
        (["--peers", ","], "',' names nothing"),
        (["--cases", ""], "an empty pattern; leave --cases out"),
        (["compare", "OLD", "NEW", "--threshold", "-5"], "'-5' is no such number from 0 up"),
        (["compare", "OLD", "NEW", "--threshold", "nan"], "'nan' is no such number from 0 up"),
        (["--threads", "0"], "'0' is no such number above 0"),
        (["--threads", "two"], "'two' is no such number above 0"),
        (["--budget", "nan"], "'nan' is no such number above 0"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert answer in capsys.readouterr().err


def test_maps_stands_for_the_three(capsys: Any):
    assert main(["--cases", "tiny 3x3", "--maps", "maps,call", "--list"]) == 0
    assert "tiny 3x3" in capsys.readouterr().out


def test_the_readme_is_kept_in_step(runs: dict[str, Path], tmp_path: Path, capsys: Any):
    page, speed = tmp_path / "README.md", tmp_path / "docs" / "speed.md"
    speed.parent.mkdir()
    for each in (page, speed):
        each.write_text(f"# Title\n{readme.START}\n{readme.END}\nrest\n", encoding="utf-8")
    assert readme.main(["--check"], tmp_path) == 1  # not filled yet
    assert readme.main([], tmp_path) == 0
    assert readme.main(["--check"], tmp_path) == 0
    assert "No results" in page.read_text(encoding="utf-8")

    path = tmp_path / "benchmarks" / "results" / "machine" / "results.json"
    path.parent.mkdir(parents=True)
    few = Results.load(runs["old"])
    few.rows = [row for row in few.rows if row.case.startswith("photo")]
    few.save(path)
    assert readme.main(["--check"], tmp_path) == 1  # results, and no report
    report.write(path)
    assert readme.main(["--check"], tmp_path) == 1  # a report, and the README is old
    assert readme.main([], tmp_path) == 0
    assert readme.main(["--check"], tmp_path) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Title\n")
    assert text.endswith("rest\n")
    assert "(benchmarks/results/machine/speedup.svg)" in text
    assert "(../benchmarks/results/machine/speedup.svg)" in speed.read_text(encoding="utf-8")

    written = path.with_name("report.md")
    told = written.read_text(encoding="utf-8")
    written.write_text(told.replace("photo", "foto"), encoding="utf-8")
    assert readme.main(["--check"], tmp_path) == 1  # by hand
    assert "report.md is not what results.json gives" in capsys.readouterr().err
    written.write_text(told, encoding="utf-8")

    chart = path.parent / "speedup.svg"
    drawn = chart.read_text(encoding="utf-8")
    few.rows.pop()
    few.save(path)
    report.write(path, charts=False)
    assert readme.main([], tmp_path) == 0
    capsys.readouterr()
    assert readme.main(["--check"], tmp_path) == 1  # charts of other results
    assert "was drawn from other results" in capsys.readouterr().err
    assert chart.read_text(encoding="utf-8") == drawn


def test_a_readme_without_a_place_for_it_is_told(tmp_path: Path):
    (tmp_path / "README.md").write_text("# Title\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="benchmarks:start"):
        readme.main(["--check"], tmp_path)
