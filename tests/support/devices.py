"""CUDA devices that tests pretend to have."""

from __future__ import annotations

DEVICES = {
    # Properties as CUDA returns them (kHz, bits), and the data sheet: bytes/s; FLOP/s in
    # float32, TF32, halves and float64.
    "A100": ((8, 0, 108, 1_410_000, 1_593_000, 5120), (2.04e12, 19.5e12, 156e12, 312e12, 19.5e12)),
    "H100": ((9, 0, 132, 1_830_000, 2_619_000, 5120), (3.35e12, 61.8e12, 494e12, 989e12, 61.8e12)),
    # It shares the host's memory and states no clock of it.
    "GB10": ((12, 1, 48, 2_418_000, 0, 0), (200e9, 29.7e12, 59.4e12, 119e12, 0.464e12)),
    "4090": ((8, 9, 128, 2_520_000, 10_501_000, 384), (1.01e12, 82.6e12, 165e12, 330e12, 1.29e12)),
}
