"""PyTorch's private names, and the differences between its versions, in one place.

Other modules take private names from here.  Any version of PyTorch may drop one:
:data:`PRIVATE` says what depends on each, and ``tests/test_torch_compat.py`` looks for all of
them.  Names are looked up once, at import, so that calls take no longer.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

PRIVATE: dict[str, str] = {}
"""What depends on each private name that a module takes from here."""


class _Missing:
    """Stands for a name that PyTorch lacks, and says so when it is used."""

    def __init__(self, sentence: str) -> None:
        vars(self)["sentence"] = sentence

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise ImportError(self.sentence)

    def __getattr__(self, _: str) -> Any:
        raise ImportError(self.sentence)


def _private(name: str, used_for: str, otherwise: Any = None) -> Any:
    """The object of a private name.

    Args:
        name: its whole name.
        used_for: what depends on it.
        otherwise: a public replacement, for versions of PyTorch that lack the name; without one
            whatever uses the name raises ImportError there.
    """
    PRIVATE[name] = used_for
    try:
        return resolve_name(name)
    except (ImportError, AttributeError):
        if otherwise is not None:
            return otherwise
        return _Missing(
            f"PyTorch {torch.__version__} has no {name}, which torch_corr needs for {used_for}; "
            f"use a version of PyTorch on which torch_corr is tested, or a later torch_corr"
        )


# --- transforms of torch.func, forward mode, vmap: torch_corr.autograd, torch_corr.functional

are_functorch_transforms_active: Callable[[], bool] = _private(
    "torch._C._are_functorch_transforms_active", "derivatives under torch.func"
)
is_functorch_wrapped: Callable[[Tensor], bool] = _private(
    "torch._C._functorch.is_functorch_wrapped_tensor", "seeing that a tensor is under torch.func"
)
innermost_transform: Callable[[], Any] = _private(
    "torch._functorch.pyfunctorch.retrieve_current_functorch_interpreter",
    "torch.func.functionalize",
)
TransformType: Any = _private("torch._C._functorch.TransformType", "torch.func.functionalize")
FunctorchFunctionalizeAPI: Any = _private(
    "torch._subclasses.functional_tensor.FunctorchFunctionalizeAPI", "torch.func.functionalize"
)
is_old_batched: Callable[[Tensor], bool] = _private(
    "torch._C._functorch.is_legacy_batchedtensor", "torch.autograd.grad(is_grads_batched=True)"
)
add_batch_dim: Callable[[Tensor, int, int], Tensor] = _private(
    "torch._add_batch_dim", "torch.autograd.grad(is_grads_batched=True)"
)
remove_batch_dim: Callable[[Tensor, int, int, int], Tensor] = _private(
    "torch._remove_batch_dim", "torch.autograd.grad(is_grads_batched=True)"
)
increment_old_vmap: Callable[[], int] = _private(
    "torch._C._vmapmode_increment_nesting", "torch.autograd.grad(is_grads_batched=True)"
)
decrement_old_vmap: Callable[[], int] = _private(
    "torch._C._vmapmode_decrement_nesting", "torch.autograd.grad(is_grads_batched=True)"
)
is_fwd_grad_enabled: Callable[[], bool] = _private(
    "torch._C._is_fwd_grad_enabled", "forward mode through torch.ops.torch_corr"
)
below_autograd: Any = _private(
    "torch._C._AutoDispatchBelowAutograd", "the operators in torch.ops.torch_corr"
)
_private("torch.autograd.forward_ad._current_level", "forward mode")


def is_forward_mode() -> bool:
    """Whether forward-mode differentiation goes on."""
    return forward_ad._current_level >= 0


# --- tensors without memory of their own, and layouts: torch_corr.planning.plan, algorithms.base

_private("torch.Tensor._is_view", "results that may be written to")
_private("torch.Tensor._is_zerotensor", "gradients that autograd knows to be zero")
_private("torch.Tensor._has_symbolic_sizes_strides", "the layout of tensors of symbolic sizes")
is_contiguous_or_false: Callable[[Tensor], bool] = _private(
    "torch._prims_common.is_contiguous_or_false", "the layout of tensors of data-dependent sizes"
)
is_channels_last_or_false: Callable[[Tensor], bool] = _private(
    "torch._prims_common.is_channels_last_contiguous_or_false_2d",
    "the layout of tensors of data-dependent sizes",
)

# --- who watches: torch_corr.operators, torch_corr.functional

dispatch_stack_depth: Callable[[], int] = _private(
    "torch._C._len_torch_dispatch_stack", "seeing that operators are watched, as by torch.compile"
)
disable_current_modes: Callable[[], Any] = _private(
    "torch.utils._python_dispatch._disable_current_modes", "plans that are made within graphs"
)
TracingContext: Any = _private(
    "torch._guards.TracingContext", "seeing that torch.compile makes a graph"
)
is_profiling: Callable[[], bool] = _private(
    "torch._C._autograd._profiler_enabled",
    "the names that profilers show",
    otherwise=lambda: True,  # record_function costs time, and is right without a profiler too
)

# --- torch.jit.trace: torch_corr.functional

is_tracing: Callable[[], bool] = _private(
    "torch._C._is_tracing",
    "torch.jit.trace",
    otherwise=torch.jit.is_tracing,  # type: ignore[attr-defined]
)
get_tracing_state: Callable[[], Any] = _private("torch._C._get_tracing_state", "torch.jit.trace")
set_tracing_state: Callable[[Any], None] = _private(
    "torch._C._set_tracing_state", "torch.jit.trace"
)

# --- settings: torch_corr.functional, torch_corr.algorithms


def _fp32_precision(backend: str, of: str) -> str:
    settings: Any = (
        torch.backends.cudnn.conv  # type: ignore[attr-defined]
        if of == "conv"
        else torch.backends.cuda.matmul
    )
    precision: str = settings.fp32_precision
    return precision


fp32_precision: Callable[[str, str], str] = _private(
    "torch._C._get_fp32_precision_getter",
    "whether CUDA rounds to TF32",
    otherwise=_fp32_precision,
)
is_any_autocast: Callable[[], bool] = _private(
    "torch._C._is_any_autocast_enabled",
    "autocast",
    otherwise=lambda: True,  # the setting of the operands' device is looked up then
)
_asks_onednn: Callable[[], bool] = _private(
    "torch.ops.mkldnn._is_mkldnn_bf16_supported",
    "choosing oneDNN for bfloat16",
    otherwise=lambda: False,  # as in builds without oneDNN
)


def onednn_has_bfloat16() -> bool:
    """Whether oneDNN computes bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and _asks_onednn()  # type: ignore[no-untyped-call]


# --- torch.compile: torch_corr.operators, torch_corr.value, torch_corr.problem

check: Callable[[bool, Callable[[], str]], None] = _private(
    "torch._check", "conditions on data-dependent sizes"
)
FrameAction: Any = _private(
    "torch._C._dynamo.eval_frame._FrameAction", "keeping Dynamo out of functions"
)
FrameExecStrategy: Any = _private(
    "torch._C._dynamo.eval_frame._FrameExecStrategy", "keeping Dynamo out of functions"
)
set_code_exec_strategy: Callable[[Any, Any], None] = _private(
    "torch._C._dynamo.eval_frame.set_code_exec_strategy", "keeping Dynamo out of functions"
)
# PyTorch 2.14 gave opaque types another name, and logs a warning where the old one is used.
_NEW_NAMES = find_spec("torch._custom_class_base") is not None
OpaqueBaseMeta: Any = _private(
    "torch._custom_class_base.CustomClassBaseMeta"
    if _NEW_NAMES
    else "torch._opaque_base.OpaqueBaseMeta",
    "options of algorithms in graphs",
    otherwise=type,  # only 2.11 wants this metaclass
)
_register: Any = _private(
    "torch._library.opaque_object.register_custom_class"
    if _NEW_NAMES
    else "torch._library.opaque_object.register_opaque_type",
    "options of algorithms in graphs",
)


def register_value_type(cls: type) -> None:
    """Register a class whose instances are constants to ``torch.compile``.

    Raises:
        TypeError: the class compares by identity.
        RuntimeError: a class of this name is registered.
    """
    _register(cls, typ="constant" if _NEW_NAMES else "value")


# --- classes: torch_corr.modules, torch_corr.conversion, torch_corr.testing

LazyConvXdMixin: Any = _private("torch.nn.modules.conv._LazyConvXdMixin", "LazyCorr2d")
_private("torch.nn.Conv2d._conv_forward", "undoing a conversion")
OpOverload: Any = _private(
    "torch._ops.OpOverload",
    "the kit, of operators",
    otherwise=type(torch.ops.aten.convolution.default),
)
OpOverloadPacket: Any = _private(
    "torch._ops.OpOverloadPacket",
    "the kit, of operators",
    otherwise=type(torch.ops.aten.convolution),
)
CustomOpDef: Any = _private(
    "torch._library.custom_ops.CustomOpDef",
    "the kit, of custom operators",
    otherwise=getattr(torch.library, "CustomOpDef", ()),
)
