"""The networks of :mod:`.models`: those of timm and transformers, and three written here.

All have random weights from a fixed seed.  Rates of dropout are 0, so that losses can be compared.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXAMPLE = Path(__file__).parent.parent / "examples" / "replknet_step.py"


class UNet(nn.Module):
    """Two convolutions at each of five scales, down and up again (Ronneberger et al., 2015)."""

    def __init__(self, width: int = 32, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(_two_layers(ins, outs) for ins, outs in zip([3, *widths], widths))
        pairs = list(pairwise(widths))[::-1]
        self.larger = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(_two_layers(2 * a, a) for a, _ in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, layers in enumerate(self.down):
            x = layers(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for larger, layers, same in zip(self.larger, self.up, kept[-2::-1]):
            x = layers(torch.cat([same, larger(x)], 1))
        result: Tensor = self.head(x)
        return result


class EDSR(nn.Module):
    """16 residual blocks of 64 channels and a twofold enlargement (Lim et al., 2017, baseline)."""

    def __init__(self, width: int = 64, blocks: int = 16) -> None:
        super().__init__()
        self.head = _layer(3, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(_layer(width, width), nn.ReLU(), _layer(width, width))
            for _ in range(blocks)
        )
        self.last = _layer(width, width)
        self.tail = nn.Sequential(_layer(width, 4 * width), nn.PixelShuffle(2), _layer(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.head(x)
        for block in self.blocks:
            y = y + block(y)
        result: Tensor = self.tail(x + self.last(y))
        return result


def vgg() -> nn.Module:
    """The eight convolutions of VGG-11 with batch normalisation (Simonyan and Zisserman, 2014)."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width:
            layers += [_layer(channels, width), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def _layer(ins: int, outs: int) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, 3, padding=1)


def _two_layers(ins: int, outs: int) -> nn.Sequential:
    block: list[nn.Module] = []
    for channels in (ins, outs):
        block += [nn.Conv2d(channels, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs)]
        block.append(nn.ReLU())
    return nn.Sequential(*block)


def _replknet() -> nn.Module:
    """The network of the example, with 31x31 kernels."""
    example = runpy.run_path(str(EXAMPLE))
    network: nn.Module = example["replknet"](64, example["KERNELS"])
    return network


def _from_timm(name: str, **options: bool) -> nn.Module:
    _define_torchvision_operators()
    import timm

    network: nn.Module = timm.create_model(name, **options)
    return network


def _define_torchvision_operators() -> None:
    """Let timm and transformers import torchvision, whose compiled part needs PyTorch for CUDA.

    Without that part, torchvision registers rules for two operators that do not exist; here they
    get names, and no code.
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


_kept: list[object] = []
"""Libraries, whose operators vanish when they are freed."""


def _segformer() -> nn.Module:
    _define_torchvision_operators()
    import transformers

    network: nn.Module = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig()
    )
    return network


class Network(NamedTuple):
    """How to build a network, and the shape of a batch of its images."""

    build: Callable[[], nn.Module]
    images: tuple[int, int, int, int] = (2, 3, 224, 224)


NETWORKS = {
    "ResNet-18": Network(partial(_from_timm, "resnet18")),
    "ResNet-50": Network(partial(_from_timm, "resnet50")),
    "VGG-11": Network(vgg),
    "RegNetY-008": Network(partial(_from_timm, "regnety_008")),
    "DenseNet-121": Network(partial(_from_timm, "densenet121")),
    "U-Net": Network(UNet, (1, 3, 224, 224)),
    "EDSR": Network(EDSR, (2, 3, 64, 64)),
    "MobileNetV2": Network(partial(_from_timm, "mobilenetv2_100")),
    "MobileNetV3-L": Network(partial(_from_timm, "mobilenetv3_large_100")),
    "EfficientNet-B0": Network(partial(_from_timm, "efficientnet_b0")),
    "RepViT-M1": Network(partial(_from_timm, "repvit_m1")),
    "FastViT-T8": Network(partial(_from_timm, "fastvit_t8")),
    "SegFormer-B0": Network(_segformer),
    "ConvNeXt-T": Network(partial(_from_timm, "convnext_tiny")),
    "ConvNeXt-T, 1x1 layers": Network(partial(_from_timm, "convnext_tiny", conv_mlp=True)),
    "ConvMixer-768/32": Network(partial(_from_timm, "convmixer_768_32"), (1, 3, 224, 224)),
    "31x31 kernels": Network(_replknet),
}


def build(name: str) -> nn.Module:
    """A network from a fixed seed, without dropout."""
    torch.manual_seed(0)
    model = NETWORKS[name].build()
    for module in model.modules():
        for rate in ("p", "drop_prob"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model
