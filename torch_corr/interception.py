"""Intercepting calls of ``conv2d``: what ``convert`` cannot reach, because it is no layer.

A ``TorchFunctionMode`` sees each call of PyTorch's Python functions before PyTorch does, and hands
``conv2d`` to ``corr2d``.  PyTorch takes every mode off while a function that they have seen runs,
and they see ``corr2d``, ``backward`` and ``grad`` as one function each: so the convolutions that
our own algorithms call, forward or backward, are never redirected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .functional import corr2d, has_own_functions
from .operators import skip_dynamo
from .planning.plan import AlgorithmLike, find_algorithm


class intercept(TorchFunctionMode):  # noqa: N801  (as torch.no_grad)
    """Redirect every ``conv2d`` inside a ``with`` block to :func:`~torch_corr.corr2d`.

    ``F.conv2d`` and ``torch.conv2d``, which are one, ``nn.Conv2d`` and whatever calls it, and
    ``torch.ops.aten.conv2d`` as exported programs call it; eager, in ``torch.compile`` (the block
    around the call or inside the function), under ``torch.func``.  Not redirected are calls
    that Python does not see (``torch.jit.script``), those that ask for an algorithm themselves
    (``corr2d``, ``Corr2d``, converted layers), and those on tensors of a class with a
    ``__torch_function__`` of its own, which may know what ``conv2d`` is to it, but not ``corr2d``.

    Blocks nest, the innermost decides, and one object may be entered again.  A block holds for
    the thread that entered it; threads that are started inside begin without it.  Gradients are
    those of the calls made inside, wherever ``backward`` is called.  What activation checkpointing
    computes again in ``backward`` is redirected when the block is within the checkpointed function;
    around it PyTorch's own does that, which is a CheckpointError where it saves other tensors.

    In the block each of PyTorch's functions costs 1 us more to call, one written in Python, as
    ``layer_norm``, 2 us; that is what any ``TorchFunctionMode`` costs.  ``conv2d`` itself costs
    2 us more than ``corr2d`` (which on the smallest problem takes 7 us, and ``conv2d`` outside
    4 us).  A training step of SegFormer, 70 ms with 431 calls, takes 2% longer.

    Args:
        algorithm: for all of them: ``"auto"``, a name, or an :class:`~torch_corr.Algorithm`.

    Raises:
        TypeError: ``algorithm`` is neither a string nor an algorithm.
        ValueError: no algorithm has that name.

    Example:
        >>> from torch.nn.functional import conv2d
        >>> with intercept(algorithm="unfold"):
        ...     y = conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2))
        >>> y
        tensor([[[[4., 4.],
                  [4., 4.]]]])
    """

    def __init__(self, algorithm: AlgorithmLike = "auto") -> None:
        find_algorithm(algorithm)  # or it raises
        super().__init__()
        self.algorithm = algorithm

    @skip_dynamo
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Hand ``conv2d`` to ``corr2d``, and anything else to itself."""
        kwargs = kwargs or {}
        if func in _CONV2D and not any(map(has_own_functions, types)):
            return corr2d(*args, **kwargs, algorithm=self.algorithm)
        return func(*args, **kwargs)


# F.conv2d is torch.conv2d; the operator is reached as a whole or by either of its overloads.
_CONV2D = frozenset(
    (
        torch.conv2d,
        torch.ops.aten.conv2d,
        torch.ops.aten.conv2d.default,
        torch.ops.aten.conv2d.padding,
    )
)
