"""``convert``: make the ``nn.Conv2d`` layers of a model run an algorithm of this library.

``nn.Conv2d.forward`` calls ``self._conv_forward(input, weight, bias)``.  ``convert`` sets an
attribute of that name on the layer, which takes precedence over the method of the class.  Nothing
else changes, so tools that look up ``type(layer)`` (FLOP counters, fusion, quantization) work as
before.  Removing the attribute undoes the conversion.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from .functional import corr2d, is_traced_for_quantization, overrides_torch_function
from .modules import Corr2d
from .operators import skip_dynamo
from .planning.auto import Auto
from .planning.plan import AlgorithmLike, find_algorithm
from .problem import as_pair, resolve_padding
from .tuning import Tuning
from .tuning import tune as run_and_tune


class ConvForward:
    """The ``_conv_forward`` of a converted layer: calls :func:`~torch_corr.corr2d`.

    Stride, padding, dilation, groups and padding mode are read from the layer at each call.  The
    reference to the layer is weak, so that layer and attribute do not form a cycle that only the
    garbage collector can free.

    If the class of weight or bias overrides ``__torch_function__``, the layer calls ``conv2d``,
    because the class may implement ``conv2d`` but not ``corr2d``.  PyTorch's expanded weights,
    which compute per-sample gradients, are such a class.  The layer also calls ``conv2d`` while
    torch.ao traces it, because torch.ao quantizes only ``conv2d``.

    Attributes:
        algorithm: the algorithm that was passed to :func:`convert`.
    """

    __slots__ = ("_layer", "algorithm")

    def __init__(self, layer: nn.Conv2d, algorithm: AlgorithmLike) -> None:
        self._layer = weakref.ref(layer)
        self.algorithm = algorithm

    @property
    def layer(self) -> nn.Conv2d | None:
        """The converted layer, or None if it was deleted."""
        return self._layer()

    @skip_dynamo
    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self._layer()
        if layer is None:
            raise RuntimeError(
                "this Conv2d is a shallow copy (copy.copy) of a converted layer that was deleted; "
                "the copy reads its stride and padding from that layer; call torch_corr.convert "
                "on this copy, or use copy.deepcopy"
            )
        # Tested inline: two more calls are 5% more instructions for the smallest layer (callgrind).
        common = type(weight) in _COMMON and type(bias) in _COMMON
        if not common and (_needs_conv2d(weight) or _needs_conv2d(bias)):
            return type(layer)._conv_forward(layer, input, weight, bias)  # type: ignore[no-any-return]
        return corr2d(
            input,
            weight,
            bias,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            padding_mode=layer.padding_mode,
            algorithm=self.algorithm,
        )

    def __reduce__(self) -> Any:
        """For pickle and deepcopy, which replace the layer by its copy."""
        return ConvForward, (self._layer(), self.algorithm)

    def __repr__(self) -> str:
        return f"corr2d(..., algorithm={self.algorithm!r})"


_COMMON = (Tensor, nn.Parameter, type(None))


def _needs_conv2d(operand: Tensor | None) -> bool:
    """Whether a parameter may support only ``conv2d``."""
    return overrides_torch_function(type(operand)) or is_traced_for_quantization(operand)


@dataclass(frozen=True)
class Conversion:
    """The report of :func:`convert`; print it to read it.

    Attributes:
        algorithm: the algorithm of the converted layers.
        replaced: the converted layers, by their names in the model.
        skipped: the reasons why other convolutions were not converted, by their names.
        tuning: the times before and after, if the conversion was tuned.
    """

    algorithm: AlgorithmLike
    replaced: dict[str, nn.Conv2d]
    skipped: dict[str, str]
    tuning: Tuning | None = None

    def revert(self) -> None:
        """Make the converted layers run PyTorch's convolution again, with their present weights.

        Other changes since the conversion (parametrizations, ``fully_shard``) remain.  Copies of
        the layers (by ``copy.deepcopy``, or by tools that fuse layers) stay converted.  A second
        call does nothing.
        """
        for layer in self.replaced.values():
            if _converted(layer) is not None:
                del layer._conv_forward

    def __str__(self) -> str:
        """One line for each convolution of the model."""
        total = len(self.replaced) + len(self.skipped)
        lines = [f"{len(self.replaced)} of {total} convolutions run algorithm={self.algorithm!r}"]
        for name, layer in self.replaced.items():
            lines.append(f"  {name or 'the model'}: {layer}")
        for name, sentence in self.skipped.items():
            lines.append(f"  {name or 'the model'} left alone: {sentence}")
        if self.tuning is not None:
            lines.append(str(self.tuning))
        return "\n".join(lines)


def convert(
    model: nn.Module,
    algorithm: AlgorithmLike = "auto",
    *,
    tune: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
) -> Conversion:
    """Make every ``nn.Conv2d`` of a model run an algorithm of this library, in place.

    Each layer gets one attribute, ``_conv_forward``, which ``nn.Conv2d.forward`` calls.  Its
    class, parameters, ``state_dict``, ``repr``, hooks, training flag and optimizers do not change.
    Subclasses of ``nn.Conv2d`` that compute as it does, parametrized layers and layers split by
    ``fully_shard`` are converted too, and so are deep copies and pickles of the model.

    The report lists the layers that are skipped: layers with their own forward, lazy layers
    without a weight, scripted and quantized layers, ``Corr2d``, and layers that are converted
    already.  So to give one layer another algorithm, convert it first, then the whole model.

    A shallow copy (``copy.copy``) of a converted layer reads stride and padding from the original
    layer; convert the copy before you change them.

    Args:
        model: any module, including an ``nn.Conv2d``.
        algorithm: for all layers: ``"auto"``, a name, or an :class:`~torch_corr.Algorithm`.
        tune: the model's input, a tuple of its positional arguments, or a mapping of its keyword
            arguments; :func:`~torch_corr.tune` then runs the model on them and times the layers.

    Returns:
        The report: the converted layers and the skipped ones, with :meth:`Conversion.revert`.

    Raises:
        TypeError: ``model`` is not a module, or ``algorithm`` is not an algorithm.
        ValueError: no algorithm has that name; ``tune`` with an algorithm that is not ``"auto"``.
        Any error of the model's run on ``tune``; no layer is then converted.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.LazyConv2d(4, 1))
        >>> report = convert(model)
        >>> print(report)
        1 of 2 convolutions run algorithm='auto'
          0: Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
          1 left alone: LazyConv2d has no weight yet; call the model once, then convert it
        >>> report.revert()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}; for functions that call "
            f"conv2d, use torch_corr.intercept"
        )
    found = find_algorithm(algorithm)  # raises if there is none
    if tune is not None and not isinstance(found, Auto):
        raise ValueError(
            f"tune=... measures which algorithm 'auto' should choose, but algorithm is "
            f"{algorithm!r}; pass algorithm='auto', or leave out tune"
        )
    report = Conversion(algorithm, {}, {})
    for name, module in list(model.named_modules()):
        if (reason := _refusal(module)) is not None:
            report.skipped[name] = reason
        elif isinstance(module, nn.Conv2d):
            module._conv_forward = ConvForward(module, algorithm)  # type: ignore[method-assign]
            report.replaced[name] = module
    if tune is None:
        return report
    try:
        if isinstance(tune, Mapping):
            tuning = run_and_tune(model, **tune)
        else:
            tuning = run_and_tune(model, *(tune if isinstance(tune, tuple) else (tune,)))
    except BaseException:
        report.revert()
        raise
    return replace(report, tuning=tuning)


def _converted(module: nn.Module) -> ConvForward | None:
    """The attribute that :func:`convert` added to a layer, or None."""
    added = vars(module).get("_conv_forward")
    return added if isinstance(added, ConvForward) else None


def _refusal(module: nn.Module) -> str | None:
    """Why a convolution cannot be converted; None if it can, or if it is not a convolution."""
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", "")
        return f"{scripted} is scripted: its graph is fixed" if "Conv2d" in scripted else None
    if not isinstance(module, nn.Conv2d):
        quantized = "quantized" in type(module).__module__.split(".") and "Conv" in kind
        return f"{kind} is quantized: its weight is packed integers" if quantized else None
    if isinstance(module, Corr2d):
        return f"{kind} is a Corr2d already; its attribute algorithm is {module.algorithm!r}"
    added = _converted(module)
    if added is not None and added.layer is module:
        return (
            f"{kind} is converted already, to algorithm={added.algorithm!r}; call revert() on the "
            f"report of that conversion to choose another"
        )
    if isinstance(module, LazyModuleMixin):
        return f"{kind} has no weight yet; call the model once, then convert it"
    if own := [name for name in _FORWARD_METHODS if _overrides(module, name)]:
        return f"{kind} has its own {own[0]}; torch_corr.intercept redirects conv2d calls in there"
    if _has_stale_padding(module):
        pads = list(module._reversed_padding_repeated_twice)
        return f"{kind} still pads by {pads}, although its padding is now {module.padding!r}"
    weight = module._parameters.get("weight")
    if overrides_torch_function(type(weight)):
        return f"{kind} has a weight of type {type(weight).__name__}, which may not know corr2d"
    return None


_FORWARD_METHODS = ("forward", "_conv_forward", "__call__")
"""The methods that compute the result of an ``nn.Conv2d``."""


def _overrides(module: nn.Conv2d, method: str) -> bool:
    inherited = getattr(type(module), method) is getattr(nn.Conv2d, method)
    own = vars(module).get(method)
    return not inherited or (own is not None and not isinstance(own, ConvForward))


def _has_stale_padding(module: nn.Conv2d) -> bool:
    """Whether ``padding`` was changed after construction; only the mode ``zeros`` uses it then."""
    if module.padding_mode == "zeros":
        return False
    kernel = as_pair("kernel_size", module.kernel_size)
    dilation = as_pair("dilation", module.dilation)
    rows, columns = resolve_padding(module.padding, kernel, kernel, (1, 1), dilation)
    return tuple(module._reversed_padding_repeated_twice) != (*columns, *rows)
