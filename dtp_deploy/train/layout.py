"""Images and filters with their channels last in memory: the same numbers, in the order in which training is faster.

On a CPU a training step took 0.6 to 1 times as long (`benchmarks/RESULTS.md`); on CUDA devices tensor cores read it so.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dtp_deploy.modules import Inputs

_SAFE_CHANNELS = 8


def gains_from_channels_last(model: nn.Module, inputs: Inputs) -> bool:
    """Whether there are images, and two-dimensional convolutions that read them and can take it."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    return bool(convolutions) and any(x.ndim == 4 for x in inputs) and not any(map(_overruns, convolutions))


def _overruns(convolution: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether oneDNN may write past its buffers: the gradient of a strided 1x1 convolution that reads few channels.

    Seen with torch 2.13.0 on an x86-64 CPU with AVX2: with channels last, and fewer than 8 channels read, the heap was
    corrupted in all of ten shapes; with 8 to 20, and with channels first, in none. CUDA is not concerned.
    """
    if convolution.weight.is_cuda or any(size > 1 for size in convolution.kernel_size):
        return False
    return any(stride > 1 for stride in convolution.stride) and convolution.in_channels < _SAFE_CHANNELS


def laid_out(inputs: Inputs, order: torch.memory_format) -> Inputs:
    """The same inputs, every four-dimensional one in this order of memory.

    Strides are what a convolution goes by. Of images of one channel both orders count as contiguous, whatever their
    strides, so that it takes a copy to be sure.
    """
    return tuple(_copied(x, order) if x.ndim == 4 else x for x in inputs)


def _copied(x: Tensor, order: torch.memory_format) -> Tensor:
    wanted = torch.empty(x.shape, device="meta", memory_format=order).stride()
    return x if x.stride() == wanted else x.clone(memory_format=order)


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
