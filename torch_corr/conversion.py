"""Converting a model: each ``nn.Conv2d`` becomes a ``Corr2d`` where it stands.

Only the class of a layer changes, so parameters, buffers, hooks, the training flag and whatever
an optimizer holds are the very same objects, and changing the class back undoes it.  A layer
whose computation would not follow its class is left alone, and the report says why.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from .functional import has_own_functions
from .modules import Corr2d
from .planner import AlgorithmLike, find_algorithm
from .problem import as_pair, resolve_padding

_Class: TypeAlias = type[nn.Module]


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did to a model; print it to read.

    Attributes:
        algorithm: what the replaced layers were given.
        replaced: the layers that are now :class:`~torch_corr.Corr2d`, by their names in the model.
        skipped: why other convolutions were left alone, a sentence for each name.
    """

    algorithm: AlgorithmLike
    replaced: dict[str, Corr2d]
    skipped: dict[str, str]

    def revert(self) -> None:
        """Make the replaced layers again what they were, with the weights that they have now.

        Parametrizations that were added or removed meanwhile stay so, and so does ``fully_shard``.
        A second time does nothing.
        """
        for layer in self.replaced.values():
            if isinstance(layer, Corr2d):
                _change_base(layer, _original)
                del layer.algorithm

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
    """Make every ``nn.Conv2d`` of a model a :class:`~torch_corr.Corr2d`, in place.

    The layers stay the same objects with the same parameters; ``state_dict``, hooks, training
    flag and optimizers do not notice.  Subclasses of ``nn.Conv2d`` that compute as it does stay
    instances of their class, parametrized layers stay parametrized and what ``fully_shard`` split
    stays split.  Left alone and reported are: layers with a forward of their own, lazy ones that
    have no weight yet, scripted, quantized and about to be quantized ones, and any ``Corr2d`` that
    is there already.

    Args:
        model: any module; an ``nn.Conv2d`` itself too.
        algorithm: for all of them: ``"auto"``, a name, or an :class:`~torch_corr.Algorithm`.

    Returns:
        What was replaced and what was not, with :meth:`Conversion.revert`.

    Raises:
        TypeError: ``model`` is no module, or ``algorithm`` no algorithm.
        ValueError: no algorithm has that name.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.LazyConv2d(4, 1))
        >>> report = convert(model)
        >>> print(report)
        1 of 2 convolutions run algorithm='auto'
          0: Corr2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
          1 left alone: LazyConv2d has no weight yet; call the model once, then convert it
        >>> report.revert()
        >>> model[0]
        Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
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
            _change_base(module, _replacement)
            report.replaced[name] = cast(Corr2d, module)
            report.replaced[name].algorithm = algorithm
    return report


def _why_not(module: nn.Module) -> str | None:
    """Why a convolution cannot be replaced; None if it can, or if it is something else."""
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", "")
        return f"{scripted} is scripted: its graph is fixed" if "Conv2d" in scripted else None
    if not isinstance(module, nn.Conv2d):
        quantized = "quantized" in type(module).__module__.split(".") and "Conv" in kind
        return f"{kind} is quantized: its weight is packed integers" if quantized else None
    if isinstance(module, Corr2d):
        return f"{kind} is a Corr2d already; its attribute algorithm is {module.algorithm!r}"
    if isinstance(module, LazyModuleMixin):
        return f"{kind} has no weight yet; call the model once, then convert it"
    if getattr(module, "qconfig", None) is not None:
        return f"{kind} has a qconfig: torch.ao would not find a Corr2d to quantize"
    if own := [name for name in _COMPUTING if _overrides(module, name)]:
        return f"{kind} has its own {own[0]}; torch_corr.intercept redirects conv2d calls in there"
    if _pads_otherwise(module):
        pads = list(module._reversed_padding_repeated_twice)
        return f"{kind} pads by {pads} still, although its padding is now {module.padding!r}"
    weight = module._parameters.get("weight")
    if has_own_functions(type(weight)):
        return f"{kind} has a weight of type {type(weight).__name__}, which may not know corr2d"
    if hasattr(module, "algorithm"):
        return f"{kind} has an attribute algorithm of its own"
    return None


_COMPUTING = ("forward", "_conv_forward", "__call__")
"""The methods through which an ``nn.Conv2d`` computes."""


def _overrides(module: nn.Conv2d, method: str) -> bool:
    inherited = getattr(type(module), method) is getattr(nn.Conv2d, method)
    return not inherited or method in vars(module)


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


def _change_base(module: nn.Module, base: Callable[[_Class], _Class]) -> None:
    """Put another convolution in the place of the one that the module's class derives from."""
    module.__class__ = _based(type(module), base, is_parametrized(module))


def _based(present: _Class, base: Callable[[_Class], _Class], parametrized: bool) -> _Class:
    """``base(present)``; within a class made around it, by parametrizing or sharding, such a one.

    Those are of one module alone, but for its deep copies, so they are made anew.
    """
    *wrappers, parent = present.__bases__
    if wrappers == [_fsdp_module()]:
        prefix = "FSDP"
    elif parametrized and not wrappers:
        prefix, parametrized = "Parametrized", False
    else:
        return base(present)
    changed = _based(parent, base, parametrized)
    members = {k: v for k, v in vars(present).items() if k not in ("__dict__", "__weakref__")}
    return type(f"{prefix}{changed.__name__}", (*wrappers, changed), members)


def _fsdp_module() -> _Class | None:
    """What ``fully_shard`` mixes into a module; nobody's has it where it was never imported."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)


class _Converted:
    """Mixed into what a subclass of ``nn.Conv2d`` becomes, so that it can be pickled."""

    original: type[nn.Conv2d]

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = cast("tuple[Any, ...]", super().__reduce_ex__(max(protocol, 2)))[2:]
        return _blank, (self.original,), *state


def _blank(original: type[nn.Conv2d]) -> nn.Module:
    replacement = _replacement(original)
    return replacement.__new__(replacement)


_REPLACEMENTS: dict[_Class, _Class] = {nn.Conv2d: Corr2d}


def _replacement(original: _Class) -> _Class:
    """``Corr2d``, or for a subclass of ``nn.Conv2d`` one that is both, itself before all."""
    if original not in _REPLACEMENTS:
        _REPLACEMENTS[original] = type(
            f"{original.__name__}AsCorr2d",
            (_Converted, original, Corr2d),
            {"original": original, "__module__": original.__module__},
        )
    return _REPLACEMENTS[original]


def _original(replacement: _Class) -> _Class:
    return replacement.original if issubclass(replacement, _Converted) else nn.Conv2d
