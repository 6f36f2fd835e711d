"""Memory full of NaN where nobody has written, so that reading it cannot go unseen."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# From glibc's malloc.h: what is allocated is filled with the complement of the option's last
# byte, hence here with 0xFF, as all bits set are NaN in every floating-point dtype.
_M_PERTURB, _FILL_WITH_ONES, _LEAVE = -6, 0x100, 0


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what ``torch.empty`` and its kin return with NaN (integers: the largest).

    PyTorch does so only under deterministic algorithms, which it may therefore choose here.
    Memory that a kernel takes by other ways is filled with bits that are all set: NaN again,
    where ``malloc`` and its kin come from glibc.  Not reached are small blocks handed out again
    (see :func:`litter`), what a kernel asks of the system itself, and memory of other devices.
    """
    mode = torch.get_deterministic_debug_mode()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    _perturb(_FILL_WITH_ONES)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        _perturb(_LEAVE)
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def litter(device: torch.device | str = "cpu") -> None:
    """Leave NaN in memory that is given back, for whoever asks for some next, in whatever way.

    Allocators hand out again what was just freed: blocks of 16 bytes to 128 KiB.  Of those below
    1 KiB glibc keeps seven of each multiple of 16 bytes aside, as they were.
    """
    sizes = [4 * count for count in range(1, 66) for _ in range(8)]
    sizes += [2**power for power in range(9, 16) for _ in range(4)]
    blocks = [torch.full((size,), float("nan"), device=device) for size in sizes]
    del blocks


def _perturb(byte: int) -> None:
    """Have the C library fill what it allocates, if it is one that can."""
    try:
        option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; Windows: no such library
        return
    option(_M_PERTURB, byte)
