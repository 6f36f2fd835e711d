"""How long calls take a CUDA device by itself: the host is ahead of it.

Events around a call in a stream that keeps up measure the later of host and device.  So the device
is put to sleep until everything is queued, and then has all its work before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_CYCLES = 2e9
"""Per second, about, for how long to tell the device to sleep; whether it was enough is seen."""
_LONGEST = 0.05
"""Seconds that it sleeps at most."""


class Ahead(NamedTuple):
    """Seconds per call on the device and on the host, and whether all calls were queued in time."""

    device: float
    host: float
    ahead: bool


def sample_ahead(run: Callable[[], Any], number: int, host: float) -> Ahead:
    """Time calls while the device does not wait for the host, which is said to take ``host`` each.

    A call that waits for the device by itself, or more launches than its queue holds (a thousand
    or so), are not ahead; their time is then that of a stream that keeps up, or more.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")  # type: ignore[no-untyped-call]
    torch.cuda._sleep(int(_CYCLES * min(_LONGEST, 2 * host * number + 5e-5)))  # type: ignore[no-untyped-call]
    begin.record()
    started = time.perf_counter()
    for _ in range(number):
        run()
    queued = time.perf_counter() - started
    ahead = not begin.query()
    end.record()
    end.synchronize()
    return Ahead(begin.elapsed_time(end) / 1e3 / number, queued / number, ahead)
