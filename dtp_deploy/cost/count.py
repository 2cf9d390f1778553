"""Counting what a given model costs, by torch's own counters: the reference for every formula in this package."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dtp_deploy.modules import Inputs, as_inputs, evaluating


def count_macs(model: nn.Module, inputs: Tensor | Inputs) -> int:
    """Multiply-accumulate operations of one forward pass in eval mode: convolutions and all matrix products.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 4, 4))
    3456
    """
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*as_inputs(inputs))
    return int(counter.get_total_flops()) // 2


def macs_per_sample(model: nn.Module, inputs: Tensor | Inputs) -> int:
    """The same for one sample of the batch that `inputs` are.

    >>> macs_per_sample(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(5, 3, 4, 4))
    3456
    """
    return round(count_macs(model, inputs) / len(as_inputs(inputs)[0]))


def count_parameters(model: nn.Module) -> int:
    """Number of values in all parameters, shared ones once.

    >>> count_parameters(nn.Linear(2, 3))
    9
    """
    return sum(parameter.numel() for parameter in model.parameters())
