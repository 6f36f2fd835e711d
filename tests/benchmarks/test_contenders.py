"""``contenders`` and ``peers``: each is called correctly, and in the same settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import peers
from benchmarks.cases import Case, Task, Work
from benchmarks.contenders import Contender, Ours, PyTorch, our_contenders, torch_contenders
from benchmarks.measure import measure
from benchmarks.memory import random_operands
from support.benchmark_results import BRIEF, CPU, SMALL
from support.spies import Sees
from torch_corr import ALGORITHMS, Auto, Problem
from torch_corr.algorithms import MAPS
from torch_corr.request import shape_of

each_gradient = pytest.mark.parametrize("work", ["grad_input", "grad_weight"])


@each_gradient
def test_pytorch_gets_operands_that_it_does_not_copy(work: Work):
    """A copy would be timed, and would be a win of ours that no user sees."""
    task = Task(SMALL.problem, work)
    operands = random_operands(task, torch.Generator())
    with Sees() as seen:
        PyTorch("torch", "torch").prepare(task, operands).run()
    assert [tuple(each.shape) for each in seen.given] == [
        shape_of(SMALL.problem, slot) for slot in ("output", "input", "weight")
    ]
    assert all(each.is_contiguous() for each in seen.given)


@each_gradient
def test_pytorch_gets_all_operands_in_channels_last(work: Work) -> None:
    """It computes in the layout of image and weight; the gradient is one of the two."""
    task = Task(Problem.parse("n2c4-x9-o6-k3"), work, torch.float16, layout="channels_last")
    operands = random_operands(task, torch.Generator())
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in operands.values())
    with Sees() as seen:
        PyTorch("torch", "torch").prepare(task, operands).run()
    assert len(seen.given) == 3
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen.given)
    assert not any(each.is_contiguous() for each in seen.given)


def test_pytorch_runs_with_and_without_cudnns_search_on_cuda():
    assert [each.name for each in torch_contenders(CPU)] == ["torch"]
    names = [each.name for each in torch_contenders(torch.device("cuda"))]
    assert names == ["torch", "torch, cudnn.benchmark"]


def test_every_algorithm_and_both_forms_of_auto_are_contenders():
    names = [each.name for each in our_contenders()]
    assert names == ["auto", "auto-measured", *(each.name for each in ALGORITHMS)]
    requested = [each.requested for each in our_contenders() if isinstance(each, Ours)]
    assert requested == ["auto", Auto(measure=True), *ALGORITHMS]


def test_auto_does_not_use_measurements_of_auto_measured(monkeypatch: pytest.MonkeyPatch):
    task = Task(Problem.parse("n8c16-x24-o16-k3"), "forward")
    operands = random_operands(task, torch.Generator())

    def times(algorithms: Any, *_: Any) -> dict[str, float]:
        return {each.spelling: 1.0 + (each.name != "unfold") for each in algorithms}

    monkeypatch.setattr("torch_corr.planning.auto.time_algorithms", times)
    auto, measured = our_contenders()[:2]
    before = auto.prepare(task, operands).chose
    assert before != "unfold"
    for _ in range(2):
        assert measured.prepare(task, operands).chose == "unfold"
        assert auto.prepare(task, operands).chose == before
    assert "auto" in measured.refusals(replace(task, work="call"))[0]


@pytest.mark.filterwarnings("ignore")  # warnings of peers
@pytest.mark.parametrize("peer", peers.peers(), ids=lambda peer: peer.name)
def test_peers_are_right_or_refuse(peer: Contender):
    """For each kind of padding and geometry, and each map."""
    if (reason := peer.absent()) is not None:
        pytest.skip(reason)
    spellings = [
        "n1c1-x20x23-o1-k5",
        "n1c1-x20x23-o1-k5-p2",
        "n1c1-x20x23-o1-k4",
        "n1c1-x20x23-o1-k5x3-p4x2",
        "n1c1-x20x23-o1-k4-p1,2x0,3",
        "n2c3-x12-o6-k3-p1-g3",
        "n2c4-x12x13-o6-k3x2-s2-p1-d2-g2",
    ]
    done = 0
    for spelling in spellings:
        for work in MAPS:
            (row,) = measure(Case("peer", spelling, "test"), work, [peer], BRIEF)
            assert row.verdict in ("right", "refused"), row
            done += row.verdict == "right"
    assert done


@pytest.mark.parametrize(
    "name", ["scipy correlate fft", "scipy oaconvolve", "scipy correlate auto"]
)
def test_scipy_has_as_many_workers_as_pytorch_threads(name: str, monkeypatch: pytest.MonkeyPatch):
    """At every call, also those that are timed."""
    fft = pytest.importorskip("scipy.fft")
    (peer,) = peers.peers([name])
    assert isinstance(peer, peers.PlanePeer)
    make, seen = peers.PLANE_FUNCTIONS[peer.function], []

    def watched(module: Any, problem: Problem) -> Any:
        one = make(module, problem)

        def called(plane: Any, kernel: Any) -> Any:
            seen.append(fft.get_workers())
            return one(plane, kernel)

        return called

    monkeypatch.setitem(peers.PLANE_FUNCTIONS, peer.function, watched)
    torch.set_num_threads(2)
    case = Case("plane", "n1c1-x32-o1-k15", "test")
    (row,) = measure(case, "forward", [peer], replace(BRIEF, threads=2))
    assert row.verdict == "right", row
    assert len(seen) > 3
    assert set(seen) == {2}
    assert fft.get_workers() == 1


def test_peer_that_is_not_installed_is_absent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    for peer in peers.peers():
        assert "pip install" in str(peer.absent())
    assert measure(SMALL, "forward", peers.peers(), BRIEF) == []


def test_peer_that_cannot_be_imported_is_absent(monkeypatch: pytest.MonkeyPatch):
    """As OpenCV's wheel with windows, in a container without a graphics library."""

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
