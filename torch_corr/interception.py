"""``intercept``: redirect calls of ``conv2d`` that are not in an ``nn.Conv2d`` layer.

A ``TorchFunctionMode`` receives each call of a PyTorch function and passes ``conv2d`` to
``corr2d``.  While the mode handles a call, PyTorch disables it.  So it does not receive the calls
of ``conv2d`` within ``corr2d``, ``backward`` and ``grad``, which the algorithms make.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .functional import corr2d, overrides_torch_function
from .operators import skip_dynamo
from .planning.plan import AlgorithmLike, find_algorithm


class intercept(TorchFunctionMode):  # noqa: N801  (as torch.no_grad)
    """Redirect every ``conv2d`` inside a ``with`` block to :func:`~torch_corr.corr2d`.

    It redirects ``F.conv2d``, ``torch.conv2d``, ``nn.Conv2d`` and ``torch.ops.aten.conv2d``
    (exported programs), in eager mode, in ``torch.compile`` (with the block around the compiled
    function or inside it) and under ``torch.func``.  It does not redirect

    - calls that do not go through Python (``torch.jit.script``);
    - calls with an algorithm of their own (``corr2d``, ``Corr2d``, converted layers);
    - calls on tensors whose class overrides ``__torch_function__``, which may not support
      ``corr2d``.

    Blocks can be nested, and the innermost one applies.  An object can be entered again.  A block
    applies only to the thread that entered it.  The gradients of a redirected call use the
    algorithm too, also if ``backward`` is called outside the block.  With activation
    checkpointing, put the block inside the checkpointed function.  Otherwise PyTorch recomputes
    the call without the block and may raise CheckpointError.

    Inside the block each call of a PyTorch function takes 1 us longer, or 2 us if it is written in
    Python like ``layer_norm``; this is the cost of any ``TorchFunctionMode``.  A redirected
    ``conv2d`` takes 2 us more than ``corr2d``.  For the smallest problem ``corr2d`` takes 7 us,
    and ``conv2d`` outside the block 4 us.  A training step of SegFormer (70 ms, 431 calls) takes 2%
    longer.

    Args:
        algorithm: for all calls: ``"auto"``, a name, or an :class:`~torch_corr.Algorithm`.

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
        find_algorithm(algorithm)  # raises if there is none
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
        """Call ``corr2d`` instead of ``conv2d``, and any other function unchanged."""
        kwargs = kwargs or {}
        if func in _CONV2D and not any(map(overrides_torch_function, types)):
            return corr2d(*args, **kwargs, algorithm=self.algorithm)
        return func(*args, **kwargs)


# F.conv2d is torch.conv2d.  The operator can be called directly or through an overload.
_CONV2D = frozenset(
    (
        torch.conv2d,
        torch.ops.aten.conv2d,
        torch.ops.aten.conv2d.default,
        torch.ops.aten.conv2d.padding,
    )
)
