"""Laws about repeated calls, threads, invalid arguments and operators."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import torch
from torch import Tensor
from torch.library import opcheck as torch_opcheck

from ..._torch_compat import CustomOpDef, OpOverload, OpOverloadPacket
from ...problem import Problem
from ..subject import Case, Refusal, Silence, Subject, Violation, arguments, require_alike
from .base import is_differentiable, leaves, moot
from .gradients import cut

THREADS, ROUNDS, REPEATS = 4, 3, 3


def determinism(subject: Subject, case: Case) -> None:
    """The same call gives the same bits, forward and backward."""
    x, w, g = case.operands()
    seen: dict[str, Tensor] = {}
    for _ in range(REPEATS):
        for name, result in subject.maps(case.problem, x, w, g).items():
            if not torch.equal(seen.setdefault(name, result), result):
                raise Violation(f"{name} differs from one call to the next")


def remembers_nothing(subject: Subject, case: Case) -> None:
    """Operands that changed in place since the last call are read again."""
    x, w, g = case.operands()
    trained = leaves(x, w) if is_differentiable(case.dtype) else ()

    def require_right() -> None:
        expected = subject.expect_maps(case.problem, x, w, g)
        expected.require("output", subject.forward(case.problem, x, w))
        if trained:
            a, b = trained
            y = subject.forward(case.problem, a, b)
            gradients = subject.pull(y, trained, g)
            expected.require("output", y)
            expected.require_all(dict(zip(("grad_input", "grad_weight"), gradients)))

    with moot("wrong at the first call already"):
        require_right()
    for old, new in zip((x, w), case.another().operands()):
        old.copy_(new)
    try:
        require_right()
    except Violation as violation:
        raise Violation(f"after new numbers were written, {violation}") from violation


def threads(subject: Subject, case: Case) -> None:
    """Calls from several threads at once do not disturb each other."""
    barrier = Barrier(THREADS)
    operands = [case.another(number).operands() for number in range(THREADS)]

    def check(number: int) -> None:
        values = operands[number]
        results = subject.maps(case.problem, *values)
        subject.expect_maps(case.problem, *values).require_all(results)

    def calls(number: int) -> None:
        barrier.wait(timeout=60)
        for _ in range(ROUNDS):
            try:
                check(number)
            except Violation as violation:
                raise Violation(f"in thread {number} of {THREADS}, {violation}") from violation

    with moot("wrong in a single thread already"):
        for number in range(THREADS):
            check(number)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # switch threads often
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
    """Invalid arguments raise an error: wrong sizes, strides, groups, dtypes."""
    for what, positional, keywords in _invalid_calls(case):
        try:
            y = subject.call(*positional, **keywords)
        except Exception:  # of any type
            continue
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise Violation(f"{what} is accepted, and gives {shape}")


def _invalid_calls(case: Case) -> Iterator[tuple[str, tuple[Tensor, ...], dict[str, Any]]]:
    p = case.problem
    x, w, _ = case.operands()
    right = arguments(p)
    other = (
        torch.float16 if case.dtype == torch.float32 else torch.float32
    )  # supported by every device
    yield "a weight with one channel too many", (x, torch.cat([w, w[:, :1]], 1)), right
    yield "an input with one channel too many", (torch.cat([x, x[:, :1]], 1), w), right
    tall = w.new_ones(*w.shape[:2], p.padded_size[0] + 1, 1)
    wide = w.new_ones(*w.shape[:2], 1, p.padded_size[1] + 1)
    yield "a kernel taller than the padded image", (x, tall), {**right, "dilation": (1, 1)}
    yield "a kernel wider than the padded image", (x, wide), {**right, "dilation": (1, 1)}
    yield "an input of five axes", (x[None], w), right
    yield "a weight of three axes", (x, w[0]), right
    yield f"a {other} weight", (x, (w.real if w.is_complex() else w).to(other)), right
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


def spellings(subject: Subject, case: Case) -> None:
    """F.conv2d's forms of arguments work: integers, lists, "valid", "same", positions, no batch.

    ``padding="same"`` (stride 1) puts the odd pixel at the end.  A 3-D input is one image.
    """
    for problem, what, positional, keywords in _other_forms(case):
        x, w, _ = replace(case, problem=problem).operands()
        alone = what == "an image without a batch"
        if all(first == last for first, last in problem.padding):
            with moot("wrong with plain arguments already"):
                subject.require(what, subject.forward(problem, x, w), problem, x, w)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # conv2d warns about "same" with an odd pixel
                y = subject.call(x[0] if alone else x, w, *positional, **keywords)
        except Exception as error:  # of any type
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise Violation(f"{what} raises {said}") from error
        if alone:
            require_alike(what, y, problem.output_shape[1:], x)
            y = y[None]
        subject.require(what, y, problem, input=x, weight=w)


def _other_forms(case: Case) -> Iterator[tuple[Problem, str, tuple[Any, ...], dict[str, Any]]]:
    """A problem, the name of a form of arguments, and the arguments after input and weight."""
    p = replace(case.problem, batch=max(1, case.problem.batch))
    stride, dilation, side = max(p.stride), min(p.dilation), max(map(max, p.padding))
    square = replace(p, stride=(stride,) * 2, dilation=(dilation,) * 2, padding=((side, side),) * 2)
    grouped = {"groups": p.groups}
    numbers = {"stride": stride, "padding": side, "dilation": dilation, **grouped}
    yield square, "an integer for a pair", (), numbers
    yield square, "arguments by position", (None, stride, side, dilation, p.groups), {}
    sides = [max(pair) for pair in p.padding]
    flat = replace(p, padding=((sides[0],) * 2, (sides[1],) * 2))
    lists = {"stride": list(p.stride), "padding": sides, "dilation": list(p.dilation), **grouped}
    yield flat, "lists for pairs", (), lists
    alone = replace(square, batch=1)
    yield alone, "an image without a batch", (), numbers
    spans = [dilation * (taps - 1) for taps in p.kernel]
    same = tuple((span // 2, span - span // 2) for span in spans)
    dense = replace(p, stride=(1, 1), dilation=(dilation,) * 2, padding=(same[0], same[1]))
    yield dense, "padding='same'", (), {"padding": "same", "dilation": dilation, **grouped}
    if all(span < size for span, size in zip(spans, p.size)):
        valid = replace(square, padding=((0, 0), (0, 0)))
        yield valid, "padding='valid'", (), {**numbers, "padding": "valid"}


def opcheck(subject: Subject, case: Case) -> None:
    """torch.library.opcheck finds no error in an operator of torch.library.

    The problem is reduced as for ``finite_differences``, because opcheck traces each operation of
    the backward pass, which takes minutes if that loops over a hundred channels.
    """
    operator = subject.call
    if not isinstance(operator, (OpOverload, OpOverloadPacket, CustomOpDef)):
        raise Silence("not an operator of torch.library")
    if isinstance(operator, OpOverloadPacket):
        operator = operator.default
    case = replace(case, problem=cut(case.problem))
    x, w, _ = case.operands()
    subject.forward(case.problem, x, w)
    if is_differentiable(case.dtype):
        a, b = leaves(x, w)
        if subject.forward(case.problem, a, b).requires_grad:
            x, w = a, b
    try:
        with warnings.catch_warnings():
            # PyTorch 2.15 warns because opcheck itself reads .grad.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            torch_opcheck(operator, (x, w), arguments(case.problem))
    except Exception as error:  # opcheck raises several types
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Violation(f"opcheck: {lines[0]}") from error
