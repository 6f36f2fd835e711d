"""Calling it again, at once, or wrongly."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket
from torch.library import opcheck as torch_opcheck

from ..subject import Case, Refusal, Silence, Subject, Violation, arguments, require_alike
from .base import is_differentiable, leaves, moot

THREADS, ROUNDS, REPEATS = 4, 3, 3


def determinism(subject: Subject, case: Case) -> None:
    """The same call gives the same bits, forward and backward."""
    x, w, g = case.operands()
    seen: dict[str, Tensor] = {}
    for _ in range(REPEATS):
        for name, result in subject.maps(case.problem, x, w, g).items():
            if not torch.equal(seen.setdefault(name, result), result):
                raise Violation(f"{name} differs from one call to the next")


def threads(subject: Subject, case: Case) -> None:
    """Calls from several threads at once do not disturb each other."""
    barrier = Barrier(THREADS)

    def calls(number: int) -> None:
        mine = case.another(number)
        x, w, _ = mine.operands()
        barrier.wait(timeout=60)
        for _ in range(ROUNDS):
            y = subject.forward(mine.problem, x, w)
            subject.require(f"output in thread {number}", y, mine.problem, input=x, weight=w)

    with moot("wrong in a single thread already"):
        for number in range(THREADS):
            one = case.another(number)
            x, w, _ = one.operands()
            subject.require("output", subject.forward(one.problem, x, w), one.problem, x, w)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # that threads take turns often
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            futures = [pool.submit(calls, number) for number in range(THREADS)]
            failures = [future.exception() for future in futures]
    finally:
        sys.setswitchinterval(interval)
    for failure in failures:
        if isinstance(failure, Refusal):
            raise Violation(f"a call among several threads raises {failure}") from failure
        if failure is not None:
            raise failure


def invalid_arguments(subject: Subject, case: Case) -> None:
    """What is no correlation raises: wrong sizes, strides, groups, dtypes."""
    for what, positional, keywords in _invalid_calls(case):
        try:
            y = subject.call(*positional, **keywords)
        except Exception:  # any type will do here
            continue
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise Violation(f"{what} is accepted, and gives {shape}")


def _invalid_calls(case: Case) -> Iterator[tuple[str, tuple[Tensor, ...], dict[str, Any]]]:
    p = case.problem
    x, w, _ = case.operands()
    right = arguments(p)
    pairs = {torch.float64: torch.float32, torch.complex64: torch.complex128}
    other = pairs.get(case.dtype, torch.complex64 if x.is_complex() else torch.float64)
    yield "a weight with one channel too many", (x, torch.cat([w, w[:, :1]], 1)), right
    yield "an input with one channel too many", (torch.cat([x, x[:, :1]], 1), w), right
    tall = w.new_ones(*w.shape[:2], p.padded_size[0] + 1, 1)
    wide = w.new_ones(*w.shape[:2], 1, p.padded_size[1] + 1)
    yield "a kernel taller than the padded image", (x, tall), {**right, "dilation": (1, 1)}
    yield "a kernel wider than the padded image", (x, wide), {**right, "dilation": (1, 1)}
    yield "an input of five axes", (x[None], w), right
    yield "a weight of three axes", (x, w[0]), right
    yield f"a {other} weight", (x, w.to(other)), right
    yield "a bias with one number too many", (x, w), {**right, "bias": w.new_ones(len(w) + 1)}
    for name, value in (
        ("stride", 0),
        ("stride", -1),
        ("padding", -1),
        ("dilation", 0),
        ("dilation", -1),
        ("groups", 0),
        ("groups", p.in_channels + 1),
    ):
        yield f"{name}={value}", (x, w), {**right, name: value}


def opcheck(subject: Subject, case: Case) -> None:
    """An operator of ``torch.library`` passes ``torch.library.opcheck``."""
    operator = subject.call
    if not isinstance(operator, (OpOverload, OpOverloadPacket, CustomOpDef)):
        raise Silence("not an operator of torch.library")
    if isinstance(operator, OpOverloadPacket):
        operator = operator.default
    x, w, _ = case.operands()
    y = subject.forward(case.problem, x, w)
    require_alike("output", y, case.problem.output_shape, x)
    if is_differentiable(case.dtype) and subject.forward(case.problem, *leaves(x, w)).requires_grad:
        x, w = leaves(x, w)
    try:
        torch_opcheck(operator, (x, w), arguments(case.problem))
    except Exception as error:  # opcheck's own errors are of several types
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Violation(f"opcheck: {lines[0]}") from error
