"""The functions that users call."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.fx import Proxy
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .dispatch.autocast import cast_as_autocast
from .dispatch.fast_path import conv2d_if_chosen
from .dispatch.layout import IN_CHANNELS_LAST, is_channels_last_image
from .dispatch.pipeline import correlate, known_plan
from .dispatch.validation import check_operands, hashable_padding, plain_shape, with_all_axes
from .operators import decode_algorithm, encode_algorithm
from .planning.plan import AlgorithmLike, Plan
from .problem import PaddingLike, Sides, SizeLike, as_int, as_pair, window_span


def corr2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: SizeLike = 1,
    padding: PaddingLike = 0,
    dilation: SizeLike = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    algorithm: AlgorithmLike = "auto",
) -> Tensor:
    """Cross-correlate images with filters; the kernel is not flipped.

    ``y[n,o,i,j] = b[o] + sum_{c,u,v} x[n, c, i*s + u*d - p, j*s + v*d - p] * w[o,c,u,v]``

    where ``c`` runs over the channels of ``o``'s group, ``p`` is the padding at the top
    (left), and a pixel outside the image is what ``padding_mode`` says.

    Args:
        input: (N, C, H, W), (C, H, W), or (H, W) with a 2-D weight.  float64, float32,
            bfloat16, float16, complex128, complex64, or an integer type (no gradients).
            Of ``to_mkldnn()`` only for ``"auto"`` and ``"aten"``, as ``F.conv2d`` takes it.
        weight: (O, C/groups, kH, kW), or (kH, kW) with a 2-D input; the input's dtype.
            O may be 0, which ``F.conv2d`` refuses.
        bias: (O,), added to every pixel of channel ``o``; the input's dtype.
        stride: steps between windows, an integer or a pair (rows, columns).
        padding: pixels around the image: an integer, a pair (rows, columns), pairs
            ((top, bottom), (left, right)), or ``"valid"`` (none), ``"full"`` (d(k-1) on
            every side) or ``"same"`` (ceil(size/stride) outputs, an odd pixel at the end;
            ``docs/padding.md`` compares other libraries).
        dilation: steps between taps, an integer or a pair.
        groups: number of independent groups that the channels are divided into.
        padding_mode: what padding holds: ``"zeros"``, ``"reflect"``, ``"replicate"`` or
            ``"circular"``, which repeats the image as often as it takes, where ``nn.Conv2d``
            refuses padding larger than the image.
        algorithm: ``"auto"``, the name of one, or an :class:`~torch_corr.Algorithm`.
            A named algorithm runs or refuses; it is never replaced by another.

    Returns:
        (N, O, H', W') with H' = (H + top + bottom - d(kH-1) - 1) // s + 1, likewise W';
        without N for a 3-D input, (H', W') for a 2-D one.  Differentiable to every order,
        forward and backward.

    Raises:
        RuntimeError: shapes, dtypes or devices disagree, or numbers make no correlation
            (as ``F.conv2d``); or the named algorithm refuses, with its reasons.
        TypeError: an argument is of the wrong type (as ``F.conv2d``).
        ValueError: no such algorithm or padding mode.
        NotImplementedError: no algorithm does this dtype (as ``F.conv2d``).

    Source:
        The same function as ``torch.nn.functional.conv2d``, and as ``corr2d`` in Zhang et
        al., *Dive into Deep Learning*, section 7.2.

    Example:
        >>> X = torch.tensor([[0., 1., 2.], [3., 4., 5.], [6., 7., 8.]])
        >>> corr2d(X, torch.tensor([[0., 1.], [2., 3.]]))
        tensor([[19., 25.],
                [37., 43.]])
        >>> corr2d(X[:1], torch.ones(1, 1), padding=((0, 0), (4, 2)), padding_mode="circular")
        tensor([[2., 0., 1., 2., 0., 1., 2., 0., 1.]])
    """
    if has_torch_function_variadic(input, weight, bias):
        if is_traced_for_quantization(input):
            _warn_of_quantization()
        return handle_torch_function(
            corr2d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            padding_mode=padding_mode,
            algorithm=algorithm,
        )
    if is_dynamo_compiling():
        # In a tuple Dynamo guards on its value, bare on which object it is: one graph serves all
        # layers that have one such each, and their copies.
        key = _key_in_graph((algorithm,))
        return _corr2d_in_graph(
            input, weight, bias, stride, padding, dilation, groups, padding_mode, key
        )
    if algorithm == "auto" and padding_mode == "zeros":
        result = conv2d_if_chosen(input, weight, bias, stride, padding, dilation, groups)
        if result is not None:
            return result
    return correlate(
        input, weight, bias, stride, padding, dilation, groups, padding_mode, algorithm
    )


def is_traced_for_quantization(operand: Any) -> bool:
    """Whether the FX mode of torch.ao traces a model, to quantize the ``conv2d`` calls in it."""
    module: str = type(operand.tracer).__module__ if isinstance(operand, Proxy) else ""
    return module.startswith("torch.ao.quantization.")


def _warn_of_quantization() -> None:
    warnings.warn(
        "torch.ao.quantization looks for nn.Conv2d, and leaves corr2d and Corr2d in floating "
        "point; write nn.Conv2d, for which torch_corr.convert chooses an algorithm too",
        stacklevel=3,
    )


def has_own_functions(kind: type) -> bool:
    """Whether a class of tensors says itself what functions do: perhaps conv2d, hardly corr2d."""
    own: Any = kind.__torch_function__ if issubclass(kind, Tensor) else None
    return getattr(own, "__func__", _INHERITED) is not _INHERITED


_INHERITED = Tensor.__torch_function__.__func__  # type: ignore[attr-defined]

# Dynamo calls it while it traces.  Traced as code it would answer False for every class.
has_own_functions._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _key_in_graph(requested: tuple[AlgorithmLike]) -> str:
    """The algorithm as a string, which is what a graph can hold.

    Dynamo calls this while it traces, which makes it the place to say that the call after it
    goes into the graph unseen; saying so at import would load all of Dynamo.
    """
    torch.compiler.allow_in_graph(_corr2d_in_graph)  # type: ignore[no-untyped-call]
    (algorithm,) = requested
    return encode_algorithm(algorithm)


# What the decorator ``torch.compiler.assume_constant_result`` does.
_key_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _corr2d_in_graph(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: SizeLike,
    padding: PaddingLike,
    dilation: SizeLike,
    groups: int,
    padding_mode: str,
    key: str,
) -> Tensor:
    """:func:`corr2d` as one call in Dynamo's graph.

    The backend ``eager`` makes this very call; others trace it further, as Python, down to
    the operators.
    """
    return corr2d(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=padding_mode,
        algorithm=decode_algorithm(key),
    )


def convolve2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: SizeLike = 1,
    padding: PaddingLike = 0,
    dilation: SizeLike = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    algorithm: AlgorithmLike = "auto",
) -> Tensor:
    """Convolve images with filters, as mathematics defines it: the kernel is flipped.

    ``y[n,o,i,j] = b[o] + sum_{c,u,v} x[n, c, i*s + (kH-1-u)*d - p, ...] * w[o,c,u,v]``

    With ``padding="full"`` and one channel this is the whole discrete convolution of image
    and kernel, which commutes: ``convolve2d(a, b, padding="full") == convolve2d(b, a, ...)``.
    Channels are summed as in :func:`corr2d`.  Arguments, results and errors are those of
    :func:`corr2d`, except for one value of ``padding``.

    Args:
        padding: as for :func:`corr2d`, except that ``"same"`` pads as scipy does: d(k-1) pixels
            along each axis, an odd one at the top (left), where :func:`corr2d` puts it at the
            bottom (right).  A stride then takes every s-th row and column of that result, so that
            ``convolve2d(x, w, stride=s, padding="same")`` is
            ``convolve2d(x, w, padding="same")[..., ::s, ::s]``.  ``docs/padding.md`` compares
            the two with ``F.conv2d``, scipy, TensorFlow and JAX.

    Source:
        ``scipy.signal.convolve2d`` computes the same for one channel, where ``mode`` is
        ``padding`` and ``boundary="wrap"`` is ``padding_mode="circular"``.

    Example:
        >>> x, w = torch.tensor([[1., 2., 3., 4.]]), torch.tensor([[1., 10.]])
        >>> convolve2d(x, w, padding="same")
        tensor([[ 1., 12., 23., 34.]])
        >>> convolve2d(x, w, padding="full")
        tensor([[ 1., 12., 23., 34., 40.]])
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            convolve2d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            padding_mode=padding_mode,
            algorithm=algorithm,
        )
    if isinstance(weight, Tensor) and weight.dim() >= 2:
        if isinstance(padding, str) and padding == "same":
            padding = _same_as_scipy(weight, dilation)
        weight = weight.flip(-2, -1)
    return corr2d(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=padding_mode,
        algorithm=algorithm,
    )


def _same_as_scipy(weight: Tensor, dilation: SizeLike) -> Sides:
    """The padding that keeps the image's size, an odd pixel at the top (left)."""
    kernel = as_pair("kernel", plain_shape(weight)[-2:])
    rows, columns = window_span(kernel, as_pair("dilation", dilation))
    return (rows // 2, (rows - 1) // 2), (columns // 2, (columns - 1) // 2)


def plan(
    input: Tensor,
    weight: Tensor,
    stride: SizeLike = 1,
    padding: PaddingLike = 0,
    dilation: SizeLike = 1,
    groups: int = 1,
    *,
    algorithm: AlgorithmLike = "auto",
) -> Plan:
    """Which algorithm each map of ``corr2d`` with these arguments gets; print it to read why.

    Args are those of :func:`corr2d` for zero padding; only the operands' shapes, dtype, device
    and, for ``auto``, layout matter.  Under autocast the dtype is that which it makes.

    Example:
        >>> chosen = plan(torch.ones(1, 1, 6, 8), torch.ones(1, 1, 1, 2))
        >>> chosen.forward, chosen.grad_input, chosen.grad_weight
        (Aten(), Aten(), Aten())
    """
    input, weight, _ = cast_as_autocast(input, weight, None)
    check_operands(input, weight, None)
    if algorithm == "auto" and any(map(is_channels_last_image, (input, weight))):
        algorithm = IN_CHANNELS_LAST
    return known_plan(
        with_all_axes(input).shape,
        with_all_axes(weight).shape,
        as_pair("stride", stride),
        hashable_padding(padding),
        as_pair("dilation", dilation),
        as_int("groups", groups),
        input.device,
        input.dtype,
        algorithm,
    )


def explain(
    input: Tensor,
    weight: Tensor,
    stride: SizeLike = 1,
    padding: PaddingLike = 0,
    dilation: SizeLike = 1,
    groups: int = 1,
    *,
    algorithm: AlgorithmLike = "auto",
) -> None:
    """Print, for each map of ``corr2d`` with these arguments, what each algorithm would take.

    One line for each algorithm, quickest first: its time, predicted or measured, the workspace
    that it takes, the class of its error; ``>`` stands before the one that runs.  Below, what
    refuses, and why.  The same as ``print(plan(...))``.
    """
    print(plan(input, weight, stride, padding, dilation, groups, algorithm=algorithm))
