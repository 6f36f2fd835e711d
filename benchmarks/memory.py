"""A first run in a separate process: it measures peak memory and contains hangs and crashes.

CPU: a fork server imports all packages and starts no thread pool.  For each trial it forks a child,
which makes operands, resets the kernel's high-water mark of resident memory
(``/proc/self/clear_refs``), runs the work once, and reads the mark (``VmHWM``).  The peak is the
mark minus the resident memory before, minus the bytes of the result.  It counts every page that any
library touched.  glibc returns large blocks to the system at once, so freed memory does not hide
later allocations.  The same contender first runs a tiny problem, so that code and the state of
libraries are not counted.  The resolution is about 1 MiB.  Without ``/proc``, memory is not
measured.

CUDA: ``torch.cuda.max_memory_allocated`` around one call in this process.  PyTorch's allocator also
provides cuDNN's workspace.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import torch

from torch_corr import Problem
from torch_corr.request import shape_of

from .cases import FORMATS, Task
from .check import COMPUTED, GIVEN, Operands
from .contenders import Contender
from .peers import set_peer_threads

_ADDRESS_SPACE = 12 * 2**30
"""Bytes that a trial may map in addition to those mapped at its start."""

_PRELOAD = ["benchmarks.preload"]

# glibc reads these when the fork server starts.  Blocks above 64 KiB are mapped, and unmapped when
# freed; without these variables the threshold grows with use.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Trial:
    """The outcome of a first run.

    Attributes:
        failure: why there is no result; empty if it ran.
        timed_out: whether it was stopped.
        memory: bytes at the peak beyond operands and result.
    """

    failure: str = ""
    timed_out: bool = False
    memory: int | None = None


def try_once(contender: Contender, task: Task, threads: int, patience: float) -> Trial:
    """Run a task once on the CPU in a forked child, for at most ``patience`` seconds."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_trial, args=(theirs, contender, task, threads), daemon=True)
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
    """The peak of CUDA memory during a run, in bytes beyond that before it, result included."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def random_operands(task: Task, generator: torch.Generator) -> Operands:
    """Normally distributed numbers in every slot that the task reads."""
    wide = torch.complex64 if task.dtype.is_complex else torch.float32
    return {
        slot: torch.randn(
            shape_of(task.problem, slot), dtype=wide, device=task.device, generator=generator
        )
        .to(task.dtype)
        .contiguous(memory_format=FORMATS[task.layout])
        for slot in GIVEN[task.work]
    }


def sentence(error: Exception) -> str:
    """An exception in one line."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


@cache
def _context() -> Any:
    """The fork server's context, with the server started under ``_MALLOC``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    before = dict(os.environ)
    os.environ.update(_MALLOC)
    try:
        forkserver.ensure_running()
    finally:
        for key in _MALLOC:
            del os.environ[key]
        os.environ.update(before)
    return context


def _trial(answer: Connection, contender: Contender, task: Task, threads: int) -> None:
    # Ctrl-C reaches this process too; the parent ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    set_peer_threads(threads)
    try:
        _limit_address_space()
        tiny = replace(task, problem=Problem.parse("n1c1-x4-o1-k1"))
        with contender.settings():
            if not contender.refusals(tiny):
                _prepared(contender, tiny)()
            run = _prepared(contender, task)
            before = _status("VmRSS")
            resettable = _reset_peak()
            result = run()
        memory = None
        if resettable and before is not None:
            peak = _status("VmHWM")
            assert peak is not None
            shapes = (shape_of(task.problem, slot) for slot in COMPUTED[task.work])
            own = sum(prod(shape) * task.dtype.itemsize for shape in shapes)
            memory = max(0, peak - before - own)
        del result
        answer.send(Trial(memory=memory))
    except Exception as error:  # any exception of a third party is a result
        answer.send(Trial(failure=sentence(error)))
    finally:
        answer.close()


def _prepared(contender: Contender, task: Task) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(time.perf_counter_ns())
    return contender.prepare(task, random_operands(task, generator)).run


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
    """Reset the high-water mark of resident memory; False if that is impossible here."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int | None:
    """A number of bytes from /proc/self/status."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
