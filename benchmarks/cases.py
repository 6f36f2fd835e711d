"""The workloads, as data: a problem, a dtype and the source of the layer.

They include every case of the project's speed goals, also those where losses are expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import torch

from torch_corr import Problem
from torch_corr.algorithms import MAPS

Work: TypeAlias = Literal["forward", "grad_input", "grad_weight", "call", "call+grad"]
"""The timed work: a map alone, or a whole call of ``corr2d`` (and its backward)."""

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
        source: the network, task or list that it comes from.
        dtype: its name in torch.
        group: one of ``GROUPS``.
        works: the pieces of work that are timed.
        quick: the part of ``works`` that ``--quick`` times.
        layout: of all operands.
    """

    name: str
    spelling: str
    source: str
    dtype: str = "float32"
    group: str = ""
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

    @property
    def entry(self) -> dict[str, str]:
        """Its description in a results file."""
        entry = {
            name: getattr(self, name) for name in ("name", "group", "dtype", "source", "layout")
        }
        return {**entry, "problem": str(self.problem)}

    def matches(self, pattern: str) -> bool:
        """Whether the pattern is a glob for, or part of, the name, group, dtype or problem."""
        texts = (self.name, self.group, self.dtype, str(self.problem), self.spelling)
        glob = any(sign in pattern for sign in "*?[")
        return any(fnmatchcase(text, pattern) if glob else pattern in text for text in texts)


@dataclass(frozen=True)
class Task:
    """What a contender is asked to do: a piece of work on a device.

    Attributes:
        layout: of all operands.
    """

    problem: Problem
    work: Work
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    layout: Layout = "contiguous"


_RESNET = "ResNet-50 (He et al., 2016)"
_RESNEXT = "ResNeXt-50 (Xie et al., 2017)"
_VGG = "VGG-16 (Simonyan & Zisserman, 2015)"
_DEEPBENCH = "DeepBench, convolution list (Baidu Research, 2017)"
_DEEPLAB = "DeepLabv3, atrous spatial pyramid (Chen et al., 2017)"
_MOBILENET = "MobileNetV2 (Sandler et al., 2018)"
_MNASNET = "MnasNet, EfficientNet (Tan et al., 2019)"
_REPLK = "RepLKNet (Ding et al., 2022)"
_CONVNEXT = "ConvNeXt (Liu et al., 2022)"
_OPENCV = "filtering a photograph, as cv2.filter2D"
_BLUR = "Gaussian blur of a photograph"
_DEMO = "the blur of torch_corr demo"
_DIGITS = "first layer of a digit classifier"
_TEMPLATE = "cv2.matchTemplate"
_SIAMFC = "SiamFC, 8 pairs folded into groups (Bertinetto et al., 2016)"
_SIAMRPN = "SiamRPN++, depthwise correlation, 8 pairs folded (Li et al., 2019)"
_FIELDS = "smoothing kernel of a coupled field"
_MRI = "complex-valued network for MRI"
_SQUARES = "public list of square problems for GPU kernels"
_CONTROL = "one layer of a board-game or control network"
_TEXTBOOK = "Dive into Deep Learning, section 7.2"


def _group(group: str, *cases: Case) -> list[Case]:
    """The cases with this group."""
    return [replace(case, group=group) for case in cases]


def _each(case: Case, *dtypes: str) -> list[Case]:
    """The case in float32 and in other dtypes, which follow its name."""
    others = [replace(case, name=f"{case.name} {each}", dtype=each, quick=()) for each in dtypes]
    return [case, *others]


CASES: tuple[Case, ...] = (
    *_group(
        "dense",
        *_each(
            Case("resnet 3x3 64", "n8c64-x56-o64-k3-p1", _RESNET, quick=FORWARD),
            *("bfloat16", "float16"),
        ),
        Case("resnet stem 7x7/2", "n8c3-x224-o64-k7-s2-p3", _RESNET),
        Case("resnet 1x1 256-64", "n8c256-x56-o64-k1", _RESNET),
        Case("resnet 3x3 512", "n4c512-x14-o512-k3-p1", _RESNET),
        Case("vgg 3x3 128", "n2c128-x112-o128-k3-p1", _VGG),
        Case("deepbench speech 20x5/2", "n4c1-x161x700-o32-k20x5-s2", _DEEPBENCH),
        Case("deepbench 5x5 192-32", "n8c192-x28-o32-k5-p2", _DEEPBENCH),
        Case("atrous 3x3 d4", "n2c256-x64-o256-k3-p4-d4", _DEEPLAB),
        Case("resnext 3x3 g32", "n4c128-x56-o128-k3-p1-g32", _RESNEXT),
    ),
    *_group(
        "depthwise",
        *_each(
            Case("mobilenet dw 3x3", "n8c144-x56-o144-k3-p1-g144", _MOBILENET),
            *("bfloat16", "float16"),
        ),
        Case("mnasnet dw 5x5/2", "n8c144-x56-o144-k5-s2-p2-g144", _MNASNET),
        *_each(
            Case("convnext dw 7x7", "n8c96-x56-o96-k7-p3-g96", _CONVNEXT, quick=FORWARD),
            "float64",
        ),
        Case("replknet dw 13x13", "n4c128-x28-o128-k13-p6-g128", _REPLK, quick=MAPS),
        Case("replknet dw 31x31", "n1c128-x56-o128-k31-p15-g128", _REPLK),
    ),
    *_group(
        "image filters",
        Case("photo 3x3", "n1c1-x2048-o1-k3", _OPENCV),
        Case("photo 5x5", "n1c1-x2048-o1-k5", _OPENCV),
        Case("photo 9x9", "n1c1-x2048-o1-k9", _OPENCV),
        Case("photo 15x15", "n1c1-x1024-o1-k15", _OPENCV, quick=FORWARD),
        Case("photo 31x31", "n1c1-x1024-o1-k31-p15", _OPENCV),
        Case("sobel pair 3x3", "n1c1-x1024-o2-k3-p1", "both Sobel gradients at once"),
        Case("sobel pair 3x3 batch", "n16c1-x256-o2-k3-p1", "Sobel, batch of crops"),
        Case("rgb blur 5x5", "n1c3-x1024-o3-k5-p2-g3", _BLUR),
        Case("rgb blur 19x19", "n1c3-x618x530-o3-k19-g3", _DEMO),
        Case("gabor bank 15x15", "n1c1-x512-o32-k15-p7", "Gabor filter bank"),
        Case("digits 5x5", "n64c1-x28-o32-k5", _DIGITS),
    ),
    *_group(
        "matching",
        Case("template 101x101", "n1c1-x512-o1-k101", _TEMPLATE, quick=FORWARD),
        Case("template 101x101 padded", "n1c1-x512-o1-k101-p50", _TEMPLATE),
        Case("siamfc 6x6", "n1c2048-x22-o8-k6-g8", _SIAMFC, quick=MAPS),
        Case("siamrpn dw 5x5", "n1c2048-x29-o2048-k5-g2048", _SIAMRPN),
    ),
    *_group(
        "scientific",
        Case("dense 3x3 float64", "n4c64-x56-o64-k3-p1", "float64 training", "float64"),
        Case("two fields 51x51 float64", "n1c2-x256-o2-k51-p25", _FIELDS, "float64"),
        Case("complex 3x3", "n2c16-x56-o16-k3-p1", _MRI, "complex64", quick=MAPS),
    ),
    *_group(
        "large squares",
        Case("square 128 k8", "n4c64-x128-o64-k8", _SQUARES),
        Case("square 128 k16", "n4c64-x128-o64-k16", _SQUARES),
        Case("square 256 k16", "n2c128-x256-o128-k16", _SQUARES),
        Case("square 256 k32", "n1c128-x256-o128-k32", _SQUARES),
    ),
    *_group(
        "tiny",
        Case("tiny 3x3", "n1c4-x8-o4-k3-p1", _CONTROL, works=WORKS, quick=WORKS),
        Case("textbook 2x2", "n1c1-x3-o1-k2", _TEXTBOOK, works=WORKS),
    ),
    *_group(
        "kernel sweep",
        *(
            Case(
                f"{name} k{k}",
                f"{problem.format(k=k)}-p{k // 2}{groups}",
                f"{source}, kernel as the variable",
                quick=FORWARD if name == "one plane" and k in (3, 9, 31) else (),
            )
            for name, problem, groups, source, kernels in (
                (
                    *("one plane", "n1c1-x512-o1-k{k}", "", "one-channel image"),
                    (3, 5, 7, 9, 13, 19, 31, 51, 101),
                ),
                (
                    *("depthwise", "n1c64-x56-o64-k{k}", "-g64", "depthwise layer"),
                    (3, 5, 7, 9, 13, 21, 31),
                ),
                (
                    *("dense", "n1c32-x64-o32-k{k}", "", "dense layer"),
                    (1, 3, 5, 7, 11, 15, 21, 31),
                ),
            )
            for k in kernels
        ),
    ),
    *_group(
        "image sweep",
        *(
            Case(
                f"5x5 on {size}",
                f"n1c1-x{size}-o1-k5",
                "one-channel image, its size as the variable",
                works=MAPS if size <= 2048 else FORWARD,
                quick=FORWARD if size in (256, 512, 1024) else (),
            )
            for size in (256, 512, 1024, 2048, 4096, 8192)
        ),
    ),
)

SWEEPS = ("kernel sweep", "image sweep")
"""Groups for the charts of time against size; they are not part of geometric means."""


def select(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """The cases that match any pattern; all without patterns."""
    return [
        case for case in cases if not patterns or any(case.matches(pattern) for pattern in patterns)
    ]


_REPLK_BATCH = Case("replknet dw 31x31 batch", "n64c384-x32-o384-k31-p15-g384", _REPLK)
_CONVNEXT_BATCH = Case("convnext dw 7x7 batch", "n128c96-x56-o96-k7-p3-g96", _CONVNEXT)

CUDA_CASES: tuple[Case, ...] = (
    *_group(
        "depthwise",
        *_each(_REPLK_BATCH, "float16"),
        *_each(_CONVNEXT_BATCH, "float16"),
        *(
            replace(
                case,
                name=f"{name} {dtype} channels_last",
                dtype=dtype,
                layout="channels_last",
            )
            for name, case in (
                ("mobilenet dw 3x3", Case("", "n8c144-x56-o144-k3-p1-g144", _MOBILENET)),
                ("convnext dw 7x7", _CONVNEXT_BATCH),
                ("replknet dw 31x31", _REPLK_BATCH),
            )
            for dtype in ("float32", "float16")
        ),
    ),
)
"""Cases large enough for a GPU, added with ``--device cuda``; some in channels_last."""
