"""Every test runs on every device, with uninitialised memory poisoned."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from support.needs import COMPILERS, CUDA, HERE, NOTHING_TO_TEST, lacks, needs
from torch_corr.planning import machine
from torch_corr.planning.machine import CALIBRATION_VARIABLE, SHIPPED, calibration_path

# No deadline, because the first call into torch takes seconds.  The same examples every time,
# so that a failure can be repeated; --wander draws new ones each time.
settings.register_profile(
    "laws",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(
    "wander", settings.get_profile("laws"), derandomize=False, max_examples=1000
)
settings.load_profile("laws")


# cuBLAS repeats its results only with this, and PyTorch warns if determinism is on.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores

# Tests plan for one machine with any number of threads, whichever this machine is and whatever the
# user has calibrated.
machine._with_threads = lambda measured, threads: measured
RATES = tempfile.TemporaryDirectory(prefix="torch_corr_rates_")
os.environ[CALIBRATION_VARIABLE] = str(Path(RATES.name) / "machine.json")
SHIPPED[0].save(calibration_path())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wander", action="store_true", help="1000 new examples for every law")
    parser.addoption(
        "--compilers", action="store_true", help="whole networks compiled in every way; an hour"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*what, unless): see support/needs.py")
    config.stash[LEFT_OUT] = Counter()
    HERE[COMPILERS] = config.getoption("--compilers")
    if config.getoption("--wander"):
        settings.load_profile("wander")


# A Counter: how many tests were not collected, by their need.
LEFT_OUT = pytest.StashKey[Counter[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Leave out the tests that cannot run here, and count them."""
    made = yield
    if not isinstance(made, list):
        return made
    found = [(item, lacks(item)) for item in made]
    collector.config.stash[LEFT_OUT].update(what for _, what in found if what)
    return [item for item, what in found if what is None]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist sends its count to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects the same tests, so one count is enough."""
    if hasattr(node, "workeroutput"):
        node.config.stash[LEFT_OUT] = Counter(node.workeroutput.get("left_out", {}))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """One line says how many tests of these files were left out, and what they need."""
    left_out = config.stash[LEFT_OUT].copy()
    left_out.pop(NOTHING_TO_TEST, None)
    if left_out:
        (what, count), *others = left_out.most_common()
        counts = [f"{count:,} tests that need {what}"]
        counts += [f"{count:,} that need {what}" for what, count in others]
        terminalreporter.write_line(f"left out: {', '.join(counts)}")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs(CUDA))])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn, without TF32, which would make float32 inexact."""
    if request.param == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Fill what torch.empty returns with NaN (the largest integer for integers)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _process_settings() -> Iterator[None]:
    """Restore what tests and benchmarks change for the whole process."""
    threads, backends = torch.get_num_threads(), (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [each.allow_tf32 for each in backends]
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
    for each, allowed in zip(backends, before):
        each.allow_tf32 = allowed
