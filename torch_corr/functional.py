"""The functions a person calls: checks at the door, then one trilinear form."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.fx import Proxy
from torch.jit import TracerWarning  # type: ignore[attr-defined]
from torch.nn.functional import pad
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ._torch_compat import (
    TracingContext,
    are_functorch_transforms_active,
    disable_current_modes,
    dispatch_stack_depth,
    get_tracing_state,
    is_any_autocast,
    is_tracing,
    set_tracing_state,
)
from .algorithms import Aten
from .algorithms.aten import are_misread, conv2d, quick_in_channels_last
from .algorithms.base import is_channels_last
from .autograd import trilinear
from .operators import Deferred, decode_algorithm, encode_algorithm, planned, skip_dynamo
from .planning.auto import Auto
from .planning.plan import AlgorithmLike, Plan, autocasts, cached_plan, find_algorithm, make_plan
from .planning.wisdom import WISDOM
from .problem import (
    PaddingLike,
    Pair,
    Problem,
    Sides,
    SizeLike,
    as_int,
    as_pair,
    as_sides,
    holds_always,
    is_data_dependent,
    is_known_zero,
    require,
    resolve_padding,
    same_shape,
    shape_str,
    window_span,
)
from .sharding import is_distributed
from .suggest import did_you_mean

IN_CHANNELS_LAST = Auto(channels_last=True)

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


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
        # Four microseconds of planning would double the cost of the smallest layers.
        result = _conv2d_if_chosen(input, weight, bias, stride, padding, dilation, groups)
        if result is not None:
            return result
    if padding_mode == "zeros" and _is_left_to_pytorch(input, algorithm):
        numbers: Any = stride, padding, dilation, groups
        return torch.conv2d(input, weight, bias, *numbers)
    input, weight, bias = _cast_as_autocast(input, weight, bias)
    _check_operands(input, weight, bias)
    images, filters = _with_all_axes(input), _with_all_axes(weight)
    shapes = _shape(images), _shape(filters)
    geometry = (as_pair("stride", stride), _hashable(padding), as_pair("dilation", dilation))
    if padding_mode != "zeros":
        images, shapes, geometry = _pad(images, shapes, *geometry, padding_mode)
    requested = _resolve_algorithm(algorithm, images, filters)
    where = input.device, input.dtype
    plan = _plan(*shapes, *geometry, as_int("groups", groups), *where, requested)
    if requested == "auto" and _is_compiling() and quick_in_channels_last(plan.problem, *where):
        plan = planned(plan.problem, *where, "aten")
    if bias is not None:
        _check_bias(bias, weight, plan.problem)
    if _is_exporting_or_tracing():
        if padding == "same" and max(plan.problem.stride) > 1 and is_tracing():
            _warn_of_one_size(plan.problem)
        result = _standard(plan.problem, images, filters, bias)
    else:
        result = trilinear(plan, images, filters)
        if bias is not None:
            result = result + bias[:, None, None]
    return result if input.dim() == 4 else result[(0,) * (4 - input.dim())]


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
    kernel = as_pair("kernel", _shape(weight)[-2:])
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
    input, weight, _ = _cast_as_autocast(input, weight, None)
    _check_operands(input, weight, None)
    if algorithm == "auto" and any(map(_is_channels_last_image, (input, weight))):
        algorithm = IN_CHANNELS_LAST
    return _known_plan(
        _with_all_axes(input).shape,
        _with_all_axes(weight).shape,
        as_pair("stride", stride),
        _hashable(padding),
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


@skip_dynamo
def _conv2d_if_chosen(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Tensor | None:
    """``torch.conv2d`` itself, where ``auto`` gives it all three maps; else None.

    It brings PyTorch's own derivatives, which are the same.  The arguments go to PyTorch as
    they are, and what it refuses is refused in our words.
    """
    if are_functorch_transforms_active():
        return None  # conv2d mistakes the shape of a vmap over nothing
    if type(input) is not Tensor and is_distributed((input, weight)):
        return None  # conv2d's second derivative of DTensors is silently wrong
    try:
        if input.requires_grad != weight.requires_grad and torch.is_grad_enabled():
            # One gradient, which does not need the operand that it is of.  conv2d keeps that one
            # too; a leaf the graph holds anyway, as the weight of a network's first layer.
            trained = input if input.requires_grad else weight
            if not trained.is_leaf:
                return None
        device, dtype = input.device, input.dtype
        if is_any_autocast():
            dtype = _dtype_under_autocast(input)
        shapes = input.shape, weight.shape
        requested = *shapes, stride, padding, dilation, groups, device, dtype
        chosen = _is_conv2d(*requested, "auto")
        # What was measured is of contiguous images, and says nothing of others.
        if not chosen or (len(WISDOM) and input.device.type == "cuda"):
            if (layout := _resolve_for_layout(input, weight)) is not None:
                chosen = _is_conv2d(*requested, layout)
            if not chosen:
                return None
        if are_misread(input, weight):
            return None
        # PyTorch computes on across cpu and meta, and on layouts of its own.
        if weight.device != device or input.layout is not torch.strided:
            return None
        if bias is not None and bias.device != device:
            return None
    except TypeError:
        # Lists have no hash; whatever else it was, the checks that follow say it.
        numbers = stride, padding, dilation
        if not any(isinstance(each, list) for each in numbers):
            return None
        stride, padding, dilation = (
            tuple(each) if isinstance(each, list) else each for each in numbers
        )
        return _conv2d_if_chosen(input, weight, bias, stride, padding, dilation, groups)
    except (AttributeError, RuntimeError, ValueError):
        return None  # not to be planned: the checks that follow say why, or spell it anew
    try:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    except (RuntimeError, TypeError, ValueError):
        _check_operands(input, weight, bias)
        problem = Problem.of(input.shape, weight.shape, stride, padding, dilation, groups)
        if bias is not None:
            _check_bias(bias, weight, problem)
        raise


@cached_plan
def _is_conv2d(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    device: torch.device,
    dtype: torch.dtype,
    algorithm: AlgorithmLike,
) -> bool:
    if _is_exporting_or_tracing():
        raise TypeError("shapes are of tensors under jit.trace; an error, so as not to be kept")
    numbers = stride, padding, dilation, groups
    if any(isinstance(each, Tensor) for each in numbers):
        return False  # a Tensor may change, and would be kept here
    if device.type == "meta":
        return False  # conv2d there lets a bias of any shape pass
    flat = not isinstance(padding, tuple) or all(isinstance(each, int) for each in padding)
    if isinstance(padding, str) or not flat or len(input_shape) != 4 or len(weight_shape) != 4:
        return False
    problem = Problem.of(input_shape, weight_shape, stride, padding, dilation, groups)
    return make_plan(problem, device, dtype, algorithm).is_conv2d


@skip_dynamo
def _plan(*arguments: Any) -> Plan | Deferred:
    """The plan for the arguments of :func:`_known_plan`, of which sizes may be symbols."""
    try:
        if dispatch_stack_depth() == 0:
            return _known_plan(*arguments)
        with disable_current_modes():  # if it measures, then on tensors that are no fakes
            return _known_plan(*arguments)
    except TypeError:  # a symbol has no hash
        *geometry, device, dtype, algorithm = arguments
        return planned(Problem.of(*geometry), device, dtype, algorithm)


@cached_plan
def _known_plan(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: str | Sides,
    dilation: Pair,
    groups: int,
    device: torch.device,
    dtype: torch.dtype,
    algorithm: AlgorithmLike,
) -> Plan:
    problem = Problem.of(input_shape, weight_shape, stride, padding, dilation, groups)
    return make_plan(problem, device, dtype, algorithm)


@skip_dynamo
def _resolve_algorithm(algorithm: AlgorithmLike, input: Tensor, weight: Tensor) -> AlgorithmLike:
    """What is planned with, where nothing is computed or a layout is to be handed on."""
    if input.is_meta:
        return "auto"
    if _is_exporting_or_tracing():
        return "aten"
    return (_resolve_for_layout(input, weight) or "auto") if algorithm == "auto" else algorithm


def _resolve_for_layout(input: Tensor, weight: Tensor) -> AlgorithmLike | None:
    """What stands for ``auto`` where an operand lies in channels_last, else None."""
    if not any(map(_is_channels_last_image, (input, weight))):
        return None
    # On a CPU nothing else is ever chosen, and of PyTorch's own compilers make more.
    # A plan that waits for the sizes must say itself that it does so.
    waits = is_data_dependent((*input.shape, *weight.shape))
    return IN_CHANNELS_LAST if input.is_cuda or waits else "aten"


@skip_dynamo
def _is_compiling() -> bool:
    """Whether a compiler is making a graph of operators, as it does of fake tensors."""
    return dispatch_stack_depth() > 0 and TracingContext.try_get() is not None


@skip_dynamo
def _is_exporting_or_tracing() -> bool:
    """Whether the program is being written for others to run: ``torch.export`` or a trace."""
    return torch.compiler.is_exporting() or is_tracing()


@skip_dynamo
def _standard(problem: Problem, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's own convolution, which every reader of an exported program knows."""
    if is_known_zero(problem.in_channels) or is_known_zero(problem.out_channels):
        return Aten().forward(problem, input, weight) + (0 if bias is None else bias[:, None, None])
    return conv2d(problem, input, weight, bias)


def _warn_of_one_size(problem: Problem) -> None:
    warnings.warn(
        f"padding='same' with stride {problem.stride} depends on the input's size; torch.jit.trace "
        f"keeps what is right for {problem.size[0]}x{problem.size[1]} pixels and pads other sizes "
        f"the same; use torch.export, which keeps the formula",
        TracerWarning,
        stacklevel=3,
    )


@skip_dynamo
def _shape(value: Tensor) -> tuple[int, ...]:
    """The shape in numbers, or in symbols; under ``torch.jit.trace`` it would be of tensors."""
    state = get_tracing_state()
    if state is None:
        return value.shape
    set_tracing_state(None)
    try:
        return value.shape
    finally:
        set_tracing_state(state)


@skip_dynamo
def _is_left_to_pytorch(input: Any, algorithm: AlgorithmLike) -> bool:
    """Whether images lie as oneDNN likes them, which PyTorch's own convolution alone reads.

    What it takes and what it refuses there is its own affair.
    """
    opaque = getattr(input, "is_mkldnn", False)
    if not opaque:
        return False
    found = find_algorithm(algorithm)
    return isinstance(found, Auto) or found.is_pytorch


def _is_channels_last_image(operand: Tensor) -> bool:
    """Whether an operand has PyTorch's channels_last layout, which goes on to the result.

    Not of integers, of which it refuses some problems.
    """
    return (
        (operand.is_floating_point() or operand.is_complex())
        and not are_functorch_transforms_active()  # a mapped tensor cannot tell
        and is_channels_last(operand)
    )


@skip_dynamo
def _cast_as_autocast(input: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    """Operands in the dtype of autocast where that is on."""
    if not isinstance(input, Tensor) or not autocasts(input.device):
        return input, weight, bias
    input, weight, bias = (
        value.to(_dtype_under_autocast(value)) if isinstance(value, Tensor) else value
        for value in (input, weight, bias)
    )
    return input, weight, bias


@skip_dynamo
def _dtype_under_autocast(value: Tensor) -> torch.dtype:
    """The dtype in which autocast, if on, has an operand computed; float64 stays, as in conv2d."""
    cast = value.dtype in _AUTOCAST and autocasts(value.device)
    return torch.get_autocast_dtype(value.device.type) if cast else value.dtype


_AUTOCAST = (torch.float32, torch.float16, torch.bfloat16)
"""What autocast casts."""


@skip_dynamo
def _with_all_axes(value: Tensor) -> Tensor:
    """A 3-D or 2-D operand with the axes of length 1 that it leaves out."""
    return value if value.dim() == 4 else value[(None,) * (4 - value.dim())]


@skip_dynamo
def _hashable(padding: Any) -> str | Sides:
    return padding if isinstance(padding, str) else as_sides(padding)


@skip_dynamo
def _check_operands(input: Any, weight: Any, bias: Any) -> None:
    """That input, weight and bias are strided tensors of fitting rank, one dtype, one device."""
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and (name != "bias" or value is not None):
            raise TypeError(
                f"{name} must be a torch.Tensor{' or None' if name == 'bias' else ''}, got "
                f"{type(value).__name__}; make one with torch.as_tensor"
            )
    for name, value in (("input", input), ("weight", weight)):
        if value.is_nested:
            raise NotImplementedError(
                f"{name} is a nested tensor, of many shapes; correlate them one by one (unbind), "
                f"or pad to one shape with torch.nested.to_padded_tensor"
            )
        if value.is_quantized:
            raise NotImplementedError(
                f"{name} is quantized ({value.dtype}), and no algorithm computes with that; call "
                f"{name}.dequantize(). In a model that torch.ao quantizes, write nn.Conv2d, the "
                f"only class that it replaces, instead of Corr2d; torch_corr.convert then gives "
                f"layers an algorithm and keeps their class"
            )
    ranks = input.dim(), weight.dim()
    if ranks not in ((4, 4), (3, 4), (2, 2)):
        raise RuntimeError(
            f"input of shape {shape_str(input.shape)} and weight of shape "
            f"{shape_str(weight.shape)} have ranks {ranks[0]} and {ranks[1]}; expected input "
            f"(N, C, H, W) or (C, H, W) with weight (O, C/groups, kH, kW), or input (H, W) "
            f"with weight (kH, kW)"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        for what, mend in (("dtype", ".to(input.dtype)"), ("device", ".to(input.device)")):
            theirs, ours = getattr(value, what), getattr(input, what)
            if theirs != ours:
                raise RuntimeError(
                    f"input and {name} must share one {what}, got {ours} and {theirs}; convert "
                    f"one of them, e.g. {name}{mend}"
                )
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        if value is not None and value.layout != torch.strided:
            raise RuntimeError(
                f"{name} has layout {value.layout}; correlation needs a dense (strided) tensor, "
                f"e.g. {name}.to_dense()"
            )


@skip_dynamo
def _check_bias(bias: Tensor, weight: Tensor, problem: Problem) -> None:
    require(
        same_shape(_shape(bias), (problem.out_channels,)),
        lambda: (
            f"bias must have shape ({problem.out_channels},), one number for each output channel "
            f"of weight {shape_str(weight.shape)}, got {shape_str(_shape(bias))}"
        ),
    )


@skip_dynamo
def _pad(
    input: Tensor,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    stride: Pair,
    padding: str | Sides,
    dilation: Pair,
    mode: str,
) -> tuple[Tensor, tuple[tuple[int, ...], tuple[int, ...]], tuple[Pair, Sides, Pair]]:
    """The input with its border filled in, and what is left to do: larger, without padding."""
    if mode not in PADDING_MODES:
        raise ValueError(
            f"unknown padding_mode {mode!r}{did_you_mean(str(mode), PADDING_MODES)}; use one of "
            f"{', '.join(map(repr, PADDING_MODES))}"
        )
    (batch, channels, height, width), (_, _, *kernel) = shapes
    sides = resolve_padding(padding, (height, width), as_pair("kernel", kernel), stride, dilation)
    for axis, size, side in zip("HW", (height, width), sides):
        most = size - 1 if mode == "reflect" else size
        for pixels in side:
            require(pixels >= 0, lambda: f"padding must be at least 0 on every side, got {sides}")
            if is_known_zero(pixels):
                continue
            require(
                pixels <= most if mode == "reflect" else size >= 1,
                lambda: (
                    f"padding {side} along {axis} is more than padding_mode={mode!r} can fill "  # noqa: B023
                    f"from {size} pixels (at most {most}), in an input of shape "  # noqa: B023
                    f"{shape_str(shapes[0])}; pad less, or with zeros"
                ),
            )
    (top, bottom), (left, right) = sides
    if is_known_zero(channels):
        mode = "constant"  # nothing to fill, and PyTorch's other modes refuse to
    if mode == "circular" and not _wraps_once(sides, (height, width)):
        for dim, side in enumerate(sides, start=-2):
            if not all(map(is_known_zero, side)):
                input = wrap(input, dim, *side)
    elif not all(map(is_known_zero, (top, bottom, left, right))):
        input = pad(input, (left, right, top, bottom), mode=mode)
    padded = batch, channels, height + top + bottom, width + left + right
    return input, (padded, shapes[1]), (stride, ((0, 0), (0, 0)), dilation)


def _wraps_once(sides: Sides, sizes: Pair) -> bool:
    """Whether PyTorch's ``pad`` can fill a circular border: it repeats an image only once."""
    return all(holds_always(pixels <= size) for size, side in zip(sizes, sides) for pixels in side)


def wrap(input: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Pad an axis with its own pixels, repeated as often as it takes."""
    size = input.size(dim)
    indices = torch.arange(-before, size + after, device=input.device)
    # A tensor of one, because ONNX has no remainder by a number that depends on the input.
    period = torch.full((1,), size, dtype=torch.int64, device=input.device)
    return input.index_select(dim, indices % period)
