"""Real networks, converted and intercepted: logits and gradients as exact as with nn.Conv2d."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from support.needs import COMPILERS, needs
from support.networks import (
    NETWORKS,
    assert_as_right,
    exact,
    network,
    outcome,
    yardstick,
    yardstick_of,
)
from torch_corr import convert, corr2d, intercept, native

NAMED = "direct" if native.compiled else "unfold"

each_network = pytest.mark.parametrize("name", NETWORKS)
each_mode = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
each_dtype = pytest.mark.parametrize("halves", [False, True], ids=["float32", "bfloat16"])


@pytest.fixture(autouse=True)
def _needs_transformers(request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    if name not in (None, "replknet"):
        pytest.importorskip("transformers", reason="its networks need the extra 'models'")


@each_network
@each_mode
@each_dtype
@pytest.mark.parametrize("algorithm", ["auto", NAMED])
def test_converted_network_is_as_exact(
    name: str, train: bool, halves: bool, algorithm: str
) -> None:
    model, images = network(name)
    model = copy.deepcopy(model)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    report = convert(model, algorithm)
    assert report.skipped == {}
    assert len(report.replaced) == convolutions > 0
    result = outcome(model, images, train=train, halves=halves)
    assert_as_right(result, exact(name, train), yardstick(name, train, halves))


@each_network
@each_mode
@each_dtype
def test_intercepted_network_is_as_exact(name: str, train: bool, halves: bool) -> None:
    model, images = network(name)
    around = intercept(NAMED)
    result = outcome(copy.deepcopy(model), images, train=train, halves=halves, around=around)
    assert_as_right(result, exact(name, train), yardstick(name, train, halves))


def is_usual(train: bool, halves: bool, how: str, backend: str) -> bool:
    """Every pair of mode, dtype and method, with one backend."""
    return backend == "aot_eager" and (how == "converted") == (train != halves)


@needs(COMPILERS, unless=is_usual)
@each_network
@each_mode
@each_dtype
@pytest.mark.parametrize("how", ["converted", "intercepted"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_network_is_as_exact(
    name: str, train: bool, halves: bool, how: str, backend: str
) -> None:
    """Every pair of mode, dtype and method with one backend; with --compilers every combination.

    The bound is the scatter of nn.Conv2d's results around the float64 result, for data that differ
    by one rounding, times a factor that is derived in support/networks.py.  Inductor sums in
    another order than eager PyTorch, so nn.Conv2d's network is compiled by it too.
    """
    model, images = network(name)
    model = copy.deepcopy(model)
    around = intercept() if how == "intercepted" else None
    if around is None:
        convert(model)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of Dynamo about transformers
        result = outcome(model, images, train=train, halves=halves, around=around, backend=backend)
        allowed = yardstick(name, train, halves, backend if backend == "inductor" else None)
    assert_as_right(result, exact(name, train), allowed)


def test_yardstick_detects_a_missing_edge() -> None:
    """Only one column of one layer's gradient is wrong, by a relative error of 10^-4."""
    model, images = network("replknet")
    model = copy.deepcopy(model)
    layer = convert(model).replaced["5.narrow"]

    def forgets(gradient: Tensor) -> Tensor:
        changed = gradient.clone()
        changed[..., 0] *= 1 - 1e-4
        return changed

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(forgets)

    layer.register_forward_hook(watch)
    result = outcome(model, images, train=True, halves=False)
    with pytest.raises(AssertionError, match=r"narrow.weight.*from exact"):
        assert_as_right(result, exact("replknet", True), yardstick("replknet", True, False))


FILTERS = {
    "BoxBlur": ((5, 3),),
    "GaussianBlur2d": ((7, 5), (1.5, 1.0)),
    "MedianBlur": ((3, 3),),
    "MotionBlur": (5, 30.0, 0.5),
    "Sobel": (),
    "UnsharpMask": ((5, 5), (1.5, 1.5)),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("algorithm", ["auto", NAMED])
def test_kornia_filters_give_the_same_images(name: str, algorithm: str) -> None:
    """The filters call F.conv2d; compares the images and the gradient of the input."""
    filters = pytest.importorskip("kornia.filters", reason="kornia is in the extra 'models'")
    layer = getattr(filters, name)(*FILTERS[name])
    images = torch.rand(2, 3, 40, 36, generator=torch.Generator().manual_seed(0))

    def filtered(
        layer: nn.Module,
        images: Tensor,
        rounded: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> dict[str, Tensor]:
        images = images.detach().requires_grad_()
        result = layer(images)
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((result * rounded(weights)).sum(), images)
        return {"image": result.detach().double(), "gradient": gradient.double()}

    expected = filtered(copy.deepcopy(layer).double(), images.double())
    roundoff = torch.finfo(torch.float32).eps / 2
    allowed = yardstick_of(filtered, expected, layer, images, roundoff)
    with Calls() as calls, intercept(algorithm):
        result = filtered(layer, images)
    assert corr2d in calls.seen
    assert torch.conv2d not in calls.seen
    assert_as_right(result, expected, allowed)


class Calls(TorchFunctionMode):
    """Records the functions that are called inside the inner blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.seen.add(func)
        return func(*args, **(kwargs or {}))
