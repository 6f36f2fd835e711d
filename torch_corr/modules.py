"""``Corr2d`` and ``LazyCorr2d``: subclasses of ``nn.Conv2d`` that call ``corr2d``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.nn.parameter import UninitializedParameter

from ._torch_compat import LazyConvXdMixin
from .dispatch.padding import PADDING_MODES, wrap
from .functional import corr2d
from .operators import skip_dynamo
from .planning.plan import AlgorithmLike, find_algorithm
from .problem import (
    PADDING_NAMES,
    PaddingLike,
    Pair,
    SizeLike,
    as_int,
    as_pair,
    as_sides,
    resolve_padding,
)
from .suggest import did_you_mean


class Corr2d(nn.Conv2d):
    """An ``nn.Conv2d`` that computes with :func:`~torch_corr.corr2d`.

    ``y[n,o,i,j] = b[o] + sum_{c,u,v} x[n, c, i*s + u*d - p, j*s + v*d - p] * w[o,c,u,v]``

    The constructor, the parameters' names and shapes, their initial values from a given seed
    and the ``state_dict`` are those of ``nn.Conv2d``.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: (kH, kW), or one integer for both.
        stride, dilation, groups: as for :func:`~torch_corr.corr2d`.
        padding: as for :func:`~torch_corr.corr2d`.  Unlike ``nn.Conv2d`` it may be
            ((top, bottom), (left, right)), ``"full"``, or ``"same"`` with a stride.
        bias: whether to learn a number b[o] for each output channel.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.  Circular
            padding may be larger than the image, unlike in ``nn.Conv2d``.
        device, dtype: of the parameters.
        algorithm: ``"auto"``, the name of an algorithm, or an :class:`~torch_corr.Algorithm`.

    Shape:
        input (N, C, H, W) or (C, H, W); output (N, O, H', W') or (O, H', W'), with
        H' = (H + top + bottom - d(kH-1) - 1) // s + 1, likewise W'.

    Raises:
        ValueError: the channels are not divisible by groups, or the padding, padding mode or
            algorithm is unknown (as in ``nn.Conv2d``).
        RuntimeError: the kernel, stride, dilation or padding is out of range (``nn.Conv2d``
            raises the same when it is called).
        TypeError: a number is not an integer.

    Source:
        ``torch.nn.Conv2d``, and ``Corr2D`` in Zhang et al., *Dive into Deep Learning*, section 7.2.

    Example:
        >>> layer = Corr2d(3, 8, kernel_size=3, padding="same", stride=2)
        >>> layer(torch.ones(1, 3, 15, 16)).shape
        torch.Size([1, 8, 8, 8])
    """

    algorithm: AlgorithmLike = "auto"
    """The class attribute serves layers that are changed by ``layer.__class__ = Corr2d``."""

    __jit_ignored_attributes__ = ("algorithm",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: SizeLike,
        stride: SizeLike = 1,
        padding: PaddingLike = 0,
        dilation: SizeLike = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        algorithm: AlgorithmLike = "auto",
    ) -> None:
        find_algorithm(algorithm)
        in_channels = as_int("in_channels", in_channels)
        out_channels = as_int("out_channels", out_channels)
        _check_channels(groups, in_channels=in_channels, out_channels=out_channels)
        _check_names(padding, padding_mode)
        super().__init__(
            in_channels,
            out_channels,
            _positive_pair("kernel_size", kernel_size),
            _positive_pair("stride", stride),
            0,  # _set_padding sets it
            _positive_pair("dilation", dilation),
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        self._set_padding(padding)
        self.algorithm = algorithm

    def _set_padding(self, padding: PaddingLike) -> None:
        """Store the padding in the form of ``nn.Conv2d``, if it has one."""
        if isinstance(padding, str):
            self.padding = padding
            if padding == "valid":
                return
            # "same" with a stride depends on the input's size; these are the sides for stride 1.
            kernel = as_pair("kernel_size", self.kernel_size)
            dilation = as_pair("dilation", self.dilation)
            sides = resolve_padding(padding, kernel, kernel, (1, 1), dilation)
        else:
            sides = as_sides(padding)
            if min(*sides[0], *sides[1]) < 0:
                raise RuntimeError(f"padding must be at least 0 on every side, got {padding}")
            (top, bottom), (left, right) = sides
            symmetric = (top, left) == (bottom, right)
            self.padding = (top, left) if symmetric else sides  # type: ignore[assignment]
        # ``nn.Conv2d`` passes this list to ``F.pad``, and other code reads it.
        self._reversed_padding_repeated_twice = [*sides[1], *sides[0]]

    @skip_dynamo
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._scripted(input, weight, bias)
        else:  # noqa: RET505 - TorchScript does not compile this branch
            return corr2d(
                input,
                weight,
                bias,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
                padding_mode=self.padding_mode,
                algorithm=self.algorithm,
            )

    def _scripted(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer in TorchScript, which supports only PyTorch's convolution."""
        if isinstance(self.padding, str):  # noqa: SIM102 - TorchScript needs a separate test
            if self.padding == "same" and max(self.stride) > 1:
                raise RuntimeError(
                    "padding='same' with a stride depends on the input's size, which "
                    "TorchScript's convolution does not support; use torch.export, or padding "
                    "((top, bottom), (left, right))"
                )
        most = max(self._reversed_padding_repeated_twice)
        if self.padding_mode == "circular" and most > min(input.size(-2), input.size(-1)):
            left, right, top, bottom = self._reversed_padding_repeated_twice
            input = wrap(wrap(input, -2, top, bottom), -1, left, right)
        elif most > 0:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = pad(input, self._reversed_padding_repeated_twice, mode)
        return conv2d(input, weight, bias, self.stride, 0, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """The arguments as in ``nn.Conv2d``, and the algorithm unless it is ``"auto"``."""
        named = "" if self.algorithm == "auto" else f", algorithm={self.algorithm!r}"
        return f"{super().extra_repr()}{named}"  # type: ignore[no-untyped-call]


class LazyCorr2d(LazyConvXdMixin, Corr2d):  # type: ignore[misc]
    """A :class:`Corr2d` that takes ``in_channels`` from its first input.

    Arguments, errors and shapes are those of :class:`Corr2d` without ``in_channels``.

    Example:
        >>> layer = LazyCorr2d(8, kernel_size=3)
        >>> layer(torch.ones(1, 5, 9, 9)).shape, layer.weight.shape
        (torch.Size([1, 8, 7, 7]), torch.Size([8, 5, 3, 3]))
    """

    cls_to_become = Corr2d

    def __init__(
        self,
        out_channels: int,
        kernel_size: SizeLike,
        stride: SizeLike = 1,
        padding: PaddingLike = 0,
        dilation: SizeLike = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        algorithm: AlgorithmLike = "auto",
    ) -> None:
        _check_channels(groups=groups, out_channels=out_channels)
        super().__init__(
            0,
            0,  # no output channels, so that no weight is allocated
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            False,
            padding_mode,
            algorithm=algorithm,
        )
        self.out_channels = out_channels
        self.weight = UninitializedParameter(device=device, dtype=dtype)  # type: ignore[call-arg]
        if bias:
            self.bias = UninitializedParameter(device=device, dtype=dtype)  # type: ignore[call-arg]

    def _get_num_spatial_dims(self) -> int:
        return 2


def _positive_pair(name: str, value: SizeLike) -> Pair:
    pair = as_pair(name, value)
    if min(pair) < 1:
        raise RuntimeError(f"{name} must be at least 1, got {pair}")
    return pair


def _check_channels(groups: int, **channels: int) -> None:
    if as_int("groups", groups) < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    for name, number in channels.items():
        if as_int(name, number) < 0:
            raise RuntimeError(f"{name} must be at least 0, got {number}")
        if number % groups:
            raise ValueError(
                f"{name}={number} is not divisible by groups={groups}; all groups need the same "
                f"number of channels"
            )


def _check_names(padding: Any, padding_mode: Any) -> None:
    for what, name, known in (
        ("padding", padding if isinstance(padding, str) else "valid", PADDING_NAMES),
        ("padding_mode", padding_mode, PADDING_MODES),
    ):
        if name not in known:
            raise ValueError(
                f"unknown {what} {name!r}{did_you_mean(str(name), known)}; use one of "
                f"{', '.join(map(repr, known))}"
            )
