"""Physical removal: slice every tensor that the plan names, and set the layers' widths from their tensors."""

import copy
from typing import Any, cast

import torch
from torch import nn

from dtp_deploy.graph import set_tensor, tensor_by_name
from dtp_deploy.prune.plan import PruningPlan

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def remove_channels(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of the dense model without the channels that the plan removes.

    Args:
        model: the dense model; not changed.
        plan: made for a model of the same tensor names and shapes.

    Returns:
        The smaller model, in the same mode (train or eval), its parameters new leaf tensors.

    Raises:
        InputError: the plan was made for another model.
    """
    plan.check(model)
    small = copy.deepcopy(model)
    for name, dims in plan.tensors.items():
        tensor = tensor_by_name(small, name).detach()
        for dim, kept in dims.items():
            tensor = tensor.index_select(dim, torch.tensor(kept, dtype=torch.int64, device=tensor.device))
        set_tensor(small, name, tensor.contiguous())
    for path in {name.rpartition(".")[0] for name in plan.tensors}:
        _set_widths(small.get_submodule(path))
    return small


def _set_widths(module: nn.Module) -> None:
    """Make the attributes of a layer agree with its tensors; a module whose parameters are its own needs none."""
    layer = cast(Any, module)
    if isinstance(module, _TRANSPOSED):
        if module.groups == module.out_channels and module.groups > 1:
            layer.groups = layer.weight.shape[0]
        layer.in_channels, layer.out_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups == module.out_channels and module.groups > 1:
            layer.groups = layer.weight.shape[0]
        layer.in_channels, layer.out_channels = layer.weight.shape[1] * layer.groups, layer.weight.shape[0]
    elif isinstance(module, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        known = layer.weight if layer.weight is not None else layer.running_mean
        if known is not None:
            layer.num_features = known.shape[0]
    elif isinstance(module, nn.PReLU):
        layer.num_parameters = layer.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape
