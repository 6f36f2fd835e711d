"""Correlations of other packages, each called as its own documentation shows.

OpenCV, SciPy and kornia filter single planes.  A problem of several planes with one filter each is
done in a loop, as their users do (at most ``MOST_PLANES``).  Arrays are views of the memory of the
tensors.  A package that is not installed is reported as absent.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torch_corr import Problem
from torch_corr.algorithms import dtype_name

from . import INSTALL
from .cases import CALLS, Task
from .check import Operands
from .contenders import (
    Contender,
    Correlate,
    Prepared,
    named,
    prepare_forward,
    prepare_gradient,
    symmetric_refusal,
)

MOST_PLANES = 64

Array: TypeAlias = Any
OnePlane: TypeAlias = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Peer(Contender):
    """A package that may be installed.

    Attributes:
        package: the module to import.
        distribution: its name for pip.
        dtypes: the dtypes that it is tried in.
    """

    package: str = ""
    distribution: str = ""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    def absent(self) -> str | None:
        if importlib.util.find_spec(self.package.split(".")[0]) is None:
            return f"{self.distribution} is not installed; in the checkout: {INSTALL}"
        if broken := _import_failure(self.package):
            return f"{self.distribution} is installed and cannot be imported: {broken}"
        return None

    def version(self) -> str:
        return importlib.metadata.version(self.distribution)

    def module(self) -> Any:
        return importlib.import_module(self.package)

    def refusals(self, task: Task) -> tuple[str, ...]:
        reasons = self.limits(task.problem)
        if task.work in CALLS:
            reasons.append("calls are timed for PyTorch and torch_corr alone")
        if task.dtype not in self.dtypes:
            reasons.append(f"not tried in {dtype_name(task.dtype)}")
        return tuple(reasons)

    @abstractmethod
    def limits(self, problem: Problem) -> list[str]:
        """Why it cannot compute a problem, whatever the dtype."""


@dataclass(frozen=True)
class PlanePeer(Peer):
    """Correlates one plane with one kernel in numpy arrays, forward only.

    Attributes:
        function: the entry of ``PLANE_FUNCTIONS`` to use.
    """

    function: str = ""

    def refusals(self, task: Task) -> tuple[str, ...]:
        reasons = super().refusals(task)
        if task.work != "forward":
            reasons += ("computes the forward map alone",)
        if task.device.type != "cpu":
            reasons += ("runs on the CPU",)
        return reasons

    def limits(self, problem: Problem) -> list[str]:
        reasons = _filter_limits(problem)
        if problem.group_in != 1:
            reasons.append("does not sum over channels")
        elif problem.batch * problem.out_channels > MOST_PLANES:
            reasons.append(f"a loop over more than {MOST_PLANES} planes")
        return reasons

    def settings(self) -> AbstractContextManager[Any]:
        """As many workers for SciPy's transforms as PyTorch has threads; the default is one."""
        if self.distribution != "scipy":
            return nullcontext()
        fft = importlib.import_module("scipy.fft")
        workers: AbstractContextManager[Any] = fft.set_workers(torch.get_num_threads())
        return workers

    def prepare(self, task: Task, operands: Operands) -> Prepared:
        p = task.problem
        one = PLANE_FUNCTIONS[self.function](self.module(), p)
        images, kernels = operands["input"].numpy(), operands["weight"].numpy()
        pairs = [
            (images[n, o // p.group_out], kernels[o, 0])
            for n in range(p.batch)
            for o in range(p.out_channels)
        ]

        def run() -> list[Array]:
            return [one(plane, kernel) for plane, kernel in pairs]

        def tensors(result: list[Array]) -> tuple[Tensor, ...]:
            planes = torch.stack([torch.from_numpy(each.copy()) for each in result])
            return (planes.reshape(p.output_shape),)

        return Prepared(run, tensors)


@dataclass(frozen=True)
class TensorPeer(Peer):
    """A differentiable function of tensors."""

    @abstractmethod
    def correlate(self, problem: Problem) -> Correlate:
        """The function of input and weight for a problem."""

    def prepare(self, task: Task, operands: Operands) -> Prepared:
        make = prepare_forward if task.work == "forward" else prepare_gradient
        return make(self.correlate(task.problem), task, operands)


@dataclass(frozen=True)
class KorniaPeer(TensorPeer):
    """``kornia.filters``: one kernel over single-channel images, padding valid or same."""

    function: str = "filter2d"

    def limits(self, problem: Problem) -> list[str]:
        reasons = _filter_limits(problem)
        if problem.in_channels != 1 or problem.out_channels != 1:
            reasons.append("one kernel over single-channel images")
        return reasons

    def correlate(self, problem: Problem) -> Correlate:
        function = getattr(self.module(), self.function)
        padding = _padding_mode(problem)
        return lambda x, w: function(x, w[0], border_type="constant", padding=padding)


@dataclass(frozen=True)
class FFTConvPeer(TensorPeer):
    """``fft_conv_pytorch``: transforms of whole images; in float32, whatever the dtype."""

    def module(self) -> Any:
        # PyTorch has deprecated its way of indexing and warns at every call.
        warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)
        return super().module()

    def limits(self, problem: Problem) -> list[str]:
        return list(symmetric_refusal(problem))

    def correlate(self, problem: Problem) -> Correlate:
        return partial(self.module().fft_conv, bias=None, **_geometry(problem))


@dataclass(frozen=True)
class EinconvPeer(Peer):
    """``einconv``: each map as one einsum with index patterns."""

    def limits(self, problem: Problem) -> list[str]:
        return list(symmetric_refusal(problem))

    def prepare(self, task: Task, operands: Operands) -> Prepared:
        problem = task.problem
        slots = [operands.get(slot) for slot in ("input", "weight", "output")]
        x, w, y = slots
        name, *arguments = {
            "forward": ("forward", x, w),
            "grad_input": ("input_vjp", w, y, problem.size),
            "grad_weight": ("weight_vjp", x, y, problem.kernel),
        }[task.work]
        module = importlib.import_module(f"einconv.expressions.convNd_{name}")
        geometry = _geometry(problem)

        def run() -> Tensor:
            equation, terms, shape = module.einsum_expression(*arguments, **geometry)
            return torch.einsum(equation, *terms).reshape(shape)

        return Prepared(run, lambda result: (result,))


def peers(names: Sequence[str] | None = None) -> list[Peer]:
    """Every peer, or those named."""
    peer: Literal["peer"] = "peer"
    cv2 = (peer, "cv2", "opencv-python-headless")
    signal = (peer, "scipy.signal", "scipy")
    kornia = (peer, "kornia.filters", "kornia")
    float32 = (torch.float32,)
    found: list[Peer] = [
        PlanePeer("opencv filter2D", *cv2, function="filter2D"),
        PlanePeer("opencv matchTemplate", *cv2, float32, function="matchTemplate"),
        PlanePeer("scipy correlate auto", *signal, function="correlate auto"),
        PlanePeer("scipy correlate fft", *signal, function="correlate fft"),
        PlanePeer("scipy oaconvolve", *signal, function="oaconvolve"),
        PlanePeer("scipy ndimage", "peer", "scipy.ndimage", "scipy", function="ndimage"),
        FFTConvPeer("fft-conv-pytorch", "peer", "fft_conv_pytorch", "fft-conv-pytorch", float32),
        KorniaPeer("kornia filter2d", *kornia, function="filter2d"),
        KorniaPeer("kornia fft_conv", *kornia, function="fft_conv"),
        EinconvPeer("einconv", "peer", "einconv", "einconv"),
    ]
    return named(found, names, "peer")


def set_peer_threads(threads: int) -> None:
    """Give OpenCV, which has its own thread pool, as many threads as PyTorch."""
    if importlib.util.find_spec("cv2") is not None and not _import_failure("cv2"):
        importlib.import_module("cv2").setNumThreads(threads)


@cache
def _import_failure(package: str) -> str:
    """Why an installed package cannot be imported (a missing system library, say), or ""."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"{error}".partition("\n")[0] or type(error).__name__
    return ""


def _geometry(problem: Problem) -> dict[str, Any]:
    """Arguments of functions that take those of ``F.conv2d`` by name."""
    p = problem
    padding = p.padding[0][0], p.padding[1][0]
    return {"stride": p.stride, "padding": padding, "dilation": p.dilation, "groups": p.groups}


def _filter_limits(problem: Problem) -> list[str]:
    """Why a function that filters images is not tried on a problem."""
    reasons = []
    if not problem.stride == (1, 1) == problem.dilation:
        reasons.append("has stride and dilation 1")
    if _padding_mode(problem) is None:
        reasons.append("padding is 'valid' or 'same' with an odd kernel")
    return reasons


def _padding_mode(problem: Problem) -> str | None:
    """The common name of a padding; None if it has none."""
    kernel, padding = problem.kernel, problem.padding
    if padding == ((0, 0), (0, 0)):
        return "valid"
    if all(k % 2 for k in kernel) and padding == tuple((k // 2, k // 2) for k in kernel):
        return "same"
    return None


def _crop(problem: Problem) -> tuple[slice, ...]:
    """The outputs within an image of the size of the input, filtered with a zero border."""
    starts = [k // 2 - before for k, (before, _) in zip(problem.kernel, problem.padding)]
    return tuple(slice(at, at + size) for at, size in zip(starts, problem.output_size))


def _filter2d(cv2: Any, problem: Problem) -> OnePlane:
    crop, border = _crop(problem), cv2.BORDER_CONSTANT
    return lambda x, w: cv2.filter2D(x, -1, w, borderType=border)[crop]


def _match_template(cv2: Any, problem: Problem) -> OnePlane:
    (top, bottom), (left, right) = problem.padding
    pads = any(map(any, problem.padding))

    def one(plane: Array, kernel: Array) -> Array:
        if pads:
            plane = cv2.copyMakeBorder(plane, top, bottom, left, right, cv2.BORDER_CONSTANT)
        return cv2.matchTemplate(plane, kernel, cv2.TM_CCORR)

    return one


def _scipy(correlate: Callable[[Any, Array, Array, str], Array]) -> Callable[..., OnePlane]:
    def make(signal: Any, problem: Problem) -> OnePlane:
        mode = _padding_mode(problem) or ""
        return lambda plane, kernel: correlate(signal, plane, kernel, mode)

    return make


def _ndimage(ndimage: Any, problem: Problem) -> OnePlane:
    crop = _crop(problem)
    return lambda x, w: ndimage.correlate(x, w, mode="constant")[crop]


PLANE_FUNCTIONS: dict[str, Callable[[Any, Problem], OnePlane]] = {
    "filter2D": _filter2d,
    "matchTemplate": _match_template,
    "correlate auto": _scipy(lambda signal, x, w, mode: signal.correlate(x, w, mode, "auto")),
    "correlate fft": _scipy(lambda signal, x, w, mode: signal.correlate(x, w, mode, "fft")),
    "oaconvolve": _scipy(lambda signal, x, w, mode: signal.oaconvolve(x, w[::-1, ::-1], mode)),
    "ndimage": _ndimage,
}
