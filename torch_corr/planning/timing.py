"""Times algorithms on a problem, in turns, so that a disturbance affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

import torch

from ..algorithms import Algorithm
from ..algorithms.cost import MMAP_THRESHOLD
from ..request import Request

_SECONDS_PER_WORK = 0.05
"""Seconds of runs that are enough to time one work."""

_TOO_SLOW = 4.0
"""A work that takes this many times the fastest run is not run again."""

_LONG_RUN = 1.0
"""A first run that takes this many seconds counts as timed, since its setup is negligible."""


def time_algorithms(algorithms: Sequence[Algorithm], request: Request) -> dict[str, float]:
    """Median seconds of each algorithm on one map, by spelling.

    The operands are constant and do not use the random generators: no algorithm's speed depends on
    its data.
    """
    problem, map, device = request.problem, request.map, request.device
    layout = torch.channels_last if request.channels_last else torch.contiguous_format
    left, right = (
        torch.full(shape, 0.5, dtype=request.dtype, device=device).contiguous(memory_format=layout)
        for shape in request.shapes[:2]
    )

    def work_of(algorithm: Algorithm) -> Callable[[], object]:
        def work() -> None:
            result = getattr(algorithm, map)(problem, left, right)
            if map != "grad_weight":
                result.contiguous(memory_format=layout)

        return work

    return time_in_turns({each.spelling: work_of(each) for each in algorithms}, device)


def time_in_turns(
    works: Mapping[str, Callable[[], object]],
    device: torch.device,
    between: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Median seconds of each work, by its name.

    Each work runs once untimed, for its setup, and then twice; those that are much slower than the
    fastest stop there, and the others take turns.  A long first run is timed itself, since
    otherwise an image that takes seconds would be measured for minutes.

    Args:
        works: what to time.
        device: where they run.
        between: runs before each timed run.
    """
    if device.type == "cpu":
        raise_mmap_threshold()

    def run(name: str) -> float:
        if between is not None:
            between()
        return _timed(device, works[name])

    firsts = {name: run(name) for name in works}
    samples = {
        name: [first] if first > _LONG_RUN else [run(name), run(name)]
        for name, first in firsts.items()
    }
    limit = _TOO_SLOW * min((min(times) for times in samples.values()), default=0.0)
    competitive = [name for name in works if min(samples[name]) <= max(limit, 1e-3)]
    for turn in _rounds(_SECONDS_PER_WORK * len(competitive)):
        first = turn % len(competitive)
        for name in competitive[first:] + competitive[:first]:
            samples[name].append(run(name))
    return {name: median(values) for name, values in samples.items()}


def raise_mmap_threshold() -> None:
    """Make the allocator keep freed memory, by freeing one large tensor.

    In a new process glibc returns every result of some MB to the system, and maps it again page by
    page: ``F.conv2d`` of 64x1x28x28 with 32 kernels of 5x5 takes 3.5 ms there and 0.4 ms in a
    process that has freed one tensor of 8 MB, two Zen 4 cores.  Long-running processes are in the
    second state.
    """
    torch.empty(MMAP_THRESHOLD - 2**16, dtype=torch.uint8)


def _rounds(seconds: float) -> Iterator[int]:
    """Numbers of rounds until the time is up: at least 1 and at most 100."""
    end = time.perf_counter() + seconds
    for turn in range(100):
        yield turn
        if time.perf_counter() > end:
            return


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    if device.type != "cuda":
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        before.record()
        work()
        after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3


def _wait(device: torch.device) -> None:
    """Wait until the device has finished its work; a CPU runs synchronously."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
