"""One of the processes that tests/test_sharding.py starts; it writes its results to a file.

    PYTHONPATH=tests python -m support.distributed_worker RANK FOLDER

``FOLDER`` is shared by all processes.  They meet through a file in it, because a free port may
be taken a moment later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import Placement
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from torch_corr import Aten, Problem, convert, corr2d

from .laws import ABLE
from .networks import DRAWS, shaken

PROCESSES = 2
STEPS = 5
ROUNDOFF = torch.finfo(torch.float32).eps / 2
NAMED = tuple(each.name for each in ABLE if each != Aten())
ALGORITHMS = ("auto", "aten", *NAMED)


def small_network() -> nn.Module:
    """Dense, depthwise and strided layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False),
        nn.GELU(),
        nn.Conv2d(8, 4, 2, stride=2),
    )


def small_batch() -> tuple[Tensor, Tensor]:
    """Images for all processes together, and their targets."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2 * PROCESSES, 3, 8, 8, generator=generator)
    return images, torch.randn(2 * PROCESSES, 4, 4, 4, generator=generator)


def trained(model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Five steps of SGD with momentum; the parameters after them, in float64."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(images) - targets).square().mean().backward()
        optimizer.step()
    return {
        name.removeprefix("module."): whole(parameter).double()
        for name, parameter in model.named_parameters()
    }


def whole(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def sharded(model: nn.Module) -> nn.Module:
    """FSDP2: the layers with many weights on their own, the rest together."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    fully_shard(model[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


SCHEMES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": DistributedDataParallel,
    "FSDP2": sharded,
}


def training(rank: int) -> dict[str, Any]:
    """For each scheme the draws of nn.Conv2d's network, and ours for each algorithm."""
    images, targets = (value.chunk(PROCESSES)[rank] for value in small_batch())
    found: dict[str, Any] = {}
    for name, scheme in SCHEMES.items():
        draws = []
        for seed in range(DRAWS):
            model, data = shaken(small_network(), small_batch()[0], ROUNDOFF, seed)
            draws.append(trained(scheme(model), data.chunk(PROCESSES)[rank], targets))
        ours = {}
        for algorithm in ALGORITHMS:
            model = small_network()
            assert len(convert(model, algorithm).replaced) == 3
            ours[algorithm] = trained(scheme(model), images, targets)
        found[name] = {"draws": draws, "ours": ours}
    return found


def converted_late() -> dict[str, Any]:
    """FSDP2 before convert: the parameters after training, and the state of every layer."""
    images, targets = (value.chunk(PROCESSES)[dist.get_rank()] for value in small_batch())
    model = sharded(small_network())
    convolutions = [model[place] for place in (0, 2, 4)]

    def states() -> list[tuple[bool, bool]]:
        """Whether each layer is sharded, and whether it is converted."""
        return [
            (isinstance(each, FSDPModule), "_conv_forward" in vars(each)) for each in convolutions
        ]

    before = states()
    report = convert(model, "unfold")
    found = {"parameters": trained(model, images, targets), "skipped": report.skipped}
    after = states()
    report.revert()
    model(images)
    return {**found, "states": [before, after, states()]}


@dataclass(frozen=True)
class Case:
    """A correlation of DTensors.

    Attributes:
        spelling: the problem.
        placements: of input, weight and output.
        algorithm: the name of one, or "auto".
    """

    spelling: str
    placements: tuple[Placement, Placement, Placement]
    algorithm: str

    @property
    def problem(self) -> Problem:
        return Problem.parse(self.spelling)

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input, weight and a gradient for the output, the same in every process."""
        p, generator = self.problem, torch.Generator().manual_seed(0)
        shapes = p.input_shape, p.weight_shape, p.output_shape
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)


BATCH = Shard(0), Replicate(), Shard(0)
WHOLE = Replicate(), Replicate(), Replicate()
IN_CHANNELS = Shard(1), Shard(1), Partial()
OUT_CHANNELS = Replicate(), Shard(0), Shard(1)
DEPTHWISE = "n4c4-x7x6-o8-k3-p1-g4"
LARGE = "n4c8-x32-o8-k15-p7-g8"

CASES = [
    *(Case(DEPTHWISE, BATCH, algorithm) for algorithm in ("auto", "aten", *NAMED)),
    Case(LARGE, BATCH, "auto"),  # auto does not choose PyTorch here
    Case(DEPTHWISE, WHOLE, "unfold"),
    Case("n4c4-x7x6-o8-k3-s2-p2-d2-g4", BATCH, "unfold"),  # the same shapes, other numbers
    Case("n3c4-x7x6-o8-k3-p1-g4", BATCH, "unfold"),  # two images here, one there
    Case("n2c4-x7x6-o6-k3", IN_CHANNELS, "unfold"),
    Case("n2c4-x7x6-o6-k3", OUT_CHANNELS, "unfold"),
]


def dtensors() -> list[dict[str, Any]]:
    """For each case the whole results, their placements, and the number of communications."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    found = []
    for case in CASES:
        x, w, y = case.operands()
        placed = [
            distribute_tensor(value, mesh, [placement]).requires_grad_()
            for value, placement in zip((x, w), case.placements)
        ]
        partial = case.placements[2].is_partial()
        gradient = distribute_tensor(y, mesh, [Replicate() if partial else case.placements[2]])
        p = case.problem
        arguments = p.stride, p.padding[0], p.dilation, p.groups
        with CommDebugMode() as communication:
            result = corr2d(*placed, None, *arguments, algorithm=case.algorithm)
            results = result, *torch.autograd.grad(result, placed, gradient)
        found.append(
            {
                "placements": [each.placements[0] for each in results],
                "communications": communication.get_total_counts(),
                "values": [each.detach().full_tensor() for each in results],
            }
        )
    return found


def small_layer() -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias of a depthwise layer, float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 4, 7, 6), (8, 1, 3, 3), (8,)
    return tuple(torch.randn(each, generator=generator, dtype=torch.float64) for each in shapes)


def two_orders(function: Callable[..., Tensor], variables: Sequence[Tensor]) -> list[Tensor]:
    """The output, the gradients of its mean square, and those of the first gradient's square."""
    variables = [each.detach().requires_grad_() for each in variables]
    y = function(*variables, padding=1, groups=4)
    first = torch.autograd.grad(y.square().mean(), variables, create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), variables)
    return [each.detach() for each in (y, *first, *second)]


def as_conv2d() -> dict[str, Any]:
    """Results and placements of F.conv2d and corr2d, and their errors for a plain weight."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    x, w, b = small_layer()

    def run(function: Callable[..., Tensor]) -> list[Any]:
        variables = [
            distribute_tensor(value, mesh, [placement])
            for value, placement in zip((x, w, b), (Shard(0), Replicate(), Replicate()))
        ]
        results = two_orders(function, variables)
        return [(each.placements, each.full_tensor()) for each in results]

    def refusal(function: Callable[..., Tensor]) -> str:
        try:
            function(distribute_tensor(x, mesh, [Shard(0)]), w, padding=1, groups=4)
        except RuntimeError as error:
            return str(error)
        return ""

    named = partial(corr2d, algorithm="unfold")
    return {
        # In PyTorch 2.11 its second derivatives crash both processes.
        "conv2d": run(F.conv2d) if torch.__version__ >= "2.12" else [],
        "auto": run(corr2d),
        "unfold": run(named),
        "mixed": [refusal(F.conv2d), refusal(corr2d), refusal(named)],
    }


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=240),
    )
    found = {
        "training": training(rank),
        "converted late": converted_late(),
        "dtensors": dtensors(),
        "as conv2d": as_conv2d(),
    }
    torch.save(found, folder / f"found-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
