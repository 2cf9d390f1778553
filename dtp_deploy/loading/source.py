"""What the pipeline asks of data, wherever the data come from.

`Dataset` (arrays in memory), `PictureFolder` (files, decoded as they are needed), `SyntheticData` (no data at all)
and `LoaderData` (the user's own loaders) fulfil `DataSource`.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from dtp_deploy.modules import Inputs

Batch = tuple[Inputs, Any]
"""The inputs of the model, batch first, and the targets: a tensor, whatever the user's own loader gives, or None."""

JSON = str | int | float | bool | None | list["JSON"] | dict[str, "JSON"]
"""What a JSON file can hold."""


class TrainStream(Protocol):
    """Batches to train with. Each iteration over it is one epoch, shuffled anew."""

    def __len__(self) -> int:
        """Batches an epoch, at least 1."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """One epoch, or, the first time after `load_state`, the rest of the epoch that the state was taken in."""
        ...

    def share(self, rank: int, world: int) -> None:
        """Give only every `world`-th sample of each batch from now on, from `rank` on.

        All processes go through the same batches, so together they see what a single one would; the state stays that of
        the whole stream, and a run may go on with another number of them.

        Raises:
            UsageError: a batch cannot be shared evenly.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Where the stream is, in plain values and tensors, which `torch.load(weights_only=True)` reads again."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to where a stream of the same data, batch size and seed was: the batches that follow are the same."""
        ...


class DataSource(Protocol):
    """Training and validation data.

    Attributes:
        name: what it is called in the report.
        labelled: whether batches have targets.
        num_classes: number of classes; None where there are none.
        class_names: in the order of the class indices; None where they have no names.
        sample_shapes: shape of each input of the model, without the batch dimension.
        preprocessing: what turns a picture into an input, for the report; {} if nothing is known.
        notes: what a reader of the report should know, such as corrupted images. Read it after the data were used.
        validation_size: samples in `validation`.
    """

    @property
    def name(self) -> str: ...
    @property
    def labelled(self) -> bool: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def class_names(self) -> tuple[str, ...] | None: ...
    @property
    def sample_shapes(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def preprocessing(self) -> dict[str, JSON]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def validation_size(self) -> int: ...

    def train(self, batch_size: int, seed: int, augment: str = "none") -> TrainStream:
        """Shuffled batches, the same for the same seed. The last incomplete one is dropped, unless it is the only one.

        Args:
            batch_size: samples a batch.
            seed: of the order and the augmentation.
            augment: one of `batches.AUGMENTATIONS`.

        Raises:
            UsageError: the batch size or the augmentation is not allowed.
        """
        ...

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """Every validation sample once, in order; the last batch may be smaller."""
        ...
