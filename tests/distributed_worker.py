"""One of the processes that test_distributed.py starts; what it finds goes into a file.

    python tests/distributed_worker.py RANK FOLDER

``FOLDER`` is shared by all processes; they meet through a file in it, since a port that is free
now may not be a moment later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from networks import DRAWS, shaken
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from torch_corr import convert

PROCESSES = 2
STEPS = 5
ROUNDOFF = torch.finfo(torch.float32).eps / 2
ALGORITHMS = ("auto", "aten", "unfold", "fft")


def small_network() -> nn.Module:
    """Dense, depthwise and strided layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False),
        nn.GELU(),
        nn.Conv2d(8, 4, 2, stride=2),
        nn.Flatten(),
    )


def small_batch() -> tuple[Tensor, Tensor]:
    """Images for all processes together, and what the network should make of them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2 * PROCESSES, 3, 8, 8, generator=generator)
    return images, torch.randn(2 * PROCESSES, 4 * 4 * 4, generator=generator)


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
    torch.save({"training": training(rank)}, folder / f"found-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
