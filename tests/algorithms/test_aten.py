"""``aten`` avoids paths of PyTorch's convolution that are slow or write out of bounds."""

from __future__ import annotations

import pytest
import torch

from support.maps import all_operands, request
from support.spies import BACKWARD, Recorder
from torch_corr import Aten, Corr2d, Problem, corr2d
from torch_corr.algorithms import aten as aten_module

CPU = torch.device("cpu")
STRIDED = "n2c4-x9x8-o4-k3-s2-p1-g4"


def test_copies_for_onednn_only_on_cpu():
    problem = Problem.parse("n1c8-x56-o8-k31-p15-g8")
    assert Aten().workspace(request(problem)) > 0
    assert Aten().workspace(request(problem, device="cuda")) == 0


def test_fast_cases_run_as_conv2d():
    for text in ("n1c128-x56-o128-k13-p6-g128", "n1c1-x99-o1-k31-p15", "n4c32-x64-o32-k15-p7"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            assert Aten().runs_as_conv2d(request(Problem.parse(text), dtype=dtype))
    padded = Problem.parse("n2c3-x9x12-o3-k3x17-p1x8-g3")
    assert Aten().runs_as_conv2d(request(padded, device="cuda"))


def test_nan_stays_in_its_windows_with_explicit_padding():
    problem = Problem.parse("n1c2-x9x40-o2-k3x17-p1x8-g2")
    x, w = torch.randn(problem.input_shape), torch.randn(problem.weight_shape)
    x[0, 1, 4, 3] = float("nan")
    y = Aten().forward(problem, x, w)
    expected = torch.zeros_like(y, dtype=torch.bool)
    expected[0, 1, 3:6, :12] = True
    assert torch.equal(y.isnan(), expected)


@pytest.mark.parametrize(
    ("text", "dtype", "at_once"),
    [
        (STRIDED, torch.float32, True),
        ("n2c3-x9-o4-k3-p1", torch.float64, True),
        ("n2c3-x9-o4-k4-p1,2x1,2", torch.float32, False),
        ("n2c3-x9-o4-k3-p1", torch.complex64, False),
        ("n2c3-x9-o4-k3-p1", torch.float16, False),
    ],
    ids=str,
)
def test_both_gradients_in_one_call(text, dtype, at_once):
    """Bitwise equal to the separate maps, where ``aten`` rewrites nothing."""
    problem = Problem.parse(text)
    x, w, y = all_operands(problem, dtype)
    assert Aten().has_both_gradients(request(problem, dtype=dtype)) == at_once
    if at_once:
        found = Aten().gradients(problem, x, w, y)
        assert torch.equal(found[0], Aten().grad_input(problem, y, w))
        assert torch.equal(found[1], Aten().grad_weight(problem, x, y))


@pytest.mark.parametrize(
    ("wanted", "masks"),
    [
        ("both", [(True, True)]),
        ("input", [(True, False)]),
        ("weight", [(False, True)]),
        ("graph", [(True, False), (False, True)]),
    ],
)
def test_backward_calls_pytorch_once(wanted, masks, monkeypatch):
    """With ``create_graph`` each gradient is a call of its own."""
    calls: list[tuple[bool, bool]] = []
    backward = aten_module._backward

    def noted(*arguments):
        calls.append(arguments[-1])
        return backward(*arguments)

    monkeypatch.setattr(aten_module, "_backward", noted)
    x = torch.randn(2, 4, 9, 8, requires_grad=wanted != "weight")
    w = torch.randn(4, 1, 3, 3, requires_grad=wanted != "input")
    y = corr2d(x, w, padding=1, groups=4, algorithm="aten")
    leaves = [each for each in (x, w) if each.requires_grad]
    made = torch.autograd.grad(y.square().sum(), leaves, create_graph=wanted == "graph")
    assert calls == masks
    theirs = torch.nn.functional.conv2d(x, w, padding=1, groups=4)
    expected = torch.autograd.grad(theirs.square().sum(), leaves)
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("padding", [1, ((1, 0), (0, 1))], ids=str)
def test_profile_names_both_gradients(padding):
    x, w = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(4, 4, 3, 3, requires_grad=True)
    y = corr2d(x, w, padding=padding, algorithm="aten")
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
    ) as profile:
        y.sum().backward()
    names = {each.key for each in profile.key_averages() if each.key.startswith("torch_corr::")}
    alone = {"torch_corr::aten.grad_input", "torch_corr::aten.grad_weight"}
    assert names == ({"torch_corr::aten.grad_input, grad_weight"} if padding == 1 else alone)


@pytest.mark.parametrize("last", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("groups", [1, 6])
def test_layout_of_both_gradients_equals_conv2d(groups, last):
    """For either layout of the input and of the gradient."""
    x, gradient = (
        torch.randn(2, 6, 9, 8).contiguous(
            memory_format=torch.channels_last if each else torch.contiguous_format
        )
        for each in last
    )
    x.requires_grad_()
    w = torch.randn(6, 6 // groups, 3, 3, requires_grad=True)
    ours, theirs = (
        torch.autograd.grad(y, (x, w), gradient)
        for y in (
            corr2d(x, w, padding=1, groups=groups, algorithm="aten"),
            torch.nn.functional.conv2d(x, w, padding=1, groups=groups),
        )
    )
    torch.testing.assert_close(ours, theirs)
    assert [each.stride() for each in ours] == [each.stride() for each in theirs]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_grad_input_has_layout_of_output(layout, device):
    """PyTorch computes in the layout of the input, and would copy everything."""
    problem = Problem.parse(STRIDED)
    y, w = (
        torch.ones(shape, device=device) for shape in (problem.output_shape, problem.weight_shape)
    )
    with Recorder(BACKWARD, lambda args: args[1] if args[-1][0] else None) as inputs:
        result = Aten().grad_input(problem, y.contiguous(memory_format=layout), w)
    (seen,) = inputs.seen
    assert seen.is_contiguous(memory_format=torch.channels_last) == (layout == torch.channels_last)
    assert result.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
@pytest.mark.parametrize("channels", [8, 16])
def test_few_channels_avoid_kernel_that_writes_out_of_bounds(algorithm, channels):
    """Checked by the arguments of the call, because a crash is a matter of chance."""
    layer = Corr2d(channels, 16, 1, stride=2, algorithm=algorithm)
    x = torch.randn(3, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    with Recorder(BACKWARD, lambda args: args[4] if args[-1][1] else None) as strides:
        layer(x).sum().backward()
    assert strides.seen == [[1, 1] if channels < 16 else [2, 2]]
