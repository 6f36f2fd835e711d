"""Converting a model: each ``nn.Conv2d`` keeps its class and runs an algorithm of this library.

``nn.Conv2d.forward`` calls ``self._conv_forward(input, weight, bias)``.  An attribute of that name
on the layer takes precedence over the method of the class, and is all that ``convert`` adds.  The
class stays, so tools that look it up with ``type(layer)`` (FLOP counters, fusion, quantization)
find what they know.  Parameters, buffers, hooks, the training flag and whatever an optimizer holds
are the same objects, and removing the attribute undoes the conversion.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from .functional import corr2d, has_own_functions, is_traced_for_quantization
from .modules import Corr2d
from .operators import skip_dynamo
from .planning.plan import AlgorithmLike, find_algorithm
from .problem import as_pair, resolve_padding


class ConvForward:
    """The ``_conv_forward`` of one converted layer: :func:`~torch_corr.corr2d` of an algorithm.

    Stride, padding, dilation, groups and padding mode are read from the layer at each call.  The
    reference to the layer is weak: with a strong one, layer and attribute would keep each other
    alive, and the memory of a deleted model would wait for the garbage collector.

    A weight or bias whose class overrides ``__torch_function__`` goes to the method of the layer's
    class: it may implement ``conv2d``, but hardly ``corr2d``.  PyTorch's expanded weights, which
    compute per-sample gradients, are of such a class.  So does the weight of a layer that torch.ao
    traces, to quantize the ``conv2d`` that it finds.

    Attributes:
        algorithm: what :func:`convert` was given.
    """

    __slots__ = ("_layer", "algorithm")

    def __init__(self, layer: nn.Conv2d, algorithm: AlgorithmLike) -> None:
        self._layer = weakref.ref(layer)
        self.algorithm = algorithm

    @property
    def layer(self) -> nn.Conv2d | None:
        """The converted layer; None after it was deleted."""
        return self._layer()

    @skip_dynamo
    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self._layer()
        if layer is None:
            raise RuntimeError(
                "this Conv2d is a shallow copy (copy.copy) of a converted layer that was deleted "
                "since, and reads its stride and padding there; call torch_corr.convert on this "
                "copy, or use copy.deepcopy"
            )
        # Tested inline: two calls cost the smallest layer 5% more instructions (callgrind).
        common = type(weight) in _COMMON and type(bias) in _COMMON
        if not common and (_is_for_conv2d(weight) or _is_for_conv2d(bias)):
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
        """For pickle and deepcopy, which put the copy of the layer in its place."""
        return ConvForward, (self._layer(), self.algorithm)

    def __repr__(self) -> str:
        return f"corr2d(..., algorithm={self.algorithm!r})"


_COMMON = (Tensor, nn.Parameter, type(None))


def _is_for_conv2d(operand: Tensor | None) -> bool:
    """Whether a parameter was replaced by something that may only know ``conv2d``."""
    return has_own_functions(type(operand)) or is_traced_for_quantization(operand)


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did to a model; print it to read.

    Attributes:
        algorithm: the algorithm of the converted layers.
        replaced: the layers whose algorithm was replaced, by their names in the model.
        skipped: why other convolutions were left alone, a sentence for each name.
    """

    algorithm: AlgorithmLike
    replaced: dict[str, nn.Conv2d]
    skipped: dict[str, str]

    def revert(self) -> None:
        """Let the converted layers run PyTorch's convolution again, with their present weights.

        Whatever else happened to them meanwhile stays: parametrizations, ``fully_shard``.  Copies
        made meanwhile (by ``copy.deepcopy``, or by tools that fuse layers) stay converted.  A
        second call does nothing.
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
        return "\n".join(lines)


def convert(model: nn.Module, algorithm: AlgorithmLike = "auto") -> Conversion:
    """Make every ``nn.Conv2d`` of a model run an algorithm of this library, in place.

    The layers stay the same objects of the same class with the same parameters; ``state_dict``,
    ``repr``, hooks, training flag and optimizers do not change, and ``type(layer) is nn.Conv2d``
    still holds.  A layer gets one attribute, ``_conv_forward``, which ``nn.Conv2d.forward`` calls.
    Deep copies and pickles of the model are converted too.  Subclasses of ``nn.Conv2d`` that
    compute as it does, parametrized layers and layers split by ``fully_shard`` are converted.

    Left alone and reported are: layers with a forward of their own, lazy ones that have no weight
    yet, scripted and quantized ones, any ``Corr2d``, and layers that are converted already.  So
    convert one layer with an algorithm of its own first, then the whole model with another.

    A shallow copy (``copy.copy``) of a converted layer reads stride and padding from the layer that
    it was copied from; convert the copy before changing them.

    Args:
        model: any module; an ``nn.Conv2d`` itself too.
        algorithm: for all of them: ``"auto"``, a name, or an :class:`~torch_corr.Algorithm`.

    Returns:
        What was converted and what was not, with :meth:`Conversion.revert`.

    Raises:
        TypeError: ``model`` is no module, or ``algorithm`` no algorithm.
        ValueError: no algorithm has that name.

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
            f"conv2d there is torch_corr.intercept"
        )
    find_algorithm(algorithm)  # or it raises
    report = Conversion(algorithm, {}, {})
    for name, module in list(model.named_modules()):
        if (reason := _why_not(module)) is not None:
            report.skipped[name] = reason
        elif isinstance(module, nn.Conv2d):
            module._conv_forward = ConvForward(module, algorithm)  # type: ignore[method-assign]
            report.replaced[name] = module
    return report


def _converted(module: nn.Module) -> ConvForward | None:
    """What :func:`convert` added to a layer; None if it did not."""
    added = vars(module).get("_conv_forward")
    return added if isinstance(added, ConvForward) else None


def _why_not(module: nn.Module) -> str | None:
    """Why a convolution cannot be converted; None if it can, or if it is something else."""
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
    if own := [name for name in _COMPUTING if _overrides(module, name)]:
        return f"{kind} has its own {own[0]}; torch_corr.intercept redirects conv2d calls in there"
    if _pads_otherwise(module):
        pads = list(module._reversed_padding_repeated_twice)
        return f"{kind} pads by {pads} still, although its padding is now {module.padding!r}"
    weight = module._parameters.get("weight")
    if has_own_functions(type(weight)):
        return f"{kind} has a weight of type {type(weight).__name__}, which may not know corr2d"
    return None


_COMPUTING = ("forward", "_conv_forward", "__call__")
"""The methods through which an ``nn.Conv2d`` computes."""


def _overrides(module: nn.Conv2d, method: str) -> bool:
    inherited = getattr(type(module), method) is getattr(nn.Conv2d, method)
    own = vars(module).get(method)
    return not inherited or (own is not None and not isinstance(own, ConvForward))


def _pads_otherwise(module: nn.Conv2d) -> bool:
    """Whether padding was set later, of which ``nn.Conv2d`` takes no notice but for zeros."""
    if module.padding_mode == "zeros":
        return False
    kernel, dilation = (
        as_pair("kernel_size", module.kernel_size),
        as_pair("dilation", module.dilation),
    )
    rows, columns = resolve_padding(module.padding, kernel, kernel, (1, 1), dilation)
    return tuple(module._reversed_padding_repeated_twice) != (*columns, *rows)
