"""``tune``: time the algorithms on the layers of a model, while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .algorithms import ALGORITHMS
from .dispatch.capture import standard_conv2d
from .dispatch.pipeline import Call, prepare
from .functional import corr2d
from .operators import PLAIN
from .planning.auto import PLANNING_THRESHOLD, Auto
from .planning.plan import Plan, find_algorithm, make_plan
from .planning.timing import time_algorithms, time_in_turns
from .planning.wisdom import WISDOM, Key
from .progress import clear_progress, show_progress

PYTORCH = next(each for each in ALGORITHMS if each.is_pytorch)

KEEP_RATIO = 0.97
"""A layer leaves PyTorch only if it takes less than this fraction of PyTorch's time."""

OTHER_DATA = 2**23
"""Bytes that are read and written before each timed run of a layer on a CPU.  In a network the
other layers do the same: operands, kernels and Python's own code leave the caches of a core."""


_NO_LAYER = "a call of corr2d"


@dataclass(frozen=True)
class TunedCall:
    """One call of a layer.

    Attributes:
        layer: its name in the model, or ``a call of corr2d`` outside the layers.
        problem: the problem, device, dtype and layout.
        maps: the algorithms of forward, grad_input and grad_weight; without gradients, of forward.
        before: seconds of PyTorch's convolution, with the gradients that the call needs.
        after: seconds with these algorithms.
    """

    layer: str
    problem: str
    maps: tuple[str, ...]
    before: float
    after: float


@dataclass(frozen=True)
class Tuning:
    """The report of :func:`tune`; print it to read it.

    Attributes:
        calls: the timed calls, in the order in which the model made them.
        skipped: why other layers were not timed, by their names.
    """

    calls: list[TunedCall] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def before(self) -> float:
        """Seconds of all timed calls with PyTorch's convolution."""
        return sum(call.before for call in self.calls)

    @property
    def after(self) -> float:
        """Seconds of all timed calls with the chosen algorithms."""
        return sum(call.after for call in self.calls)

    def __str__(self) -> str:
        """A row for each problem, with the times of one call, and one for the sums."""
        rows = [("layers", "problem", "PyTorch ms", "tuned ms", "algorithms")]
        groups: dict[tuple[str, tuple[str, ...], float], list[TunedCall]] = {}
        for call in self.calls:
            groups.setdefault((call.problem, call.maps, call.before), []).append(call)
        for (problem, maps, _), calls in groups.items():
            layer = calls[0].layer
            layers = layer if len(calls) == 1 else f"{layer} and {len(calls) - 1} more"
            names = maps[0] if len(set(maps)) == 1 else ", ".join(maps)
            rows.append((layers, problem, *_milliseconds(calls[0]), names))
        ratio = f"{self.before / self.after:.2f} times as fast" if self.calls else ""
        rows.append((f"all {len(self.calls)} calls", "", *_milliseconds(self), ratio))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [
            "  ".join(
                cell.rjust(width) if number in (2, 3) else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        ]
        lines += [f"{name} not timed: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def _milliseconds(times: TunedCall | Tuning) -> tuple[str, str]:
    return f"{times.before * 1e3:.3f}", f"{times.after * 1e3:.3f}"


def tune(model: nn.Module, *inputs: Any, progress: bool | None = None, **keywords: Any) -> Tuning:
    """Run a model once and time every algorithm on each layer, with the layer's own operands.

    Each ``Corr2d``, each layer of :func:`~torch_corr.convert` and each other call of
    :func:`~torch_corr.corr2d` whose algorithm is ``"auto"`` is timed for its shapes, dtype and
    layout, in the autocast and gradient mode of the caller.  With gradients, grad_input and
    grad_weight are timed too.  The times go into :data:`torch_corr.wisdom`, so ``auto`` uses them
    from then on, also in compiled graphs; ``wisdom.save`` keeps them for other processes.

    Then the layer as a whole is timed against PyTorch's, with its Python code and with caches that
    hold other data.  Unless it takes less than 0.97 of PyTorch's time, only PyTorch's times are
    kept, so that ``auto`` chooses PyTorch.

    The model runs in its present mode, ``train()`` or ``eval()``.  Its buffers and the random
    generators get their values back afterwards; ``.grad`` does not change.  It takes about a
    second for each new problem.

    Args:
        model: any module.
        inputs: the positional arguments of the model, of the sizes that it will get.
        progress: whether to print a bar to stderr; None: only to a terminal.
        keywords: the keyword arguments of the model.

    Returns:
        The report, with the times before and after for each layer.

    Raises:
        TypeError: ``model`` is not a module.
        Any error of the model's own run.

    Example:
        >>> model = torch.nn.Sequential(Corr2d(8, 8, 5, groups=8), torch.nn.ReLU())
        >>> report = tune(model, torch.ones(4, 8, 32, 32))
        >>> report.calls[0].layer, len(report.calls[0].maps)
        ('0', 3)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = {
        name or "the model": each
        for name, each in model.named_modules()
        if isinstance(each, nn.Conv2d)
    }
    shown = sys.stderr.isatty() if progress is None else progress
    tuner = _Tuner(len(layers), shown)
    with ExitStack() as stack:
        if shown:
            stack.callback(clear_progress)
        stack.enter_context(_unchanged(model))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, layer in layers.items():
            before = layer.register_forward_pre_hook(lambda *_, name=name: tuner.enter(name))
            after = layer.register_forward_hook(lambda *_: tuner.enter(_NO_LAYER), always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(tuner)
        model(*inputs, **keywords)
    called = {call.layer for call in tuner.report.calls} | set(tuner.report.skipped)
    for name in layers:
        if name not in called:
            sentence = "this run did not call it, or it does not call corr2d; see convert"
            tuner.report.skipped[name] = sentence
    return tuner.report


class _Tuner(TorchFunctionMode):
    """Receives each call of ``corr2d``, as any ``TorchFunctionMode`` does, and times it first."""

    def __init__(self, layers: int, shows_progress: bool) -> None:
        super().__init__()
        self.report = Tuning()
        self._layers, self._shows_progress = layers, shows_progress
        self._layer = _NO_LAYER
        self._known: dict[object, TunedCall] = {}

    def enter(self, layer: str) -> None:
        """Note which layer runs."""
        self._layer = layer

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Time a call of ``corr2d``, and pass every call on."""
        if func is corr2d:
            self._tune(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _tune(self, input: Any, weight: Any, bias: Any, *geometry: Any, **options: Any) -> None:
        operands = [each for each in (input, weight, bias) if each is not None]
        algorithm = options["algorithm"]
        if not isinstance(find_algorithm(algorithm), Auto):
            return self._skip(f"its algorithm is {algorithm!r}")
        strange = {type(each) for each in operands}.difference(PLAIN)
        if strange:
            return self._skip(f"an operand is a {strange.pop().__name__}, not a plain Tensor")
        if input.is_meta or input.is_mkldnn:
            return self._skip("its image is not in memory that every algorithm can read")
        call = prepare(input, weight, bias, *geometry, **options)
        plan = call.plan
        if not isinstance(plan, Plan) or plan.problem.multiplications < PLANNING_THRESHOLD:
            fewer = f"fewer than {PLANNING_THRESHOLD} multiplications"
            return self._skip(f"it has {fewer}, for which auto always chooses PyTorch")
        if any(refusals := PYTORCH.refusals(each) for each in plan.requests):
            return self._skip(f"PyTorch's convolution cannot compute it: {refusals[0]}")
        grad = torch.is_grad_enabled()
        needs = [grad and each is not None and each.requires_grad for each in (input, weight, bias)]
        # Wisdom does not know which operands need gradients, so the first call decides for others.
        condition = plan.requests[0], algorithm, bias is None, needs[0] or needs[1]
        if condition not in self._known:
            self._known[condition] = _tuned(algorithm, call, needs)
        self.report.calls.append(replace(self._known[condition], layer=self._layer))
        if self._shows_progress:
            done = len(self.report.calls)
            show_progress(done, self._layers, f"tune: {done} calls, {self._layer}")
        return None

    def _skip(self, reason: str) -> None:
        self.report.skipped.setdefault(self._layer, reason)


def _tuned(algorithm: str | Auto, call: Call, needs: Sequence[bool]) -> TunedCall:
    """Measure the maps that a call needs, then compare the whole call with PyTorch's.

    Args:
        algorithm: that of the layer.
        call: the checked call.
        needs: whether image, weight and bias need gradients.
    """
    plan = call.plan
    assert isinstance(plan, Plan)
    requests = plan.requests if needs[0] or needs[1] else plan.requests[:1]
    auto = find_algorithm(algorithm)
    assert isinstance(auto, Auto)
    for request in requests:
        replace(auto, measure=True).choose(request)
    before, after = _compared(algorithm, call, needs)
    tuned = _planned(algorithm, plan)
    if after > KEEP_RATIO * before and not tuned.is_conv2d(*needs[:2]):
        for request in requests:
            key = Key.of(request)
            if PYTORCH.spelling not in WISDOM.seconds(key):
                WISDOM.remember(key, time_algorithms([PYTORCH], request))
            WISDOM.keep_only(key, PYTORCH.spelling)
        before, after = _compared(algorithm, call, needs)
        tuned = _planned(algorithm, plan)
    maps = tuple(getattr(tuned, request.map).name for request in requests)
    return TunedCall("", str(requests[0]), maps, before, after)


def _planned(algorithm: str | Auto, plan: Plan) -> Plan:
    """The plan with the present wisdom."""
    return make_plan(plan.problem, plan.device, plan.dtype, algorithm, plan.channels_last)


def _compared(algorithm: str | Auto, call: Call, needs: Sequence[bool]) -> tuple[float, float]:
    """Seconds of a call with PyTorch's convolution and with this library's."""
    plan = call.plan
    assert isinstance(plan, Plan)
    problem, device = plan.problem, plan.device

    def leaf(operand: Tensor, needed: bool) -> Tensor:
        return operand.detach().requires_grad_(needed)

    images, filters = leaf(call.images, needs[0]), leaf(call.filters, needs[1])
    bias = None if call.bias is None else leaf(call.bias, needs[2])
    operands = [each for each in (images, filters, bias) if each is not None and each.requires_grad]
    layout = torch.channels_last if plan.channels_last else torch.contiguous_format
    ones = torch.ones(problem.output_shape, dtype=plan.dtype, device=device)
    upstream = ones.contiguous(memory_format=layout)
    (top, bottom), (left, right) = problem.padding
    symmetric = (top, left) == (bottom, right)
    padding: Any = (top, left) if symmetric else problem.padding
    numbers = problem.stride, padding, problem.dilation, problem.groups

    def pytorch() -> Tensor:
        if symmetric:
            return torch.conv2d(images, filters, bias, *numbers)
        return standard_conv2d(problem, images, filters, bias)

    def ours() -> Tensor:
        return corr2d(images, filters, bias, *numbers, algorithm=algorithm)

    def work_of(correlate: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            output = correlate()
            if operands:
                torch.autograd.grad(output, operands, upstream)

        return work

    other = torch.zeros(OTHER_DATA, dtype=torch.uint8) if device.type == "cpu" else None
    seconds = time_in_turns(
        {"before": work_of(pytorch), "after": work_of(ours)},
        device,
        None if other is None else lambda: other.add_(1),
    )
    return seconds["before"], seconds["after"]


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Gives buffers and random generators their values back."""
    saved = [(each, each.detach().clone()) for each in model.buffers()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in saved:
                    buffer.copy_(value)
