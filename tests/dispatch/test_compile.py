"""torch.compile captures corr2d in one graph, also under the transforms of torch.func."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from support.laws import algorithm_id
from support.layers import close
from support.maps import request
from support.needs import KERNELS, needs
from support.spies import saved_by
from torch_corr import (
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
from torch_corr.algorithms.base import dtype_refusal
from torch_corr.planning.wisdom import WISDOM, Key

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch._prims_common.check` is deprecated:FutureWarning",
    "ignore:.*isinstance.treespec, LeafSpec.* is deprecated:FutureWarning",
)


class Mine(Naive):
    """An algorithm that is not registered."""

    name = "mine"


# One of each kind: chosen, traced into the graph, named, with options, not registered.  In a graph
# every named algorithm is the same operator with another name.
CHOICES = ["auto", "aten", "fft", Unfold(workspace_limit=50_000), Mine()]
each_choice = pytest.mark.parametrize("algorithm", CHOICES, ids=algorithm_id)


@pytest.fixture(autouse=True)
def _reset_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def some(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, **{"backend": "aot_eager", **options})


def agree(ours, theirs, *operands):
    close(with_gradients(ours, *operands), with_gradients(theirs, *operands))


def with_gradients(function, *operands):
    leaves = [value.detach().clone().requires_grad_() for value in operands]
    y = function(*leaves)
    return y, *torch.autograd.grad(y.pow(3).sum(), leaves)


@pytest.mark.parametrize(
    ("algorithm", "backend"),
    [
        *((algorithm, backend) for algorithm in CHOICES for backend in ("eager", "aot_eager")),
        *((algorithm, "inductor") for algorithm in ("auto", Mine())),
    ],
    ids=lambda value: value if isinstance(value, str) else algorithm_id(value),
)
def test_five_shapes_need_two_graphs(algorithm, backend):
    """One graph for the first shape, one for all others, forward and backward."""
    counter = CompileCounterWithBackend(backend)

    @partial(compiled, backend=counter)
    def captured(x, w, b):
        return corr2d(x, w, b, (1, 2), 1, 1, 2, algorithm=algorithm)

    for n in range(5):
        operands = some((n + 2, 4, 5 + n, 6 + n), (6, 2, 3, 2), (6,))
        agree(captured, lambda x, w, b: F.conv2d(x, w, b, (1, 2), 1, 1, 2), *operands)
    assert counter.frame_count == 2


def test_aten_under_inductor_needs_as_many_graphs_as_conv2d():
    """inductor may need a graph for each size."""
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


@pytest.mark.parametrize(
    "function",
    [
        *(
            partial(corr2d, stride=stride, padding=padding, algorithm=algorithm)
            for padding, stride in [
                *(("full", 1), ("same", 1), ("same", 2), ("valid", 2)),
                *((((1, 0), (0, 2)), 2), ([1, 2], 1)),
            ]
            for algorithm in ("auto", "fft")
        ),
        partial(convolve2d, stride=2, padding="same"),
    ],
    ids=lambda call: f"{call.func.__name__}-{'-'.join(map(str, call.keywords.values()))}",
)
def test_dynamic_sizes_with_every_padding(function):
    counter = CompileCounterWithBackend("aot_eager")
    captured = compiled(lambda x, w: function(x, w), backend=counter, dynamic=True)
    for n in (5, 6, 7):
        x, w = some((2, 3, n, 11 - n), (4, 3, 3, 2))
        agree(captured, function, x, w)
    assert counter.frame_count == 1


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("algorithm", ["auto", "aten", "unfold"])
def test_zero_filters(algorithm, dynamic):
    def function(x, w, b):
        return corr2d(x, w, b, padding=1, algorithm=algorithm)

    operands = some((2, 4, 7, 8), (0, 4, 3, 2), (0,))
    agree(compiled(function, dynamic=dynamic), function, *operands)


@pytest.fixture
def data_dependent():
    """Keep ``n.item()`` and ``x[mask]`` in the graph."""
    with torch._dynamo.config.patch(
        capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
    ):
        yield


def counted(mask, most, hint):
    """A size from data, with the hints that PyTorch sometimes asks for."""
    size = mask.sum().item()
    if hint:
        torch._check(size >= 3)
        torch._check(size <= most)
    return size


def masked(x, mask, hint):
    images = x[mask]
    if hint:
        torch._check(images.shape[0] >= 1)
    return images


def masked_in_channels_last(x, mask, hint):
    return masked(x.contiguous(memory_format=torch.channels_last), mask, hint)


FIVE_OF_SEVEN = torch.tensor([True, True, False, True, False, True, True])
NONE_OF_SEVEN = torch.zeros(7, dtype=torch.bool)
PARTS = {
    "rows": (lambda x, mask, hint: x[:, :, : counted(mask, 9, hint)], FIVE_OF_SEVEN),
    "columns": (lambda x, mask, hint: x[..., : counted(mask, 8, hint)], FIVE_OF_SEVEN),
    "one image": (lambda x, mask, hint: x[0, :, : counted(mask, 9, hint)], FIVE_OF_SEVEN),
    "images": (masked, FIVE_OF_SEVEN),
    "no images": (masked, NONE_OF_SEVEN),
    "channels_last": (masked_in_channels_last, FIVE_OF_SEVEN),
}


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize(
    ("part", "hint", "mode", "algorithm"),
    [
        *product(PARTS, (False,), ("zeros",), ("auto", "aten")),
        *product(("rows", "images"), (True,), ("zeros",), ("auto",)),
        *product(("rows", "images"), (False,), ("reflect", "replicate", "circular"), ("auto",)),
    ],
)
def test_data_dependent_sizes(part, hint, mode, algorithm):
    """Values and gradients, in every kind of padding, in one graph."""
    take, which = PARTS[part]
    paddings = [(1, 1), (1, ((1, 0), (0, 2))), (2, "same")]
    paddings += {"circular": [(1, (11, 12))], "zeros": [(1, "full")]}.get(mode, [])

    def function(x, w, b):
        x = take(x, which, hint)
        results = [
            corr2d(x, w, b, stride, padding, padding_mode=mode, algorithm=algorithm)
            for stride, padding in paddings
        ]
        return torch.cat([result.flatten() for result in results])

    agree(compiled(function), function, *some((7, 3, 9, 8), (4, 3, 3, 2), (4,)))


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("algorithm", ["auto", "aten"])
def test_data_dependent_sizes_are_checked_at_run_time(algorithm):
    """Each size is planned and checked when it comes."""
    counter = CompileCounterWithBackend("aot_eager")

    @partial(compiled, backend=counter)
    def captured(x, w, mask):
        return corr2d(x[:, :, : mask.sum().item()], w, algorithm=algorithm)

    x, w = some((2, 3, 9, 8), (4, 3, 3, 2))
    for n in (5, 3, 9):
        close(captured(x, w, torch.arange(9) < n), F.conv2d(x[:, :, :n], w))
    with pytest.raises(RuntimeError, match="kernel does not fit: along H it spans 3 pixels"):
        captured(x, w, torch.arange(9) < 2)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("algorithm", ["auto", "aten"])
def test_data_dependent_channels_and_taps(algorithm):
    """PyTorch cannot capture conv2d with such channels.  No channels sum to zero."""

    def function(x, w, b, mask, taps):
        kernel = w[:, mask, : taps.sum().item()]
        return corr2d(x[:, mask], kernel, b, padding=1, algorithm=algorithm)

    captured = compiled(function)
    operands = some((2, 3, 5, 6), (4, 3, 3, 2), (4,))
    for mask, taps in (((True, False, True), 2), ((True, True, True), 3), ((False,) * 3, 1)):
        which = torch.tensor(mask), torch.arange(3) < taps
        close(captured(*operands, *which), function(*operands, *which))


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("algorithm", ["auto", "aten"])
def test_mismatched_data_dependent_channels_raise(algorithm):
    """An assertion in the graph raises."""

    @compiled
    def captured(x, w, some, others):
        return corr2d(x[:, some], w[:, others], algorithm=algorithm)

    x, w = some((2, 3, 5, 6), (4, 3, 3, 2))
    two, all = torch.tensor([True, False, True]), torch.tensor([True, True, True])
    close(captured(x, w, two, two), F.conv2d(x[:, ::2], w[:, ::2]))
    with pytest.raises(RuntimeError, match="Runtime assertion failed for expression"):
        captured(x, w, all, two)


@pytest.mark.usefixtures("data_dependent")
def test_data_dependent_sizes_under_inductor():
    def function(x, w, mask):
        return corr2d(x[mask], w, padding=1, algorithm="aten")

    captured = compiled(function, backend="inductor")
    ours, theirs = (lambda x, w, f=f: f(x, w, FIVE_OF_SEVEN) for f in (captured, function))
    agree(ours, theirs, *some((7, 3, 9, 8), (4, 3, 3, 2)))


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("algorithm", ["auto", "aten", "unfold"])
def test_vmap_over_dynamic_axis(algorithm):
    """The length is dynamic or depends on data; conv2d is specialised to one length."""

    def function(xs, w):
        return vmap(lambda x: corr2d(x, w, algorithm=algorithm))(xs)

    counter = CompileCounterWithBackend("aot_eager")
    captured = compiled(function, backend=counter)
    for times in (8, 9, 10):
        xs, w = some((times, 2, 3, 5, 4), (2, 3, 2, 2))
        agree(captured, function, xs, w)
    assert counter.frame_count == 2
    xs, w = some((7, 2, 3, 5, 4), (2, 3, 2, 2))
    captured = compiled(lambda xs, w, mask: function(xs[mask], w))
    close(captured(xs, w, FIVE_OF_SEVEN), function(xs[FIVE_OF_SEVEN], w))


def test_multiple_circular_wraps_share_a_graph():
    counter = CompileCounterWithBackend("aot_eager")

    def function(x, w):
        return corr2d(x, w, padding=(1, 20), padding_mode="circular")

    captured = compiled(function, backend=counter)
    for n in (5, 6, 7):
        x, w = some((2, 3, 2 * n, n), (4, 3, 3, 2))
        agree(captured, function, x, w)
    assert counter.frame_count == 2


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_mark_dynamic(mode):
    """Nothing specialises the graph to a size."""
    counter = CompileCounterWithBackend("aot_eager")

    @partial(compiled, backend=counter)
    def captured(x, w):
        return corr2d(x, w, padding=1, padding_mode=mode, algorithm="unfold")

    for n in range(4, 7):
        x, w = some((n, 3, n + 1, n + 3), (4, 3, 3, 2))
        for axis in (0, 2, 3):
            torch._dynamo.mark_dynamic(x, axis)
        close(captured(x, w), F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), w))
    assert counter.frame_count == 1


@each_choice
@pytest.mark.parametrize("dynamic", [False, True])
def test_only_operands_are_saved(algorithm, dynamic):
    @partial(compiled, dynamic=dynamic)
    def captured(x, w):
        return corr2d(x, w, padding=1, algorithm=algorithm)

    x, w = (value.requires_grad_() for value in some((2, 3, 6, 7), (4, 3, 3, 3)))
    _, saved = saved_by(lambda: captured(x, w))
    assert {value.data_ptr() for value in saved} == {x.data_ptr(), w.data_ptr()}
    assert len(saved) == 2


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("groups", [1, 32])
def test_auto_runs_the_same_algorithms_as_eager(groups, dynamic):
    """For each map; the maps of ``aten`` are traced into the graph."""

    def function(x, w):
        return corr2d(x, w, padding=4, groups=groups)

    def ran(function):
        cpu = [torch.profiler.ProfilerActivity.CPU]
        # Without acc_events PyTorch before 2.13 warns about cycles.
        with torch.profiler.profile(activities=cpu, acc_events=True) as profile:
            with_gradients(function, *operands)
        names = {event.key for event in profile.key_averages()}
        return {name for name in names if name.startswith("torch_corr::") and "." in name} - {
            f"torch_corr::aten.{map}" for map in ("forward", "grad_input", "grad_weight")
        }

    captured = compiled(function, dynamic=dynamic)
    for size in (40, 12, 41):
        operands = some((2, 32, size, size), (32, 32 // groups, 9, 9), dtype=torch.float32)
        with_gradients(captured, *operands)
        assert ran(captured) == ran(function)


def transforms(function):
    """Calls of torch.func on a correlation, by name."""
    x, w, xs, ws = some((2, 3, 5, 4), (2, 3, 2, 2), (3, 2, 3, 5, 4), (3, 2, 3, 2, 2))

    def loss(x, w):
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
        # All for two algorithms, one of each kind for the others: a capture takes a second.
        if algorithm in ("auto", "fft") or name in ("vmap both", "hessian", "per sample")
    ],
    ids=algorithm_id,
)
def test_torch_func_inside_compiled_function(name, algorithm):
    """The results equal those of conv2d in eager mode."""
    if name == "jacfwd" and torch.__version__ < "2.13":
        pytest.skip("PyTorch before 2.13 compiles no jacfwd by two arguments, of F.conv2d neither")
    ours = transforms(lambda x, w: corr2d(x, w, algorithm=algorithm))[name]
    close(compiled(ours)(), transforms(F.conv2d)[name]())


def test_gradients_through_torch_func_inside():
    """A vmap and a jvp inside, with a gradient from outside by the other operand."""

    def inside(function):
        def call(x, w):
            tangent = jvp(lambda x: function(x, w), (x[0],), (x[1],))[1]
            return vmap(lambda x: function(x, w))(x).sum() + tangent.pow(2).sum()

        return call

    operands = some((3, 2, 3, 5, 4), (2, 3, 2, 2))
    ours = compiled(inside(lambda x, w: corr2d(x, w, algorithm="unfold")))
    agree(ours, inside(F.conv2d), *operands)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_per_sample_gradients_of_a_network(backend):
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

    def each(net, x):
        def loss(parameters, sample):
            return functional_call(net, parameters, (sample[None],)).pow(2).sum()

        return vmap(grad(loss), (None, 0))(parameters, x)

    captured = compiled(partial(each, ours), backend=backend)
    close(captured(x), each(theirs, F.pad(x, (1, 1, 1, 1), mode="reflect")))


def test_algorithm_made_inside_keeps_its_options():
    @compiled
    def captured(x, w):
        return corr2d(x, w, algorithm=Unfold(workspace_limit=7))

    x, w = some((2, 3, 6, 7), (4, 3, 3, 3))
    with pytest.raises(RuntimeError) as eager:
        corr2d(x, w, algorithm=Unfold(workspace_limit=7))
    with pytest.raises(Exception, match="algorithm 'unfold' cannot run") as inside:
        captured(x, w)
    assert str(eager.value).splitlines()[1] in str(inside.value)


def test_redefined_algorithm_class():
    """As when a notebook cell runs twice; a dataclass with slots is created twice too."""
    x, w = some((2, 3, 6, 7), (4, 3, 3, 3))
    for _ in range(2):

        @dataclass(frozen=True, slots=True)
        class Scaled(Naive):
            factor: int = 1

            def forward(self, problem, input, weight):
                return self.factor * Naive.forward(self, problem, input, weight)

        @compiled
        def captured(x, w):
            return corr2d(x, w, algorithm=Scaled(factor=3))

        close(captured(x, w), 3 * F.conv2d(x, w))


def test_auto_made_inside_keeps_its_options():
    """Measuring cannot use the fake tensors of the capture."""
    x, w = some((2, 3, 6, 7), (4, 3, 3, 3))
    for dynamic in (False, True):

        @partial(compiled, dynamic=dynamic)
        def captured(x, w):
            return corr2d(x, w, algorithm=Auto(measure=True, error="componentwise"))

        agree(captured, F.conv2d, x, w)
    key = Key.of(request(Problem.of(x.shape, w.shape), device=x.device, dtype=x.dtype))
    assert all(0 < seconds < 1 for seconds in WISDOM.seconds(key).values())
    assert "fft" not in WISDOM.seconds(key)


def test_another_algorithm_needs_another_graph():
    layer = Corr2d(2, 2, 3, algorithm=Unfold(workspace_limit=10_000))
    counter = CompileCounterWithBackend("eager")
    captured = compiled(layer, backend=counter)
    (x,) = some((1, 2, 5, 5), dtype=torch.float32)
    for algorithm in (layer.algorithm, Mine(), layer.algorithm, "fft"):
        layer.algorithm = algorithm
        torch.testing.assert_close(captured(x), F.conv2d(x, layer.weight, layer.bias))
    assert counter.frame_count == 3


@pytest.mark.parametrize("make", [Unfold, Mine, partial(Auto, error="componentwise")])
def test_equal_algorithms_share_a_graph(make):
    """Layers with equal instances, and copies of layers."""
    counter = CompileCounterWithBackend("eager")
    layers = [Corr2d(2, 2, 3, algorithm=make()) for _ in range(2)]
    (x,) = some((1, 2, 5, 5), dtype=torch.float32)

    @partial(compiled, backend=counter)
    def captured(layer, x):
        return layer(x)

    for layer in (*layers, copy.deepcopy(layers[0])):
        torch.testing.assert_close(captured(layer, x), F.conv2d(x, layer.weight, layer.bias))
    assert counter.frame_count == 1


@needs(KERNELS)  # without them PyTorch computes these layers
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kernel", [3, 7])
def test_small_depthwise_kernels_stay_with_the_compiler(kernel, dynamic, backend):
    """3x3 depthwise layers of a fixed size are convolutions in the graph; others are ours."""
    layer = Corr2d(24, 24, kernel, padding=kernel // 2, groups=24)
    x = torch.randn(2, 24, 40, 36)
    assert not plan(x, layer.weight, padding=kernel // 2, groups=24).is_conv2d(True, True)
    graphs: list[str] = []

    def keep(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return graph

    wrapped = {"eager": keep, "aot_eager": aot_autograd(fw_compiler=keep)}[backend]
    captured = torch.compile(layer, backend=wrapped, dynamic=dynamic, fullgraph=True)
    torch.testing.assert_close(captured(x), layer(x))
    theirs = "torch.ops.aten.convolution" in graphs[0]
    assert theirs == (backend == "aot_eager" and kernel == 3 and not dynamic)
    assert ("torch.ops.torch_corr.forward" in graphs[0]) == (backend == "aot_eager" and not theirs)


class Block(nn.Module):
    """A module with its own forward, the only code in the container that Dynamo compiles."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).relu()


@pytest.mark.parametrize("how", ["converted", "intercepted"])
def test_converted_layers_outside_graphs_stay_eager(how):
    """``Sequential.compile()`` leaves the nn.Conv2d in it uncompiled.

    A graph for each layer would exceed Dynamo's limit of eight recompilations.
    """

    def frames(how):
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
def test_autocast_inside_compiled_function(algorithm):
    def inside(function):
        def call(x, w, b):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return function(x, w, b)

        return call

    operands = some((2, 3, 6, 7), (4, 3, 3, 3), (4,), dtype=torch.float32)
    ours = inside(lambda x, w, b: corr2d(x, w, b, algorithm=algorithm))
    captured = compiled(ours)
    theirs = with_gradients(inside(F.conv2d), *operands)
    for got, expected in zip(with_gradients(captured, *operands), theirs):
        assert got.dtype == expected.dtype
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=0.03 * scale)


class InFloat32(Unfold):
    """Refuses other dtypes."""

    def refusals(self, request):
        return dtype_refusal(request.dtype, (torch.float32,))


def test_autocast_inside_to_unsupported_dtype_raises():
    def inside(x, w):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return corr2d(x, w, algorithm=InFloat32())

    captured = compiled(inside)
    with pytest.raises(Exception, match="no bfloat16 here"):
        captured(*some((2, 3, 6, 7), (4, 3, 3, 3), dtype=torch.float32))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("geometry", [(1, 3, 1, 32), (2, 1, 1, 1)], ids=["depthwise", "strided"])
def test_channels_last_is_kept(geometry, dynamic):
    x, w = some((2, 32, 24, 24), (32, 32 // geometry[3], 7, 7))
    x = x.contiguous(memory_format=torch.channels_last)
    captured = compiled(lambda x, w: corr2d(x, w, None, *geometry), dynamic=dynamic)
    y = captured(x, w)
    assert y.is_contiguous(memory_format=torch.channels_last)
    close(y, F.conv2d(x, w, None, *geometry))


def test_unbatched_inputs_and_convolve2d():
    x, w = some((3, 6, 7), (4, 3, 3, 3))

    @compiled
    def captured(x, w):
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
def test_wrong_shapes_are_refused(change, message):
    shapes = {"x": (2, 3, 6, 7), "w": (4, 3, 3, 3), "b": (4,), **change}
    captured = compiled(lambda x, w, b: corr2d(x, w, b, algorithm="fft"))
    with pytest.raises(Exception, match=message):
        captured(*some(*shapes.values()))


def test_dynamic_size_that_does_not_fit_is_refused():
    captured = torch.compile(
        lambda x, w: corr2d(x, w, algorithm="unfold"), backend="aot_eager", dynamic=True
    )
    x, w = some((2, 3, 6, 7), (4, 3, 3, 3))
    close(captured(x, w), F.conv2d(x, w))
    with pytest.raises(RuntimeError, match="kernel does not fit"):
        captured(x[:, :, :2], w)


@each_choice
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_backward_inside_compiled_function_adds_no_graph(algorithm):
    """Dynamo then traces the Python code that autograd calls."""
    (w,) = some((6, 2, 3, 3))
    w.requires_grad_()
    graphs: list[torch.fx.GraphModule] = []

    def note(graph, _):
        graphs.append(graph)
        return graph

    @torch.compile(backend=note)
    def step(loss):
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
def test_vmap_of_compiled_function(algorithm):
    """Dynamo runs it in eager mode."""
    captured = torch.compile(
        lambda x, w: corr2d(x, w, groups=2, algorithm=algorithm), backend="aot_eager"
    )
    for n in range(3):
        x, w, xs = some((2, 4, 7, 8), (6, 2, 3, 3), (3, 2 + n, 4, 7 + n, 8))
        captured(x, w)
        expected = torch.stack([F.conv2d(each, w, groups=2) for each in xs])
        close(vmap(captured, (0, None))(xs, w), expected)
