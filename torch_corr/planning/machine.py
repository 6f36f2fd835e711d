"""The rates of a machine, which turn an algorithm's cost into seconds.

A :class:`~torch_corr.algorithms.base.Cost` counts four kinds of work; a machine has one rate for
each.  The package contains the rates of one machine (:data:`SHIPPED`). ``python -m torch_corr
calibrate`` measures those of another and writes them to the file :func:`calibration_path`; a
process reads them when it first plans.  Plans depend mostly on the ratios of predicted times, so a
machine with all rates lower by one factor makes nearly the same plans.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from ..algorithms import Cost, may_use_tf32

CALIBRATION_VARIABLE = "TORCH_CORR_MACHINE"
"""Environment variable with another path for the file of rates."""

_FORMAT = 1


class Rates(NamedTuple):
    """Work per second, for each quantity of a ``Cost``, in the same order.

    Attributes:
        matmul_flops: of a large matrix product.
        fft_flops: of batched real transforms of 64 x 64, counted as in ``Cost``.
        bytes: read and written by a copy too large for the caches.
        calls: of PyTorch operators on a few numbers.
    """

    matmul_flops: float
    fft_flops: float
    bytes: float
    calls: float

    def seconds(self, cost: Cost) -> float:
        """The predicted time of a cost, whose parts run one after the other."""
        return sum(amount / rate for amount, rate in zip(cost, self))


@dataclass(frozen=True)
class Machine:
    """A machine's name and rates.

    Attributes:
        name: the processor.
        threads: PyTorch's number of threads when the rates were measured.
        measured: the day, such as 2026-11-24; empty if the rates come from device properties.
        float32: rates for float32 and complex64, and for half precision where it is computed in
            float32.
        float64: rates for float64 and complex128.
        halves: rates for float16 and bfloat16, where they are not computed in float32.
    """

    name: str
    threads: int
    measured: str
    float32: Rates
    float64: Rates
    halves: Rates | None = None

    def seconds(self, cost: Cost, dtype: torch.dtype) -> float:
        """Predicted time of a cost on operands of a dtype."""
        return self.rates(dtype).seconds(cost)

    def rates(self, dtype: torch.dtype) -> Rates:
        """The rates for computing in a dtype."""
        if self.halves is not None and dtype in (torch.float16, torch.bfloat16):
            return self.halves
        return self.float64 if dtype in (torch.float64, torch.complex128) else self.float32

    def save(self, path: Path) -> None:
        """Write the machine as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {
            "format": _FORMAT,
            "name": self.name,
            "threads": self.threads,
            "measured": self.measured,
            "float32": self.float32._asdict(),
            "float64": self.float64._asdict(),
        }
        write_json(path, fields, indent=2)

    @classmethod
    def load(cls, path: Path) -> Machine:
        """Read a file that :meth:`save` wrote.

        Raises:
            ValueError: the file does not contain a machine's rates.
            OSError: the file cannot be read.
        """
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            if fields["format"] != _FORMAT:
                raise ValueError(f"format {fields['format']}, this version reads {_FORMAT}")
            rates = {name: Rates(**fields[name]) for name in ("float32", "float64")}
            for each in (*rates["float32"], *rates["float64"]):
                if not 0 < each < float("inf"):
                    raise ValueError(f"a rate of {each}")
            return cls(
                str(fields["name"]), int(fields["threads"]), str(fields["measured"]), **rates
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} does not hold a machine's rates ({error!r}); measure them again with "
                f"'python -m torch_corr calibrate', or delete the file"
            ) from None


def write_json(path: Path, content: object, indent: int) -> None:
    """Write a JSON file atomically: readers see the old file or the new one, never a part."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    draft.write_text(json.dumps(content, indent=indent) + "\n")
    draft.replace(path)


SHIPPED = Machine(
    name="AMD EPYC (Zen 4, AVX-512)",
    threads=2,
    measured="2026-11-24",
    float32=Rates(matmul_flops=179e9, fft_flops=33e9, bytes=48e9, calls=880e3),
    float64=Rates(matmul_flops=95e9, fft_flops=23e9, bytes=46e9, calls=910e3),
)
"""The machine whose rates are used without a calibration."""


def calibration_path() -> Path:
    """The file that ``calibrate`` writes: ``$TORCH_CORR_MACHINE``, else torch_corr/machine.json in
    ``$XDG_CONFIG_HOME`` or ``~/.config``."""
    if named := os.environ.get(CALIBRATION_VARIABLE):
        return Path(named)
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "torch_corr" / "machine.json"


@cache
def current_machine() -> Machine:
    """The machine that this process plans for: the calibrated one, else :data:`SHIPPED`."""
    path = calibration_path()
    return Machine.load(path) if path.exists() else SHIPPED


class _Units(NamedTuple):
    """Dense multiply-adds per cycle of one multiprocessor.

    Attributes:
        float32, float64: on ordinary units.
        halves, tf32, double: on matrix units; 0 if it has none for that dtype.
    """

    float32: int
    float64: int
    halves: int
    tf32: int
    double: int


_UNITS = {
    (8, 0): _Units(64, 32, 1024, 512, 64),
    (8, 6): _Units(128, 2, 512, 256, 0),
    (8, 9): _Units(128, 2, 512, 256, 0),
    (9, 0): _Units(128, 64, 2048, 1024, 128),
    (10, 0): _Units(128, 64, 4096, 2048, 64),
    (12, 0): _Units(128, 2, 512, 256, 0),
}
"""By compute capability, since device properties do not state it.  Source: NVIDIA's CUDA C++
Programming Guide, arithmetic instructions, and its papers on GA100, GA102, AD102, GH100 and
GB100."""

_DEFAULT_BANDWIDTH = 200e9
"""Bytes per second of a device that reports no memory clock, as devices that share the host's
memory do; assumed, about the bandwidth of a laptop's memory."""

_DEFAULT_CLOCK = 1.5e6
"""Clock in kHz of a device that reports none; assumed, typical of GPUs."""

_LAUNCHES_PER_SECOND = 250e3
"""Operators that a host launches per second; assumed, since no device property states it."""


def machine_of(device: torch.device, dtype: torch.dtype) -> Machine:
    """The machine to predict times for: for a CUDA device, its properties.

    Args:
        device: where the algorithms run.
        dtype: the dtype to compute in; for float32 the rates depend on PyTorch's TF32 setting.
    """
    if device.type != "cuda" or torch.version.hip or not torch.cuda.is_available():
        return current_machine()
    return _device_machine(device, may_use_tf32(dtype))


def peak_rates(flops: float, moved: float, sample: int) -> Rates:
    """Rates of a device from FLOP/s and bytes/s.

    Transforms are limited by memory: one of 64 x 64 does 60 of the operations that ``Cost`` counts
    per complex sample, and reads and writes the sample, ``sample`` bytes, once along each axis.
    """
    return Rates(flops, 60 / (4 * sample) * moved, moved, _LAUNCHES_PER_SECOND)


@cache
def _device_machine(device: torch.device, tf32: bool) -> Machine:
    """Peak rates from the device's properties: clocks in kHz, two memory transfers per cycle."""
    found: Any = torch.cuda.get_device_properties(device)
    capability = (found.major, found.minor)
    # A capability that is not listed uses the latest one before it.
    units = _UNITS[max(each for each in _UNITS if each <= max(capability, min(_UNITS)))]
    cycles = 2e3 * found.multi_processor_count * (found.clock_rate or _DEFAULT_CLOCK)
    moved = 2e3 * found.memory_clock_rate * found.memory_bus_width / 8
    # Predictions divide by both, so neither may be 0.
    unstated = (
        "" if moved else f" (no memory clock stated: {_DEFAULT_BANDWIDTH / 1e9:.0f} GB/s assumed)"
    )
    unstated += (
        "" if found.clock_rate else f" (no clock stated: {_DEFAULT_CLOCK / 1e6} GHz assumed)"
    )
    moved = moved or _DEFAULT_BANDWIDTH

    return Machine(
        name=found.name + unstated,
        threads=0,
        measured="",
        float32=peak_rates((units.tf32 if tf32 else units.float32) * cycles, moved, 8),
        float64=peak_rates(max(units.float64, units.double) * cycles, moved, 16),
        halves=peak_rates(units.halves * cycles, moved, 8),
    )


def calibrate() -> Machine:
    """Measure this machine's rates with PyTorch's current number of threads; about ten seconds."""
    return Machine(
        name=device_name(torch.device("cpu")),
        threads=torch.get_num_threads(),
        measured=date.today().isoformat(),
        float32=_measured_rates(torch.float32),
        float64=_measured_rates(torch.float64),
    )


@cache
def device_name(device: torch.device) -> str:
    """The device's name in wisdom: the manufacturer's, or PyTorch's if that is unknown."""
    if device.type == "cpu":
        return _processor_name()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _processor_name() -> str:
    """The processor's name according to the operating system."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _measured_rates(dtype: torch.dtype) -> Rates:
    side, tiles, numbers = 1536, 256, 2**26 // dtype.itemsize
    a, b, c = (torch.full((side, side), 0.5, dtype=dtype) for _ in range(3))
    images = torch.linspace(-1, 1, tiles * 64 * 64, dtype=dtype).view(tiles, 64, 64)
    source, target = (torch.zeros(numbers, dtype=dtype) for _ in range(2))
    few = torch.zeros(8, dtype=dtype)
    return Rates(
        matmul_flops=2 * side**3 / _seconds(lambda: torch.mm(a, b, out=c)),
        fft_flops=tiles * 2.5 * 64 * 64 * 12 / _seconds(lambda: torch.fft.rfft2(images)),
        bytes=2 * numbers * dtype.itemsize / _seconds(lambda: target.copy_(source)),
        calls=1 / _seconds(lambda: few + few, times=1000),
    )


def _seconds(work: Callable[[], Any], times: int = 1) -> float:
    """Median seconds of ``work``, from about a second of runs."""
    work()
    samples: list[float] = []
    start = time.perf_counter()
    while len(samples) < 5 or time.perf_counter() < start + 1:
        before = time.perf_counter()
        for _ in range(times):
            work()
        samples.append((time.perf_counter() - before) / times)
    return median(samples)
