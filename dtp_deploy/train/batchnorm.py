"""BatchNorm in training: over all processes, and estimated anew for the network that is left after removal."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dtp_deploy.modules import Inputs, device_of

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def synchronised_batchnorm(model: nn.Module) -> Iterator[None]:
    """Within the block BatchNorm takes its statistics from the batch of all processes.

    Every layer is replaced by one that shares its tensors, and put back at the end: whoever exports the model, or
    removes channels from it, meets the layers that it was made of. Subclasses of BatchNorm, which may do more than
    normalise (timm's hold the activation), stay what they are.
    """
    replaced = [
        (model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], module)
        for path, module in model.named_modules(remove_duplicate=False)
        if path and type(module) in _PLAIN
    ]
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    stand_ins = {module: convert(module) for _, _, module in replaced}
    for parent, name, module in replaced:
        setattr(parent, name, stand_ins[module])
    try:
        yield
    finally:
        for parent, name, module in replaced:
            setattr(parent, name, module)


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Replace running means and variances by their averages over the batches; everything else stays in eval mode.

    Args:
        model: changed in place; one without BatchNorm is left as it is.
        batches: inputs, each batch first with more than one sample.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    with torch.no_grad():
        for inputs in batches:
            model(*(tensor.to(device_of(model)) for tensor in inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
