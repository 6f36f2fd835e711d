"""intercept redirects every call of conv2d to corr2d, and no call of corr2d itself."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import CheckpointError, checkpoint

from support.spies import Spy
from torch_corr import Corr2d, Unfold, convert, corr2d, intercept


class CallsConv2d(Unfold):
    """An algorithm that calls the intercepted function."""

    def forward(self, problem, input, weight):
        return F.conv2d(input, weight, groups=problem.groups)


def operands():
    torch.manual_seed(0)
    shapes = (2, 4, 7, 8), (6, 2, 3, 2), (6,)
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


layer = nn.Conv2d(4, 6, (3, 2), groups=2, dtype=torch.float64)

CALLS = {
    "F.conv2d": lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=(1, 0), groups=2),
    "torch.conv2d": lambda x, w, b: torch.conv2d(x, w, b, 1, "same", 2, 2),
    "keywords": lambda x, w, b: F.conv2d(weight=w, input=x, bias=b, groups=2),
    "unbatched": lambda x, w, b: F.conv2d(x[0], w, b, groups=2),
    "nn.Conv2d": lambda x, w, b: functional_call(layer, {"weight": w, "bias": b}, (x,)),
    "aten": lambda x, w, b: torch.ops.aten.conv2d.default(x, w, b, [1, 1], [1, 1], [1, 1], 2),
    "aten padding": lambda x, w, b: torch.ops.aten.conv2d.padding(
        x, w, b, [2, 1], "valid", [1, 1], 2
    ),
    "aten packet": lambda x, w, b: torch.ops.aten.conv2d(x, w, b, padding="valid", groups=2),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_every_call_of_conv2d_is_redirected(call):
    """The algorithm computes the output and both gradients."""
    variables, spy = operands(), Spy()
    expected = call(*variables)
    gradients = torch.autograd.grad(expected.square().sum(), variables)
    with intercept(spy):
        y = call(*variables)
    assert spy.requested == ["forward"]
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(y.square().sum(), variables)
    torch.testing.assert_close(ours, gradients, rtol=1e-12, atol=1e-12)
    assert sorted(spy.requested) == ["forward", "grad_input", "grad_weight"]
    call(*variables)
    assert len(spy.requested) == 3


def test_exported_programs_are_redirected():
    x, spy = operands()[0], Spy()
    program = torch.export.export(layer, (x,)).module()
    with intercept(spy):
        y = program(x)
    assert spy.requested == ["forward"]
    torch.testing.assert_close(y, layer(x))


def test_corr2d_keeps_its_own_algorithm():
    """Also in derivatives of any order."""
    x, w, _ = operands()
    spy, ours = Spy(), Corr2d(4, 6, 3, groups=2, dtype=torch.float64, algorithm="aten")
    with intercept(spy):
        for y in (
            corr2d(x, w, groups=2),
            corr2d(x, w, groups=2, algorithm="aten"),
            corr2d(x, w, groups=2, padding=((1, 0), (0, 2)), algorithm="aten"),
            ours(x),
        ):
            (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            g.square().sum().backward()
    assert spy.requested == []


@pytest.mark.skipif(
    torch.__version__ < "2.11", reason="PyTorch 2.10 hides torch.autograd.backward from modes"
)
def test_autograd_backward_keeps_the_algorithm():
    """As the method ``backward``; both run with the mode off."""
    x, w, _ = operands()
    spy = Spy()
    with intercept(spy):
        y = corr2d(x, w, groups=2, algorithm="aten")
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        torch.autograd.backward(g.square().sum())
    assert spy.requested == []


class Doubled(Tensor):
    """A subclass that overrides conv2d."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        return result * 2 if func is torch.conv2d else result


class Named(Tensor):
    """A subclass that overrides nothing."""


def test_subclasses_with_torch_function_are_not_redirected():
    """They may override conv2d but do not know corr2d."""
    x, w, _ = (value.detach() for value in operands())
    spy = Spy()
    with intercept(spy):
        y = F.conv2d(x.as_subclass(Doubled), w, groups=2)
        assert spy.requested == []
        named = F.conv2d(x.as_subclass(Named), w, groups=2)
    assert spy.requested == ["forward"]
    assert type(named) is Named
    assert torch.equal(y.as_subclass(Tensor), 2 * F.conv2d(x, w, groups=2))


def test_innermost_block_decides():
    x, w, _ = operands()
    outer, inner = Spy(), Spy()
    with intercept(outer):
        with intercept(inner):
            y = F.conv2d(x, w, groups=2)
        F.conv2d(x, w, groups=2)
        assert inner.requested == ["forward"]
        assert outer.requested == ["forward"]
        y.sum().backward()
    assert len(inner.requested) == 3
    assert len(outer.requested) == 1


def test_block_is_reentrant():
    x, w, _ = operands()
    block = intercept(Spy())
    with block, block:
        F.conv2d(x, w, groups=2)
    with block:
        F.conv2d(x, w, groups=2)
    F.conv2d(x, w, groups=2)
    assert block.algorithm.requested == ["forward"] * 2


def test_algorithm_that_calls_conv2d_does_not_recurse():
    x, w, _ = operands()
    with intercept(CallsConv2d()):
        y = F.conv2d(x, w, groups=2)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        g.square().sum().backward()
    expected = F.conv2d(x, w, groups=2)
    torch.testing.assert_close(y, expected)


def test_block_ends_after_an_error():
    x, w, _ = operands()
    spy = Spy()
    with pytest.raises(RuntimeError, match="channels"), intercept(spy):
        F.conv2d(x, w, groups=3)
    F.conv2d(x, w, groups=2)
    assert spy.requested == []


def test_named_algorithm_refuses():
    with pytest.raises(RuntimeError, match="algorithm 'fft' cannot run"), intercept("fft"):
        F.conv2d(torch.ones(1, 1, 3, 3, dtype=torch.int64), torch.ones(1, 1, 2, 2).long())


@pytest.mark.parametrize(
    ("algorithm", "error", "sentence"),
    [
        ("unfolded", ValueError, "did you mean 'unfold'"),
        (None, TypeError, "algorithm must be a name, an Auto or an Algorithm"),
    ],
)
def test_wrong_arguments_are_refused(algorithm, error, sentence):
    with pytest.raises(error, match=sentence):
        intercept(algorithm)


def test_other_functions_are_unchanged():
    x = torch.randn(1, 2, 5, 5)
    with intercept("unfold"):
        for function in (F.relu, torch.sin, lambda x: x + 1, lambda x: F.max_pool2d(x, 2)):
            y = function(x)
        z = F.conv1d(x[0], torch.ones(2, 5, 1))
    assert torch.equal(y, F.max_pool2d(x, 2))
    assert torch.equal(z, F.conv1d(x[0], torch.ones(2, 5, 1)))


def test_block_applies_to_its_own_thread():
    x, w, _ = operands()
    spy = Spy()
    with intercept(spy):
        thread = threading.Thread(target=F.conv2d, args=(x, w), kwargs={"groups": 2})
        thread.start()
        thread.join()
        assert spy.requested == []
        F.conv2d(x, w, groups=2)
    assert spy.requested == ["forward"]


def test_block_inside_checkpoint():
    x, w, _ = operands()
    spy = Spy()

    def redirected(x, w):
        with intercept(spy):
            return F.conv2d(x, w, groups=2)

    checkpoint(redirected, x, w, use_reentrant=False).sum().backward()
    assert sorted(spy.requested) == ["forward", "forward", "grad_input", "grad_weight"]


def test_block_around_checkpoint():
    """conv2d recomputes: the gradients are equal, or PyTorch refuses if it saved other tensors."""
    x, w, _ = operands()
    narrow = torch.randn(2, 6, 1, 1, dtype=x.dtype, requires_grad=True)

    def network(x):
        return F.conv2d(F.conv2d(x, w, groups=2), narrow)

    def gradients(x):
        y = checkpoint(network, x, use_reentrant=False)
        return torch.autograd.grad(y.square().sum(), (w, narrow))

    expected = gradients(x)
    with intercept("unfold"):
        torch.testing.assert_close(gradients(x), expected, rtol=1e-12, atol=1e-12)
        with pytest.raises(CheckpointError):
            gradients(x.detach())  # the gradient of the first layer needs no weight


def test_block_and_torch_func():
    """Per-sample gradients, with the block outside or inside."""
    x, w, _ = operands()
    x, w = x.detach(), w.detach()

    def loss(w, x):
        return F.conv2d(x[None], w, groups=2).square().sum()

    def redirected(w, x):
        with intercept(spy):
            return loss(w, x)

    spy = Spy()
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
    expected = per_sample(w, x)
    with intercept(spy):
        torch.testing.assert_close(per_sample(w, x), expected)
    assert "grad_weight" in spy.requested
    spy.requested.clear()
    inside = torch.func.vmap(torch.func.grad(redirected), (None, 0))
    torch.testing.assert_close(inside(w, x), expected)
    assert "grad_weight" in spy.requested


def test_converted_layer_keeps_its_algorithm():
    x, spy = operands()[0], Spy()
    model = nn.Conv2d(4, 2, 3, dtype=torch.float64)
    convert(model, spy)
    with intercept("naive"):
        model(x)
    assert spy.requested == ["forward"]


@pytest.mark.parametrize("inside", [True, False], ids=["block inside", "block outside"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_block_and_compile(inside):
    """The block is inside the compiled function or around its call."""
    x, w, b = operands()

    def call(x):
        return (
            F.conv2d(x, w, b, padding=1, groups=2).relu() + layer(F.pad(x, (1, 1, 1, 1)))[..., :9]
        )

    def redirected(x):
        with intercept():
            return call(x)

    torch.compiler.reset()
    expected = call(x)
    if inside:
        captured = torch.compile(redirected, fullgraph=True, backend="aot_eager")
        y = captured(x)
    else:
        captured = torch.compile(call, fullgraph=True, backend="aot_eager")
        with intercept():
            y = captured(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), (x, w, b)), torch.autograd.grad(expected.sum(), (x, w, b))
    )
    torch.testing.assert_close(captured(x), expected)
