"""Images in channels_last keep their layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from support.layers import images, twins
from support.needs import KERNELS, needs
from torch_corr import MAPS, Aten, Auto, Direct, Unfold, corr2d, explain, plan
from torch_corr.planning import auto as auto_module
from torch_corr.planning.plan import clear_plans
from torch_corr.planning.wisdom import WISDOM

CPU = torch.device("cpu")
LAST = torch.channels_last


def test_dense_layers_in_channels_last_are_conv2d():
    x = torch.randn(4, 32, 24, 24).contiguous(memory_format=LAST).requires_grad_()
    w = torch.randn(32, 32, 3, 3, requires_grad=True)
    y = corr2d(x, w, padding=1)
    assert y.is_contiguous(memory_format=LAST)
    assert y.grad_fn.name() == "ConvolutionBackward0"


@needs(KERNELS)
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_large_depthwise_kernels_run_in_direct(backend):
    """The weight's gradient, in which PyTorch is slow, whatever the layout of the gradient."""
    x = torch.randn(4, 96, 28, 28).contiguous(memory_format=LAST).requires_grad_()
    w = torch.randn(96, 1, 7, 7, requires_grad=True)
    chosen = plan(x, w, padding=3, groups=96)
    assert isinstance(chosen.grad_weight, Direct)

    def layer(x, w):
        return corr2d(x, w, padding=3, groups=96)

    run = layer if backend is None else torch.compile(layer, fullgraph=True, backend=backend)
    for gradient in (torch.randn(4, 96, 28, 28), torch.ones(1, 96, 1, 1).expand(4, 96, 28, 28)):
        results = []
        for y in (run(x, w), F.conv2d(x, w, padding=3, groups=96)):
            results.append((y, *torch.autograd.grad(y, (x, w), gradient)))
        for ours, theirs in zip(*results):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
            assert ours.is_contiguous() == theirs.is_contiguous()


def test_measures_each_layout_of_its_own():
    """Wisdom distinguishes them."""
    x, w = torch.randn(1, 16, 24, 24), torch.randn(16, 1, 5, 5)
    for each in (x, x.contiguous(memory_format=LAST)):
        before = len(WISDOM)
        plan(each, w, groups=16, algorithm=Auto(measure=True))
        assert len(WISDOM) == before + 3


def in_channels_last():
    x = torch.randn(2, 8, 20, 24).contiguous(memory_format=LAST).requires_grad_()
    return x, torch.randn(8, 1, 7, 7, requires_grad=True)


@pytest.fixture
def unfold_everywhere(monkeypatch):
    """Assume that PyTorch is slow in channels_last, and choose unfold, which ignores layouts."""
    monkeypatch.setattr(Aten, "keeps_channels_last", lambda *_: False)
    monkeypatch.setattr(auto_module, "_fastest", lambda *_: Unfold())
    clear_plans()
    yield
    clear_plans()


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_other_algorithms_keep_channels_last(backend, unfold_everywhere):
    """In the output and the input's gradient, although the output's gradient is contiguous."""
    x, w = in_channels_last()

    def layer(x, w):
        return corr2d(x, w, padding=3, groups=8)

    run = layer if backend is None else torch.compile(layer, fullgraph=True, backend=backend)
    y = run(x, w)
    assert y.grad_fn.name() != "ConvolutionBackward0"
    made = y, *torch.autograd.grad(y, (x, w), torch.randn(2, 8, 20, 24))
    assert [each.is_contiguous(memory_format=LAST) for each in made[:2]] == [True, True]
    assert not any(each.is_contiguous() for each in made[:2])
    torch.testing.assert_close(y, F.conv2d(x, w, padding=3, groups=8))


def test_operators_return_requested_channels_last(unfold_everywhere):
    x, w = (each.detach() for each in in_channels_last())
    y = torch.randn(2, 8, 20, 24)
    geometry = [1, 1], [3, 3, 3, 3], [1, 1], True, "auto"
    operands = {"forward": (x, w), "grad_input": (y, w), "grad_weight": (x, y)}
    extra = {"forward": (), "grad_input": ([20, 24],), "grad_weight": ([7, 7],)}
    for map in MAPS:
        operator = getattr(torch.ops.torch_corr, map).default
        arguments = *operands[map], 8, *extra[map], *geometry
        torch.library.opcheck(operator, arguments)
        assert operator(*arguments).is_contiguous() == (map == "grad_weight")


def test_explain_mentions_channels_last(capsys):
    x, w = in_channels_last()
    explain(x, w, padding=3, groups=8)
    printed = capsys.readouterr().out
    assert "in channels_last, algorithm=auto" in printed
    assert printed.count("> aten") == 3
    assert "ruled out: it has no kernels for channels_last here" in printed
    explain(x.detach().contiguous(), w, padding=3, groups=8)
    assert "channels_last" not in capsys.readouterr().out


@pytest.mark.parametrize("whose", ["images", "weights", "both"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("algorithm", ["auto", "aten", "unfold", "fft", "naive"])
def test_layouts_equal_conv2d(algorithm, trained, groups, whose):
    """Of the output and the input's gradient, with images or weights in channels_last."""
    results = []
    for layer in twins(algorithm, groups=groups, dtype=torch.float32):
        x = images(torch.float32)
        if whose != "weights":
            x = x.contiguous(memory_format=LAST)
        if whose != "images":
            layer.to(memory_format=torch.channels_last)
        x.requires_grad_(trained)
        y = layer(x)
        made = [y]
        if trained:
            made += torch.autograd.grad(y.square().sum(), x)
        results.append(made)
    for mine, other in zip(*results):
        torch.testing.assert_close(mine, other)
        for format in (torch.channels_last, torch.contiguous_format):
            assert mine.is_contiguous(memory_format=format) == other.is_contiguous(
                memory_format=format
            )
