"""``fft``: correlation in the frequency domain, and the check of its results for ``auto``."""

from .algorithm import FFT
from .checked import CheckedFFT

__all__ = ["FFT", "CheckedFFT"]
