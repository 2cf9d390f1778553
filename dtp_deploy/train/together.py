"""One model that several processes train: their gradients averaged, their BatchNorm statistics those of the first."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dtp_deploy.modules import device_of
from dtp_deploy.ranks import copy_from_first, world_size
from dtp_deploy.train.batchnorm import synchronised_batchnorm


@contextmanager
def trained_together(model: nn.Module) -> Iterator[nn.Module]:
    """The model as it is to be called in training; what is called trains `model` itself.

    It is as users of DistributedDataParallel expect: every process normalises by its own share of the batch on CPUs,
    and by all of it on CUDA devices, and the running statistics are those of the first process. At the end all have
    the same.
    """
    if world_size() == 1:
        yield model
        return
    with ExitStack() as stack:
        if synchronises(device_of(model)):
            stack.enter_context(synchronised_batchnorm(model))
        yield DistributedDataParallel(model, find_unused_parameters=True)
    copy_from_first(model.buffers())


def synchronises(device: torch.device) -> bool:
    """Whether BatchNorm can take its statistics from the batch of all processes there: PyTorch can on CUDA devices."""
    return device.type == "cuda"
