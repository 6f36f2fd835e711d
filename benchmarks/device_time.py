"""The time that calls take a CUDA device, without the time of the host.

Events around a call in a stream measure the later of host and device.  So the device sleeps until
all calls are queued, and then runs them without waiting for the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_CYCLES = 2e9
"""Approximate clock rate of a device, to convert seconds of sleep to cycles."""
_LONGEST = 0.05
"""Seconds that the device sleeps at most."""


class DeviceTime(NamedTuple):
    """Seconds per call on the device and on the host, and whether all calls were queued in time."""

    device: float
    host: float
    ahead: bool


def time_on_device(run: Callable[[], Any], number: int, host: float) -> DeviceTime:
    """Time ``number`` calls on the device; ``host`` is the expected time per call on the host.

    A call that waits for the device, or that launches more than the queue holds (about a thousand
    kernels), is not ahead.  Its time is then at least that of a call in a stream.
    """
    seconds = min(_LONGEST, 2 * host * number + 5e-5)
    torch.cuda._sleep(int(_CYCLES * seconds))  # type: ignore[no-untyped-call]
    return time_in_stream(run, number)


def time_in_stream(run: Callable[[], Any], number: int) -> DeviceTime:
    """Time ``number`` calls; the device waits where the host is slower."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    started = time.perf_counter()
    for _ in range(number):
        run()
    queued = time.perf_counter() - started
    ahead = not begin.query()  # type: ignore[no-untyped-call]
    end.record()
    end.synchronize()
    return DeviceTime(begin.elapsed_time(end) / 1e3 / number, queued / number, ahead)
