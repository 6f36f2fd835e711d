"""Every test runs on every device there is, with fresh memory poisoned."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from torch_corr import Algorithm, Problem

SMALLEST = Problem.parse("n1c1-x1-o1-k1")

# The first call into torch takes seconds, so no deadline; the same examples every time, so
# that a red run can be run again.  --wander draws new ones each time.
settings.register_profile(
    "laws",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(
    "wander",
    settings.get_profile("laws"),
    derandomize=False,
    max_examples=1000,
)
settings.load_profile("laws")


# Whatever the user has calibrated: tests plan for the machine that ships.
os.environ["TORCH_CORR_MACHINE"] = os.devnull + ".none"

# cuBLAS repeats its results only with this, and PyTorch warns where determinism is asked for.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wander", action="store_true", help="1000 new examples for every law")
    parser.addoption(
        "--compilers", action="store_true", help="whole networks compiled in every way; an hour"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--wander"):
        settings.load_profile("wander")


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn; TF32 off, so that float32 is float32 everywhere."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _able(request: pytest.FixtureRequest) -> None:
    """Skip an algorithm that is not for this device at all, with its own words."""
    parameters = getattr(request.node, "callspec", None)
    algorithm = parameters.params.get("algorithm") if parameters else None
    if isinstance(algorithm, Algorithm):
        device = torch.device(parameters.params.get("device", "cpu"))
        if reasons := algorithm.refusals(SMALLEST, device, torch.float32):
            pytest.skip(f"{algorithm.name} on {device.type}: {reasons[0]}")


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Fill what torch.empty returns with NaN (the largest integer for integers)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _process_settings() -> Iterator[None]:
    """Benchmarks flush subnormals and set the threads for all that runs after them."""
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
