"""What auto chooses, and that it is right there: where it takes compiled kernels, under
autocast, for channels_last."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.needs import KERNELS, needs
from torch_corr import MAPS, Aten, Auto, Corr2d, Problem, Unfold, corr2d, explain, plan
from torch_corr.operators import encode_algorithm
from torch_corr.planning import auto as auto_module
from torch_corr.planning import wisdom
from torch_corr.planning.plan import clear_plans, make_plan

CPU = torch.device("cpu")


@needs(KERNELS)
@pytest.mark.parametrize(
    ("case", "chosen"),
    [
        ("n8c96-x56-o96-k7-p3-g96", ("direct", "direct", "direct")),
        ("n1c1-x1024-o1-k15", ("direct", "direct", "direct")),
        ("n8c64-x56-o64-k3-p1", ("aten", "aten", "aten")),
        ("n1c4-x8-o4-k3-p1", ("aten", "aten", "aten")),
    ],
)
def test_each_map_gets_what_is_ahead(case: str, chosen: tuple[str, ...]) -> None:
    made = make_plan(Problem.parse(case), CPU, torch.float32, "auto")
    assert (made.forward.name, made.grad_input.name, made.grad_weight.name) == chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_large_depthwise_layer_is_conv2d(dtype: torch.dtype) -> None:
    """With bias and gradients, on the general path."""
    x = torch.randn(2, 24, 40, 40, dtype=dtype, requires_grad=True)
    w = torch.randn(24, 1, 9, 9, dtype=dtype, requires_grad=True)
    b = torch.randn(24, dtype=dtype, requires_grad=True)
    results = [function(x, w, b, 1, 4, 1, 24) for function in (corr2d, F.conv2d)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(y.square().mean(), (x, w, b)) for y in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["auto", "aten", "unfold", "naive"])
def test_autocast_as_conv2d(algorithm: str) -> None:
    """A net in bfloat16 with float32 weights; gradients in the weights' dtype."""
    torch.manual_seed(0)
    ours = nn.Sequential(
        Corr2d(4, 4, 3, algorithm=algorithm),
        nn.ReLU(),
        Corr2d(4, 4, 3, padding="same", algorithm=algorithm),
    )
    theirs = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding="same"))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = ours(x), theirs(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    y.float().sum().backward()
    expected.float().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        assert mine.grad.dtype == torch.float32
        torch.testing.assert_close(mine.grad, other.grad, rtol=3e-2, atol=0.3)


def test_autocast_leaves_float64_and_the_kernels_alone() -> None:
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert corr2d(x.double(), w.double(), algorithm="unfold").dtype == torch.float64
        y = corr2d(x, w, algorithm="unfold")
    rounded = corr2d(x.bfloat16(), w.bfloat16(), algorithm="unfold")
    assert torch.equal(y, rounded)


def test_a_plan_under_autocast_is_of_the_dtype_that_is_computed_in() -> None:
    """Of operands that autocast makes alike, as those of a network's second layer, too."""
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plan(x, w).dtype == plan(x.bfloat16(), w).dtype == torch.bfloat16
        assert plan(x.double(), w.double()).dtype == torch.float64
    assert plan(x, w).dtype == torch.float32


@pytest.mark.parametrize("algorithm", ["auto", "unfold"])
def test_autocast_holds_under_vmap(algorithm: str) -> None:
    """As for matmul, so that a network of both runs; conv2d stays in float32 there."""
    xs, w = torch.randn(3, 1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.func.vmap(lambda x: corr2d(x, w, algorithm=algorithm))(xs)
        product = torch.func.vmap(lambda x: x @ w[0, 0, 0, :1].expand(6, 1))(xs)
    assert y.dtype == product.dtype == torch.bfloat16


def test_many_threads_at_once() -> None:
    """Each plans, measures and computes problems of its own, and gets them right."""
    problems = [(c, k) for c in (1, 2, 5) for k in (3, 5, 11)]

    def work(number: int) -> list[tuple[Tensor, Tensor]]:
        channels, kernel = problems[number % len(problems)]
        draw = torch.Generator().manual_seed(number)
        x = torch.randn(1, channels, 60, 61, generator=draw, dtype=torch.float64)
        w = torch.randn(channels, 1, kernel, kernel, generator=draw, dtype=torch.float64)
        requested = Auto(measure=number % 2 == 0)
        return [
            (
                corr2d(x + i, w, groups=channels, algorithm=requested),
                F.conv2d(x + i, w, groups=channels),
            )
            for i in range(3)
        ]

    try:
        with ThreadPoolExecutor(8) as pool:
            for pairs in pool.map(work, range(2 * len(problems))):
                for ours, theirs in pairs:
                    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-10)
    finally:
        wisdom.forget()


def test_channels_last_is_kept() -> None:
    """By conv2d itself, backward too, where another would be quicker."""
    x = torch.randn(4, 32, 64, 64).contiguous(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(32, 1, 7, 7, requires_grad=True)
    y = corr2d(x, w, padding=3, groups=32)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.grad_fn.name() == "ConvolutionBackward0"
    torch.testing.assert_close(y, F.conv2d(x, w, padding=3, groups=32))


LAST = torch.channels_last


def in_channels_last() -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 8, 20, 24).contiguous(memory_format=LAST).requires_grad_()
    return x, torch.randn(8, 1, 7, 7, requires_grad=True)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch lags in channels_last, and the quickest hands no layout on."""
    monkeypatch.setattr(Aten, "keeps_channels_last", lambda *_: False)
    monkeypatch.setattr(auto_module, "_quickest", lambda _: Unfold())
    clear_plans()
    yield
    clear_plans()


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_whatever_is_taken_keeps_channels_last(backend: str | None, elsewhere: None) -> None:
    """In the output and the input's gradient, although the gradient comes contiguous."""
    x, w = in_channels_last()

    def layer(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, padding=3, groups=8, algorithm=Auto(channels_last=True))

    run = layer if backend is None else torch.compile(layer, fullgraph=True, backend=backend)
    y = run(x, w)
    assert y.grad_fn.name() != "ConvolutionBackward0"
    made = y, *torch.autograd.grad(y, (x, w), torch.randn(2, 8, 20, 24))
    assert [each.is_contiguous(memory_format=LAST) for each in made[:2]] == [True, True]
    assert not any(each.is_contiguous() for each in made[:2])
    torch.testing.assert_close(y, F.conv2d(x, w, padding=3, groups=8))


def test_operators_promise_channels_last_where_it_was_asked_for(elsewhere: None) -> None:
    x, w = (each.detach() for each in in_channels_last())
    y = torch.randn(2, 8, 20, 24)
    geometry = [1, 1], [3, 3, 3, 3], [1, 1], encode_algorithm(Auto(channels_last=True))
    operands = {"forward": (x, w), "grad_input": (y, w), "grad_weight": (x, y)}
    extra = {"forward": (), "grad_input": ([20, 24],), "grad_weight": ([7, 7],)}
    for map in MAPS:
        operator = getattr(torch.ops.torch_corr, map).default
        arguments = *operands[map], 8, *extra[map], *geometry
        torch.library.opcheck(operator, arguments)
        assert operator(*arguments).is_contiguous() == (map == "grad_weight")


def test_explain_tells_of_channels_last(capsys: pytest.CaptureFixture[str]) -> None:
    """What runs, and why nothing else does."""
    x, w = in_channels_last()
    explain(x, w, padding=3, groups=8)
    told = capsys.readouterr().out
    assert told.count("> aten") == 3
    assert "ruled out: images in channels_last stay with PyTorch, which hands the layout on" in told
    explain(x.detach().contiguous(), w, padding=3, groups=8)
    assert "channels_last" not in capsys.readouterr().out
