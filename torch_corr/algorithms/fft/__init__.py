"""``fft``: correlation in the frequency domain, and the check that ``auto`` puts its results to."""

from .algorithm import FFT
from .checked import CheckedFFT

__all__ = ["FFT", "CheckedFFT"]
