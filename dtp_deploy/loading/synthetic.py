"""No data at all: random inputs, for which only the dense model knows what the right outputs are."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtp_deploy.errors import InputError
from dtp_deploy.loading.batches import CountedStream, augmented, check_batching, mixed_seed
from dtp_deploy.loading.preprocessing import Preprocessing
from dtp_deploy.loading.source import Batch
from dtp_deploy.loading.wording import shape_text

_TRAIN_SIZE = 2048
_VALIDATION_SIZE = 256
_VALIDATION = 2**32  # in the place of an epoch, where no epoch comes to
_MEAN_PIXEL, _PIXEL_SPREAD = 0.5, 0.25


class SyntheticData:
    """Inputs drawn anew for every batch, without labels. It is a `DataSource`.

    Without a preprocessing they are standard normal. With one, they are what it makes of pictures whose pixels are
    normal around medium grey (a quarter of the range as their standard deviation, cut at black and white).

    Args:
        input_shapes: of each input of the model, batch first.
        preprocessing: of a model that takes one picture.
        seed: of the validation samples; those for training follow from the seed of `train` too.

    Raises:
        InputError: the preprocessing makes pictures of another number of channels, or another size.

    >>> data = SyntheticData([(1, 3, 8, 8)])
    >>> (inputs,), targets = next(iter(data.train(16, seed=0)))
    >>> tuple(inputs.shape), targets
    ((16, 3, 8, 8), None)
    """

    name = "synthetic"
    labelled = False
    num_classes = None
    class_names = None
    validation_size = _VALIDATION_SIZE
    notes = ("No data were given: the inputs are random.",)

    def __init__(
        self, input_shapes: Sequence[tuple[int, ...]], preprocessing: Preprocessing | None = None, seed: int = 0
    ) -> None:
        self.sample_shapes = tuple(tuple(shape[1:]) for shape in input_shapes)
        self._scaling = None if preprocessing is None else _sized(preprocessing, self.sample_shapes)
        self._seed = seed

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What was given, with its size; {} if nothing was."""
        return {} if self._scaling is None else self._scaling.to_json()

    def train(self, batch_size: int, seed: int, augment: str = "none") -> CountedStream:
        """See `DataSource.train`. An epoch has 2,048 samples, others in each epoch."""
        check_batching(batch_size, augment)
        return _SyntheticStream(self, batch_size, mixed_seed(self._seed, seed), augment)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """See `DataSource.validation`. The same samples for any batch size."""
        check_batching(batch_size)
        for start in range(0, _VALIDATION_SIZE, batch_size):
            indices = range(start, min(start + batch_size, _VALIDATION_SIZE))
            singles = [self.draw(1, _generator(self._seed, _VALIDATION, index)) for index in indices]
            yield tuple(torch.cat(parts) for parts in zip(*singles, strict=True)), None

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """`count` samples of every input."""
        drawn = tuple(torch.randn((count, *shape), generator=generator) for shape in self.sample_shapes)
        if self._scaling is None:
            return drawn
        (normal,) = drawn
        pixels = (_MEAN_PIXEL + _PIXEL_SPREAD * normal).clamp(0, 1).mul(255).round().numpy().astype(np.uint8)
        return (torch.from_numpy(self._scaling.scale(pixels)),)


class _SyntheticStream(CountedStream):
    def __init__(self, data: SyntheticData, batch_size: int, seed: int, augment: str) -> None:
        super().__init__()
        self._data, self._seed, self._augment = data, seed, augment
        self._batch_size = min(batch_size, _TRAIN_SIZE)

    @property
    def batch_size(self) -> int:
        return self._batch_size

    def __len__(self) -> int:
        return _TRAIN_SIZE // self._batch_size

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        for position in range(start, len(self)):
            generator = _generator(self._seed, epoch, position)
            inputs = self._data.draw(self._batch_size, generator)
            whole = [augmented(x, self._augment, generator) if x.ndim == 4 else x for x in inputs]
            yield tuple(x[self._rows] for x in whole), None


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(mixed_seed(*numbers))


def _sized(preprocessing: Preprocessing, shapes: tuple[tuple[int, ...], ...]) -> Preprocessing:
    shape = shapes[0]
    if len(shapes) == 1 and len(shape) == 3:
        sized = preprocessing.sized(shape[1], shape[2])
        if sized.output_shape == shape:
            return sized
    made = preprocessing.output_shape
    raise InputError(
        f"The preprocessing makes {shape_text(made) if made else f'{preprocessing.channels} pictures'}, and --input is "
        f"{' and '.join(shape_text((1, *given)) for given in shapes)}. Give a preprocessing for that input, or none."
    )
