"""Memory full of NaN where nobody has written, so that reading it cannot go unseen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what ``torch.empty`` and its kin return with NaN (integers: the largest).

    PyTorch does so only under deterministic algorithms, which it may therefore choose here.
    Memory that a kernel takes by other ways is not reached: see :func:`litter`.
    """
    mode = torch.get_deterministic_debug_mode()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def litter(device: torch.device | str = "cpu") -> None:
    """Leave NaN in memory that is given back, for whoever asks for some next, in whatever way.

    Allocators hand out again what was just freed: blocks of 4 bytes to 128 KiB.
    """
    sizes = [2**power for power in range(16) for _ in range(32 if power < 8 else 4)]
    blocks = [torch.full((size,), float("nan"), device=device) for size in sizes]
    del blocks
