"""Shuffled training batches with light augmentation, the same for the same seed."""

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dtp_deploy.errors import UsageError


class TrainBatches:
    """Batches of (x, y); each iteration over it is one epoch, shuffled anew.

    It draws from a generator of its own, so the batches depend on the seed and on the epochs before, and on nothing
    else. The last batch of an epoch is dropped where it is incomplete, unless it is the only one.

    Args:
        x: float32 [n, channels, height, width].
        y: int64 [n].
        batch_size: samples a batch.
        seed: of the order and the augmentation.
        augment: shift each image by up to an eighth of its sides, filling with zeros.
        flip: mirror about half of the images, left to right. It turns some classes (digits, text) into others.

    Raises:
        UsageError: batch_size is below 1.

    >>> import numpy as np
    >>> batches = TrainBatches(np.zeros((10, 1, 8, 8), np.float32), np.arange(10), batch_size=4, seed=0)
    >>> len(batches), [tuple(x.shape) for x, y in batches]
    (2, [(4, 1, 8, 8), (4, 1, 8, 8)])
    """

    def __init__(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        batch_size: int,
        seed: int,
        augment: bool = False,
        flip: bool = False,
    ) -> None:
        assert len(x) == len(y), (len(x), len(y))
        assert len(x) > 0
        if batch_size < 1:
            raise UsageError(f"The batch size {batch_size} is not allowed. Give at least 1.")
        self._x = torch.from_numpy(x)
        self._y = torch.from_numpy(y)
        self._batch_size = min(batch_size, len(x))
        self._augment = augment
        self._flip = flip
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._x) // self._batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._x), generator=self._generator)
        for chosen in order[: len(self) * self._batch_size].view(len(self), self._batch_size).unbind():
            x = self._x[chosen]
            if self._augment:
                x = _shift(x, self._generator)
            if self._flip:
                mirrored = torch.rand(len(x), generator=self._generator) < 0.5
                x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
            yield x, self._y[chosen]


def _shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [channels, height, width] of x moved by a random offset of its own, zeros moving in."""
    count, _, height, width = x.shape
    most_y, most_x = height // 8, width // 8
    padded = functional.pad(x, (most_x, most_x, most_y, most_y)).movedim(1, -1)
    top = torch.randint(0, 2 * most_y + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * most_x + 1, (count, 1), generator=generator)
    rows = (top + torch.arange(height))[:, :, None]
    columns = (left + torch.arange(width))[:, None, :]
    samples = torch.arange(count)[:, None, None]
    return padded[samples, rows, columns].movedim(-1, 1).contiguous()
