"""Whole networks under test, and how far their results may be from the exact ones.

No bound of one layer says how far a network's logits and gradients may be off: normalisations
divide, and cancellation may leave nothing but rounding errors (the gradient of a bias before a
normalisation is exactly zero).  So ``nn.Conv2d``'s network itself is the yardstick.  Its results
for data that differ by one rounding are all equally right.  The data are the parameters, the
images and the loss weights, which are the whole gradient of the last layer's bias.  The largest
of ``DRAWS`` distances from the exact result (float64, original data) is the effect of rounding in
this network.  Ours may be ``FACTOR`` times as far, tensor by tensor, in the 2-norm.

``FACTOR`` = 4: if ours were one more draw of a normal distribution, a single number would exceed
4 times the largest of 4 draws with probability E|z|^4 (sqrt(2/pi)/4)^4 = 0.5%, and a tensor of n
numbers with one that falls as a power of 4 n: 10^-6 for the smallest here, n = 5.  A missing tap,
edge or term changes the result by 10^4 to 10^6 roundings of float32.
"""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FACTOR = 4
DRAWS = 4
CLASSES = 5

EXAMPLES = Path(__file__).parents[2] / "examples"


def resnet() -> nn.Module:
    """With 16 channels: ``nn.Conv2d`` under inductor may crash with fewer and a stride."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=CLASSES)
    )


def convnext() -> nn.Module:
    """With a layer scale of 1: the usual 1e-6 would hide errors in the blocks."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(
        ConvNextConfig(
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_stages=2,
            layer_scale_init_value=1.0,
            num_labels=CLASSES,
        )
    )


def mobilenet() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(
        MobileNetV2Config(
            depth_multiplier=0.25, min_depth=4, classifier_dropout_prob=0.0, num_labels=CLASSES
        )
    )


def segformer() -> nn.Module:
    """Without dropout, whose masks would differ between dtypes."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[4, 2],
            hidden_sizes=[8, 16],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
            num_labels=CLASSES,
        )
    )


def replknet() -> nn.Module:
    """The example's 31 x 31 kernels, which ``auto`` computes with compiled kernels."""
    make = runpy.run_path(str(EXAMPLES / "replknet_step.py"))["replknet"]
    return make(8, (31, 13), CLASSES)


NETWORKS = {each.__name__: each for each in (resnet, convnext, mobilenet, segformer, replknet)}


@cache
def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network and images for it, float32; copy it before use."""
    torch.manual_seed(0)
    return NETWORKS[name](), torch.randn(3, 3, 64, 64)


def outcome(
    model: nn.Module,
    images: Tensor,
    *,
    train: bool,
    halves: bool,
    around: Any = None,
    backend: str | None = None,
    rounded: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> dict[str, Tensor]:
    """The logits and every parameter's gradient for a fixed random loss, in float64.

    Args:
        model: a network; its state changes.
        images: its input.
        train: use batch statistics instead of running ones.
        halves: under autocast to bfloat16.
        around: context of the forward pass.
        backend: of ``torch.compile``, which compiles the whole network once; None for none.
        rounded: applied to the weights of the loss, its gradient by the logits.
    """
    model.train(train)
    if backend is not None and model._compiled_call_impl is None:
        model.compile(backend=backend)
    with around or nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=halves):
        output = model(images)
    logits = getattr(output, "logits", output).double()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    (logits * rounded(weights)).sum().backward()
    gradients = {
        name: parameter.grad.double()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {"logits": logits.detach(), **gradients}


@cache
def exact(name: str, train: bool) -> dict[str, Tensor]:
    """``nn.Conv2d``'s network in float64."""
    model, images = network(name)
    return outcome(copy.deepcopy(model).double(), images.double(), train=train, halves=False)


@cache
def yardstick(name: str, train: bool, halves: bool, backend: str | None = None) -> dict[str, float]:
    """How far the results of ``nn.Conv2d``'s network are from exact, in the 2-norm.

    With a ``backend`` if ours is compiled by it, so that both have its rounding of other layers.
    """
    model, images = network(name)
    return yardstick_of(
        partial(outcome, train=train, halves=halves, backend=backend),
        exact(name, train),
        model,
        images,
        torch.finfo(torch.bfloat16 if halves else torch.float32).eps / 2,
    )


def yardstick_of(
    compute: Callable[..., dict[str, Tensor]],
    expected: dict[str, Tensor],
    model: nn.Module,
    images: Tensor,
    roundoff: float,
) -> dict[str, float]:
    """The largest distance of ``DRAWS`` results from the expected ones, for each tensor.

    ``compute(model, images, rounded=...)`` returns the results; see :func:`outcome`.
    """
    draws = []
    runner = copy.deepcopy(model)  # one for all draws, because it may be compiled
    for seed in range(DRAWS):
        drawn, data = shaken(model, images, roundoff, seed)
        runner.load_state_dict(drawn.state_dict())
        runner.zero_grad()
        random = torch.Generator().manual_seed(~seed)
        rounded = partial(other_rounding, roundoff=roundoff, random=random)
        draws.append(compute(runner, data, rounded=rounded))
    return farthest(draws, expected)


def shaken(
    model: nn.Module, images: Tensor, roundoff: float, seed: int
) -> tuple[nn.Module, Tensor]:
    """A copy of a network and its images, each number rounded differently."""
    random = torch.Generator().manual_seed(seed)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.copy_(other_rounding(parameter, roundoff, random))
    return copied, other_rounding(images, roundoff, random)


def other_rounding(value: Tensor, roundoff: float, random: torch.Generator) -> Tensor:
    """Multiply each number by 1 + 2 u or 1 - 2 u: one or two units in the last place."""
    signs = 2 * torch.randint(2, value.shape, generator=random) - 1
    return value + value * signs * 2 * roundoff


def farthest(draws: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> dict[str, float]:
    """The largest distance of any draw from the expected result, tensor by tensor."""
    found = [distances(draw, expected) for draw in draws]
    return {name: max(each[name] for each in found) for name in expected}


def distances(result: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The 2-norm of the difference, tensor by tensor."""
    assert result.keys() == expected.keys()
    return {name: (result[name] - value).norm().item() for name, value in expected.items()}


def assert_as_right(
    result: dict[str, Tensor], expected: dict[str, Tensor], allowed: dict[str, float]
) -> None:
    """Each tensor is within ``FACTOR`` times the yardstick of the exact one."""
    found = distances(result, expected)
    wrong = {
        name: f"{distance:.1e} from exact, nn.Conv2d {allowed[name]:.1e}"
        for name, distance in found.items()
        if not distance <= FACTOR * allowed[name]
    }
    assert not wrong, wrong
