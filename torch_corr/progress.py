"""A progress bar on stderr."""

from __future__ import annotations

import sys

_LENGTH = 24
_START_OF_LINE = "\r\033[K"


def show_progress(done: int, total: int, text: str) -> None:
    """Draw the bar over an earlier one, with a text behind it."""
    full = _LENGTH * min(done, total) // max(total, 1)
    bar = "#" * full + "." * (_LENGTH - full)
    sys.stderr.write(f"{_START_OF_LINE}[{bar}] {text}")
    sys.stderr.flush()


def clear_progress() -> None:
    """Remove the bar."""
    sys.stderr.write(_START_OF_LINE)
    sys.stderr.flush()
