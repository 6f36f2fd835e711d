"""Problems that oneDNN computes wrongly or crashes on: ``aten`` and ``auto`` rewrite them.

Each was found by ``python -m benchmarks.scan`` and is wrong in plain PyTorch 2.13.0 (oneDNN 3.12)
on a Zen 4 processor; ``docs/what-the-kit-finds.md`` describes the regions.  Operands are ones and
small integers, so sums are exact.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.functional import conv2d

from support.laws import assert_all_right, assert_right
from support.maps import request
from support.spies import BACKWARD, CONVOLUTION, Recorder
from torch_corr import MAPS, Aten, Problem, corr2d
from torch_corr.algorithms import aten as aten_module
from torch_corr.algorithms.aten import is_irregular
from torch_corr.testing import litter, poisoned

CPU = torch.device("cpu")
FLOAT, HALF = torch.float32, torch.bfloat16

WIDE_PADDING_OF_GRAD_WEIGHT = [
    ("n2c1-x1x40-o1-k1x3-s1x2-p0x24-d1x12", FLOAT),
    ("n1c1-x6x41-o12-k6x7-s3x2-p2x18-d1x3", FLOAT),
    ("n2c20-x3x45-o5-k1x7-s1x3-p0x20-d1x4", FLOAT),
    ("n1c1-x3x29-o16-k1x22-s1x2-p0x17", HALF),
    ("n1c3-x3x60-o16-k1x24-s1x4-p0x19", HALF),
]
DILATED_ROWS = [
    ("n1c2-x3x29-o2-k2x1-d2x1-g2", HALF),
    ("n2c17-x9x40-o5-k3-p0x1-d2x1", HALF),
    ("n1c6-x11x78-o24-k5x3-p0x1-d2-g3", HALF),
    ("n1c2-x16x185-o2-k1x3-s1x4-p0x1-d2x1-g2", HALF),
]
ONE_COLUMN = [
    ("n2c1-x3x3-o1-k2x5-s1x2-p0x1", FLOAT),
    ("n2c1-x5x4-o8-k2x31-s1x2-p1x14", FLOAT),
    ("n1c2-x14x3-o6-k5x3-s1x2-p1x0-g2", HALF),
    ("n1c32-x9x4-o64-k3x4-s1x3-p0x1-g32", HALF),
]
PADDED_BEYOND_REACH = [
    ("n2c16-x4x29-o12-k3x1-s1x4-p1-d2x4-g2", FLOAT),
    ("n2c16-x4x29-o12-k3x1-s1x4-p1-d2x4-g2", torch.complex64),
    ("n1c40-x4x2-o24-k1x2-s3x1-p0x4-g8", HALF),
    ("n3c18-x4x1-o2-k7x1-p6x1-g2", FLOAT),
]
DILATION_OF_ONE_TAP = [("n1c20-x15x24-o13-k1-s3x2-d2x1", HALF), ("n2c24-x9x16-o8-k1-s2-d2x1", HALF)]
TALL_KERNELS = [
    ("n3c16-x13x36-o1-k30x1-s1x4-p14x0", FLOAT),
    ("n2c3-x13x20-o5-k22x1-p9x0", FLOAT),
    ("n2c16-x24x12-o1-k25x1-s2x1-p11x0", FLOAT),
    ("n2c32-x13x20-o32-k30x1-p14,15x0,0-g2", FLOAT),
    # One column of output, which another rule makes a problem of stride 1.
    ("n2c3-x14x2-o16-k36x1-s1x2-p18x0", FLOAT),
    ("n3c3-x10x2-o8-k36x1-s1x2-p18,22x0,0", FLOAT),
]
EXPLICIT_PADDING = [
    "n2c3-x9x12-o3-k3x17-p1x8-g3",
    "n1c2-x6x15-o2-k3-p0,9x9,7-d4-g2",
    "n1c16-x5x20-o16-k2x21-p1x10",
    "n1c1-x3x40-o2-k1x60-p0x29",
]
STEPPED_OVER = [
    "n3c8-x16-o16-k1-s2",
    "n2c15-x9x8-o4-k1-s1x3",
    "n2c3-x6x8-o5-k1-s2-p0,2x1,0",
    "n2c2-x6-o4-k1-s2-p1-g2",
]
# oneDNN leaves grad_weight of taps outside the image unwritten.
UNWRITTEN = [
    "n1c16-x3x1-o16-k3-s1x2-p0x1",
    "n2c2-x3x2-o16-k3-s1x4-p0x1",
    "n3c66-x3x1-o1-k3-s2x4-p0x2",
    "n2c16-x4x2-o16-k3x5-s1x2-p1x2",
]
WRONG = [
    *TALL_KERNELS,
    *DILATION_OF_ONE_TAP,
    *WIDE_PADDING_OF_GRAD_WEIGHT,
    *DILATED_ROWS,
    *ONE_COLUMN,
    *PADDED_BEYOND_REACH,
    # One column of output, whose window lies in the padding, and asymmetric relatives.
    ("n1c2-x14x1-o2-k7x1-s1x5-p26x2-d10x2-g2", HALF),
    ("n2c1-x3x3-o1-k2x5-s1x2-p0,1x0,2", FLOAT),
    ("n2c1-x1x40-o1-k1x3-s1x2-p0,0x24,27-d1x12", FLOAT),
    ("n2c1-x2x40-o1-k1x3-s1x2-p1,0x24,0-d1x12", FLOAT),
]
DEADLY = [
    ("n2c8-x2x1-o1-k2-s1x2-p2x3", FLOAT),
    ("n2c2-x2x1-o1-k1-s1x2-p0x1-d1x2", FLOAT),
    ("n3c24-x3x1-o3-k2x1-s1x4-p0x11-d1x2", FLOAT),
    ("n1c7-x10x2-o1-k5x3-s2x5-p3x16-d2x4", HALF),
    ("n1c320-x3x1-o64-k3x1-s1x5-p0x4-d1x2-g16", FLOAT),
]
LEFT_ALONE = [
    "n8c64-x56-o128-k3-s2-p1",
    "n8c3-x224-o64-k7-s2-p3",
    "n8c3-x224-o768-k16-s16",
    "n8c256-x33-o256-k3-p12-d12",
    "n8c64-x28-o64-k3-p2-d2",
    "n8c64-x56-o128-k1",
    "n8c32-x112-o32-k3-p1-g32",
    "n8c256-x56-o256-k3-s1-p1-g32",
    "n1c1-x64x400-o32-k3x41-s2x2-p1x14",
]


@pytest.fixture(autouse=True)
def _reset_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


def operands(text, dtype, layout):
    """A problem with its input, weight and output: small integers."""
    problem = Problem.parse(text)
    generator = torch.Generator().manual_seed(0)
    return problem, [
        torch.randint(1, 4, shape, generator=generator).to(dtype).to(memory_format=LAYOUTS[layout])
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    ]


def called(p, x, w, algorithm):
    (top, bottom), (left, right) = p.padding
    padding = p.padding if top != bottom or left != right else (top, left)
    return corr2d(x, w, None, p.stride, padding, p.dilation, p.groups, algorithm=algorithm)


def convolution(args):
    """Shapes, stride, padding and dilation of a convolution."""
    return args[0].shape, args[1].shape, *args[3:6]


def rows(args):
    """Image rows, kernel rows and padding of a gradient of the weight."""
    return (args[1].shape[2], args[2].shape[2], args[5][0]) if args[-1][1] else None


def ids(value):
    return str(value).removeprefix("torch.")


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("text", "dtype"), WRONG, ids=ids)
def test_all_three_maps_are_right(text, dtype, layout, algorithm):
    problem, (x, w, y) = operands(text, dtype, layout)
    x.requires_grad_()
    w.requires_grad_()
    with poisoned():
        for _ in range(2):
            litter()
            result = called(problem, x, w, algorithm)
            results = result, *torch.autograd.grad(result, (x, w), y)
            assert_all_right(results, problem, x, w, y, algorithm=algorithm)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        *WRONG[::2],
        DEADLY[0],
        *product(EXPLICIT_PADDING, (FLOAT, HALF)),
        *product(STEPPED_OVER, (FLOAT, HALF, torch.complex64)),
        *product(UNWRITTEN, (HALF,)),
        *product(["n2c4-x9x8-o4-k3-s2-p1-g4"], (torch.float16, HALF)),
    ],
    ids=ids,
)
def test_maps_alone_are_right(text, dtype, layout):
    """Each map by its own call, not by the call for both gradients."""
    problem, (x, w, y) = operands(text, dtype, layout)
    for map, slots in zip(
        MAPS, ({"input": x, "weight": w}, {"output": y, "weight": w}, {"input": x, "output": y})
    ):
        for _ in range(3):
            litter()
            result = getattr(Aten(), map)(problem, *slots.values())
            assert_right(result, problem, **slots, algorithm=Aten())


@pytest.mark.parametrize("text", EXPLICIT_PADDING)
@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=ids)
def test_explicit_padding_is_not_conv2d_and_takes_memory(text, dtype):
    where = request(Problem.parse(text), dtype=dtype)
    assert not Aten().runs_as_conv2d(where)
    assert Aten().workspace(where) > 0


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
@pytest.mark.parametrize(("text", "dtype"), [*DEADLY, *PADDED_BEYOND_REACH, *ONE_COLUMN], ids=ids)
def test_crashing_problems_are_rewritten(text, dtype, algorithm):
    """Checked by the arguments of the call, because a crash is a matter of chance."""
    problem, (x, w, _) = operands(text, dtype, "first")
    with (
        torch._subclasses.FakeTensorMode() as fake,
        Recorder(CONVOLUTION, convolution) as convolutions,
    ):
        y = called(problem, fake.from_tensor(x), fake.from_tensor(w), algorithm)
    assert y.shape == problem.output_shape
    assert len(convolutions.seen) == (3 if dtype.is_complex else 1)
    for shape, kernel, stride, padding, dilation in convolutions.seen:
        reach = dilation[1] * (kernel[3] - 1)
        assert padding[1] <= reach
        columns = (shape[3] + 2 * padding[1] - reach - 1) // stride[1] + 1
        assert columns == problem.output_size[1]
        assert columns > 1 or stride[1] == 1


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
@pytest.mark.parametrize(("text", "dtype"), TALL_KERNELS, ids=ids)
def test_grad_weight_of_tall_kernels_is_rewritten(text, dtype, algorithm):
    """oneDNN writes beyond the weight there; checked by the arguments of the call."""
    problem, _ = operands(text, dtype, "first")
    with torch._subclasses.FakeTensorMode() as fake, Recorder(BACKWARD, rows) as backwards:
        x, w = (
            fake.from_tensor(torch.ones(shape, dtype=dtype)).requires_grad_()
            for shape in (problem.input_shape, problem.weight_shape)
        )
        called(problem, x, w, algorithm).sum().backward()
    assert all(kernel <= image or not padding for image, kernel, padding in backwards.seen)
    assert len(backwards.seen) == (1 if algorithm == "aten" else len(backwards.seen))


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
@pytest.mark.parametrize(
    "text", ["n1c2-x4x62-o2-k6x19-s2x1-p7x0-g2", "n1c8-x5x49-o8-k2x15-p1x15-g8"]
)
def test_long_depthwise_kernels_run_in_float32(text, algorithm):
    problem, (x, w, _) = operands(text, HALF, "last")
    with (
        torch._subclasses.FakeTensorMode() as fake,
        Recorder(CONVOLUTION, lambda args: args[0].dtype) as dtypes,
    ):
        called(problem, fake.from_tensor(x), fake.from_tensor(w), algorithm)
    assert dtypes.seen == [FLOAT]
    result = called(problem, x, w, algorithm)
    assert_right(result, problem, input=x, weight=w, algorithm=algorithm)


@pytest.mark.parametrize("text", LEFT_ALONE)
@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=ids)
def test_common_layers_run_as_conv2d(text, dtype):
    if dtype == HALF and not aten_module._ONEDNN_HAS_BFLOAT16:
        pytest.skip("oneDNN has no bfloat16 on this processor")
    assert Aten().runs_as_conv2d(request(Problem.parse(text), dtype=dtype))


@pytest.mark.parametrize(("text", "dtype"), [*WRONG, *DEADLY], ids=ids)
def test_rewritten_problems_do_not_run_as_conv2d(text, dtype):
    problem = Problem.parse(text)
    assert not Aten().runs_as_conv2d(request(problem, dtype=dtype))
    assert Aten().runs_as_conv2d(request(problem, dtype=torch.float64)) == (
        problem.padding[0][0] == problem.padding[0][1]
        and problem.padding[1][0] == problem.padding[1][1]
    )


def test_bfloat16_goes_through_float32_without_onednn(monkeypatch):
    """PyTorch's own loops sum in bfloat16: 392 instead of 396 for 33 filters."""
    monkeypatch.setattr(aten_module, "_ONEDNN_HAS_BFLOAT16", False)
    problem = Problem.parse("n1c2-x5-o4-k3")
    assert not Aten().runs_as_conv2d(request(problem, dtype=HALF))
    for map in MAPS:
        assert aten_module._computed_in_float32(request(problem, map, dtype=HALF))


COMPILED = [
    "n2c1-x1x40-o1-k1x3-s1x2-p0x24-d1x12",
    "n2c1-x3x3-o1-k2x5-s1x2-p0x1",
    "n2c16-x4x29-o12-k3x1-s1x4-p1-d2x4-g2",
]


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("text", COMPILED)
def test_compiled(text, dynamic, layout, algorithm):
    problem, (x, w, y) = operands(text, FLOAT, layout)
    captured = torch.compile(
        lambda x, w: called(problem, x, w, algorithm),
        backend="aot_eager",
        fullgraph=True,
        dynamic=dynamic,
    )
    x.requires_grad_()
    w.requires_grad_()
    result = captured(x, w)
    results = result, *torch.autograd.grad(result, (x, w), y)
    assert_all_right(results, problem, x, w, y, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
def test_dynamic_graph_is_right_for_one_column(algorithm):
    """The graph does not know whether there is one column, where the stride matters."""
    w = torch.ones(1, 1, 2, 5).to(memory_format=torch.channels_last)
    captured = torch.compile(
        lambda x: corr2d(x, w, None, (1, 2), (0, 1), algorithm=algorithm),
        backend="aot_eager",
        fullgraph=True,
        dynamic=True,
    )
    for width in (9, 3, 30, 4):
        x = torch.arange(2.0 * 3 * width).view(2, 1, 3, width)
        torch.testing.assert_close(
            captured(x), conv2d(x.double(), w.double(), None, (1, 2), (0, 1)).float()
        )


class Layer(torch.nn.Module):
    def __init__(self, problem, bias):
        super().__init__()
        self.problem = problem
        self.bias = torch.full((problem.out_channels,), 2.0) if bias else None

    def forward(self, x, w):
        p = self.problem
        padding = (p.padding[0][0], p.padding[1][0])
        return corr2d(x, w, self.bias, p.stride, padding, p.dilation, p.groups)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("text", COMPILED[1:])
def test_exported_for_one_size(text, bias):
    problem, (x, w, _) = operands(text, FLOAT, "last")
    program = torch.export.export(Layer(problem, bias), (x, w))
    assert [str(node.target) for node in program.graph.nodes].count("aten.conv2d.default") == 1
    result = program.module()(x, w) - (2.0 if bias else 0.0)
    assert_right(result, problem, input=x, weight=w, algorithm=Aten())


def transposed(*shape):
    """A weight of small integers whose channels lie next to each other."""
    batch, channels, *rest = shape
    value = torch.randint(
        -2, 4, (batch, *rest, channels), generator=torch.Generator().manual_seed(0)
    )
    return value.movedim(-1, 1).float()


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [FLOAT, torch.float64, HALF], ids=ids)
def test_strides_of_axes_of_length_1_are_ignored(dtype, groups, algorithm):
    """PyTorch reads such weights in the wrong order, or refuses them in backward."""
    w = transposed(4, 6, 5).unsqueeze(-1).to(dtype)
    assert is_irregular(w)
    x = transposed(2, 6 * groups, 9, 9).to(dtype).requires_grad_()
    w.requires_grad_()
    y = corr2d(x, w, groups=groups, algorithm=algorithm)
    problem = Problem.of(x.shape, w.shape, groups=groups)
    gradient = transposed(*y.shape).to(dtype)
    results = y, *torch.autograd.grad(y, (x, w), gradient)
    assert_all_right(results, problem, x, w, gradient, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
@pytest.mark.parametrize(("dtype", "kernel"), [(torch.float64, 3), (FLOAT, 1)], ids=ids)
def test_permuted_hwc_image(dtype, kernel, algorithm):
    """An image (H, W, C) permuted to (1, C, H, W), with groups and a channels_last weight."""
    image = torch.arange(9.0 * 9 * 12).view(9, 9, 12).remainder(7).to(dtype)
    x = image.permute(2, 0, 1).unsqueeze(0)
    assert is_irregular(x)
    w = transposed(8, 6, kernel, kernel).to(dtype)
    x.requires_grad_()
    w.requires_grad_()
    y = corr2d(x, w, groups=2, algorithm=algorithm)
    (gradient,) = torch.autograd.grad(y.sum(), w, retain_graph=True)
    _, both = torch.autograd.grad(y.sum(), (x, w))
    problem = Problem.of(x.shape, w.shape, groups=2)
    for each in (gradient, both):
        ones = torch.ones_like(y)
        assert_right(each, problem, input=x, output=ones, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
def test_complex_weights_sliced_from_channels_last(algorithm):
    """PyTorch's copies of the two parts have an unusual stride along a kernel's single row."""
    x = torch.randint(-3, 4, (1, 1, 60, 6)).to(torch.complex64).permute(0, 3, 1, 2)
    w = (
        torch.randint(-3, 4, (6, 1, 5, 4))
        .to(torch.complex64)
        .as_strided((6, 2, 1, 5), (20, 2, 2, 4))
    )
    expected = corr2d(x, w, groups=3, algorithm="naive")
    assert torch.equal(corr2d(x, w, groups=3, algorithm=algorithm), expected)
