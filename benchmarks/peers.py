"""Other people's correlations, each called as its own documentation calls it.

OpenCV, SciPy and kornia filter planes; a problem of several planes with one filter each is
done in a loop, as their users do (``MOST_PLANES`` at most).  Arrays are views of the same
memory that PyTorch reads.  A package that is not installed is listed as absent.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torch_corr import Problem
from torch_corr.algorithms import dtype_name

from . import INSTALL
from .cases import CALLS, Work
from .check import Operands
from .contenders import Contender, Prepared, by_autograd, named, symmetric_refusal

MOST_PLANES = 64

Array: TypeAlias = Any
OnePlane: TypeAlias = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Peer(Contender):
    """A package that may be installed.

    Attributes:
        package: what to import.
        distribution: what pip calls it.
    """

    package: str = ""
    distribution: str = ""

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


@dataclass(frozen=True)
class PlanePeer(Peer):
    """Correlates one plane with one kernel in numpy arrays; forward, stride and dilation 1.

    Attributes:
        function: which one of ``PLANE_FUNCTIONS`` does it.
        dtypes: that it computes in.
    """

    function: str = ""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    def refusals(
        self, problem: Problem, work: Work, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        p = problem
        reasons = []
        if work != "forward":
            reasons.append("computes the forward map alone")
        if device.type != "cpu":
            reasons.append("runs on the CPU")
        if dtype not in self.dtypes:
            reasons.append(f"does not compute in {dtype_name(dtype)}")
        if p.group_in != 1:
            reasons.append("does not sum over channels")
        elif p.batch * p.out_channels > MOST_PLANES:
            reasons.append(f"a loop over more than {MOST_PLANES} planes")
        if p.stride != (1, 1) or p.dilation != (1, 1):
            reasons.append("has stride and dilation 1")
        if self.function.startswith(("filter2D", "ndimage")):
            reasons += _anchor_refusal(p)
        return tuple(reasons)

    def settings(self) -> AbstractContextManager[Any]:
        """For SciPy's transforms as many workers as PyTorch has threads; they have one else."""
        if self.distribution != "scipy":
            return nullcontext()
        fft = importlib.import_module("scipy.fft")
        workers: AbstractContextManager[Any] = fft.set_workers(torch.get_num_threads())
        return workers

    def prepare(self, problem: Problem, work: Work, operands: Operands) -> Prepared:
        one = PLANE_FUNCTIONS[self.function](self.module(), problem)
        pairs = list(_planes(problem, operands))

        def run() -> list[Array]:
            return [one(plane, kernel) for plane, kernel in pairs]

        def tensors(result: list[Array]) -> tuple[Tensor, ...]:
            planes = torch.stack([torch.from_numpy(each.copy()) for each in result])
            return (planes.reshape(problem.output_shape),)

        return Prepared(run, tensors)


@dataclass(frozen=True)
class KorniaPeer(Peer):
    """``kornia.filters``: one kernel over single-channel images, padding valid or same."""

    function: str = "filter2d"

    def refusals(
        self, problem: Problem, work: Work, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        p = problem
        reasons = []
        if work in CALLS:
            reasons.append("calls are timed for PyTorch's own alone")
        if p.in_channels != 1 or p.out_channels != 1:
            reasons.append("one kernel over single-channel images")
        if p.stride != (1, 1) or p.dilation != (1, 1):
            reasons.append("has stride and dilation 1")
        if dtype not in (torch.float32, torch.float64):
            reasons.append(f"not tried in {dtype_name(dtype)}")
        if _kornia_padding(p) is None:
            reasons.append("padding is 'valid' or 'same' with an odd kernel")
        return tuple(reasons)

    def prepare(self, problem: Problem, work: Work, operands: Operands) -> Prepared:
        correlate = partial(
            getattr(self.module(), self.function),
            border_type="constant",
            padding=_kornia_padding(problem),
        )

        def plane(x: Tensor, w: Tensor) -> Tensor:
            result: Tensor = correlate(x, w[0])
            return result

        return _forward_or_autograd(plane, problem, work, operands)


@dataclass(frozen=True)
class FFTConvPeer(Peer):
    """``fft_conv_pytorch``: whole-image transforms in float32."""

    def module(self) -> Any:
        # Its indexing is deprecated in PyTorch and warns at every call.
        warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)
        return super().module()

    def refusals(
        self, problem: Problem, work: Work, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        reasons = list(symmetric_refusal(problem))
        if work in CALLS:
            reasons.append("calls are timed for PyTorch's own alone")
        if dtype != torch.float32:
            reasons.append("computes in float32 whatever the dtype")
        return tuple(reasons)

    def prepare(self, problem: Problem, work: Work, operands: Operands) -> Prepared:
        p = problem
        fft_conv = self.module().fft_conv

        def correlate(x: Tensor, w: Tensor) -> Tensor:
            result: Tensor = fft_conv(
                *(x, w, None, (p.padding[0][0], p.padding[1][0])),
                stride=p.stride,
                dilation=p.dilation,
                groups=p.groups,
            )
            return result

        return _forward_or_autograd(correlate, problem, work, operands)


@dataclass(frozen=True)
class EinconvPeer(Peer):
    """``einconv``: each map as one einsum with index patterns."""

    def refusals(
        self, problem: Problem, work: Work, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        reasons = list(symmetric_refusal(problem))
        if work in CALLS:
            reasons.append("calls are timed for PyTorch's own alone")
        if dtype not in (torch.float32, torch.float64):
            reasons.append(f"not tried in {dtype_name(dtype)}")
        return tuple(reasons)

    def prepare(self, problem: Problem, work: Work, operands: Operands) -> Prepared:
        p = problem
        geometry = {
            "stride": p.stride,
            "padding": (p.padding[0][0], p.padding[1][0]),
            "dilation": p.dilation,
            "groups": p.groups,
        }
        if work == "forward":
            make = partial(
                _einsum("convNd_forward"),
                *(operands["input"], operands["weight"]),
            )
        elif work == "grad_input":
            make = partial(
                _einsum("convNd_input_vjp"),
                *(operands["weight"], operands["output"], p.size),
            )
        else:
            make = partial(
                _einsum("convNd_weight_vjp"),
                *(operands["input"], operands["output"], p.kernel),
            )

        def run() -> Tensor:
            equation, terms, shape = make(**geometry)
            return torch.einsum(equation, *terms).reshape(shape)

        return Prepared(run, lambda result: (result,))


def peers(names: Sequence[str] | None = None) -> list[Contender]:
    """Every peer, or those named."""
    cv2 = ("cv2", "opencv-python-headless")
    signal = ("scipy.signal", "scipy")
    ndimage = ("scipy.ndimage", "scipy")
    filters = ("kornia.filters", "kornia")
    found: list[Contender] = [
        PlanePeer("opencv filter2D", "peer", *cv2, function="filter2D"),
        PlanePeer(
            "opencv matchTemplate",
            "peer",
            *cv2,
            function="matchTemplate",
            dtypes=(torch.float32,),
        ),
        PlanePeer("scipy correlate auto", "peer", *signal, function="correlate auto"),
        PlanePeer("scipy correlate fft", "peer", *signal, function="correlate fft"),
        PlanePeer("scipy oaconvolve", "peer", *signal, function="oaconvolve"),
        PlanePeer("scipy ndimage", "peer", *ndimage, function="ndimage"),
        FFTConvPeer("fft-conv-pytorch", "peer", "fft_conv_pytorch", "fft-conv-pytorch"),
        KorniaPeer("kornia filter2d", "peer", *filters, function="filter2d"),
        KorniaPeer("kornia fft_conv", "peer", *filters, function="fft_conv"),
        EinconvPeer("einconv", "peer", "einconv", "einconv"),
    ]
    return named(found, names, "peer")


def set_peer_threads(threads: int) -> None:
    """Give peers with thread pools of their own as many threads as PyTorch has."""
    if importlib.util.find_spec("cv2") is not None and not _import_failure("cv2"):
        importlib.import_module("cv2").setNumThreads(threads)


@cache
def _import_failure(package: str) -> str:
    """Why an installed package cannot be imported (a system library is missing, say), or ""."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"{error}".partition("\n")[0] or type(error).__name__
    return ""


def _planes(problem: Problem, operands: Operands) -> Iterator[tuple[Array, Array]]:
    """(plane, kernel) of each output plane, in the output's order; groups of one channel."""
    images, kernels = operands["input"].numpy(), operands["weight"].numpy()
    for n in range(problem.batch):
        for o in range(problem.out_channels):
            yield images[n, o // problem.group_out], kernels[o, 0]


def _forward_or_autograd(
    correlate: Callable[[Tensor, Tensor], Tensor],
    problem: Problem,
    work: Work,
    operands: Operands,
) -> Prepared:
    if work == "forward":
        x, w = operands["input"], operands["weight"]
        return Prepared(lambda: correlate(x, w), lambda result: (result,))
    return by_autograd(correlate, problem, work, operands)


def _einsum(map: str) -> Callable[..., Any]:
    module = importlib.import_module(f"einconv.expressions.{map}")
    expression: Callable[..., Any] = module.einsum_expression
    return expression


def _kornia_padding(problem: Problem) -> str | None:
    if problem.padding == ((0, 0), (0, 0)):
        return "valid"
    half = tuple((k // 2, k // 2) for k in problem.kernel)
    if problem.padding == half and all(k % 2 for k in problem.kernel):
        return "same"
    return None


def _anchors(problem: Problem) -> list[tuple[int, int]]:
    """Per axis, the anchors for which every output is a pixel of the filtered image."""
    return [
        (before, kernel - 1 - after)
        for (before, after), kernel in zip(problem.padding, problem.kernel)
    ]


def _anchor_refusal(problem: Problem) -> list[str]:
    if any(least > most for least, most in _anchors(problem)):
        return ["its output is the size of its input"]
    return []


def _pads(problem: Problem) -> bool:
    return problem.padding != ((0, 0), (0, 0))


def _crop(problem: Problem, anchors: Sequence[int]) -> tuple[slice, slice]:
    """Where our outputs lie in an image filtered with its zero border at these anchors."""
    rows, columns = (
        slice(anchor - before, anchor - before + size)
        for anchor, (before, _), size in zip(anchors, problem.padding, problem.output_size)
    )
    return rows, columns


def _filter2d(cv2: Any, problem: Problem) -> OnePlane:
    down, across = (
        max(least, min(kernel // 2, most))
        for (least, most), kernel in zip(_anchors(problem), problem.kernel)
    )
    crop = _crop(problem, (down, across))
    border = cv2.BORDER_CONSTANT

    def one(plane: Array, kernel: Array) -> Array:
        return cv2.filter2D(plane, -1, kernel, anchor=(across, down), borderType=border)[crop]

    return one


def _match_template(cv2: Any, problem: Problem) -> OnePlane:
    (top, bottom), (left, right) = problem.padding

    def one(plane: Array, kernel: Array) -> Array:
        if _pads(problem):
            plane = cv2.copyMakeBorder(plane, top, bottom, left, right, cv2.BORDER_CONSTANT)
        return cv2.matchTemplate(plane, kernel, cv2.TM_CCORR)

    return one


def _scipy_mode(problem: Problem) -> str | None:
    """What scipy calls the padding; None when it has no name for it."""
    if not _pads(problem):
        return "valid"
    if _kornia_padding(problem) == "same":
        return "same"
    if problem.padding == tuple((k - 1, k - 1) for k in problem.kernel):
        return "full"
    return None


def _scipy(correlate: Callable[[Array, Array, str], Array], problem: Problem) -> OnePlane:
    import numpy as np

    mode = _scipy_mode(problem)

    def one(plane: Array, kernel: Array) -> Array:
        if mode is None:
            plane = np.pad(plane, problem.padding)
        return correlate(plane, kernel, mode or "valid")

    return one


def _correlate(method: str, signal: Any, problem: Problem) -> OnePlane:
    return _scipy(lambda x, w, mode: signal.correlate(x, w, mode=mode, method=method), problem)


def _oaconvolve(signal: Any, problem: Problem) -> OnePlane:
    return _scipy(lambda x, w, mode: signal.oaconvolve(x, w[::-1, ::-1], mode=mode), problem)


def _ndimage(ndimage: Any, problem: Problem) -> OnePlane:
    # Its origin counts from the middle; its anchor is kernel // 2 + origin.
    anchors = [
        max(least, min(kernel // 2, most))
        for (least, most), kernel in zip(_anchors(problem), problem.kernel)
    ]
    origin = [anchor - kernel // 2 for anchor, kernel in zip(anchors, problem.kernel)]
    crop = _crop(problem, anchors)

    def one(plane: Array, kernel: Array) -> Array:
        return ndimage.correlate(plane, kernel, mode="constant", origin=origin)[crop]

    return one


PLANE_FUNCTIONS: dict[str, Callable[[Any, Problem], OnePlane]] = {
    "filter2D": _filter2d,
    "matchTemplate": _match_template,
    "correlate auto": partial(_correlate, "auto"),
    "correlate fft": partial(_correlate, "fft"),
    "oaconvolve": _oaconvolve,
    "ndimage": _ndimage,
}
