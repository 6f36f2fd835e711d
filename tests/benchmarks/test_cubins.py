"""``cubins``: occupancy, and the tables in docs/gpu.md."""

from __future__ import annotations

import pytest

from benchmarks import cubins


def test_predictions_in_the_docs_match_the_code() -> None:
    text = cubins.DOCUMENT.read_text()
    assert cubins.predictions() in text, "python -m benchmarks.cubins --predictions --write"


def test_occupancy_is_limited_by_registers_and_shared_memory() -> None:
    assert cubins.occupancy(90, registers=32, shared=0, warps=4) == 1
    assert cubins.occupancy(90, registers=255, shared=0, warps=4) == 8 / 64
    assert cubins.occupancy(90, registers=32, shared=113 * 1024, warps=4) == 8 / 64


def test_put_replaces_the_block_between_comments() -> None:
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert cubins.put(text, "x", "new") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="has no place for 'y'"):
        cubins.put(text, "y", "new")
