"""The workloads, as data: a problem, a dtype and the source of the layer.

They include every case of the project's speed goals, also those where losses are expected.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import torch

from torch_corr import Problem
from torch_corr.algorithms import MAPS

Work: TypeAlias = Literal["forward", "grad_input", "grad_weight", "call", "call+grad"]
"""What is timed: a map alone, or a call of ``corr2d`` (and its backward) from end to end."""

CALLS: tuple[Work, ...] = ("call", "call+grad")
WORKS: tuple[Work, ...] = (*MAPS, *CALLS)

Layout: TypeAlias = Literal["contiguous", "channels_last"]
"""The layout of operands in memory."""

FORMATS: dict[Layout, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}

GROUPS = {
    "dense": "layers of networks for images, all channels mixed",
    "depthwise": "one filter for each channel",
    "image filters": "few channels, one or some filters",
    "matching": "search for a template: large kernels, or one kernel for each sample",
    "scientific": "float64 and complex numbers",
    "large squares": "large square kernels over many channels",
    "tiny": "so small that the call overhead dominates",
    "kernel sweep": "one workload, kernels of growing size",
    "image sweep": "one 5x5 kernel, images of growing size",
}

FORWARD: tuple[Work, ...] = ("forward",)


@dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        name: unique; used in tables and charts.
        spelling: the problem, as ``Problem.parse`` reads it.
        group: one of ``GROUPS``.
        source: the network, task or list that it comes from.
        dtype: its name in torch.
        works: the pieces of work that are timed.
        quick: the part of ``works`` that ``--quick`` times.
        layout: of all operands.
    """

    name: str
    spelling: str
    group: str
    source: str
    dtype: str = "float32"
    works: tuple[Work, ...] = MAPS
    quick: tuple[Work, ...] = ()
    layout: Layout = "contiguous"

    @property
    def problem(self) -> Problem:
        return Problem.parse(self.spelling)

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def matches(self, pattern: str) -> bool:
        """Whether the pattern is a glob for, or part of, the name, group, dtype or problem."""
        texts = (self.name, self.group, self.dtype, str(self.problem), self.spelling)
        glob = any(sign in pattern for sign in "*?[")
        return any(fnmatchcase(text, pattern) if glob else pattern in text for text in texts)


def _dtypes(name: str, spelling: str, group: str, source: str, *dtypes: str) -> list[Case]:
    return [
        Case(name if dtype == "float32" else f"{name} {dtype}", spelling, group, source, dtype)
        for dtype in dtypes
    ]


_RESNET = "ResNet-50 (He et al., 2016)"
_VGG = "VGG-16 (Simonyan & Zisserman, 2015)"
_DEEPBENCH = "DeepBench, convolution list (Baidu Research, 2017)"
_MOBILENET = "MobileNetV2 (Sandler et al., 2018)"
_REPLK = "RepLKNet (Ding et al., 2022)"
_CONVNEXT = "ConvNeXt (Liu et al., 2022)"
_OPENCV = "filtering a photograph, as cv2.filter2D"
_SQUARES = "public list of square problems for GPU kernels"

CASES: tuple[Case, ...] = (
    # dense
    Case("resnet 3x3 64", "n8c64-x56-o64-k3-p1", "dense", _RESNET, quick=FORWARD),
    *_dtypes("resnet 3x3 64", "n8c64-x56-o64-k3-p1", "dense", _RESNET, "bfloat16", "float16"),
    Case("resnet stem 7x7/2", "n8c3-x224-o64-k7-s2-p3", "dense", _RESNET),
    Case("resnet 1x1 256-64", "n8c256-x56-o64-k1", "dense", _RESNET),
    Case("resnet 3x3 512", "n4c512-x14-o512-k3-p1", "dense", _RESNET),
    Case("vgg 3x3 128", "n2c128-x112-o128-k3-p1", "dense", _VGG),
    Case("deepbench speech 20x5/2", "n4c1-x161x700-o32-k20x5-s2", "dense", _DEEPBENCH),
    Case("deepbench 5x5 192-32", "n8c192-x28-o32-k5-p2", "dense", _DEEPBENCH),
    Case(
        "atrous 3x3 d4",
        "n2c256-x64-o256-k3-p4-d4",
        "dense",
        "DeepLabv3, atrous spatial pyramid (Chen et al., 2017)",
    ),
    Case("resnext 3x3 g32", "n4c128-x56-o128-k3-p1-g32", "dense", "ResNeXt-50 (Xie et al., 2017)"),
    # depthwise
    *_dtypes(
        "mobilenet dw 3x3",
        "n8c144-x56-o144-k3-p1-g144",
        "depthwise",
        _MOBILENET,
        *("float32", "bfloat16", "float16"),
    ),
    Case(
        "mnasnet dw 5x5/2",
        "n8c144-x56-o144-k5-s2-p2-g144",
        "depthwise",
        "MnasNet, EfficientNet (Tan et al., 2019)",
    ),
    Case("convnext dw 7x7", "n8c96-x56-o96-k7-p3-g96", "depthwise", _CONVNEXT, quick=FORWARD),
    Case("convnext dw 7x7 float64", "n8c96-x56-o96-k7-p3-g96", "depthwise", _CONVNEXT, "float64"),
    Case("replknet dw 13x13", "n4c128-x28-o128-k13-p6-g128", "depthwise", _REPLK, quick=MAPS),
    Case("replknet dw 31x31", "n1c128-x56-o128-k31-p15-g128", "depthwise", _REPLK),
    # image filters
    Case("photo 3x3", "n1c1-x2048-o1-k3", "image filters", _OPENCV),
    Case("photo 5x5", "n1c1-x2048-o1-k5", "image filters", _OPENCV),
    Case("photo 9x9", "n1c1-x2048-o1-k9", "image filters", _OPENCV),
    Case("photo 15x15", "n1c1-x1024-o1-k15", "image filters", _OPENCV, quick=FORWARD),
    Case("photo 31x31", "n1c1-x1024-o1-k31-p15", "image filters", _OPENCV),
    Case("sobel pair 3x3", "n1c1-x1024-o2-k3-p1", "image filters", "both Sobel gradients at once"),
    Case("sobel pair 3x3 batch", "n16c1-x256-o2-k3-p1", "image filters", "Sobel, batch of crops"),
    Case(
        "rgb blur 5x5", "n1c3-x1024-o3-k5-p2-g3", "image filters", "Gaussian blur of a photograph"
    ),
    Case(
        "rgb blur 19x19", "n1c3-x618x530-o3-k19-g3", "image filters", "the blur of torch_corr demo"
    ),
    Case("gabor bank 15x15", "n1c1-x512-o32-k15-p7", "image filters", "Gabor filter bank"),
    Case("digits 5x5", "n64c1-x28-o32-k5", "image filters", "first layer of a digit classifier"),
    # matching
    Case("template 101x101", "n1c1-x512-o1-k101", "matching", "cv2.matchTemplate", quick=FORWARD),
    Case("template 101x101 padded", "n1c1-x512-o1-k101-p50", "matching", "cv2.matchTemplate"),
    Case(
        "siamfc 6x6",
        "n1c2048-x22-o8-k6-g8",
        "matching",
        "SiamFC, 8 pairs folded into groups (Bertinetto et al., 2016)",
        quick=MAPS,
    ),
    Case(
        "siamrpn dw 5x5",
        "n1c2048-x29-o2048-k5-g2048",
        "matching",
        "SiamRPN++, depthwise correlation, 8 pairs folded (Li et al., 2019)",
    ),
    # scientific
    Case("dense 3x3 float64", "n4c64-x56-o64-k3-p1", "scientific", "float64 training", "float64"),
    Case(
        "two fields 51x51 float64",
        "n1c2-x256-o2-k51-p25",
        "scientific",
        "smoothing kernel of a coupled field",
        "float64",
    ),
    Case(
        "complex 3x3",
        "n2c16-x56-o16-k3-p1",
        "scientific",
        "complex-valued network for MRI",
        "complex64",
        quick=MAPS,
    ),
    # large squares
    Case("square 128 k8", "n4c64-x128-o64-k8", "large squares", _SQUARES),
    Case("square 128 k16", "n4c64-x128-o64-k16", "large squares", _SQUARES),
    Case("square 256 k16", "n2c128-x256-o128-k16", "large squares", _SQUARES),
    Case("square 256 k32", "n1c128-x256-o128-k32", "large squares", _SQUARES),
    # tiny
    Case(
        "tiny 3x3",
        "n1c4-x8-o4-k3-p1",
        "tiny",
        "one layer of a board-game or control network",
        works=WORKS,
        quick=WORKS,
    ),
    Case(
        "textbook 2x2",
        "n1c1-x3-o1-k2",
        "tiny",
        "Dive into Deep Learning, section 7.2",
        works=WORKS,
    ),
    # sweeps, for the charts
    *(
        Case(
            f"one plane k{k}",
            f"n1c1-x512-o1-k{k}-p{k // 2}",
            "kernel sweep",
            "one-channel image, kernel as the variable",
            quick=FORWARD if k in (3, 9, 31) else (),
        )
        for k in (3, 5, 7, 9, 13, 19, 31, 51, 101)
    ),
    *(
        Case(
            f"depthwise k{k}",
            f"n1c64-x56-o64-k{k}-p{k // 2}-g64",
            "kernel sweep",
            "depthwise layer, kernel as the variable",
        )
        for k in (3, 5, 7, 9, 13, 21, 31)
    ),
    *(
        Case(
            f"dense k{k}",
            f"n1c32-x64-o32-k{k}-p{k // 2}",
            "kernel sweep",
            "dense layer, kernel as the variable",
        )
        for k in (1, 3, 5, 7, 11, 15, 21, 31)
    ),
    *(
        Case(
            f"5x5 on {size}",
            f"n1c1-x{size}-o1-k5",
            "image sweep",
            "one-channel image, its size as the variable",
            works=MAPS if size <= 2048 else FORWARD,
            quick=FORWARD if size in (256, 512, 1024) else (),
        )
        for size in (256, 512, 1024, 2048, 4096, 8192)
    ),
)

SWEEPS = ("kernel sweep", "image sweep")
"""Groups for the charts of time against size; they are not part of geometric means."""


def select(patterns: list[str], quick: bool = False) -> list[Case]:
    """The cases that match any pattern (all, without patterns); with ``quick`` the quick ones."""
    return [
        case
        for case in CASES
        if (case.quick or not quick)
        and (not patterns or any(case.matches(pattern) for pattern in patterns))
    ]


CUDA_CASES: tuple[Case, ...] = (
    *_dtypes(
        "replknet dw 31x31 batch",
        "n64c384-x32-o384-k31-p15-g384",
        "depthwise",
        _REPLK,
        *("float32", "float16"),
    ),
    *_dtypes(
        "convnext dw 7x7 batch",
        "n128c96-x56-o96-k7-p3-g96",
        "depthwise",
        _CONVNEXT,
        *("float32", "float16"),
    ),
    *(
        Case(
            f"{name} {dtype} channels_last",
            spelling,
            "depthwise",
            source,
            dtype,
            layout="channels_last",
        )
        for name, spelling, source in (
            ("mobilenet dw 3x3", "n8c144-x56-o144-k3-p1-g144", _MOBILENET),
            ("convnext dw 7x7", "n128c96-x56-o96-k7-p3-g96", _CONVNEXT),
            ("replknet dw 31x31", "n64c384-x32-o384-k31-p15-g384", _REPLK),
        )
        for dtype in ("float32", "float16")
    ),
)
"""Cases large enough for a GPU, added with ``--device cuda``; some in channels_last."""
