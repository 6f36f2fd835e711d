"""What the laws do not ask of aten: the paths of PyTorch's convolution that it avoids, for they are
slow or write where they must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support.laws import assert_right
from support.maps import OPERANDS, request
from torch_corr import MAPS, Aten, Corr2d, Problem, corr2d
from torch_corr.algorithms import aten as aten_module
from torch_corr.testing import litter

CPU = torch.device("cpu")
WIDE = [
    "n2c3-x9x12-o3-k3x17-p1x8-g3",
    "n1c2-x6x15-o2-k3-p0,9x9,7-d4-g2",
    "n1c16-x5x20-o16-k2x21-p1x10",
    "n1c1-x3x40-o2-k1x60-p0x29",
]
STRIDED = "n2c4-x9x8-o4-k3-s2-p1-g4"


def test_the_copies_for_onednn_are_made_on_a_cpu_alone() -> None:
    problem = Problem.parse("n1c8-x56-o8-k31-p15-g8")
    assert Aten().workspace(request(problem)) > 0
    assert Aten().workspace(request(problem, device="cuda")) == 0


@pytest.mark.parametrize("text", WIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wide_padding_comes_first(text: str, dtype: torch.dtype) -> None:
    problem = Problem.parse(text)
    x, w = (torch.randn(shape).to(dtype) for shape in (problem.input_shape, problem.weight_shape))
    assert not Aten().runs_as_conv2d(request(problem, dtype=dtype))
    assert Aten().workspace(request(problem, dtype=dtype)) > 0
    assert_right(Aten().forward(problem, x, w), problem, input=x, weight=w, algorithm=Aten())


def test_what_pytorch_is_quick_at_is_left_to_it() -> None:
    for text in ("n1c128-x56-o128-k13-p6-g128", "n1c1-x99-o1-k31-p15", "n4c32-x64-o32-k15-p7"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            assert Aten().runs_as_conv2d(request(Problem.parse(text), dtype=dtype))
    assert Aten().runs_as_conv2d(request(Problem.parse(WIDE[0]), device="cuda"))
    assert Aten().runs_as_conv2d(request(Problem.parse(WIDE[0]), dtype=torch.float64))


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_strided_depthwise_halves_are_rounded_once(map: str, dtype: torch.dtype) -> None:
    problem = Problem.parse(STRIDED)
    slots = {
        slot: torch.randn(getattr(problem, f"{slot}_shape")).to(dtype) for slot in OPERANDS[map]
    }
    result = getattr(Aten(), map)(problem, *slots.values())
    assert result.dtype == dtype
    assert_right(result, problem, **slots, algorithm=Aten())


def test_a_nan_stays_in_its_windows_where_padding_comes_first() -> None:
    problem = Problem.parse("n1c2-x9x40-o2-k3x17-p1x8-g2")
    x, w = torch.randn(problem.input_shape), torch.randn(problem.weight_shape)
    x[0, 1, 4, 3] = float("nan")
    y = Aten().forward(problem, x, w)
    expected = torch.zeros_like(y, dtype=torch.bool)
    expected[0, 1, 3:6, :12] = True
    assert torch.equal(y.isnan(), expected)


STEPPED_OVER = [
    "n3c8-x16-o16-k1-s2",
    "n2c15-x9x8-o4-k1-s1x3",
    "n2c3-x6x8-o5-k1-s2-p0,2x1,0",
    "n2c2-x6-o4-k1-s2-p1-g2",
]


@pytest.mark.parametrize("text", STEPPED_OVER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pixels_that_are_stepped_over_are_left_out(
    text: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    problem = Problem.parse(text)
    x = torch.randn(problem.input_shape, dtype=dtype).contiguous(memory_format=layout)
    y = torch.randn(problem.output_shape, dtype=dtype).contiguous(memory_format=layout)
    result = Aten().grad_weight(problem, x, y)
    assert_right(result, problem, input=x, output=y, algorithm=Aten())


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
def test_one_call_computes_both_gradients(text: str, dtype: torch.dtype, at_once: bool) -> None:
    """To the bit what they are each by itself, where nothing is put around PyTorch's."""
    problem = Problem.parse(text)
    x, w, y = (
        torch.randn(shape, dtype=dtype)
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    assert Aten().has_both_gradients(request(problem, dtype=dtype)) == at_once
    if at_once:
        found = Aten().gradients(problem, x, w, y)
        assert torch.equal(found[0], Aten().grad_input(problem, y, w))
        assert torch.equal(found[1], Aten().grad_weight(problem, x, y))


@pytest.mark.parametrize("wanted", ["both", "input", "weight", "graph"])
def test_a_layer_asks_once_for_what_is_wanted(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a graph to be differentiated each map is by itself, as of one gradient."""
    calls: list[tuple[bool, bool]] = []
    backward = aten_module._backward

    def noted(*arguments: Any) -> Any:
        calls.append(arguments[-1])
        return backward(*arguments)

    monkeypatch.setattr(aten_module, "_backward", noted)
    x = torch.randn(2, 4, 9, 8, requires_grad=wanted != "weight")
    w = torch.randn(4, 1, 3, 3, requires_grad=wanted != "input")
    y = corr2d(x, w, padding=1, groups=4, algorithm="aten")
    leaves = [each for each in (x, w) if each.requires_grad]
    made = torch.autograd.grad(y.square().sum(), leaves, create_graph=wanted == "graph")
    assert (
        calls
        == {
            "both": [(True, True)],
            "input": [(True, False)],
            "weight": [(False, True)],
            "graph": [(True, False), (False, True)],
        }[wanted]
    )
    theirs = torch.nn.functional.conv2d(x, w, padding=1, groups=4)
    expected = torch.autograd.grad(theirs.square().sum(), leaves)
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("padding", [1, ((1, 0), (0, 1))], ids=str)
def test_a_profile_names_both_gradients_where_they_are_had_so(padding: Any) -> None:
    x, w = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(4, 4, 3, 3, requires_grad=True)
    y = corr2d(x, w, padding=padding, algorithm="aten")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y.sum().backward()
    names = {each.key for each in profile.key_averages() if each.key.startswith("torch_corr::")}
    alone = {"torch_corr::aten.grad_input", "torch_corr::aten.grad_weight"}
    assert names == ({"torch_corr::aten.grad_input, grad_weight"} if padding == 1 else alone)


@pytest.mark.parametrize("last", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("groups", [1, 6])
def test_both_gradients_lie_as_conv2d_has_them(groups: int, last: tuple[bool, bool]) -> None:
    """By images and by what comes from above, in either layout."""
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


class Inputs(TorchDispatchMode):
    """The inputs that PyTorch is given for their shape and layout, to find their gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default and args[-1][0]:
            self.seen.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_device_is_asked_for_the_gradient_in_the_layout_of_the_output(
    layout: torch.memory_format,
) -> None:
    """cuDNN computes in that of the input, and copies all to and from it."""
    problem = Problem.parse(STRIDED)
    y, w = (
        torch.empty(shape, device="meta") for shape in (problem.output_shape, problem.weight_shape)
    )
    with Inputs() as inputs:
        result = Aten().grad_input(problem, y.contiguous(memory_format=layout), w)
    (seen,) = inputs.seen
    assert seen.is_contiguous(memory_format=torch.channels_last) == (layout == torch.channels_last)
    assert result.is_contiguous(memory_format=layout)


class Backwards(TorchDispatchMode):
    """The strides with which PyTorch is asked for a weight's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.strides: list[list[int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default and args[-1][1]:
            self.strides.append(args[4])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
@pytest.mark.parametrize("channels", [8, 16])
def test_few_channels_never_reach_the_kernel_that_writes_beyond_its_memory(
    algorithm: str, channels: int
) -> None:
    """Seen from what PyTorch is asked for, since whether it dies of it is chance."""
    layer = Corr2d(channels, 16, 1, stride=2, algorithm=algorithm)
    x = torch.randn(3, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    with Backwards() as seen:
        layer(x).sum().backward()
    assert seen.strides == [[1, 1] if channels < 16 else [2, 2]]


@pytest.mark.parametrize(
    "text",
    [
        "n1c16-x3x1-o16-k3-s1x2-p0x1",
        "n2c2-x3x2-o16-k3-s1x4-p0x1",
        "n3c66-x3x1-o1-k3-s2x4-p0x2",
        "n2c16-x4x2-o16-k3x5-s1x2-p1x2",
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_taps_that_meet_nothing_get_no_gradient(text: str, layout: torch.memory_format) -> None:
    """Of oneDNN in bfloat16 they get what was left in memory."""
    problem = Problem.parse(text)
    x, y = (torch.ones(shape) for shape in (problem.input_shape, problem.output_shape))
    x, y = x.bfloat16().to(memory_format=layout), y.bfloat16()
    for _ in range(3):
        litter()
        result = Aten().grad_weight(problem, x, y)
        assert_right(result, problem, input=x, output=y, algorithm=Aten())
