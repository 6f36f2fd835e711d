"""Correlations of other libraries with the signature of ``F.conv2d``, as far as they support it.

For the kit's command line; only installed peers are defined:

    PYTHONPATH=tests python -m torch_corr verify support.peers:kornia_filter2d \\
        --limit max_groups=1 --limit max_channels=1 --limit max_one=0 \\
        --limit max_stride=1 --limit max_dilation=1 --limit max_padding=0
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor

with suppress(ImportError):
    from fft_conv_pytorch import fft_conv

    def fft_conv_pytorch(input: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
        """``fft_conv``, which takes padding, stride and dilation in pairs as well."""
        return fft_conv(input, weight, **keywords)


with suppress(ImportError):
    from einconv.functionals import convNd

    def einconv(input: Tensor, weight: Tensor, **keywords: Any) -> Tensor:
        """``convNd``: one einsum over index patterns."""
        return convNd(input, weight, **keywords)


with suppress(ImportError):
    from kornia.filters import filter2d

    def kornia_filter2d(input: Tensor, weight: Tensor, padding: Any = 0) -> Tensor:
        """``filter2d`` of one channel with one kernel, without padding."""
        if padding:
            raise ValueError("filter2d pads by the size of the kernel, or not at all")
        if weight.shape[:2] != (1, 1):
            raise ValueError("filter2d has one kernel for all channels")
        return filter2d(input, weight[0], border_type="constant", padding="valid")
