"""The public functions: ``corr2d``, ``convolve2d``, ``plan`` and ``explain``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.fx import Proxy
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .dispatch.autocast import cast_as_autocast
from .dispatch.fast_path import run_if_known
from .dispatch.layout import are_channels_last
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

    ``c`` runs over the channels of ``o``'s group, ``p`` is the padding at the top (left), and
    ``padding_mode`` gives the pixels outside the image.

    Args:
        input: (N, C, H, W), (C, H, W), or (H, W) with a 2-D weight.  float64, float32,
            bfloat16, float16, complex128, complex64, or an integer dtype (no gradients).
            ``"auto"`` and ``"aten"`` also accept an input from ``to_mkldnn()``.
        weight: (O, C/groups, kH, kW), or (kH, kW) with a 2-D input; the input's dtype.
            O may be 0, unlike in ``F.conv2d``.
        bias: (O,), added to every pixel of channel ``o``; the input's dtype.
        stride: pixels between windows, an integer or a pair (rows, columns).
        padding: pixels around the image: an integer, a pair (rows, columns), pairs
            ((top, bottom), (left, right)), or ``"valid"`` (none), ``"full"`` (d(k-1) on
            every side) or ``"same"`` (ceil(size/stride) outputs; an odd pixel goes to the end;
            ``docs/padding.md`` compares other libraries).
        dilation: pixels between taps, an integer or a pair.
        groups: number of independent groups that the channels are divided into.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.  Circular
            padding may be larger than the image, unlike in ``nn.Conv2d``.
        algorithm: ``"auto"``, the name of an algorithm, or an :class:`~torch_corr.Algorithm`.
            An algorithm that you name runs or raises; another one never replaces it.

    Returns:
        (N, O, H', W') with H' = (H + top + bottom - d(kH-1) - 1) // s + 1, likewise W';
        without N for a 3-D input, (H', W') for a 2-D one.  Differentiable to every order,
        in reverse and forward mode.

    Raises:
        RuntimeError: shapes, dtypes or devices do not match, or a number is out of range (as in
            ``F.conv2d``); or the named algorithm refuses the problem, with its reasons.
        TypeError: an argument has the wrong type (as in ``F.conv2d``).
        ValueError: the algorithm or the padding mode is unknown.
        NotImplementedError: no algorithm supports this dtype (as in ``F.conv2d``).

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
        arguments = input, weight, bias, stride, padding, dilation, groups
        return handle_torch_function(
            corr2d, arguments[:3], *arguments, padding_mode=padding_mode, algorithm=algorithm
        )
    if is_dynamo_compiling():
        # In a tuple, Dynamo guards on the algorithm's value; otherwise on its identity, and equal
        # algorithms of several layers would need a graph each.
        key = _key_in_graph((algorithm,))
        arguments = input, weight, bias, stride, padding, dilation, groups
        return _corr2d_in_graph(key, padding_mode, *arguments)
    if algorithm == "auto" and padding_mode == "zeros":
        result = run_if_known(input, weight, bias, stride, padding, dilation, groups)
        if result is not None:
            return result
    return correlate(
        input, weight, bias, stride, padding, dilation, groups, padding_mode, algorithm
    )


def is_traced_for_quantization(operand: Any) -> bool:
    """Whether the FX mode of torch.ao is tracing, to quantize the ``conv2d`` calls of a model."""
    module: str = type(operand.tracer).__module__ if isinstance(operand, Proxy) else ""
    return module.startswith("torch.ao.quantization.")


def _warn_of_quantization() -> None:
    warnings.warn(
        "torch.ao.quantization quantizes nn.Conv2d and leaves corr2d and Corr2d in floating "
        "point; write nn.Conv2d and call torch_corr.convert, which chooses an algorithm for it",
        stacklevel=3,
    )


def overrides_torch_function(kind: type) -> bool:
    """Whether a tensor class overrides ``__torch_function__``; it may not know ``corr2d``."""
    own: Any = kind.__torch_function__ if issubclass(kind, Tensor) else None
    return getattr(own, "__func__", _INHERITED) is not _INHERITED


_INHERITED = Tensor.__torch_function__.__func__  # type: ignore[attr-defined]

# Dynamo calls the function instead of tracing it.  If traced, it returns False for every class.
overrides_torch_function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _key_in_graph(requested: tuple[AlgorithmLike]) -> str:
    """The algorithm as a string, because graphs hold no other objects.

    Dynamo calls this function while it traces.  It marks ``_corr2d_in_graph``, which is called
    next, as a call that Dynamo does not trace.  Doing this at import would import all of Dynamo.
    """
    torch.compiler.allow_in_graph(_corr2d_in_graph)  # type: ignore[no-untyped-call]
    (algorithm,) = requested
    return encode_algorithm(algorithm)


# As the decorator ``torch.compiler.assume_constant_result``, which imports Dynamo.
_key_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _corr2d_in_graph(key: str, padding_mode: str, *arguments: Any) -> Tensor:
    """:func:`corr2d` as one call in Dynamo's graph.

    The backend ``eager`` runs this call; other backends trace it down to the operators.
    """
    return corr2d(*arguments, padding_mode=padding_mode, algorithm=decode_algorithm(key))


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
    """Convolve images with filters as defined in mathematics: the kernel is flipped.

    ``y[n,o,i,j] = b[o] + sum_{c,u,v} x[n, c, i*s + (kH-1-u)*d - p, ...] * w[o,c,u,v]``

    With ``padding="full"`` and one channel this is the discrete convolution of image and kernel,
    which commutes: ``convolve2d(a, b, padding="full") == convolve2d(b, a, padding="full")``.
    Arguments, results and errors are those of :func:`corr2d`, except for ``padding="same"``.

    Args:
        padding: as in :func:`corr2d`, except that ``"same"`` pads as scipy does: d(k-1) pixels
            along each axis, with an odd pixel at the top (left); :func:`corr2d` puts it at the
            bottom (right).  With a stride s the result is every s-th row and column of the result
            for stride 1.  ``docs/padding.md`` compares both functions with ``F.conv2d``, scipy,
            TensorFlow and JAX.

    Source:
        ``scipy.signal.convolve2d`` computes the same for one channel; its ``mode`` is
        ``padding``, and its ``boundary="wrap"`` is ``padding_mode="circular"``.

    Example:
        >>> x, w = torch.tensor([[1., 2., 3., 4.]]), torch.tensor([[1., 10.]])
        >>> convolve2d(x, w, padding="same")
        tensor([[ 1., 12., 23., 34.]])
        >>> convolve2d(x, w, padding="full")
        tensor([[ 1., 12., 23., 34., 40.]])
    """
    if has_torch_function_variadic(input, weight, bias):
        arguments = input, weight, bias, stride, padding, dilation, groups
        return handle_torch_function(
            convolve2d, arguments[:3], *arguments, padding_mode=padding_mode, algorithm=algorithm
        )
    if isinstance(weight, Tensor) and weight.dim() >= 2:
        if isinstance(padding, str) and padding == "same":
            padding = _same_as_scipy(weight, dilation)
        weight = weight.flip(-2, -1)
    arguments = input, weight, bias, stride, padding, dilation, groups
    return corr2d(*arguments, padding_mode=padding_mode, algorithm=algorithm)


def _same_as_scipy(weight: Tensor, dilation: SizeLike) -> Sides:
    """The padding that keeps the image's size; an odd pixel goes to the top (left)."""
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
    """The algorithm that ``corr2d`` uses for each map with these arguments.

    The arguments are those of :func:`corr2d`, with zero padding.  Of the operands, only shape,
    dtype, device and layout matter.  Under autocast the plan is for the dtype of autocast.

    Returns:
        A :class:`~torch_corr.Plan`.  Print it to see the predicted time of each algorithm.

    Raises:
        RuntimeError, TypeError, ValueError, NotImplementedError: as :func:`corr2d`.

    Example:
        >>> chosen = plan(torch.ones(1, 1, 6, 8), torch.ones(1, 1, 1, 2))
        >>> chosen.forward, chosen.grad_input, chosen.grad_weight
        (Aten(), Aten(), Aten())
    """
    input, weight, _ = cast_as_autocast(input, weight, None)
    check_operands(input, weight, None)
    images, filters = with_all_axes(input), with_all_axes(weight)
    return known_plan(
        images.shape,
        filters.shape,
        as_pair("stride", stride),
        hashable_padding(padding),
        as_pair("dilation", dilation),
        as_int("groups", groups),
        input.device,
        input.dtype,
        algorithm,
        are_channels_last(images, filters),
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
    """Print :func:`plan` of these arguments: the choice for each map, and the alternatives.

    Each line shows one algorithm, fastest first: its predicted or measured time, its workspace in
    MiB and its error class.  ``>`` marks the algorithm that runs.  Below them are the algorithms
    that refuse the problem, with their reasons.

    Raises:
        RuntimeError, TypeError, ValueError, NotImplementedError: as :func:`corr2d`.
    """
    print(plan(input, weight, stride, padding, dilation, groups, algorithm=algorithm))
