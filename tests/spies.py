"""What tests look over PyTorch's shoulder with."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Sees(TorchDispatchMode):
    """Keeps the tensors that ``aten::convolution_backward`` is given."""

    given: tuple[Any, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.given = args[:3]
        return func(*args, **(kwargs or {}))
