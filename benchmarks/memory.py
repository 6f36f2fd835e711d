"""A first try in a process of its own: peak memory, and no harm from a hang or a crash.

CPU memory.  A fork server imports everything and starts no thread pool; for each trial it
forks a child, which makes operands, resets the kernel's high-water mark of resident memory
(``/proc/self/clear_refs``), runs the work once, and reads the mark (``VmHWM``).  Peak =
mark - resident before - bytes of the result.  It counts every page that was touched,
whoever allocated it: PyTorch, oneDNN's scratch, OpenCV, numpy.  glibc is told to give large
blocks back at once, so freed memory does not hide what comes after.  A run of the same
contender on a tiny problem first keeps code and library state out of the figure.
Resolution is about 1 MiB.

CUDA memory.  ``torch.cuda.max_memory_allocated`` around one call, in process: PyTorch's
allocator serves cuDNN's workspace too.

Where there is no ``/proc``, memory is not measured.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import torch

from torch_corr import Problem

from .cases import FORMATS, Layout, Work
from .check import GIVEN, SOUGHT, Operands, shape_of
from .contenders import Contender
from .peers import set_peer_threads

_CLEAR_REFS = "/proc/self/clear_refs"
_RESET_PEAK = "5"
_ADDRESS_SPACE = 12 * 2**30
"""Bytes beyond what is mapped at the start that a trial may map before it fails."""

_PRELOAD = ["benchmarks.preload"]

# Read by glibc when the fork server starts: blocks above 64 KiB are mapped, and unmapped
# when freed; without these the threshold grows with use.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Trial:
    """How a first try ended.

    Attributes:
        failure: why there is no result; empty if it ran.
        timed_out: whether it was stopped.
        memory: bytes at the peak beyond operands and result.
    """

    failure: str = ""
    timed_out: bool = False
    memory: int | None = None


def try_once(
    contender: Contender,
    problem: Problem,
    work: Work,
    dtype: torch.dtype,
    threads: int,
    patience: float,
) -> Trial:
    """Run the work once on the CPU in a forked child, for at most ``patience`` seconds."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(
        target=_trial, args=(theirs, contender, problem, work, dtype, threads), daemon=True
    )
    child.start()
    theirs.close()
    try:
        if not ours.poll(patience):
            return Trial(f"took more than {patience:g} s", timed_out=True)
        answer = ours.recv()
        assert isinstance(answer, Trial)
        return answer
    except EOFError:
        child.join()
        return Trial(f"its process died with exit code {child.exitcode}")
    finally:
        child.kill()
        child.join()
        ours.close()


def device_peak(run: Callable[[], Any]) -> int:
    """Bytes that CUDA's allocator held at the peak of a run beyond before it, result included."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def result_bytes(problem: Problem, work: Work, dtype: torch.dtype) -> int:
    return sum(
        torch.Size(shape_of(problem, slot)).numel() * dtype.itemsize for slot in SOUGHT[work]
    )


def random_operands(
    problem: Problem,
    work: Work,
    dtype: torch.dtype,
    generator: torch.Generator,
    layout: Layout = "contiguous",
) -> Operands:
    """Normal numbers in every slot that the work is given."""
    wide = torch.complex64 if dtype.is_complex else torch.float32
    return {
        slot: torch.randn(
            shape_of(problem, slot), dtype=wide, device=generator.device, generator=generator
        )
        .to(dtype)
        .contiguous(memory_format=FORMATS[layout])
        for slot in GIVEN[work]
    }


@cache
def _context() -> Any:
    """The fork server's context, with the server started under ``_MALLOC``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    inherited = {key: os.environ.get(key) for key in _MALLOC}
    os.environ.update(_MALLOC)
    try:
        forkserver.ensure_running()
    finally:
        for key, value in inherited.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
    return context


def _trial(
    answer: Connection,
    contender: Contender,
    problem: Problem,
    work: Work,
    dtype: torch.dtype,
    threads: int,
) -> None:
    # Ctrl-C reaches this process too; the run ends it, and no traceback of it is wanted.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    set_peer_threads(threads)
    try:
        _limit_address_space()
        tiny = Problem.parse("n1c1-x4-o1-k1")
        with contender.settings():
            if not contender.refusals(tiny, work, torch.device("cpu"), dtype):
                _ready(contender, tiny, work, dtype)()
            run = _ready(contender, problem, work, dtype)
            before = _status("VmRSS")
            resettable = _reset_peak()
            kept = run()
        memory = None
        if resettable and before is not None:
            peak = _status("VmHWM")
            assert peak is not None
            memory = max(0, peak - before - result_bytes(problem, work, dtype))
        del kept
        answer.send(Trial(memory=memory))
    # Whatever a third party raises is a finding, to be told in its row.
    except Exception as error:
        answer.send(Trial(failure=sentence(error)))
    finally:
        answer.close()


def _ready(
    contender: Contender, problem: Problem, work: Work, dtype: torch.dtype
) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(time.perf_counter_ns())
    operands = random_operands(problem, work, dtype, generator)
    return contender.prepare(problem, work, operands).run


def sentence(error: Exception) -> str:
    """An exception in one line."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def _limit_address_space() -> None:
    try:
        import resource
    except ImportError:
        return
    mapped = _status("VmSize")
    if mapped is not None:
        limit = mapped + _ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _reset_peak() -> bool:
    try:
        with open(_CLEAR_REFS, "w", encoding="ascii") as file:
            file.write(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status(key: str) -> int | None:
    """Bytes, of a line of /proc/self/status."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
