"""corr2d refuses what conv2d refuses, with the same type of error and a helpful message."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.maps import request
from support.needs import ONEDNN, needs
from torch_corr import (
    ALGORITHMS,
    Algorithm,
    Corr2d,
    LazyCorr2d,
    Naive,
    Problem,
    Unfold,
    convolve2d,
    corr2d,
    plan,
)

X = torch.ones(2, 4, 7, 8)
W = torch.ones(6, 4, 3, 2)
B = torch.ones(6)
NAMES = [each.name for each in ALGORITHMS]

# (arguments, what the message must say); F.conv2d refuses each of them too.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("5-D input", {"input": X[None]}, r"\(1, 2, 4, 7, 8\).*ranks 5 and 4; expected input \(N, C"),
    ("2-D input, 4-D weight", {"input": X[0, 0]}, "ranks 2 and 4"),
    ("1-D input", {"input": X[0, 0, 0]}, "ranks 1 and 4"),
    ("3-D weight", {"weight": W[0]}, "ranks 4 and 3"),
    ("too few channels", {"input": X[:, :3]}, r"has 3 channels, but weight .* reads 4 \* 1 = 4"),
    ("too many channels for groups", {"groups": 3}, r"has 4 channels, but weight .* 4 \* 3 = 12"),
    ("groups 0", {"groups": 0}, "groups must be at least 1, got 0"),
    ("groups -2", {"groups": -2}, "groups must be at least 1, got -2"),
    ("outputs not divisible", {"weight": W[:, :1], "groups": 4}, "out_channels=6 is not divisible"),
    ("groups a float", {"groups": 1.0}, "groups must be an integer, got 1.0 of type float"),
    ("groups a bool", {"groups": True}, "groups must be an integer, got the bool True"),
    ("stride 0", {"stride": 0}, r"stride must be at least 1, got \(0, 0\)"),
    ("stride 0, padding same", {"stride": 0, "padding": "same"}, "stride must be at least 1"),
    ("dilation 0, padding same", {"dilation": 0, "padding": "same"}, "dilation must be at least 1"),
    ("1.5, same", {"dilation": 1.5, "padding": "same"}, "dilation must be an integer, got 1.5"),
    ("same, no taps", {"weight": W[:, :, :0], "padding": "same"}, "kernel must be at least 1"),
    ("sizes past 64 bits", {"dilation": 2**62, "padding": 2**62}, "64 bits"),
    ("stride -1", {"stride": (1, -1)}, r"stride must be at least 1, got \(1, -1\)"),
    ("stride a float", {"stride": 1.5}, "stride must be an integer, got 1.5"),
    ("stride None", {"stride": None}, "stride must be an integer, got None"),
    ("stride a string", {"stride": "2"}, "stride must be an integer, got '2' of type str"),
    ("stride a bool", {"stride": True}, "stride must be an integer, got the bool"),
    ("three strides", {"stride": (1, 2, 3)}, "stride must be one integer or two"),
    ("no stride", {"stride": ()}, "stride must be one integer or two.*got 0"),
    ("stride past 64 bits", {"stride": 2**70}, "does not fit in 64 bits"),
    ("dilation 0", {"dilation": 0}, "dilation must be at least 1"),
    ("dilation -1", {"dilation": -1}, "dilation must be at least 1"),
    ("dilation huge", {"dilation": 2**62}, "kernel does not fit"),
    ("padding -1", {"padding": -1}, "padding must be at least 0.*slice the input"),
    ("padding a float", {"padding": 0.5}, "padding must be an integer, got 0.5"),
    ("three paddings", {"padding": (1, 2, 3)}, "padding must be one integer or two"),
    ("padding None", {"padding": None}, "padding must be an integer, got None"),
    ("padding 'smae'", {"padding": "smae"}, "unknown padding 'smae'; did you mean 'same'.*'valid'"),
    ("padding SAME", {"padding": "SAME"}, "did you mean 'same'"),
    ("kernel too large", {"weight": torch.ones(6, 4, 8, 2)}, "along H it spans 8 pixels.*has 7"),
    ("kernel without taps", {"weight": W[:, :, :0]}, "kernel must be at least 1"),
    ("no rows, no padding", {"input": X[:, :, :0]}, "without pixels"),
    ("no rows, padded", {"input": X[:, :, :0], "padding": 3}, "without pixels"),
    ("weight float64", {"weight": W.double()}, "one dtype, got torch.float32 and torch.float64"),
    ("input half", {"input": X.half()}, "input and weight must share one dtype"),
    ("weight integer", {"weight": W.long()}, "input and weight must share one dtype"),
    ("complex input", {"input": X.to(torch.complex64)}, "input and weight must share one dtype"),
    ("bias float64", {"bias": B.double()}, "input and bias must share one dtype"),
    ("bias too short", {"bias": B[:5]}, r"bias must have shape \(6,\).*got \(5,\)"),
    ("bias of one", {"bias": B[:1]}, r"bias must have shape \(6,\)"),
    ("bias a scalar", {"bias": B[0]}, r"bias must have shape \(6,\).*got \(\)"),
    ("bias a matrix", {"bias": B[None]}, r"bias must have shape \(6,\)"),
    ("bias a list", {"bias": [1.0] * 6}, "bias must be a torch.Tensor or None, got list"),
    ("input a list", {"input": [[1.0]]}, "input must be a torch.Tensor, got list"),
    ("input an array", {"input": np.ones((2, 4, 7, 8))}, "got ndarray.*torch.as_tensor"),
    ("input None", {"input": None}, "input must be a torch.Tensor, got NoneType"),
    ("weight None", {"weight": None}, "weight must be a torch.Tensor, got NoneType"),
    ("sparse input", {"input": X.to_sparse()}, "layout torch.sparse_coo.*to_dense"),
    ("bools", {"input": X.bool(), "weight": W.bool()}, "no bool here"),
]


def refusal(function, *args, **kwargs):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the test compares the type
        function(*args, **kwargs)
    return caught.value


@pytest.mark.parametrize(("case", "changes", "message"), REFUSED, ids=[row[0] for row in REFUSED])
@pytest.mark.parametrize("function", [corr2d, convolve2d])
def test_corr2d_refuses_what_conv2d_refuses(function, case, changes, message):
    arguments = {"input": X, "weight": W, **changes}
    function(X, W, B)  # a cached plan must not change the refusal
    theirs = refusal(F.conv2d, **arguments)
    with pytest.raises(type(theirs), match=f"(?s){message}"):
        function(**arguments)
    for algorithm in ("aten", "unfold", "naive"):
        ours = refusal(function, **arguments, algorithm=algorithm)
        # A named algorithm's refusal of a dtype is a RuntimeError, the parent type.
        assert type(ours) is type(theirs) or (type(ours) is RuntimeError and case == "bools")


def test_zero_filters_are_validated():
    none = torch.ones(0, 4, 3, 2)
    assert corr2d(X, none, B[:0]).shape == (2, 0, 5, 7)
    for arguments, message in (
        ((X, none, B[:1]), r"bias must have shape \(0,\).*got \(1,\)"),
        ((X[:, :3], none), "has 3 channels"),
        ((X[:, :, :2], none), "kernel does not fit"),
        ((X[:, :, :0], none, None, 1, 3), "without pixels"),
    ):
        with pytest.raises(RuntimeError, match=message):
            corr2d(*arguments)


def test_devices_must_agree():
    """conv2d accepts cpu with meta."""
    with pytest.raises(RuntimeError, match="one device, got cpu and meta"):
        corr2d(X, W.to("meta"))
    with pytest.raises(RuntimeError, match="input and bias must share one device"):
        corr2d(X, W, B.to("meta"))
    meta = X.to("meta"), W.to("meta")
    with pytest.raises(RuntimeError, match=r"bias must have shape \(6,\)"):
        corr2d(*meta, B[:5].to("meta"))
    with pytest.raises(RuntimeError, match="one dtype"):
        corr2d(meta[0], meta[1].double())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"algorithm": "unfol"}, ValueError, r"unknown algorithm 'unfol'; did you mean 'unfold'\?"),
        ({"algorithm": "zzz"}, ValueError, ", ".join(["'auto'", *map(repr, NAMES)])),
        ({"algorithm": None}, TypeError, "must be a name, an Auto or an Algorithm, got None"),
        ({"algorithm": Unfold}, TypeError, "algorithm must be a name, an Auto or an Algorithm"),
        ({"algorithm": ["aten"]}, TypeError, r"an Algorithm, got \['aten'\] of type list"),
        (
            {"padding_mode": "relect", "padding": 1},
            ValueError,
            r"padding_mode 'relect'; did you mean 'reflect'\?",
        ),
        ({"padding_mode": None}, ValueError, "unknown padding_mode None"),
    ],
    ids=str,
)
def test_unknown_names(changes, error, message):
    with pytest.raises(error, match=message):
        corr2d(X, W, **changes)


def test_refusal_of_named_algorithm():
    with pytest.raises(RuntimeError) as caught:
        corr2d(X, W, algorithm=Unfold(workspace_limit=100))
    message = str(caught.value)
    requested = request(Problem.of(X.shape, W.shape))
    assert "'unfold' cannot run n2c4-x7x8-o6-k3x2-s1x1-p0,0x0,0-d1x1-g1 on cpu/float32:" in message
    assert "more than the limit of 100; raise it with Unfold(workspace_limit=...)" in message
    able = [each.name for each in ALGORITHMS if not each.refusals(requested)]
    assert f"Able here: {', '.join(able)}. Or pass algorithm='auto'." in message
    integers = torch.ones(1, 1, 5, 5, dtype=torch.int8), torch.ones(1, 1, 2, 2, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="no dilated convolution in int8"):
        corr2d(*integers, dilation=2, algorithm="aten")
    assert (corr2d(*integers, dilation=2) == 4).all()  # auto chooses another


@pytest.mark.parametrize(
    ("mode", "padding", "message"),
    [
        ("reflect", (7, 0), r"padding \(7, 7\) along H .*'reflect' can fill from 7 .*at most 6"),
        ("reflect", ((0, 0), (0, 8)), "along W .*at most 7"),
        ("replicate", -1, "padding must be at least 0"),
    ],
)
def test_padding_beyond_what_the_mode_can_fill(mode, padding, message):
    with pytest.raises(RuntimeError, match=message):
        corr2d(X, W, padding=padding, padding_mode=mode)


@pytest.mark.parametrize("mode", ["replicate", "circular"])
def test_padding_of_empty_images(mode):
    with pytest.raises(RuntimeError, match=f"padding_mode='{mode}' can fill from 0 pixels"):
        corr2d(X[:, :, :0], W, padding=2, padding_mode=mode)


# Constructor arguments that nn.Conv2d refuses, when made or when first called.
MODULE_REFUSED = [
    ({"groups": 0}, "groups must be at least 1"),
    ({"groups": -1}, "groups must be at least 1"),
    ({"groups": 3}, "in_channels=4 is not divisible by groups=3"),
    ({"groups": 4}, "out_channels=6 is not divisible by groups=4"),
    ({"padding": "smae"}, "unknown padding 'smae'; did you mean 'same'"),
    ({"padding_mode": "wrap"}, "unknown padding_mode 'wrap'; use one of 'zeros'"),
    ({"in_channels": -4}, "in_channels must be at least 0"),
    ({"in_channels": 4.0}, "in_channels must be an integer"),
    ({"kernel_size": -1}, "kernel_size must be at least 1"),
    ({"kernel_size": 0}, "kernel_size must be at least 1"),
    ({"kernel_size": 1.5}, "kernel_size must be an integer"),
    ({"kernel_size": "3"}, "kernel_size must be an integer"),
    ({"stride": 0}, "stride must be at least 1"),
    ({"dilation": 0}, "dilation must be at least 1"),
    ({"padding": -1}, "padding must be at least 0"),
    ({"stride": 1.5}, "stride must be an integer"),
    ({"dtype": torch.int64}, "Only Tensors of floating point"),
]


@pytest.mark.parametrize(("changes", "message"), MODULE_REFUSED, ids=lambda v: str(v)[:30])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layer_refuses_what_nn_conv2d_refuses(changes, message):
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, **changes}
    theirs = refusal(lambda: nn.Conv2d(**arguments)(X))
    with pytest.raises(type(theirs), match=message):
        Corr2d(**arguments)


def test_layer_refuses_unknown_algorithms_when_made():
    with pytest.raises(ValueError, match="did you mean 'naive'"):
        Corr2d(1, 1, 1, algorithm="naiv")
    with pytest.raises(ValueError, match="out_channels=5 is not divisible by groups=2"):
        LazyCorr2d(5, 3, groups=2)


def test_refused_call_changes_nothing():
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    with pytest.raises(RuntimeError):
        corr2d(x, w, B[:5])
    assert x.grad is None
    assert w.grad is None
    assert torch.equal(x, X)


@needs(ONEDNN)
def test_mkldnn_input_is_refused_where_conv2d_cannot_run():
    opaque = X.to_mkldnn()
    for more in ({"algorithm": "unfold"}, {"padding": 1, "padding_mode": "reflect"}):
        with pytest.raises(RuntimeError, match=r"input has layout torch._mkldnn.*input\.to_dense"):
            corr2d(opaque, W, **more)
    for padding in ("full", ((1, 0), (0, 0))):
        with pytest.raises((RuntimeError, TypeError), match="padding"):  # PyTorch's own words
            corr2d(opaque, W, padding=padding)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("algorithm", ["auto", "unfold"])
def test_nested_tensors_are_refused(algorithm):
    images = torch.nested.nested_tensor([torch.ones(3, 5, 5), torch.ones(3, 4, 6)])
    weight = torch.ones(2, 3, 2, 2)
    with pytest.raises(NotImplementedError):
        F.conv2d(images, weight)
    with pytest.raises(NotImplementedError, match=r"input is a nested tensor.*to_padded_tensor"):
        corr2d(images, weight, algorithm=algorithm)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("which", ["input", "weight"])
@pytest.mark.parametrize("algorithm", ["auto", "unfold"])
def test_quantized_tensors_are_refused(algorithm, which):
    operands = {"input": torch.ones(1, 3, 5, 5), "weight": torch.ones(2, 3, 2, 2)}
    operands[which] = torch.quantize_per_tensor(operands[which], 0.1, 0, torch.qint8)
    with pytest.raises((NotImplementedError, RuntimeError)):
        F.conv2d(**operands)
    sentence = rf"{which} is quantized \(torch.qint8\).*{which}.dequantize\(\).*torch_corr.convert"
    with pytest.raises(NotImplementedError, match=sentence):
        corr2d(**operands, algorithm=algorithm)


def test_custom_algorithms_have_their_own_refusals():
    class Squares(Naive):
        name = "squares"

        def refusals(self, request):
            rows, columns = request.problem.size
            return () if rows == columns else (f"only square images, this is {rows} by {columns}",)

    assert corr2d(X[..., :7], W, algorithm=Squares()).shape == (2, 6, 5, 6)
    with pytest.raises(RuntimeError, match=r"'squares' cannot run.*\n  - only square images, this"):
        corr2d(X, W, algorithm=Squares())


def test_plan_refuses_what_corr2d_refuses():
    with pytest.raises(RuntimeError, match="ranks 2 and 4"):
        plan(X[0, 0], W)


def test_signatures_extend_conv2d():
    ours = list(inspect.signature(corr2d).parameters)
    assert ours[:7] == ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    theirs = list(inspect.signature(nn.Conv2d.__init__).parameters)
    assert list(inspect.signature(Corr2d.__init__).parameters) == [*theirs, "algorithm"]
    assert issubclass(Naive, Algorithm)
