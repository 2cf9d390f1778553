"""The training data as one process gets them: its share of every batch, on its device where they fit."""

import torch

from dtp_deploy.loading.batches import TrainBatches
from dtp_deploy.loading.source import DataSource, TrainStream
from dtp_deploy.memory import free_bytes
from dtp_deploy.ranks import rank, world_size
from dtp_deploy.train.settings import Settings


def open_stream(data: DataSource, settings: Settings, device: torch.device) -> TrainStream:
    """The batches that this process trains with.

    Raises:
        UsageError: the settings do not fit the data, or a batch cannot be shared evenly by the processes.
    """
    stream = data.train(settings.batch_size, settings.seed, settings.augment)
    if world_size() > 1:
        stream.share(rank(), world_size())
    if isinstance(stream, TrainBatches):
        stream.keep_on(device, free_bytes(device))
    return stream
