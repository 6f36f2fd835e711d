"""torch.compile takes corr2d whole, with every algorithm, and it stays conv2d; so do the
transforms of torch.func inside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from support.laws import algorithm_id
from support.maps import request
from torch_corr import (
    Algorithm,
    Auto,
    Corr2d,
    Naive,
    Problem,
    Unfold,
    convert,
    convolve2d,
    corr2d,
    intercept,
    plan,
)
from torch_corr.planning.plan import able_algorithms
from torch_corr.planning.wisdom import WISDOM, Key

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch._prims_common.check` is deprecated:FutureWarning",
    "ignore:.*isinstance.treespec, LeafSpec.* is deprecated:FutureWarning",
)


class Mine(Naive):
    """An algorithm from elsewhere, which nobody registered."""

    name = "mine"


ABLE = able_algorithms(Problem.parse("n1c1-x1-o1-k1"), torch.device("cpu"), torch.float64)
CHOICES = ["auto", *(each.name for each in ABLE), Unfold(workspace_limit=50_000), Mine()]
each_choice = pytest.mark.parametrize("algorithm", CHOICES, ids=algorithm_id)


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def some(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def with_gradients(function: Callable[..., Tensor], *operands: Tensor) -> tuple[Tensor, ...]:
    leaves = [value.detach().clone().requires_grad_() for value in operands]
    y = function(*leaves)
    return y, *torch.autograd.grad(y.pow(3).sum(), leaves)


@pytest.mark.parametrize(
    ("algorithm", "backend"),
    [
        *((algorithm, backend) for algorithm in CHOICES for backend in ("eager", "aot_eager")),
        *((algorithm, "inductor") for algorithm in ("auto", "fft", Mine())),
    ],
    ids=lambda value: value if isinstance(value, str) else algorithm_id(value),
)
def test_ten_shapes_in_two_graphs(algorithm: Algorithm | str, backend: str) -> None:
    """One graph for the first shape, one for all others, forward and backward."""
    counter = CompileCounterWithBackend(backend)

    @torch.compile(fullgraph=True, backend=counter)
    def captured(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return corr2d(x, w, b, (1, 2), 1, 1, 2, algorithm=algorithm)

    for n in range(10):
        x, w, b = some((n + 2, 4, 5 + n, 6 + n), (6, 2, 3, 2), (6,))
        ours = with_gradients(captured, x, w, b)
        theirs = with_gradients(lambda x, w, b: F.conv2d(x, w, b, (1, 2), 1, 1, 2), x, w, b)
        close(ours, theirs)
    assert counter.frame_count == 2


def test_aten_under_inductor_is_as_many_graphs_as_conv2d() -> None:
    """Who names PyTorch's own gets what inductor makes of it: perhaps a graph for each size."""
    counts = []
    for function in (F.conv2d, lambda *operands: corr2d(*operands, algorithm="aten")):
        counter = CompileCounterWithBackend("inductor")
        captured = torch.compile(lambda x, w: function(x, w), fullgraph=True, backend=counter)  # noqa: B023
        for n in range(3):
            x, w = some((n + 2, 4, 5 + n, 6 + n), (6, 4, 3, 2))
            close(captured(x, w), F.conv2d(x, w))
        counts.append(counter.frame_count)
        torch._dynamo.reset()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("algorithm", ["auto", "fft"])
@pytest.mark.parametrize(
    ("padding", "stride"),
    [("full", 1), ("same", 1), ("same", 2), ("valid", 2), (((1, 0), (0, 2)), 2), ([1, 2], 1)],
    ids=str,
)
def test_every_padding_for_any_size(padding: Any, stride: int, algorithm: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def function(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, None, stride, padding, algorithm=algorithm)

    captured = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    for n in (5, 6, 7):
        x, w = some((2, 3, n, 11 - n), (4, 3, 3, 2))
        close(with_gradients(captured, x, w), with_gradients(function, x, w))
    assert counter.frame_count == 1


def test_convolve2d_is_one_graph_for_any_size() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def function(x: Tensor, w: Tensor) -> Tensor:
        return convolve2d(x, w, None, 2, "same")

    captured = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    for n in (5, 6, 7):
        x, w = some((2, 3, n + 4, 20 - n), (4, 3, n, n + 2))
        close(with_gradients(captured, x, w), with_gradients(function, x, w))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("algorithm", ["auto", "aten", "unfold"])
def test_no_filters(algorithm: str, dynamic: bool) -> None:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return corr2d(x, w, b, padding=1, algorithm=algorithm)

    captured = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    operands = some((2, 4, 7, 8), (0, 4, 3, 2), (0,))
    close(with_gradients(captured, *operands), with_gradients(function, *operands))


@pytest.fixture
def data_dependent() -> Iterator[None]:
    """``n.item()`` and ``x[mask]`` stay in the graph, with sizes that only its data decide."""
    with torch._dynamo.config.patch(
        capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
    ):
        yield


def counted(mask: Tensor, most: int, hint: bool) -> int:
    """A size from data; with what PyTorch asks for where it cannot find out by itself."""
    size: Any = mask.sum().item()
    if hint:
        torch._check(size >= 3)
        torch._check(size <= most)
    return size


def masked(x: Tensor, mask: Tensor, hint: bool) -> Tensor:
    images = x[mask]
    if hint:
        torch._check(images.shape[0] >= 1)
    return images


def masked_in_channels_last(x: Tensor, mask: Tensor, hint: bool) -> Tensor:
    return masked(x.contiguous(memory_format=torch.channels_last), mask, hint)


FIVE_OF_SEVEN = torch.tensor([True, True, False, True, False, True, True])
NONE_OF_SEVEN = torch.zeros(7, dtype=torch.bool)
PARTS: dict[str, tuple[Callable[[Tensor, Tensor, bool], Tensor], Tensor]] = {
    "rows": (lambda x, mask, hint: x[:, :, : counted(mask, 9, hint)], FIVE_OF_SEVEN),
    "columns": (lambda x, mask, hint: x[..., : counted(mask, 8, hint)], FIVE_OF_SEVEN),
    "one image": (lambda x, mask, hint: x[0, :, : counted(mask, 9, hint)], FIVE_OF_SEVEN),
    "images": (masked, FIVE_OF_SEVEN),
    "no images": (masked, NONE_OF_SEVEN),
    "channels_last": (masked_in_channels_last, FIVE_OF_SEVEN),
}


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("algorithm", ["auto", "aten"])
@pytest.mark.parametrize(
    ("part", "hint"), [*((part, False) for part in PARTS), ("rows", True), ("images", True)]
)
def test_sizes_that_depend_on_data(part: str, algorithm: str, hint: bool) -> None:
    """Values and gradients, in every kind of padding, in one graph."""
    take, which = PARTS[part]

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        x = take(x, which, hint)
        paddings = (1, 1), (1, "full"), (2, "same"), (1, ((1, 0), (0, 2)))
        results = [
            corr2d(x, w, b, stride, padding, algorithm=algorithm) for stride, padding in paddings
        ]
        return torch.cat([result.flatten() for result in results])

    captured = torch.compile(function, fullgraph=True, backend="aot_eager")
    operands = some((7, 3, 9, 8), (4, 3, 3, 2), (4,))
    close(with_gradients(captured, *operands), with_gradients(function, *operands))


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("part", ["rows", "one image", "images"])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_borders_of_sizes_that_depend_on_data(mode: str, part: str) -> None:
    take, which = PARTS[part]
    paddings = [(1, 1), (1, ((1, 0), (0, 2))), (2, "same")]
    paddings += [(1, (11, 12))] if mode == "circular" else []

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        x = take(x, which, False)
        results = [
            corr2d(x, w, b, stride, padding, padding_mode=mode) for stride, padding in paddings
        ]
        return torch.cat([result.flatten() for result in results])

    captured = torch.compile(function, fullgraph=True, backend="aot_eager")
    operands = some((7, 3, 9, 8), (4, 3, 3, 2), (4,))
    close(with_gradients(captured, *operands), with_gradients(function, *operands))


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("algorithm", ["auto", "aten"])
def test_data_decide_in_one_graph(algorithm: str) -> None:
    """Each size is planned and checked when it comes."""
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def captured(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
        return corr2d(x[:, :, : mask.sum().item()], w, algorithm=algorithm)

    x, w = some((2, 3, 9, 8), (4, 3, 3, 2))
    for n in (5, 3, 9):
        close(captured(x, w, torch.arange(9) < n), F.conv2d(x[:, :, :n], w))
    with pytest.raises(RuntimeError, match="kernel does not fit: along H it spans 3 pixels"):
        captured(x, w, torch.arange(9) < 2)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("algorithm", ["auto", "aten"])
def test_channels_and_taps_that_depend_on_data(algorithm: str) -> None:
    """conv2d with such channels cannot be captured; none at all sum to zero, as in eager."""

    def function(x: Tensor, w: Tensor, b: Tensor, mask: Tensor, taps: Tensor) -> Tensor:
        kernel = w[:, mask, : taps.sum().item()]
        return corr2d(x[:, mask], kernel, b, padding=1, algorithm=algorithm)

    captured = torch.compile(function, fullgraph=True, backend="aot_eager")
    operands = some((2, 3, 5, 6), (4, 3, 3, 2), (4,))
    for mask, taps in (((True, False, True), 2), ((True, True, True), 3), ((False,) * 3, 1)):
        which = torch.tensor(mask), torch.arange(3) < taps
        close(captured(*operands, *which), function(*operands, *which))


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("algorithm", ["auto", "aten"])
def test_channels_from_data_that_do_not_match(algorithm: str) -> None:
    """Refused when they come, by an assertion in the graph."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def captured(x: Tensor, w: Tensor, some: Tensor, others: Tensor) -> Tensor:
        return corr2d(x[:, some], w[:, others], algorithm=algorithm)

    x, w = some((2, 3, 5, 6), (4, 3, 3, 2))
    two, all = torch.tensor([True, False, True]), torch.tensor([True, True, True])
    close(captured(x, w, two, two), F.conv2d(x[:, ::2], w[:, ::2]))
    with pytest.raises(RuntimeError, match="Runtime assertion failed for expression"):
        captured(x, w, all, two)


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("algorithm", ["aten"])
def test_inductor_where_sizes_depend_on_data(algorithm: str) -> None:
    def function(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
        return corr2d(x[mask], w, padding=1, algorithm=algorithm)

    captured = torch.compile(function, fullgraph=True)
    operands = some((7, 3, 9, 8), (4, 3, 3, 2))
    ours = with_gradients(lambda x, w: captured(x, w, FIVE_OF_SEVEN), *operands)
    close(ours, with_gradients(lambda x, w: function(x, w, FIVE_OF_SEVEN), *operands))


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("algorithm", ["auto", "aten", "unfold"])
def test_vmap_over_an_axis_of_any_length(algorithm: str) -> None:
    """A length that is dynamic, and one that depends on data; conv2d is held to one length."""

    def function(xs: Tensor, w: Tensor) -> Tensor:
        return vmap(lambda x: corr2d(x, w, algorithm=algorithm))(xs)

    counter = CompileCounterWithBackend("aot_eager")
    captured = torch.compile(function, fullgraph=True, backend=counter)
    for times in (8, 9, 10):
        xs, w = some((times, 2, 3, 5, 4), (2, 3, 2, 2))
        close(with_gradients(captured, xs, w), with_gradients(function, xs, w))
    assert counter.frame_count == 2
    xs, w = some((7, 2, 3, 5, 4), (2, 3, 2, 2))
    captured = torch.compile(
        lambda xs, w, mask: function(xs[mask], w), fullgraph=True, backend="aot_eager"
    )
    close(captured(xs, w, FIVE_OF_SEVEN), function(xs[FIVE_OF_SEVEN], w))


def test_images_that_wrap_often_are_one_graph() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def function(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, padding=(1, 20), padding_mode="circular")

    captured = torch.compile(function, fullgraph=True, backend=counter)
    for n in (5, 6, 7):
        x, w = some((2, 3, 2 * n, n), (4, 3, 3, 2))
        close(with_gradients(captured, x, w), with_gradients(function, x, w))
    assert counter.frame_count == 2


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_marked_dynamic(mode: str) -> None:
    """``mark_dynamic`` holds: nothing ties the graph to a size."""
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def captured(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, padding=1, padding_mode=mode, algorithm="unfold")

    for n in range(4, 7):
        x, w = some((n, 3, n + 1, n + 3), (4, 3, 3, 2))
        for axis in (0, 2, 3):
            torch._dynamo.mark_dynamic(x, axis)
        close(captured(x, w), F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), w))
    assert counter.frame_count == 1


@each_choice
@pytest.mark.parametrize("dynamic", [False, True])
def test_no_more_is_saved_than_the_operands(algorithm: Algorithm | str, dynamic: bool) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def captured(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, padding=1, algorithm=algorithm)

    x, w = (value.requires_grad_() for value in some((2, 3, 6, 7), (4, 3, 3, 3)))
    saved: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        saved.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        captured(x, w)
    assert {value.data_ptr() for value in saved} == {x.data_ptr(), w.data_ptr()}
    assert len(saved) == 2


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("groups", [1, 32])
def test_auto_chooses_as_in_eager(groups: int, dynamic: bool) -> None:
    """The same algorithms run, map by map; what is PyTorch's own is traced into the graph."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, padding=4, groups=groups)

    def ran(function: Callable[..., Tensor]) -> set[str]:
        cpu = [torch.profiler.ProfilerActivity.CPU]
        # acc_events, or PyTorch before 2.13 warns of cycles that nobody asked for.
        with torch.profiler.profile(activities=cpu, acc_events=True) as profile:
            with_gradients(function, *operands)
        names = {event.key for event in profile.key_averages()}
        return {name for name in names if name.startswith("torch_corr::") and "." in name} - {
            f"torch_corr::aten.{map}" for map in ("forward", "grad_input", "grad_weight")
        }

    captured = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (40, 12, 41):
        operands = some((2, 32, size, size), (32, 32 // groups, 9, 9), dtype=torch.float32)
        with_gradients(captured, *operands)
        assert ran(captured) == ran(function)


def transforms(function: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Callable[[], Any]]:
    """Calls of torch.func on a correlation, by name."""
    x, w, xs, ws = some((2, 3, 5, 4), (2, 3, 2, 2), (3, 2, 3, 5, 4), (3, 2, 3, 2, 2))

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return function(x, w).pow(3).sum()

    return {
        "vmap input": lambda: vmap(function, (0, None))(xs, w),
        "vmap weight": lambda: vmap(function, (None, 0))(x, ws),
        "vmap both": lambda: vmap(function)(xs, ws),
        "nested": lambda: vmap(vmap(function, (None, 0)), (0, None))(xs, ws),
        "chunked": lambda: vmap(function, (0, None), chunk_size=2)(xs, w),
        "grad": lambda: grad(loss, (0, 1))(x, w),
        "vjp": lambda: vjp(function, x, w)[1](torch.ones_like(function(x, w))),
        "jvp": lambda: jvp(function, (x, w), (2 * x, w + 1)),
        "jacrev": lambda: jacrev(function, (0, 1))(x, w),
        "jacfwd": lambda: jacfwd(function, (0, 1))(x, w),
        "hessian": lambda: hessian(loss, 1)(x, w),
        "jacrev of jacrev": lambda: jacrev(jacrev(loss, 0), 1)(x, w),
        "per sample": lambda: vmap(grad(loss, 1), (0, None))(xs, w),
    }


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        (name, algorithm)
        for name, algorithm in product(transforms(F.conv2d), CHOICES)
        # All of them for two, and for the others one of each kind: a capture takes a second.
        if algorithm in ("auto", "fft") or name in ("vmap both", "hessian", "per sample")
    ],
    ids=algorithm_id,
)
def test_transforms_inside(name: str, algorithm: str) -> None:
    """torch.func inside a compiled function gives what it gives on conv2d outside."""
    if name == "jacfwd" and torch.__version__ < "2.13":
        pytest.skip("PyTorch before 2.13 compiles no jacfwd by two arguments, of F.conv2d neither")
    ours = transforms(lambda x, w: corr2d(x, w, algorithm=algorithm))[name]
    captured = torch.compile(ours, fullgraph=True, backend="aot_eager")
    close(captured(), transforms(F.conv2d)[name]())


def test_transforms_inside_with_gradients_from_outside() -> None:
    """Through a vmap and a jvp inside, whose other operand is differentiated outside."""

    def inside(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, w: Tensor) -> Tensor:
            tangent = jvp(lambda x: function(x, w), (x[0],), (x[1],))[1]
            return vmap(lambda x: function(x, w))(x).sum() + tangent.pow(2).sum()

        return call

    operands = some((3, 2, 3, 5, 4), (2, 3, 2, 2))
    ours = torch.compile(
        inside(lambda x, w: corr2d(x, w, algorithm="unfold")), fullgraph=True, backend="aot_eager"
    )
    close(with_gradients(ours, *operands), with_gradients(inside(F.conv2d), *operands))


@pytest.mark.parametrize("backend", [None, "aot_eager", "inductor"])
def test_per_sample_gradients_of_a_network(backend: str | None) -> None:
    """A small network with ours in it, against nn.Conv2d; eager and compiled."""
    torch.manual_seed(0)
    ours = nn.Sequential(
        Corr2d(2, 3, 3, padding="same", stride=2, padding_mode="reflect", algorithm="fft"),
        nn.Tanh(),
        Corr2d(3, 2, 2, algorithm=Mine()),
    ).double()
    theirs = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.Tanh(), nn.Conv2d(3, 2, 2)).double()
    theirs.load_state_dict(ours.state_dict())
    (x,) = some((3, 2, 7, 7))
    parameters = {name: value.detach() for name, value in ours.named_parameters()}

    def each(net: nn.Module, x: Tensor) -> Any:
        def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
            return functional_call(net, parameters, (sample[None],)).pow(2).sum()

        return vmap(grad(loss), (None, 0))(parameters, x)

    captured = partial(each, ours)
    if backend is not None:
        captured = torch.compile(captured, fullgraph=True, backend=backend)
    close(captured(x), each(theirs, F.pad(x, (1, 1, 1, 1), mode="reflect")))


def test_an_algorithm_made_inside_keeps_its_options() -> None:
    """Dynamo must make the very one that the code spells, not one with the defaults."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def captured(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, algorithm=Unfold(workspace_limit=7))

    x, w = some((2, 3, 6, 7), (4, 3, 3, 3))
    with pytest.raises(RuntimeError) as eager:
        corr2d(x, w, algorithm=Unfold(workspace_limit=7))
    with pytest.raises(Exception, match="algorithm 'unfold' cannot run") as inside:
        captured(x, w)
    assert str(eager.value).splitlines()[1] in str(inside.value)


def test_an_algorithm_whose_class_is_there_again() -> None:
    """As where a notebook's cell runs again; a dataclass with slots is made twice, too."""
    x, w = some((2, 3, 6, 7), (4, 3, 3, 3))
    for _ in range(2):

        @dataclass(frozen=True, slots=True)
        class Scaled(Naive):
            factor: int = 1

            def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
                return self.factor * Naive.forward(self, problem, input, weight)

        @torch.compile(fullgraph=True, backend="aot_eager")
        def captured(x: Tensor, w: Tensor) -> Tensor:
            return corr2d(x, w, algorithm=Scaled(factor=3))

        close(captured(x, w), 3 * F.conv2d(x, w))


def test_options_of_auto_made_inside() -> None:
    """Among them measuring, for which the tensors of a capturer will not do."""
    x, w = some((2, 3, 6, 7), (4, 3, 3, 3))
    for dynamic in (False, True):

        @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
        def captured(x: Tensor, w: Tensor) -> Tensor:
            return corr2d(x, w, algorithm=Auto(measure=True, error="componentwise"))

        close(with_gradients(captured, x, w), with_gradients(F.conv2d, x, w))
    key = Key.of(request(Problem.of(x.shape, w.shape), device=x.device, dtype=x.dtype))
    assert all(0 < seconds < 1 for seconds in WISDOM.seconds(key).values())
    assert "fft" not in WISDOM.seconds(key)


def test_another_algorithm_is_another_graph() -> None:
    layer = Corr2d(2, 2, 3, algorithm=Unfold(workspace_limit=10_000))
    counter = CompileCounterWithBackend("eager")
    captured = torch.compile(layer, fullgraph=True, backend=counter)
    (x,) = some((1, 2, 5, 5), dtype=torch.float32)
    for algorithm in (layer.algorithm, Mine(), layer.algorithm, "fft"):
        layer.algorithm = algorithm
        torch.testing.assert_close(captured(x), F.conv2d(x, layer.weight, layer.bias))
    assert counter.frame_count == 3


@pytest.mark.parametrize("make", [Unfold, Mine, partial(Auto, error="componentwise")])
def test_algorithms_that_are_equal_share_a_graph(make: Callable[[], Any]) -> None:
    """Each layer with one of its own, copies of layers, one made for a call: as with a name."""
    counter = CompileCounterWithBackend("eager")
    layers = [Corr2d(2, 2, 3, algorithm=make()) for _ in range(2)]
    (x,) = some((1, 2, 5, 5), dtype=torch.float32)

    @torch.compile(fullgraph=True, backend=counter)
    def captured(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)

    for layer in (*layers, copy.deepcopy(layers[0])):
        torch.testing.assert_close(captured(layer, x), F.conv2d(x, layer.weight, layer.bias))
    assert counter.frame_count == 1


@pytest.mark.skipif(
    "direct" not in CHOICES, reason="PyTorch has these layers where the kernels are not compiled"
)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kernel", [3, 7])
def test_a_compiler_is_left_what_it_lays_out_better(
    kernel: int, dynamic: bool, backend: str
) -> None:
    """3x3 depthwise layers are PyTorch's in its graph, ours where the call is made as it stands.

    And ours for any size, of which PyTorch's might be a graph for each.
    """
    layer = Corr2d(24, 24, kernel, padding=kernel // 2, groups=24)
    x = torch.randn(2, 24, 40, 36)
    assert not plan(x, layer.weight, padding=kernel // 2, groups=24).is_conv2d
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph.print_readable(print_output=False))
        return graph

    wrapped = {"eager": keep, "aot_eager": aot_autograd(fw_compiler=keep)}[backend]
    captured = torch.compile(layer, backend=wrapped, dynamic=dynamic, fullgraph=True)
    torch.testing.assert_close(captured(x), layer(x))
    theirs = "torch.ops.aten.convolution" in graphs[0]
    assert theirs == (backend == "aot_eager" and kernel == 3 and not dynamic)
    assert ("torch.ops.torch_corr.forward" in graphs[0]) == (backend == "aot_eager" and not theirs)


class Block(nn.Module):
    """Code of a network's own in a container, which is all that Dynamo finds there."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


@pytest.mark.parametrize("how", ["converted", "intercepted"])
def test_layers_that_pytorch_runs_by_itself_get_no_graphs_of_their_own(how: str) -> None:
    """``compile()`` of a ``Sequential`` leaves that, and nn.Conv2d in it, to PyTorch.

    Else each layer would be a graph, of the same code for other sizes: beyond eight of them Dynamo
    warns of a storm and gives up.
    """

    def frames(how: str) -> int:
        torch._dynamo.reset()
        layers = [nn.Conv2d(2 + i, 3 + i, 3, padding=1) for i in range(10)]
        net = nn.Sequential(Block(nn.Conv2d(3, 2, 3)), *layers)
        if how == "converted":
            convert(net, "unfold")
        counter = CompileCounterWithBackend("eager")
        net.compile(backend=counter)
        with intercept("unfold") if how == "intercepted" else nullcontext():
            net(torch.randn(1, 3, 9, 9)).sum().backward()
        return counter.frame_count

    assert frames(how) == frames("as it is") == 1


@pytest.mark.parametrize("algorithm", [each for each in CHOICES if each != "fft"], ids=algorithm_id)
def test_autocast_inside(algorithm: Algorithm | str) -> None:
    def inside(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return function(x, w, b)

        return call

    operands = some((2, 3, 6, 7), (4, 3, 3, 3), (4,), dtype=torch.float32)
    ours = inside(lambda x, w, b: corr2d(x, w, b, algorithm=algorithm))
    captured = torch.compile(ours, fullgraph=True, backend="aot_eager")
    theirs = with_gradients(inside(F.conv2d), *operands)
    for got, expected in zip(with_gradients(captured, *operands), theirs):
        assert got.dtype == expected.dtype
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=0.03 * scale)


def test_autocast_inside_to_halves_that_an_algorithm_lacks() -> None:
    def inside(x: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return corr2d(x, w, algorithm="fft")

    captured = torch.compile(inside, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="no bfloat16 here"):
        captured(*some((2, 3, 6, 7), (4, 3, 3, 3), dtype=torch.float32))


@pytest.mark.parametrize("dynamic", [False, True])
def test_channels_last_inside(dynamic: bool) -> None:
    x, w = some((2, 32, 24, 24), (32, 1, 7, 7))
    x = x.contiguous(memory_format=torch.channels_last)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def captured(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, padding=3, groups=32)

    y = captured(x, w)
    assert y.is_contiguous(memory_format=torch.channels_last)
    close(y, F.conv2d(x, w, padding=3, groups=32))


def test_two_and_three_axes_and_the_true_convolution() -> None:
    x, w = some((3, 6, 7), (4, 3, 3, 3))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def captured(x: Tensor, w: Tensor) -> list[Tensor]:
        return [
            corr2d(x, w, algorithm="fft"),
            corr2d(x[0], w[0, 0], algorithm="fft"),
            convolve2d(x, w, padding="full"),
        ]

    flipped = F.conv2d(x, w.flip(-2, -1), padding=2)
    close(captured(x, w), [F.conv2d(x, w), F.conv2d(x[None, :1], w[:1, :1])[0, 0], flipped])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": (4, 2, 3, 3)}, "reads 2"),
        ({"w": (4, 3, 9, 3)}, "kernel does not fit"),
        ({"b": (5,)}, r"bias must have shape \(4,\)"),
    ],
    ids=str,
)
def test_wrong_shapes_are_refused_inside(change: dict[str, Any], message: str) -> None:
    shapes = {"x": (2, 3, 6, 7), "w": (4, 3, 3, 3), "b": (4,), **change}
    captured = torch.compile(
        lambda x, w, b: corr2d(x, w, b, algorithm="fft"), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match=message):
        captured(*some(*shapes.values()))


def test_a_size_that_does_not_fit_is_refused_when_it_comes() -> None:
    """A graph for any size checks each size that it gets."""
    captured = torch.compile(
        lambda x, w: corr2d(x, w, algorithm="unfold"), backend="aot_eager", dynamic=True
    )
    x, w = some((2, 3, 6, 7), (4, 3, 3, 3))
    close(captured(x, w), F.conv2d(x, w))
    with pytest.raises(RuntimeError, match="kernel does not fit"):
        captured(x[:, :, :2], w)


@each_choice
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_backward_inside_a_function_that_left_its_graph(algorithm: Algorithm | str) -> None:
    """Dynamo then looks at all Python that autograd calls; none of ours becomes a graph."""
    (w,) = some((6, 2, 3, 3))
    w.requires_grad_()
    graphs: list[torch.fx.GraphModule] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    @torch.compile(backend=note)
    def step(loss: Tensor) -> Tensor:
        loss.backward()
        return loss.detach() + 1

    for n in range(4):
        (x,) = some((2 + n, 4, 7 + n, 8))
        expected = torch.autograd.grad(F.conv2d(x, w, groups=2).square().sum(), w)
        w.grad = None
        step(corr2d(x, w, groups=2, algorithm=algorithm).square().sum())
        close((w.grad,), expected)
    assert len(graphs) == 1


@each_choice
def test_vmap_of_a_compiled_function(algorithm: Algorithm | str) -> None:
    """Dynamo leaves that to eager PyTorch, and so does it with what vmap calls."""
    captured = torch.compile(
        lambda x, w: corr2d(x, w, groups=2, algorithm=algorithm), backend="aot_eager"
    )
    for n in range(3):
        x, w, xs = some((2, 4, 7, 8), (6, 2, 3, 3), (3, 2 + n, 4, 7 + n, 8))
        captured(x, w)
        expected = torch.stack([F.conv2d(each, w, groups=2) for each in xs])
        close(vmap(captured, (0, None))(xs, w), expected)


def test_training_is_nn_conv2ds() -> None:
    """Steps of SGD through a compiled model leave nn.Conv2d's weights."""
    nets = []
    for make in (nn.Conv2d, lambda *a, **k: Corr2d(*a, **k, algorithm="direct")):
        torch.manual_seed(0)
        net = nn.Sequential(make(3, 8, 3, padding=1, groups=1), nn.ReLU(), make(8, 8, 3, groups=8))
        nets.append(net.double())
    (x,) = some((4, 3, 8, 8))
    for net in nets:
        captured = torch.compile(net, fullgraph=True, backend="aot_eager")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            (captured(x) - 1).square().mean().backward()
            optimizer.step()
    close(list(nets[1].parameters()), list(nets[0].parameters()))
