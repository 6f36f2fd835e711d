"""PyTorch features around ``nn.Conv2d`` give the same results with ``Corr2d``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, skip_init
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import CheckpointPolicy, checkpoint
from torch.utils.checkpoint import create_selective_checkpoint_contexts as selective

from support.laws import each_on_cpu
from support.layers import close, images, step, twins
from torch_corr import Aten, Corr2d, corr2d


@each_on_cpu
def test_grad_scaler(algorithm):
    """One of the steps overflows and is skipped."""
    layers = twins(algorithm)
    for layer in layers:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        for factor in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(layer(images()).square().mean() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0**9
    close(*(list(layer.parameters()) for layer in layers))


@each_on_cpu
def test_layer_made_on_meta_is_materialized_later(algorithm):
    full, _ = twins(algorithm)
    with torch.device("meta"):
        empty, _ = twins(algorithm)
    assert empty.weight.is_meta
    assert empty(torch.empty(2, 4, 7, 8, device="meta", dtype=torch.float64)).is_meta
    loaded = copy.deepcopy(empty)
    loaded.load_state_dict(full.state_dict(), assign=True)
    assert loaded.weight.data_ptr() == full.weight.data_ptr()
    arguments = {"padding": 1, "groups": 2, "dtype": torch.float64, "algorithm": algorithm}
    skipped = skip_init(Corr2d, 4, 6, 3, **arguments)
    assert (type(skipped), skipped.weight.device.type) == (Corr2d, "cpu")
    for layer in (empty.to_empty(device="cpu"), skipped):
        layer.load_state_dict(full.state_dict())
        close(layer(images()), full(images()))


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm": partial(parametrizations.spectral_norm, n_power_iterations=3),
    "old weight_norm": torch.nn.utils.weight_norm,
    "old spectral_norm": torch.nn.utils.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.4),
    "structured prune": lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0),
}


@each_on_cpu
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_parametrized_weights(name, algorithm):
    layers = twins(algorithm)
    results = []
    for layer in layers:
        torch.manual_seed(3)
        WRAPPERS[name](layer)
        results.append(step(layer, images()))
    close(*results)
    if parametrize.is_parametrized(layers[0]):
        parametrize.remove_parametrizations(layers[0], "weight")
        assert type(layers[0]) is Corr2d


@each_on_cpu
def test_fusion_with_batch_norm(algorithm):
    norm = nn.BatchNorm2d(6, dtype=torch.float64)
    norm.running_mean.uniform_()
    norm.running_var.uniform_(0.5, 2)
    ours, theirs = (fuse_conv_bn_eval(each.eval(), norm.eval()) for each in twins(algorithm))
    assert type(ours) is Corr2d
    assert ours.algorithm == algorithm
    close(ours(images()), theirs(images()))


@each_on_cpu
def test_hooks(algorithm):
    results = []
    for layer in twins(algorithm):
        seen: list[Any] = []
        layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
        layer.register_forward_hook(lambda _, inputs, output: output + inputs[0].sum())
        layer.register_full_backward_pre_hook(lambda _, gradients: (gradients[0] * 3,))
        layer.register_full_backward_hook(
            lambda _, gradients, outer, seen=seen: seen.extend([*gradients, *outer])
        )
        layer.weight.register_hook(lambda gradient: gradient + 1)
        x = images().requires_grad_()
        layer(x).square().sum().backward()
        results.append([*seen, x.grad, layer.weight.grad, layer.bias.grad])
    close(*results)


@each_on_cpu
@pytest.mark.parametrize("kind", ["reentrant", "not", "selective"])
def test_checkpointing(kind, algorithm):
    """A selective policy sees our operators too."""
    requested: list[str] = []

    def policy(_, operator, *args, **kwargs):
        requested.append(str(operator))
        return CheckpointPolicy.MUST_SAVE

    results = []
    for layer in twins(algorithm):
        net = nn.Sequential(layer, nn.Tanh())
        more: dict[str, Any] = {"use_reentrant": kind == "reentrant"}
        if kind == "selective":
            more["context_fn"] = partial(selective, policy)
        x = images().requires_grad_()
        y = checkpoint(net, x, **more)
        y.square().sum().backward()
        results.append((y, x.grad, *(each.grad for each in net.parameters())))
    close(*results)
    if kind == "selective":
        assert any("conv" in each or "torch_corr.forward" in each for each in requested)
        if algorithm not in ("auto", Aten()):
            assert "torch_corr.forward.default" in requested


@each_on_cpu
def test_saved_tensor_hooks(algorithm):
    results = []
    for layer in twins(algorithm):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value: value.numpy(force=True), torch.from_numpy
        ):
            x = images().requires_grad_()
            y = layer(x)
        results.append(torch.autograd.grad(y.square().sum(), (x, layer.weight)))
    close(*results)
    with torch.autograd.graph.save_on_cpu():
        close(step(twins(algorithm)[0], images()), step(twins(algorithm)[1], images()))


@each_on_cpu
def test_second_backward_raises(algorithm):
    for layer in twins(algorithm):
        y = layer(images()).sum()
        y.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            y.backward()


def test_repr_of_result_names_correlation_backward():
    weight = twins("unfold")[0].weight
    y = corr2d(images(), weight, groups=2, algorithm="unfold")
    assert "grad_fn=<CorrelationBackward>" in repr(y)


@each_on_cpu
def test_tensor_subclass_is_kept(algorithm):

    class Tagged(Tensor):
        pass

    x, w = images().as_subclass(Tagged), torch.randn(4, 4, 3, 3, dtype=torch.float64)
    ours, theirs = corr2d(x, w, algorithm=algorithm), F.conv2d(x, w)
    assert type(ours) is type(theirs) is Tagged
    close(ours, theirs)
