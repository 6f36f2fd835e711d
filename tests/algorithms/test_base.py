"""Options, registry and workspace of every algorithm, and maps that never wait for a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from support.maps import all_operands, request
from torch_corr import ALGORITHMS, FFT, MAPS, Aten, Auto, Direct, Naive, Problem, Unfold

CPU = torch.device("cpu")


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
        (lambda: Unfold(workspace_limit=1.5), TypeError, "workspace_limit must be an integer"),
        (
            lambda: Auto(workspace_limit=torch.tensor(5)),
            TypeError,
            "workspace_limit=.* is a tensor",
        ),
        (lambda: Unfold(workspace_limit=torch.tensor(5)), TypeError, r"pass its \.item\(\)"),
        (lambda: FFT(tile=torch.tensor(64)), TypeError, "tile=.* is a tensor"),
        (lambda: Auto(error="componentwize"), ValueError, "unknown error class 'componentwize'"),
        (lambda: Auto(workspace_limit="1 GB"), TypeError, "must be an integer, got '1 GB'"),
        (lambda: Auto(measure="no"), TypeError, "measure must be True or False, got 'no'"),
        (lambda: FFT(tile=0), ValueError, "tile=0 must be at least 1, or None"),
        (lambda: FFT(tile=[64, 64]), TypeError, r"option that cannot be hashed .*'list'"),
        (lambda: FFT(tile=64.0), TypeError, "tile must be an integer, got 64.0"),
        (lambda: Direct(isa=2), TypeError, "isa must be a string, as 'avx2', got 2"),
        (lambda: Listed(numbers=[1]), TypeError, r"numbers=\[1\]\) has an option that cannot be"),
    ],
)
def test_invalid_options_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("algorithm", [Aten(), FFT(), Unfold(), Naive()], ids=lambda a: a.name)
@pytest.mark.parametrize("case", ["n2c4-x20x18-o4-k7x5-s2-p3,2x1,2-g2", "n2c2-x70-o2-k31-p15-g2"])
def test_maps_run_on_meta_tensors(algorithm, case):
    """So no map reads a value of a tensor, for which it would wait on CUDA."""
    problem = Problem.parse(case)
    x, w, y = all_operands(problem, device="meta")
    assert algorithm.forward(problem, x, w).shape == y.shape
    assert algorithm.grad_input(problem, y, w).shape == x.shape
    assert algorithm.grad_weight(problem, x, y).shape == w.shape


def test_registry_ends_with_the_reference():
    assert isinstance(ALGORITHMS, tuple)
    assert ALGORITHMS[-1] == Naive()
    assert len({algorithm.name for algorithm in ALGORITHMS}) == len(ALGORITHMS)


def test_every_algorithm_states_its_workspace():
    problem = Problem.parse("n2c4-x9x8-o6-k3x2-s2x1-p1,0x2,1-g2")
    for algorithm in ALGORITHMS:
        for map in MAPS:
            for dtype in (torch.float32, torch.float16):
                assert algorithm.workspace(request(problem, map, dtype=dtype)) >= 0
