"""Two processes: DDP and FSDP2 train as with nn.Conv2d, DTensors keep to their part of a batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import ALGORITHMS, PROCESSES, SCHEMES, small_batch, small_network, trained
from networks import assert_as_right, farthest

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch is built without distributed"
)

WORKER = Path(__file__).with_name("distributed_worker.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found; started once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    ranks = range(PROCESSES)
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ranks
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(ranks), "\n".join(said)
    return [torch.load(folder / f"found-{rank}.pt") for rank in ranks]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_five_steps_as_with_nn_conv2d(
    found: list[dict[str, Any]], scheme: str, algorithm: str
) -> None:
    """Exact is one process with the whole batch in float64; all processes end with one result."""
    images, targets = (value.double() for value in small_batch())
    expected = trained(small_network().double(), images, targets)
    allowed = farthest(found[0]["training"][scheme]["draws"], expected)
    results = [each["training"][scheme]["ours"][algorithm] for each in found]
    assert_as_right(results[0], expected, allowed)
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name])
