"""The rates of a machine, which turn an algorithm's cost into seconds.

A :class:`~torch_corr.algorithms.base.Cost` counts seven kinds of work; a machine has one rate for
each.  The package contains the rates of some machines (:data:`SHIPPED`).  ``python -m torch_corr
calibrate`` measures those of another and writes them to the file :func:`calibration_path`; a
process reads them when it first plans.  A processor that was never measured gets the rates of the
most similar one.  Where the factors of the costs were fitted on another processor or with another
number of threads, ``auto`` leaves PyTorch only for large gains (:attr:`Machine.is_fitted`).  Plans
depend on the ratios of predicted times, so a machine with all rates lower by one factor makes the
same plans.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import native
from .._torch_compat import onednn_has_bfloat16
from ..algorithms import Cost, Direct, may_use_tf32
from ..problem import Problem

CALIBRATION_VARIABLE = "TORCH_CORR_MACHINE"
"""Environment variable with another path for the file of rates."""

_FORMAT = 2

_DTYPES = ("float32", "float64", "bfloat16", "float16")
"""The dtypes that a machine may have rates for; the last two are optional."""

_BUSES = 4
"""Threads up to which the rate of copies through memory is assumed to grow."""


class Rates(NamedTuple):
    """Work per second, for each quantity of a ``Cost``, in the same order.

    Attributes:
        matmul_flops: of a large matrix product.
        fft_flops: of batched real transforms of 64 x 64, counted as in ``Cost``.
        bytes: read and written by a copy too large for the caches.
        calls: of PyTorch operators on a few numbers.
        vector_flops: of the compiled kernels, on depthwise 9x9 layers that fit in the caches.
        conv_flops: of PyTorch's convolution, on dense 3x3 layers.
        cached_bytes: read and written by a copy that fits in the caches.
    """

    matmul_flops: float
    fft_flops: float
    bytes: float
    calls: float
    vector_flops: float
    conv_flops: float
    cached_bytes: float

    def seconds(self, cost: Cost) -> float:
        """The predicted time of a cost, whose parts run one after the other."""
        return sum(amount / rate for amount, rate in zip(cost, self))

    def with_threads(self, before: int, after: int) -> Rates:
        """Rates that were measured with ``before`` threads, for ``after``."""
        times = after / before
        return Rates(
            matmul_flops=times * self.matmul_flops,
            fft_flops=times * self.fft_flops,
            bytes=min(after, _BUSES) / min(before, _BUSES) * self.bytes,
            calls=self.calls,
            vector_flops=times * self.vector_flops,
            conv_flops=times * self.conv_flops,
            cached_bytes=times * self.cached_bytes,
        )


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
        bfloat16, float16: rates for these, where they are not computed in float32.
        processor: what identifies it (:func:`processor_id`).
        isa: the instruction set of the compiled kernels.
        is_fitted: whether the factors of ``algorithms/cost_factors.py`` hold for it: they were
            fitted on this kind of processor, and its rates measured with this many threads.
    """

    name: str
    threads: int
    measured: str
    float32: Rates
    float64: Rates
    bfloat16: Rates | None = None
    float16: Rates | None = None
    processor: str = ""
    isa: str = ""
    is_fitted: bool = True

    def seconds(self, cost: Cost, dtype: torch.dtype) -> float:
        """Predicted time of a cost on operands of a dtype."""
        return self.rates(dtype).seconds(cost)

    def rates(self, dtype: torch.dtype) -> Rates:
        """The rates for computing in a dtype."""
        if dtype == torch.bfloat16 and self.bfloat16 is not None:
            return self.bfloat16
        if dtype == torch.float16 and self.float16 is not None:
            return self.float16
        return self.float64 if dtype in (torch.float64, torch.complex128) else self.float32

    def with_threads(self, threads: int) -> Machine:
        """The rates with another number of threads.

        All but those of calls and of copies through memory are assumed proportional.
        """
        if threads == self.threads or not self.threads:
            return self
        rates = {
            name: None if each is None else each.with_threads(self.threads, threads)
            for name, each in self._all_rates().items()
        }
        return replace(self, threads=threads, is_fitted=False, **rates)  # type: ignore[arg-type]

    def _all_rates(self) -> dict[str, Rates | None]:
        return {name: getattr(self, name) for name in _DTYPES}

    def save(self, path: Path) -> None:
        """Write the machine as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {
            "format": _FORMAT,
            "name": self.name,
            "threads": self.threads,
            "measured": self.measured,
            "processor": self.processor,
            "isa": self.isa,
            **{name: each and each._asdict() for name, each in self._all_rates().items()},
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
            words = {name: str(fields[name]) for name in ("name", "measured", "processor", "isa")}
            rates = {name: Rates(**fields[name]) for name in _DTYPES if fields[name] is not None}
            for each in (number for some in rates.values() for number in some):
                if not 0 < each < float("inf"):
                    raise ValueError(f"a rate of {each}")
            fitted = _is_fitted(words["processor"], words["isa"])
            threads = int(fields["threads"])
            return cls(threads=threads, is_fitted=fitted, **words, **rates)  # type: ignore[arg-type]
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


SHIPPED = (
    Machine(
        name="AMD EPYC (Zen 4, AVX-512)",
        threads=2,
        measured="2026-12-01",
        float32=Rates(185e9, 47e9, 42e9, 885e3, 138e9, 144e9, 145e9),
        float64=Rates(82e9, 25e9, 42e9, 910e3, 79e9, 29e9, 147e9),
        bfloat16=Rates(420e9, 47e9, 45e9, 868e3, 117e9, 395e9, 123e9),
        processor="AuthenticAMD 25 17",
        isa="avx512",
    ),
)
"""The machines whose rates are used without a calibration, measured by ``python -m torch_corr
calibrate``.  The factors of ``algorithms/cost_factors.py`` were fitted on the first."""


def calibration_path() -> Path:
    """The file that ``calibrate`` writes: ``$TORCH_CORR_MACHINE``, else torch_corr/machine.json in
    ``$XDG_CONFIG_HOME`` or ``~/.config``."""
    if named := os.environ.get(CALIBRATION_VARIABLE):
        return Path(named)
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "torch_corr" / "machine.json"


@cache
def current_machine() -> Machine:
    """The machine that this process plans for, with as many threads as were measured: the
    calibrated one, else the most similar of :data:`SHIPPED`."""
    path = calibration_path()
    return Machine.load(path) if path.exists() else most_similar(processor_id(), native.used_isa())


def most_similar(processor: str, isa: str) -> Machine:
    """The shipped rates of a processor; those of one with the same instruction set and vendor, or
    the same instruction set, if it was not measured."""

    def likeness(machine: Machine) -> tuple[bool, bool, bool]:
        vendor = machine.processor.split()[0] == (processor.split() or [""])[0]
        return machine.processor == processor, machine.isa == isa, vendor

    return replace(max(SHIPPED, key=likeness), is_fitted=_is_fitted(processor, isa))


def _is_fitted(processor: str, isa: str) -> bool:
    """Whether the factors were fitted on this kind of processor."""
    return any((processor, isa) == (each.processor, each.isa) for each in SHIPPED)


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
        return _with_threads(current_machine(), torch.get_num_threads())
    return _device_machine(device, may_use_tf32(dtype))


@lru_cache
def _with_threads(machine: Machine, threads: int) -> Machine:
    return machine.with_threads(threads)


def peak_rates(flops: float, moved: float, sample: int) -> Rates:
    """Rates of a device from FLOP/s and bytes/s.

    Transforms are limited by memory: one of 64 x 64 does 60 of the operations that ``Cost`` counts
    per complex sample, and reads and writes the sample, ``sample`` bytes, once along each axis.
    """
    fft_flops = 60 / (4 * sample) * moved
    return Rates(flops, fft_flops, moved, _LAUNCHES_PER_SECOND, flops, flops, moved)


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
    halves = peak_rates(units.halves * cycles, moved, 8)

    return Machine(
        name=found.name + unstated,
        threads=0,
        measured="",
        float32=peak_rates((units.tf32 if tf32 else units.float32) * cycles, moved, 8),
        float64=peak_rates(max(units.float64, units.double) * cycles, moved, 16),
        bfloat16=halves,
        float16=halves,
    )


def calibrate() -> Machine:
    """Measure this machine's rates with PyTorch's present number of threads, in ten seconds."""
    return Machine(
        name=device_name(torch.device("cpu")),
        threads=torch.get_num_threads(),
        measured=date.today().isoformat(),
        float32=_measured_rates(torch.float32),
        float64=_measured_rates(torch.float64),
        # Elsewhere the algorithms compute in float32.
        bfloat16=_measured_rates(torch.bfloat16) if onednn_has_bfloat16() else None,
        processor=processor_id(),
        isa=native.used_isa(),
    )


def processor_id() -> str:
    """What identifies a kind of processor: vendor, family and model on x86, implementer and part on
    ARM; the operating system's name for it elsewhere."""
    found = cpuinfo()
    keys = ("vendor_id", "cpu family", "model"), ("CPU implementer", "CPU part")
    for some in keys:
        if all(key in found for key in some):
            return " ".join(found[key] for key in some)
    return platform.processor() or platform.machine()


@cache
def device_name(device: torch.device) -> str:
    """The device's name in wisdom: the manufacturer's, or PyTorch's if that is unknown."""
    if device.type == "cpu":
        return _processor_name()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _processor_name() -> str:
    """The processor's name according to the operating system."""
    return cpuinfo().get("model name") or platform.processor() or platform.machine()


@cache
def cpuinfo() -> dict[str, str]:
    """The first processor in /proc/cpuinfo; empty on other systems than Linux."""
    try:
        text, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _measured_rates(dtype: torch.dtype) -> Rates:
    real = torch.float32 if dtype == torch.bfloat16 else dtype  # there is no transform of bfloat16
    side, tiles, numbers = 1024, 256, 2**26 // dtype.itemsize
    a, b, c = (torch.full((side, side), 0.5, dtype=dtype) for _ in range(3))
    images = torch.linspace(-1, 1, tiles * 64 * 64, dtype=real).view(tiles, 64, 64)
    source, target = (torch.zeros(numbers, dtype=dtype) for _ in range(2))
    few, some, other = (torch.zeros(n, dtype=dtype) for n in (8, 2**17, 2**17))
    conv = _flops_per_second("n4c64-x56-o64-k3-p1", dtype, torch.conv2d)
    return Rates(
        matmul_flops=2 * side**3 / _seconds(lambda: torch.mm(a, b, out=c)),
        fft_flops=tiles * 2.5 * 64 * 64 * 12 / _seconds(lambda: torch.fft.rfft2(images)),
        bytes=2 * numbers * dtype.itemsize / _seconds(lambda: target.copy_(source)),
        calls=1 / _seconds(lambda: few + few, times=1000),
        # Without compiled kernels only oneDNN's depthwise layers use this rate.
        vector_flops=_flops_per_second("n2c64-x28-o64-k9-p4-g64", dtype)
        if native.compiled
        else conv,
        conv_flops=conv,
        cached_bytes=2 * 2**17 * dtype.itemsize / _seconds(lambda: other.copy_(some), times=100),
    )


def _flops_per_second(
    spelling: str, dtype: torch.dtype, conv2d: Callable[..., torch.Tensor] | None = None
) -> float:
    """Of the forward of a problem with as much padding above as below: by ``torch.conv2d``, or by
    the compiled kernels."""
    problem = Problem.parse(spelling)
    x, w = (torch.full(s, 0.5, dtype=dtype) for s in (problem.input_shape, problem.weight_shape))
    geometry = problem.stride, problem.padding[0], problem.dilation, problem.groups

    def run() -> torch.Tensor:
        return conv2d(x, w, None, *geometry) if conv2d else Direct().forward(problem, x, w)

    return 2 * problem.multiplications / _seconds(run)


def _seconds(work: Callable[[], Any], times: int = 1) -> float:
    """Seconds of the fastest tenth of the runs of ``work`` in a third of a second: other load on
    the machine only slows runs down."""
    work()
    samples: list[float] = []
    start = time.perf_counter()
    while len(samples) < 5 or time.perf_counter() < start + 0.35:
        before = time.perf_counter()
        for _ in range(times):
            work()
        samples.append((time.perf_counter() - before) / times)
    return sorted(samples)[len(samples) // 10]
