"""Tests of the benchmark suite, which runs from the checkout and is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# At the end, so that an installed torch_corr comes first.
sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def _one_thread(_process_settings: None) -> None:
    """One thread, because other tests may use the other cores; restored after the test."""
    torch.set_num_threads(1)
