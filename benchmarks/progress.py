"""A progress bar with the remaining time, on stderr."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_CLEAR = "\r\x1b[K"
_CELLS = 20


class Progress:
    """Counts pieces of work; the remaining time assumes that all take equally long.

    On a terminal it redraws one line.  Elsewhere it writes a line every ten seconds.
    """

    def __init__(self, total: float, stream: TextIO | None = None) -> None:
        self.total, self.done = max(total, 1e-9), 0.0
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.start = self.drawn = time.monotonic()

    def advance(self, amount: float) -> None:
        self.done += amount

    def show(self, activity: str) -> None:
        """Redraw the bar, with the current activity."""
        now = time.monotonic()
        if not self.live and now - self.drawn < 10:
            return
        self.drawn = now
        share = min(1.0, self.done / self.total)
        elapsed = now - self.start
        left = _clock(elapsed * (1 - share) / share) if share > 0 else "?:??"
        text = f"{share:4.0%} {_clock(elapsed)} elapsed, {left} left  {activity}"
        if self.live:
            bar = "█" * int(_CELLS * share)
            width = shutil.get_terminal_size().columns - 1
            self._write(_CLEAR + f"{bar:░<{_CELLS}} {text}"[:width])
        else:
            self._write(text + "\n")

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        self._write((_CLEAR if self.live else "") + line + "\n")

    def close(self) -> None:
        if self.live:
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
