"""Did you mean ...?  The one place that guesses what a misspelt name was to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'same'?"`` when a known name is close, else the empty string."""
    close = get_close_matches(name.lower(), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
