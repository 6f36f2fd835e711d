"""``unfold``: copies windows into a matrix, strip by strip, and multiplies matrices."""

from .algorithm import Unfold

__all__ = ["Unfold"]
