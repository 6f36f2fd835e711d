"""Whether Triton can run here, and its settings.

Triton is an optional dependency, so it is imported at first use.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from subprocess import CalledProcessError
from typing import Any

import torch


@lru_cache(maxsize=1)
def import_refusal() -> str:
    """A sentence that says why Triton cannot be imported here; empty if it can."""
    if find_spec("triton") is None:
        return (
            "Triton is not installed; PyTorch's builds for CUDA bring it, or "
            'pip install "torch_corr[triton]"'
        )
    try:
        triton = import_module("triton")
    except (ImportError, OSError) as error:
        return f"Triton is installed, but cannot be imported ({_first_line(error)})"
    if not hasattr(triton, "knobs"):
        version = getattr(triton, "__version__", "of no version")
        return f"what is installed as Triton ({version}) has no triton.knobs; it needs 3.5 or later"
    return ""


@lru_cache(maxsize=64)
def device_refusals(device: torch.device) -> tuple[str, ...]:
    """Why the kernels cannot run on a device; empty if they can."""
    if reason := import_refusal():
        return (reason,)
    if is_interpreted():
        if device.type in ("cpu", "cuda"):
            return ()
        return (f"no kernels for {device.type}; Triton's interpreter runs on the cpu",)
    if device.type != "cuda":
        return (f"no kernels for {device.type}; it runs on CUDA",)
    if torch.version.hip is not None:
        return ("its kernels are made for NVIDIA's devices, and this is ROCm",)
    if not torch.cuda.is_available():
        return ("PyTorch finds no CUDA device here",)
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return (f"compute capability {capability[0]}.{capability[1]}; it needs 8.0 or later",)
    return launcher_refusals()


def launcher_refusals() -> tuple[str, ...]:
    """Why Triton cannot build its launcher, which it writes in C and compiles on each machine."""
    try:
        _ = import_module("triton.runtime").driver.active.utils
    except (RuntimeError, OSError, ImportError, AssertionError, CalledProcessError) as error:
        return (
            f"Triton cannot build its launcher here ({_first_line(error)}); it wants a C compiler, "
            "gcc or clang or what CC names, Python's headers, and a TRITON_CACHE_DIR that may be "
            "executed",
        )
    return ()


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: ``TRITON_INTERPRET=1``."""
    settings = knobs()
    return settings is not None and bool(settings.runtime.interpret)


@lru_cache(maxsize=1)
def knobs() -> Any:
    """Triton's settings, which read the environment at every access; None without Triton."""
    return None if import_refusal() else import_module("triton").knobs


def kernels() -> Any:
    """The module of the kernels."""
    return import_module(".kernels", __package__)


def _first_line(error: Exception) -> str:
    """Some of Triton's messages are pages long."""
    return str(error).strip().partition("\n")[0]
