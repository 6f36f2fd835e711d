"""``triton``: kernels for GPUs."""

from .algorithm import Triton

__all__ = ["Triton"]
