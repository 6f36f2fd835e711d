"""A progress bar with the time that is left, on stderr."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO


class Progress:
    """Counts steps of known weight; the time left assumes that time goes with weight.

    On a terminal one line is redrawn; elsewhere a line is written now and then.
    """

    def __init__(self, total: float, stream: TextIO | None = None) -> None:
        self.total, self.done = max(total, 1e-9), 0.0
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.start = self.drawn = time.monotonic()

    def advance(self, weight: float) -> None:
        """``weight`` more is done."""
        self.done += weight

    def show(self, what: str) -> None:
        """Redraw, with ``what`` is going on."""
        now = time.monotonic()
        if not self.live and now - self.drawn < 10:
            return
        self.drawn = now
        share = min(1.0, self.done / self.total)
        elapsed = now - self.start
        left = elapsed * (1 - share) / share if share > 0 else None
        text = f"{share:4.0%} {_clock(elapsed)} gone, {_clock(left)} left  {what}"
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            cells = 20
            full = int(cells * share)
            bar = "█" * full + "░" * (cells - full)
            self.stream.write("\r\x1b[K" + f"{bar} {text}"[:width])
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        self.stream.write(("\r\x1b[K" if self.live else "") + line + "\n")
        self.stream.flush()

    def close(self) -> None:
        if self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?:??"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
