"""Exported, traced and scripted programs contain PyTorch's convolution, whatever the algorithm."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from support.laws import each_on_cpu
from torch_corr import Corr2d, Naive, convolve2d, corr2d

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

# Padding, stride and padding mode of the first layer; nn.Conv2d lacks some of them.
GEOMETRIES = [
    (1, 2, "zeros"),
    ("same", 1, "zeros"),
    ("full", 1, "zeros"),
    (((1, 0), (2, 3)), 1, "zeros"),
    (((1, 0), (2, 3)), 1, "reflect"),
    ("same", 1, "circular"),
    (((1, 0), (13, 14)), 1, "circular"),
]
each_geometry = pytest.mark.parametrize(("padding", "stride", "mode"), GEOMETRIES, ids=str)


def network(padding, stride=1, mode="zeros"):
    """Two layers with named algorithms; the second is not registered."""
    torch.manual_seed(0)
    return nn.Sequential(
        Corr2d(
            4, 6, 3, stride=stride, padding=padding, padding_mode=mode, groups=2, algorithm="fft"
        ),
        nn.ReLU(),
        Corr2d(6, 2, 3, algorithm=Naive()),
    ).eval()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


HEIGHT_AND_WIDTH = {2: Dim("h", min=8, max=99), 3: Dim("w", min=8, max=99)}
EXAMPLE = (torch.randn(2, 4, 10, 11),)
each_strictness = pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])


def targets(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@each_geometry
@each_strictness
def test_export_for_any_size(strict, padding, stride, mode):
    net = network(padding, stride, mode)
    sizes = {0: Dim("n", max=99), **HEIGHT_AND_WIDTH}
    program = torch.export.export(net, EXAMPLE, strict=strict, dynamic_shapes=(sizes,))
    for shape in ((3, 4, 9, 13), (2, 4, 12, 8)):
        x = torch.randn(shape)
        close(program.module()(x), net(x))
    names = targets(program)
    assert sum(name.startswith("aten.conv2d") for name in names) == 2
    assert not any("torch_corr" in name for name in names)


@each_on_cpu
def test_every_algorithm_is_exported_as_conv2d(algorithm):
    """One convolution of PyTorch's and no operator of ours, exported and traced."""
    layer = Corr2d(4, 6, 3, stride=2, padding=1, groups=2, algorithm=algorithm)
    x = torch.randn(2, 4, 10, 11)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: Dim("n", max=99)},))
    traced = torch.jit.trace(layer, x)
    larger = torch.randn(3, 4, 10, 11)
    for written in (program.module(), traced):
        close(written(larger), layer(larger))
    assert targets(program) == ["aten.conv2d.default"]
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count("aten::_convolution") == 1
    assert not any("torch_corr" in kind or "Python" in kind for kind in kinds)


@each_strictness
def test_export_same_padding_with_stride_for_any_size(strict):
    """Odd and even sizes pad differently, in one program."""
    net = network("same", 2)
    sizes = {2: Dim.AUTO, 3: Dim.AUTO}
    program = torch.export.export(net, EXAMPLE, strict=strict, dynamic_shapes=(sizes,))
    for size in range(8, 12):
        x = torch.randn(2, 4, size, 19 - size)
        close(program.module()(x), net(x))


@each_strictness
@pytest.mark.parametrize("part", ["rows", "images"])
def test_export_with_data_dependent_sizes(part, strict):
    if part == "rows" and torch.__version__ < "2.12":
        pytest.skip("PyTorch before 2.12 exports no image of unknown height, with F.conv2d neither")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network(((1, 0), (2, 3)))

        def forward(self, x, which):
            return self.layers(x[:, :, : which.sum().item()] if part == "rows" else x[which])

    net, x = Net(), torch.randn(3, 4, 10, 11)
    rows = part == "rows"
    some = torch.arange(10) < 9 if rows else torch.tensor([True, False, True])
    others = torch.arange(10) < 6 if rows else torch.tensor([False, False, True])
    program = torch.export.export(net, (x, some), strict=strict)
    close(program.module()(x, others), net(x, others))
    assert sum(name.startswith("aten.conv2d") for name in targets(program)) == 2


def test_export_of_many_strided_layers_padded_to_same():
    """As in networks from TensorFlow: each layer's size is a formula of the previous one's."""
    net = nn.Sequential(*(Corr2d(1, 1, 3, stride=2, padding="same") for _ in range(6)))
    sizes = {2: Dim("h", min=65, max=999), 3: Dim("w", min=65, max=999)}
    program = torch.export.export(net, (torch.randn(1, 1, 99, 101),), dynamic_shapes=(sizes,))
    for size in (128, 129, 200):
        x = torch.randn(1, 1, size, 300 - size)
        close(program.module()(x), net(x))


@each_geometry
def test_trace(padding, stride, mode):
    """For any size, saved and loaded, without Python operators and without a warning."""
    net = network(padding, stride, mode)
    traced = torch.jit.trace(net, EXAMPLE)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    x = torch.randn(3, 4, 9, 12)
    close(torch.jit.load(file)(x), net(x))
    assert "PythonOp" not in str(traced.inlined_graph)


def test_trace_for_one_size_warns():
    with pytest.warns(torch.jit.TracerWarning, match="stores the padding for 10x11 pixels"):
        torch.jit.trace(network("same", 2), EXAMPLE)


@each_geometry
def test_script(padding, stride, mode):
    net = network(padding, stride, mode)
    scripted = torch.jit.script(net)
    x = torch.randn(3, 4, 9, 12)
    close(scripted(x), net(x))
    close(scripted(x[0]), net(x[0]))
    assert [p.data_ptr() for p in scripted.parameters()] == [p.data_ptr() for p in net.parameters()]
    assert type(net[0]) is Corr2d


def test_script_refuses_unsupported_padding_and_functions():
    scripted = torch.jit.script(network("same", 2))
    with pytest.raises(torch.jit.Error, match="padding='same' with a stride depends on the input"):
        scripted(*EXAMPLE)

    def caller(x, w):
        return corr2d(x, w)

    with pytest.raises(Exception, match=r"can't .* use keyword-only arguments with defaults"):
        torch.jit.script(caller)


def test_symbolic_trace_records_corr2d():
    net = network(((1, 0), (2, 3)))
    traced = torch.fx.symbolic_trace(net)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert calls == [corr2d, corr2d]
    x = torch.randn(2, 4, 9, 8)
    assert torch.equal(traced(x), net(x))


def test_symbolic_trace_of_convolve2d():
    """The kernel is flipped, although it is a proxy while tracing."""
    traced = torch.fx.symbolic_trace(lambda x, w: convolve2d(x, w, padding="same"))
    x, w = torch.randn(2, 4, 9, 8), torch.randn(3, 4, 2, 3)
    assert torch.equal(traced(x, w), convolve2d(x, w, padding="same"))
    assert not torch.allclose(traced(x, w), corr2d(x, w, padding="same"))


@pytest.mark.filterwarnings("ignore")  # from the exporter itself
@pytest.mark.parametrize(
    ("padding", "stride", "mode", "shapes"),
    [
        (1, 2, "zeros", [(3, 4, 10, 11)]),
        (((1, 0), (2, 3)), 1, "zeros", [(3, 4, 10, 11)]),
        ("same", 2, "zeros", [(2, 4, size, 19 - size) for size in range(8, 12)]),
        (((1, 0), (13, 14)), 1, "circular", [(2, 4, size, 19 - size) for size in range(8, 12)]),
    ],
    ids=str,
)
def test_onnx(padding, stride, mode, shapes):
    """For any batch or image size; onnxruntime computes the same values."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = network(padding, stride, mode)
    file = io.BytesIO()
    any_batch = len(shapes) == 1
    sizes = {0: Dim("n", max=99)} if any_batch else HEIGHT_AND_WIDTH
    torch.onnx.export(net, EXAMPLE, dynamo=True, verbose=False, dynamic_shapes=(sizes,)).save(file)
    if any_batch:
        nodes = onnx.load_from_string(file.getvalue()).graph.node
        assert [node.op_type for node in nodes] == ["Conv", "Relu", "Conv"]
    session = onnxruntime.InferenceSession(file.getvalue())
    for shape in shapes:
        x = torch.randn(shape)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        close(torch.from_numpy(y), net(x))


@pytest.mark.filterwarnings("ignore")
def test_aot_inductor_package(tmp_path):
    """For any batch size."""
    net = network(((1, 0), (2, 3)))
    program = torch.export.export(net, EXAMPLE, dynamic_shapes=({0: Dim("n", max=99)},))
    package = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "net.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # half the time
    )
    x = torch.randn(3, 4, 10, 11)
    close(torch._inductor.aoti_load_package(package)(x), net(x))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_export_with_zero_filters():
    layer, x = Corr2d(4, 0, 3), torch.randn(2, 4, 5, 6)
    assert torch.export.export(layer, (x,)).module()(x).shape == (2, 0, 3, 4)
    assert torch.jit.trace(layer, x)(x).shape == (2, 0, 3, 4)


def test_export_with_zero_channels():
    """The result is the bias, as in eager mode."""

    class Net(nn.Module):
        def forward(self, x, w, b):
            return corr2d(x, w, b, algorithm="unfold")

    operands = torch.randn(2, 0, 5, 5), torch.randn(3, 0, 2, 2), torch.ones(3)
    y = torch.export.export(Net(), operands).module()(*operands)
    assert torch.equal(y, torch.ones(2, 3, 4, 4))
    assert F.conv2d(*operands[:2]).shape != y.shape
