"""Physical removal: slice every tensor that the plan names, and set the layers' widths from their tensors.

The modules of a removed residual block give zeros in place of what they gave: the addition stays in the code of the
model, and every exporter sees that it does nothing.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dtp_deploy.errors import InputError
from dtp_deploy.graph import set_tensor, tensor_by_name
from dtp_deploy.prune.plan import PruningPlan, outermost

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Nothing(nn.Module):
    """What stands in the place of a removed module: zeros of its input's shape, and no tensors of its own."""

    def forward(self, first: Tensor, *others: object, **named: object) -> Tensor:
        """Zeros like the first input, which is not touched even where later layers work in place."""
        return torch.zeros_like(first)


def remove_blocks(model: nn.Module, modules: Iterable[str]) -> nn.Module:
    """A copy of a model whose named modules give nothing.

    Args:
        model: not changed.
        modules: all modules of some residual blocks.
    """
    small = copy.deepcopy(model)
    for path in outermost(modules):
        small.set_submodule(path, Nothing().train(small.get_submodule(path).training))
    return small


@contextmanager
def blocks_silenced(model: nn.Module, ends: Iterable[str]) -> Iterator[None]:
    """Within the context, the named modules' outputs are zeros of the same shape: the mask of a whole block.

    Args:
        model: whole.
        ends: the last module of each residual block.
    """
    handles = [model.get_submodule(end).register_forward_hook(_zeros) for end in ends]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def remove_channels(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of the dense model without the channels and residual blocks that the plan removes.

    Args:
        model: the dense model; not changed.
        plan: made for a model of the same tensor names and shapes.

    Returns:
        The smaller model, in the same mode (train or eval), its parameters new leaf tensors.

    Raises:
        InputError: the plan was made for another model, or is damaged.
    """
    plan.check(model)
    if (damage := plan.damage(model)) is not None:
        raise InputError(f"The pruning plan is damaged: {damage}. Compress the model again.")
    small = remove_blocks(model, plan.removed_modules)
    for name, dims in plan.tensors.items():
        tensor = tensor_by_name(small, name).detach()
        for dim, kept in dims.items():
            tensor = tensor.index_select(dim, torch.tensor(kept, dtype=torch.int64, device=tensor.device))
        set_tensor(small, name, tensor.contiguous())
    for path in {name.rpartition(".")[0] for name in plan.tensors}:
        _set_widths(small.get_submodule(path))
    return small


def _zeros(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


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
