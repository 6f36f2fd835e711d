"""The progress of a run and the remaining time, on stderr."""

from __future__ import annotations

import sys
import time


class Progress:
    """Prints a line for each piece of work; on a terminal each replaces the one before.

    The remaining time assumes that all pieces take equally long.
    """

    def __init__(self, total: int) -> None:
        self.total, self.start = total, time.monotonic()
        self.live = sys.stderr.isatty()

    def show(self, done: int, name: str) -> None:
        """``done`` pieces are finished, and the piece with this name begins."""
        elapsed = time.monotonic() - self.start
        left = f"{elapsed / done * (self.total - done) / 60:.0f}" if done else "?"
        line = f"{done} of {self.total}, {elapsed / 60:.0f} min elapsed, {left} left: {name}"
        self._write(f"\r\x1b[K{line[:79]}" if self.live else f"{line}\n")

    def close(self) -> None:
        if self.live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)
