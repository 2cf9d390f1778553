"""Images and filters with their channels last in memory: the same numbers, in the order in which training is faster.

On a CPU a training step took 0.6 to 1 times as long (`benchmarks/RESULTS.md`); on CUDA devices tensor cores read it so.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dtp_deploy.modules import Inputs


def gains_from_channels_last(model: nn.Module, inputs: Inputs) -> bool:
    """Whether there are images, and two-dimensional convolutions that read them."""
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    return any(x.ndim == 4 for x in inputs) and any(isinstance(module, convolutions) for module in model.modules())


def images_last(inputs: Inputs) -> Inputs:
    """The same inputs, every four-dimensional one with its channels last in memory."""
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Within the block the filters lie with their channels last; parameters stay the same objects with the same values.

    Afterwards they are contiguous, as every model is made.
    """
    _lay_out(model, torch.channels_last)
    try:
        yield
    finally:
        _lay_out(model, torch.contiguous_format)


def _lay_out(model: nn.Module, order: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 4:
            # Not `contiguous`, which leaves filters of one channel with strides that no gradient has.
            parameter.data = parameter.data.clone(memory_format=order)
