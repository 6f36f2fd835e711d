"""Arguments and operands of ``corr2d`` beyond the laws of ``tests/algorithms/test_laws.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from support.laws import each_algorithm
from support.needs import ONEDNN, needs
from support.processes import run_python
from torch_corr import Aten, Auto, Corr2d, LazyCorr2d, Problem, convert, convolve2d, corr2d, plan
from torch_corr.planning.plan import able_algorithms


@each_algorithm
def test_unbatched_and_matrix_inputs(algorithm, device):
    x, w, b = (torch.randn(shape, device=device) for shape in ((3, 7, 8), (5, 3, 3, 2), (5,)))
    alone = corr2d(x, w, b, 2, 1, algorithm=algorithm)
    assert torch.equal(alone, corr2d(x[None], w, b, 2, 1, algorithm=algorithm)[0])
    flat = corr2d(x[0], w[0, 0], b[:1], algorithm=algorithm)
    assert flat.shape == (5, 7)
    assert torch.equal(flat, corr2d(x[None, :1], w[:1, :1], b[:1], algorithm=algorithm)[0, 0])


sizes = st.integers(1, 9)


@given(
    shape=st.tuples(sizes, sizes),
    kernel=st.tuples(sizes, sizes),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    mode=st.sampled_from(["valid", "same", "full"]),
)
def test_equals_scipy(shape, kernel, stride, dilation, mode):
    """With kernels larger than the image, circular padding, strides and dilation."""
    signal = pytest.importorskip("scipy.signal")
    x = torch.randint(-9, 10, shape).double()
    w = torch.randint(-9, 10, kernel).double()
    spread = torch.zeros([d * (k - 1) + 1 for k, d in zip(kernel, dilation)], dtype=torch.float64)
    spread[:: dilation[0], :: dilation[1]] = w
    if mode == "valid" and any(k > n for k, n in zip(spread.shape, shape)):
        return  # scipy swaps image and kernel, or refuses
    for border, ours in (("fill", "zeros"), ("wrap", "circular")):
        expected = signal.convolve2d(x.numpy(), spread.numpy(), mode, border)
        y = convolve2d(x, w, None, stride, mode, dilation, padding_mode=ours)
        assert y.tolist() == expected[:: stride[0], :: stride[1]].tolist()
    if mode != "valid":
        expected = signal.correlate2d(x.numpy(), w.numpy(), mode)
        assert corr2d(x, w, padding=mode).tolist() == expected.tolist()


def test_same_padding_of_even_kernel():
    """The odd pixel comes first in convolve2d, as in scipy, and last in corr2d, as in conv2d."""
    x, w = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[1.0, 10]])
    assert convolve2d(x, w, padding="same").tolist() == [[1, 12, 23, 34]]
    assert convolve2d(x, w, stride=(1, 2), padding="same").tolist() == [[1, 23]]
    assert corr2d(x, w.flip(-1), padding="same").tolist() == [[12, 23, 34, 40]]
    # With a stride the padding before depends on the size in corr2d alone.
    ones = torch.ones(1, 3)
    assert convolve2d(x, ones, stride=(1, 2), padding="same").tolist() == [[3, 9]]
    assert corr2d(x, ones, stride=(1, 2), padding="same").tolist() == [[6, 7]]


def test_zero_input_channels_return_bias(device):
    """conv2d returns no channels.  The law ``zero_sizes`` tests every algorithm without bias."""
    x, w = torch.ones(2, 0, 4, 4, device=device), torch.ones(3, 0, 2, 2, device=device)
    b = torch.tensor([1.0, 2.0, 3.0], device=device)
    for algorithm in ("auto", "aten", "unfold"):
        y = corr2d(x, w, b, algorithm=algorithm)
        assert torch.equal(y, b[:, None, None].expand(2, 3, 3, 3))


@pytest.mark.parametrize("groups", [1, 2])
def test_zero_filters_return_zero_channels(groups, device):
    """conv2d refuses.  The input's gradient is zero."""
    shapes = (2, 4, 7, 8), (0, 4 // groups, 3, 2), (0,)
    x, w, b = (torch.ones(each, device=device, requires_grad=True) for each in shapes)
    with pytest.raises(RuntimeError, match="expected weight to be at least"):
        F.conv2d(x, w, b, groups=groups)
    problem = Problem.of(x.shape, w.shape, groups=groups)
    assert Problem.parse(str(problem)) == problem
    able = able_algorithms(problem, device, x.dtype)
    for algorithm in ("auto", Auto(measure=True), *able):
        y = corr2d(x, w, b, (1, 2), 1, 1, groups, algorithm=algorithm)
        assert y.shape == (2, 0, 7, 5)
        gradients = torch.autograd.grad(y.sum(), (x, w, b))
        assert [each.shape for each in gradients] == [x.shape, w.shape, b.shape]
        assert not gradients[0].any()
        mapped = torch.func.vmap(lambda w, a=algorithm: corr2d(x, w, groups=groups, algorithm=a))
        assert mapped(torch.ones(3, *w.shape, device=device)).shape == (3, 2, 0, 5, 7)
    assert "> aten" in str(plan(x, w, groups=groups)) or device.type != "cpu"


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_with_zero_filters():
    """nn.Conv2d makes such a layer with a warning, and refuses to run it."""
    theirs, x = torch.nn.Conv2d(4, 0, 3), torch.ones(2, 4, 7, 8)
    with pytest.raises(RuntimeError, match="expected weight to be at least"):
        theirs(x)
    convert(theirs)
    for layer in (Corr2d(4, 0, 3), LazyCorr2d(0, 3), theirs):
        assert layer(x).shape == (2, 0, 5, 6)
        assert layer(x[0]).shape == (0, 5, 6)
        assert layer.weight.shape == (0, 4, 3, 3)
    with pytest.warns(UserWarning, match="Initializing zero-element tensors"):
        Corr2d(4, 0, 3)


@each_algorithm
def test_inplace_write_to_output_keeps_gradients(algorithm, device):
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64, device=device, requires_grad=True)
    w = torch.randn(6, 2, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    kwargs = {"stride": 2, "padding": ((1, 0), (2, 1)), "groups": 2, "algorithm": algorithm}
    ours = torch.autograd.grad(corr2d(x, w, **kwargs).relu_().sum(), (x, w))
    theirs = torch.autograd.grad(corr2d(x, w, **kwargs).relu().sum(), (x, w))
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("stride", [2**30, 2**62])
def test_huge_stride_with_one_output(stride):
    x, w = torch.ones(1, 1, 3, 3, requires_grad=True), torch.ones(1, 1, 2, 2)
    ours = ("unfold", "naive")
    for algorithm in ours if stride > 2**40 else ("auto", "aten", *ours):
        y = corr2d(x, w, stride=stride, algorithm=algorithm)
        assert y.tolist() == [[[[4.0]]]]
        (gradient,) = torch.autograd.grad(y, x)
        assert gradient.sum() == 4


@needs(ONEDNN)
@pytest.mark.parametrize("algorithm", ["auto", "aten", Auto(), Aten()], ids=repr)
def test_mkldnn_input_goes_to_conv2d(algorithm):
    """Only PyTorch can read this layout."""
    layer = Corr2d(4, 6, 3, padding=1, algorithm=algorithm)
    opaque = torch.randn(2, 4, 40, 41).to_mkldnn()
    with torch.no_grad():
        expected = F.conv2d(opaque, layer.weight, layer.bias, padding=1).to_dense()
        weights = layer.weight, layer.weight.to_mkldnn()
        results = [corr2d(opaque, w, layer.bias, padding=1, algorithm=algorithm) for w in weights]
        for result in (layer(opaque), *results):
            assert result.is_mkldnn
            assert torch.equal(result.to_dense(), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_auto_sums_float16_in_float32(autocast):
    """In gradients and under autocast too.

    PyTorch sums the 841 products of each image in float16.
    """
    dtype = torch.float32 if autocast else torch.float16
    x = torch.ones(16, 1, 29, 29, dtype=dtype)
    w = torch.ones(1, 1, 1, 1, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        y = corr2d(x, w)
    (gradient,) = torch.autograd.grad(y.sum(), w)
    assert y.dtype == torch.float16
    assert gradient.item() == 16 * 29 * 29 == 13456


@pytest.mark.parametrize(
    ("dtype", "kernel", "stride"), [(torch.float32, 5, 64), (torch.bfloat16, 31, 97)], ids=str
)
def test_more_than_2_31_pixels(dtype, kernel, stride):
    """Pages of zeros take no memory until they are written; only the last window is not zero."""
    side = 46_400
    try:
        plane = np.zeros(side * side * dtype.itemsize, np.uint8)
    except MemoryError:
        pytest.skip("no room")
    x = torch.from_numpy(plane).view(dtype).view(1, 1, side, side)
    assert x.numel() > 2**31
    rows = (side - kernel) // stride + 1
    last = slice((rows - 1) * stride, (rows - 1) * stride + kernel)
    small = torch.randint(-4, 5, (kernel, kernel)).to(dtype)
    x[0, 0, last, last] = small
    w = torch.randint(-4, 5, (1, 1, kernel, kernel)).to(dtype)
    y = corr2d(x, w, stride=stride)
    assert y.shape == (1, 1, rows, rows)
    assert y[0, 0, -1, -1] == (small.double() * w[0, 0].double()).sum().to(dtype)
    assert (y != 0).sum() <= 1
    # Only the last of all windows contains anything.
    gradient = torch.autograd.grad(corr2d(x, w.requires_grad_(), stride=stride).sum(), w)[0]
    assert torch.equal(gradient[0, 0], small)


def test_import_needs_only_torch():
    code = (
        "import sys\n"
        "for name in ('hypothesis', 'numpy', 'matplotlib', 'PIL', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import torch, torch_corr\n"
        "print(torch_corr.corr2d(torch.ones(3, 3), torch.ones(2, 2)).tolist())\n"
        "import torch_corr.testing\n"
    )
    run = run_python("-W", "ignore", "-c", code)
    assert run.stdout.splitlines()[0] == "[[4.0, 4.0], [4.0, 4.0]]"
    assert 'pip install "torch_corr[kit]"' in run.stderr
