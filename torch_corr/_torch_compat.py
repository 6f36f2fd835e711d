"""All private names of PyTorch that this package uses, and the differences between versions.

Other modules import private names from here.  A new version of PyTorch may drop one, so
:data:`PRIVATE` records what depends on each, and ``tests/test_torch_compat.py`` checks that they
exist.  Names are looked up once, at import.
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
"""Maps each private name to the feature that depends on it."""


class _Missing:
    """Replaces a name that PyTorch lacks; raises ImportError when it is used."""

    def __init__(self, message: str) -> None:
        vars(self)["message"] = message

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise ImportError(self.message)

    def __getattr__(self, _: str) -> Any:
        raise ImportError(self.message)


def _private(name: str, used_for: str, otherwise: Any = None) -> Any:
    """Look up a private name of PyTorch.

    Args:
        name: the qualified name.
        used_for: the feature that depends on it.
        otherwise: a public replacement for versions of PyTorch that lack the name.  Without a
            replacement, using the name raises ImportError in these versions.
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
    """Whether forward-mode differentiation is active."""
    return forward_ad._current_level >= 0


# --- views, zero tensors and layouts: torch_corr.planning.plan, torch_corr.algorithms.base

_private("torch.Tensor._is_view", "results that can be written to")
_private("torch.Tensor._is_zerotensor", "gradients that autograd knows to be zero")
_private("torch.Tensor._has_symbolic_sizes_strides", "the layout of tensors of symbolic sizes")
is_contiguous_or_false: Callable[[Tensor], bool] = _private(
    "torch._prims_common.is_contiguous_or_false", "the layout of tensors of data-dependent sizes"
)
is_channels_last_or_false: Callable[[Tensor], bool] = _private(
    "torch._prims_common.is_channels_last_contiguous_or_false_2d",
    "the layout of tensors of data-dependent sizes",
)

# --- dispatch modes and profilers: torch_corr.operators, torch_corr.dispatch

dispatch_stack_depth: Callable[[], int] = _private(
    "torch._C._len_torch_dispatch_stack", "seeing that a dispatch mode is active"
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
    otherwise=lambda: True,  # record_function is correct without a profiler, but slower
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
    otherwise=lambda: True,  # then the setting of the operands' device is looked up
)
_onednn_has_bfloat16: Callable[[], bool] = _private(
    "torch.ops.mkldnn._is_mkldnn_bf16_supported",
    "choosing oneDNN for bfloat16",
    otherwise=lambda: False,  # as in builds without oneDNN
)


def onednn_has_bfloat16() -> bool:
    """Whether oneDNN computes bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and _onednn_has_bfloat16()  # type: ignore[no-untyped-call]


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
# PyTorch 2.14 renamed opaque types and logs a warning if the old name is used.
_NEW_NAMES = find_spec("torch._custom_class_base") is not None


class _PlainMeta(type):
    """Replaces PyTorch's metaclass; unlike ``type``, it can precede ABCMeta in a list of bases."""


# PyTorch 2.10 has no metaclass for opaque types, 2.11 requires one, later versions do not.
OpaqueBaseMeta: Any = _PlainMeta
if _NEW_NAMES or find_spec("torch._opaque_base") is not None:
    OpaqueBaseMeta = _private(
        "torch._custom_class_base.CustomClassBaseMeta"
        if _NEW_NAMES
        else "torch._opaque_base.OpaqueBaseMeta",
        "options of algorithms in graphs",
        otherwise=_PlainMeta,
    )
_register: Any = _private(
    "torch._library.opaque_object.register_custom_class"
    if _NEW_NAMES
    else "torch._library.opaque_object.register_opaque_type",
    "options of algorithms in graphs",
)


def register_value_type(cls: type) -> None:
    """Register a class whose instances ``torch.compile`` treats as constants.

    Raises:
        TypeError: the class compares by identity.
        RuntimeError: a class of this name is already registered.
    """
    _register(cls, typ="constant" if _NEW_NAMES else "value")


# --- classes: torch_corr.modules, torch_corr.conversion, torch_corr.testing

LazyConvXdMixin: Any = _private("torch.nn.modules.conv._LazyConvXdMixin", "LazyCorr2d")
_private("torch.nn.Conv2d._conv_forward", "undoing a conversion")
OpOverload: Any = _private(
    "torch._ops.OpOverload",
    "the conformance kit, for operators",
    otherwise=type(torch.ops.aten.convolution.default),
)
OpOverloadPacket: Any = _private(
    "torch._ops.OpOverloadPacket",
    "the conformance kit, for operators",
    otherwise=type(torch.ops.aten.convolution),
)
CustomOpDef: Any = _private(
    "torch._library.custom_ops.CustomOpDef",
    "the conformance kit, for custom operators",
    otherwise=getattr(torch.library, "CustomOpDef", ()),
)
