"""``cubins``: lower bounds of times, and the tables in docs/gpu.md."""

from __future__ import annotations

import pytest

from benchmarks import cubins
from torch_corr import Problem


def test_floors_are_the_larger_of_bytes_and_operations() -> None:
    row = next(line for line in cubins.floors().splitlines() if "photo 3x3" in line)
    problem = Problem.parse("n1c1-x2048-o1-k3")
    moved = 4 * (2048**2 + 9 + 2046**2)
    assert f"| {moved / 1e6:.1f} | {2 * problem.multiplications / 1e9:.2f} |" in row
    assert f"{1e6 * moved / 4.8e12:.0f} (bytes)" in row


def test_tables_in_the_docs_match_the_code() -> None:
    text = cubins.DOCUMENT.read_text()
    assert cubins.floors() in text, "python -m benchmarks.cubins --floors --write"
    assert cubins.predictions() in text, "python -m benchmarks.cubins --floors --write"


def test_occupancy_is_limited_by_registers_and_shared_memory() -> None:
    device = cubins.Multiprocessor(shared=228 * 1024)
    assert device.occupancy(registers=32, shared=0, warps=4) == 1
    assert device.occupancy(registers=255, shared=0, warps=4) == 8 / 64
    assert device.occupancy(registers=32, shared=113 * 1024, warps=4) == 8 / 64


def test_put_replaces_the_block_between_comments() -> None:
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert cubins.put(text, "x", "new") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="has no place for 'y'"):
        cubins.put(text, "y", "new")
