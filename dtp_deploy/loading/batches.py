"""Shuffled training batches with light augmentation: the same for the same seed, and taken up again where left."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.source import Batch
from dtp_deploy.modules import Inputs

AUGMENTATIONS = ("none", "shift", "shift-flip")
"""What training images can go through. "shift" moves each by up to an eighth of its sides, zeros moving in;
"shift-flip" also mirrors about half of them, left to right, which turns some classes (digits, text) into others."""
_SHARE_FOR_DATA = 0.25


class TrainBatches:
    """Batches of ((x,), y) from arrays; each iteration over it is one epoch, shuffled anew.

    It draws from a generator of its own, so the batches depend on the seed and on the epochs before, and on nothing
    else. The last batch of an epoch is dropped where it is incomplete, unless it is the only one.

    Args:
        x: float32 [n, channels, height, width].
        y: int64 [n].
        batch_size: samples a batch.
        seed: of the order and the augmentation.
        augment: one of `AUGMENTATIONS`.

    Raises:
        UsageError: the batch size or the augmentation is not allowed.

    >>> batches = TrainBatches(np.zeros((10, 1, 8, 8), np.float32), np.arange(10), batch_size=4, seed=0)
    >>> len(batches), [tuple(x.shape) for (x,), y in batches]
    (2, [(4, 1, 8, 8), (4, 1, 8, 8)])
    """

    def __init__(
        self, x: npt.NDArray[Any], y: npt.NDArray[Any], batch_size: int, seed: int, augment: str = "none"
    ) -> None:
        assert len(x) == len(y), (len(x), len(y))
        assert len(x) > 0
        check_batching(batch_size, augment)
        self._x = torch.from_numpy(x)
        self._y = torch.from_numpy(y)
        self._batch_size = min(batch_size, len(x))
        self._augment = augment
        self._generator = torch.Generator().manual_seed(seed)
        self._epoch_start = self._generator.get_state()
        self._position = 0  # batches given of the epoch that began at _epoch_start
        self._resuming = False
        self._rows = slice(None)

    def share(self, rank: int, world: int) -> None:
        """See `TrainStream.share`."""
        check_shares(self._batch_size, world)
        self._rows = slice(rank, None, world)

    def keep_on(self, device: torch.device, free_bytes: int) -> bool:
        """Hold the arrays on a device from now on, if they take no more than a quarter of what is free there.

        What is drawn at random stays the same: batches are, but for where they lie.

        Returns:
            Whether they do.
        """
        fits = _SHARE_FOR_DATA * free_bytes >= self._x.nbytes + self._y.nbytes
        if fits:
            self._x, self._y = self._x.to(device), self._y.to(device)
        return fits

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._x) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        """One epoch, or, the first time after `load_state`, what is left of the epoch that the state was taken in."""
        if self._resuming:
            self._resuming = False
            now = self._generator.get_state()
            self._generator.set_state(self._epoch_start)
            order = self._order()
            self._generator.set_state(now)
        else:
            self._epoch_start, self._position = self._generator.get_state(), 0
            order = self._order()
        for chosen in order[self._position :].unbind():
            self._position += 1
            # All of the batch is augmented, so that all processes draw alike.
            x = augmented(self._x[chosen], self._augment, self._generator)
            yield (x[self._rows],), self._y[chosen[self._rows]]

    def state(self) -> dict[str, Any]:
        """Where the stream is: the batches given of this epoch, and the generator at its start and now."""
        return {
            "epoch_start": self._epoch_start.clone(),
            "generator": self._generator.get_state(),
            "position": self._position,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to where a stream of the same data, batch size and augmentation was.

        After the last batch of an epoch, the next iteration is a whole new epoch.
        """
        self._epoch_start = state["epoch_start"].clone()
        self._generator.set_state(state["generator"])
        self._position = state["position"]
        self._resuming = 0 < self._position < len(self)

    def _order(self) -> Tensor:
        """Index of each sample of one epoch, [batches, batch size]."""
        order = torch.randperm(len(self._x), generator=self._generator)
        return order[: len(self) * self._batch_size].view(len(self), self._batch_size)


class CountedStream(ABC):
    """A `TrainStream` whose batches follow from its seed, the epoch and the position in it alone.

    So its state is two numbers, and any number of workers gives the same batches.
    """

    def __init__(self) -> None:
        self._epoch = -1
        self._position = 0
        self._resuming = False
        self._rows = slice(None)

    @property
    @abstractmethod
    def batch_size(self) -> int | None:
        """Samples of a whole batch; None where only the batches tell."""

    def share(self, rank: int, world: int) -> None:
        """See `TrainStream.share`."""
        if self.batch_size is not None:
            check_shares(self.batch_size, world)
        self._rows = slice(rank, None, world)

    @abstractmethod
    def __len__(self) -> int:
        """Batches an epoch."""

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """This process's rows of the batches of an epoch, from position `start` on."""

    def __iter__(self) -> Iterator[Batch]:
        """One epoch, or, the first time after `load_state`, what is left of the epoch that the state was taken in."""
        if self._resuming:
            self._resuming = False
        else:
            self._epoch, self._position = self._epoch + 1, 0
        for batch in self.batches(self._epoch, self._position):
            self._position += 1
            yield batch

    def state(self) -> dict[str, Any]:
        """The epoch, from 0 (-1: not begun), and the batches given of it."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to where a stream of the same data, batch size and seed was.

        After the last batch of an epoch, the next iteration is a whole new epoch.
        """
        self._epoch, self._position = state["epoch"], state["position"]
        self._resuming = 0 < self._position < len(self)


def check_batching(batch_size: int, augment: str = "none") -> None:
    """Check what a user may set about batches.

    Raises:
        UsageError: the batch size is below 1, or the augmentation is unknown.
    """
    if batch_size < 1:
        raise UsageError(f"The batch size {batch_size} is not allowed. Give at least 1.")
    if augment not in AUGMENTATIONS:
        raise UsageError(f"The augmentation {augment!r} is unknown. Give one of {', '.join(AUGMENTATIONS)}.")


def check_shares(count: int, world: int) -> None:
    """Check that batches can be shared by processes.

    Raises:
        UsageError: some would get more than others.
    """
    if count % world:
        raise UsageError(
            f"Batches of {count} samples cannot be shared evenly by {world} processes. Give a --batch-size that is a "
            f"multiple of {world}, and no more than there are training samples."
        )


def check_finite(name: str, inputs: Inputs) -> None:
    """Check the inputs of the first validation batch: one NaN makes every weight NaN.

    Args:
        name: what the user gave as data.
        inputs: of one batch.

    Raises:
        InputError: a value is NaN or infinite.
    """
    if not all_finite(inputs):
        raise InputError(
            f"--data {name}: the first validation batch holds NaN or infinite inputs. Replace or drop those samples, "
            "or correct the preprocessing (a division by zero, say)."
        )


def all_finite(inputs: Inputs) -> bool:
    """Whether the inputs of a batch hold neither NaN nor infinity."""
    return all(bool(x.isfinite().all()) for x in inputs if x.is_floating_point())


def augmented(x: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """The images x [n, channels, height, width], each changed at random in its own way.

    Args:
        x: is left as it is.
        augment: one of `AUGMENTATIONS`.
        generator: what all randomness is drawn from.
    """
    if augment == "none":
        return x
    x = _shift(x, generator)
    if augment == "shift-flip":
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None].to(x.device), x.flip(-1), x)
    return x


def mixed_seed(*numbers: int) -> int:
    """A seed for `torch.Generator` that differs, and is unrelated, for any difference in the numbers.

    >>> mixed_seed(0, 1) == mixed_seed(0, 1), mixed_seed(0, 1) == mixed_seed(1, 0)
    (True, False)
    """
    words = np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)
    return int(words[0] >> 1)


def rebatch(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same samples in the same order in batches of `size`; the last may be smaller.

    Batches whose targets are neither a tensor nor None cannot be cut or joined, and come as they are.

    >>> given = [((torch.zeros(count, 1),), torch.arange(count)) for count in (2, 5, 1)]
    >>> [targets.tolist() for _, targets in rebatch(given, 3)]
    [[0, 1, 0], [1, 2, 3], [4, 0]]
    """
    inputs: Inputs = ()
    targets: Tensor | None = None
    for more_inputs, more_targets in batches:
        if not (more_targets is None or isinstance(more_targets, Tensor)):
            yield more_inputs, more_targets
            continue
        if inputs:
            more_inputs = tuple(torch.cat(pair) for pair in zip(inputs, more_inputs, strict=True))
            more_targets = (
                torch.cat([targets, more_targets]) if targets is not None and more_targets is not None else None
            )
        inputs, targets = more_inputs, more_targets
        while len(inputs[0]) >= size:
            yield tuple(x[:size] for x in inputs), None if targets is None else targets[:size]
            inputs, targets = tuple(x[size:] for x in inputs), None if targets is None else targets[size:]
        if len(inputs[0]) == 0:
            inputs, targets = (), None
    if inputs:
        yield inputs, targets


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
