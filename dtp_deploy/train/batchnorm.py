"""BatchNorm statistics, estimated anew for the network that is left after removal."""

from collections.abc import Iterable

import torch
from torch import nn

from dtp_deploy.modules import Inputs, device_of


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
