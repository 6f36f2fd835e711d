"""Two processes: DDP and FSDP2 train as with nn.Conv2d, and DTensors need no communication."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import Partial

from support.distributed_worker import (
    ALGORITHMS,
    CASES,
    PROCESSES,
    SCHEMES,
    small_batch,
    small_layer,
    small_network,
    trained,
    two_orders,
)
from support.laws import assert_all_right
from support.networks import assert_as_right, farthest
from torch_corr.planning.plan import find_algorithm

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch is built without distributed"
)

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The results of each process, which start once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    ranks = range(PROCESSES)
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "support.distributed_worker", str(rank), str(folder)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ranks
    ]
    try:
        message = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(ranks), "\n".join(message)
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in ranks]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_distributed_training_equals_nn_conv2d(found, scheme, algorithm):
    """The exact result is one process in float64; all processes get the same parameters."""
    images, targets = (value.double() for value in small_batch())
    expected = trained(small_network().double(), images, targets)
    allowed = farthest(found[0]["training"][scheme]["draws"], expected)
    results = [each["training"][scheme]["ours"][algorithm] for each in found]
    assert_as_right(results[0], expected, allowed)
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name])


def test_convert_after_fully_shard(found):
    """A sharded layer stays sharded through convert and revert."""
    images, targets = (value.double() for value in small_batch())
    expected = trained(small_network().double(), images, targets)
    allowed = farthest(found[0]["training"]["FSDP2"]["draws"], expected)
    for each in (process["converted late"] for process in found):
        assert_as_right(each["parameters"], expected, allowed)
        assert each["skipped"] == {}
        before, after, reverted = each["states"]
        assert before == reverted == [(False, False), (True, False), (False, False)]
        assert after == [(False, True), (True, True), (False, True)]


@pytest.mark.parametrize(("number", "case"), list(enumerate(CASES)))
def test_dtensor_results_need_no_communication(found, number, case):
    """The values are right, and the results are sharded like the operands."""
    x, w, y = case.operands()
    algorithm = "auto" if case.algorithm == "auto" else find_algorithm(case.algorithm)
    for each in found:
        results = each["dtensors"][number]["values"]
        assert_all_right(results, case.problem, x, w, y, algorithm=algorithm)
        assert each["dtensors"][number]["communications"] == 0
        # The gradient of a replicated operand is a partial sum in each process.
        split = any(placement.is_shard() for placement in case.placements)
        of_input, of_weight = (
            Partial() if split and placement.is_replicate() else placement
            for placement in case.placements[:2]
        )
        placements = [case.placements[2], of_input, of_weight]
        assert each["dtensors"][number]["placements"] == placements


@pytest.mark.parametrize("algorithm", ["auto", "unfold"])
def test_dtensor_placements_equal_conv2d(found, algorithm):
    """With a bias, for the output, three gradients and three second derivatives.

    PyTorch's own second derivative by the weight has the right placement but wrong values.
    """
    right = two_orders(torch.conv2d, small_layer())
    for each in found:
        theirs, ours = (each["as conv2d"][name] for name in ("conv2d", algorithm))
        if theirs:
            placements = [placements for placements, _ in ours]
            assert placements == [placements for placements, _ in theirs]
        values = [value for _, value in ours]
        torch.testing.assert_close(values, right, rtol=1e-12, atol=1e-12)


def test_mixed_dtensor_and_tensor_are_refused(found):
    for each in found:
        for message in each["as conv2d"]["mixed"]:
            assert "mixed torch.Tensor and DTensor" in message
