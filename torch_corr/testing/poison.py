"""Fill uninitialised memory with NaN, so that a result that depends on it is NaN."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# From glibc's malloc.h.  glibc fills allocated memory with the complement of the option's last
# byte, here 0xFF.  A number with all bits set is NaN in every floating-point dtype.
_M_PERTURB, _FILL_WITH_ONES, _LEAVE = -6, 0x100, 0


@contextmanager
def poisoned() -> Iterator[None]:
    """Context in which ``torch.empty`` returns NaN (for integers, the largest number).

    PyTorch does this only with deterministic algorithms, so they are enabled too.  If ``malloc`` is
    that of glibc, memory that kernels allocate with it also contains NaN.  Small blocks that are
    reused (see :func:`litter`), memory that a kernel gets from the system, and memory of other
    devices are not filled.

    Example:
        >>> with poisoned():
        ...     torch.empty(2)
        tensor([nan, nan])
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
    """Fill small blocks of memory with NaN and free them, so that the next allocations get NaN.

    Allocators reuse freed blocks of 16 bytes to 128 KiB.  Below 1 KiB, glibc caches seven blocks
    for each multiple of 16 bytes without changing their contents.
    """
    sizes = [4 * count for count in range(1, 66) for _ in range(8)]
    sizes += [2**power for power in range(9, 16) for _ in range(4)]
    blocks = [torch.full((size,), float("nan"), device=device) for size in sizes]
    del blocks


def _perturb(byte: int) -> None:
    """Set the byte with which glibc fills allocated memory; do nothing with another C library."""
    try:
        option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; Windows: no such library
        return
    option(_M_PERTURB, byte)
