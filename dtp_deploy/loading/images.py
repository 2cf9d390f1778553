"""Pictures from files, decoded as they are needed: never more of them in memory than a few batches.

A picture that cannot be read is counted and named, and stops a run only above a limit: see `Damage`.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dtp_deploy.errors import InputError
from dtp_deploy.loading.batches import CountedStream, augmented, check_batching, check_finite, mixed_seed, rebatch
from dtp_deploy.loading.preprocessing import Preprocessing
from dtp_deploy.loading.source import Batch
from dtp_deploy.loading.wording import cause, listing
from dtp_deploy.ranks import from_all_ranks

_DAMAGED_SHARE = 0.05
_NO_SEED = -1


class Damage:
    """The pictures of a folder that could not be read. At most 5 % of them may be damaged; one always may.

    Args:
        root: the folder.
        total: number of its pictures.
    """

    def __init__(self, root: Path, total: int) -> None:
        self._root, self._total = root, total
        self._limit = max(1, int(_DAMAGED_SHARE * total))
        self._reasons: dict[Path, str] = {}

    def __contains__(self, path: Path) -> bool:
        return path in self._reasons

    def add(self, reasons: Mapping[Path, str]) -> None:
        """Count pictures, each once.

        Raises:
            InputError: there are now more than allowed.
        """
        self._reasons |= reasons
        if len(self._reasons) > self._limit:
            raise InputError(
                f"--data {self._root}: {len(self._reasons)} of {self._total} pictures cannot be read "
                f"({self._named()}). At most {self._limit} may be damaged (5 %, at least 1). Replace or remove them."
            )

    def pool(self) -> None:
        """Count what other processes found too, who may have the folder in another place."""
        mine = {path.relative_to(self._root): reason for path, reason in self._reasons.items()}
        for found in from_all_ranks(mine):
            self.add({self._root / path: reason for path, reason in found.items()})

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence if any is damaged."""
        if not self._reasons:
            return ()
        return (
            f"{len(self._reasons)} of {self._total} pictures could not be read and were left out: {self._named()}.",
        )

    def _named(self) -> str:
        paths = sorted(self._reasons)
        return listing([f"{path.relative_to(self._root)}: {self._reasons[path]}" for path in paths])


@dataclass(frozen=True)
class Pictures:
    """The pictures of one part of a data set, in order.

    Attributes:
        files: at least one.
        labels: class index of each; None where there are no classes.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None = None

    def without(self, damage: Damage) -> "Pictures":
        """Those that are not damaged."""
        kept = [index for index, path in enumerate(self.files) if path not in damage]
        labels = None if self.labels is None else tuple(self.labels[index] for index in kept)
        return Pictures(tuple(self.files[index] for index in kept), labels)


class PictureFolder:
    """Pictures in files, with their classes or without. It is a `DataSource`.

    Damage that only shows when a whole picture is decoded is met on the way: in training the next readable picture
    (with its own label) takes the place of a damaged one; in validation it is left out, and `validation_size` counts
    it no more.

    Args:
        root: the folder that the user named.
        train, validation: what it holds.
        preprocessing: with a size.
        damage: what was found so far.
        class_names: in the order of the class indices.
        notes: what a reader of the report should know.
        workers: processes that decode.
    """

    def __init__(
        self,
        root: Path,
        train: Pictures,
        validation: Pictures,
        preprocessing: Preprocessing,
        damage: Damage,
        *,
        class_names: tuple[str, ...] | None = None,
        notes: tuple[str, ...] = (),
        workers: int = 0,
    ) -> None:
        assert preprocessing.output_shape is not None
        self.name = root.resolve().name
        self.class_names = class_names
        self.sample_shapes = (preprocessing.output_shape,)
        self._root, self._train, self._validation = root, train, validation
        self._preprocessing, self._damage, self._notes, self._workers = preprocessing, damage, notes, workers

    @property
    def labelled(self) -> bool:
        """Whether the pictures lie in folders of classes."""
        return self.class_names is not None

    @property
    def num_classes(self) -> int | None:
        """Number of folders of classes."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How every picture becomes an input."""
        return self._preprocessing.to_json()

    @property
    def notes(self) -> tuple[str, ...]:
        """How the folder was read, and which pictures were found damaged so far."""
        return self._notes + self._damage.notes

    @property
    def validation_size(self) -> int:
        """Pictures of the validation part that are not known to be damaged; exact after a pass through it."""
        return len(self._validation.without(self._damage).files)

    def train(self, batch_size: int, seed: int, augment: str = "none") -> CountedStream:
        """See `DataSource.train`."""
        check_batching(batch_size, augment)
        return _PictureStream(self, batch_size, seed, augment)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """See `DataSource.validation`."""
        check_batching(batch_size)
        part = self._validation.without(self._damage)
        count = len(part.files)
        keys = (
            [(index, _NO_SEED) for index in range(s, min(s + batch_size, count))] for s in range(0, count, batch_size)
        )
        batches = rebatch(self._decoded(part, keys, "none", substitutes=0), batch_size)
        for number, (inputs, labels) in enumerate(batches):
            if number == 0:
                check_finite(str(self._root), inputs)
            yield inputs, labels

    def training_batches(self, keys: Iterable[list[tuple[int, int]]], augment: str) -> Iterator[Batch]:
        """Batches of the training part.

        Args:
            keys: for each batch, the index of each picture and the seed of its augmentation.
            augment: one of `AUGMENTATIONS`.
        """
        return self._decoded(self._train, keys, augment, substitutes=len(self._train.files) - 1)

    def pool_damage(self) -> None:
        """Learn which pictures other processes found damaged, and tell them. All call it at the same time."""
        self._damage.pool()

    @property
    def train_size(self) -> int:
        """Pictures of the training part."""
        return len(self._train.files)

    def _decoded(
        self, part: Pictures, keys: Iterable[list[tuple[int, int]]], augment: str, substitutes: int
    ) -> Iterator[Batch]:
        loader = DataLoader(
            _Decoder(part.files, self._preprocessing, augment, substitutes),
            batch_sampler=keys,
            num_workers=self._workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # so that it leaves the global one alone
        )
        given = 0
        for decoded in loader:
            self._damage.add({part.files[index]: reason for index, reason in decoded.damaged})
            if decoded.pictures is not None:
                given += len(decoded.indices)
                labels = (
                    None if part.labels is None else torch.tensor([part.labels[index] for index in decoded.indices])
                )
                yield (decoded.pictures,), labels
        if given == 0:
            raise InputError(f"--data {self._root}: none of its pictures can be read. Replace them.")


def read_picture(path: Path, preprocessing: Preprocessing) -> Tensor:
    """The input that a picture becomes, float32 [channels, height, width].

    Raises:
        InputError: it cannot be read or decoded; the message is the cause alone.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags and large pictures
            with Image.open(path) as image:
                return torch.from_numpy(preprocessing.apply(image))
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise InputError(_cause(error, path)) from error


def check_header(path: Path) -> str | None:
    """Why a picture cannot be read, as far as its header tells (of a PNG: its checksums); None if nothing is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.verify()
    except Exception as error:
        return _cause(error, path)
    return None


def _cause(error: Exception, path: Path) -> str:
    """The cause in a word or two, without the path, which is told anyway."""
    if isinstance(error, InputError):
        return str(error)
    if path.stat().st_size == 0:
        return "empty"
    return "no picture" if isinstance(error, UnidentifiedImageError) else cause(error)


class _PictureStream(CountedStream):
    def __init__(self, folder: PictureFolder, batch_size: int, seed: int, augment: str) -> None:
        super().__init__()
        self._folder, self._seed, self._augment = folder, seed, augment
        self._batch_size = min(batch_size, folder.train_size)

    @property
    def batch_size(self) -> int:
        return self._batch_size

    def __len__(self) -> int:
        return self._folder.train_size // self._batch_size

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(mixed_seed(self._seed, epoch))
        order = torch.randperm(self._folder.train_size, generator=generator)
        order = order[: len(self) * self._batch_size].view(len(self), self._batch_size)
        keys = (
            [(index, mixed_seed(self._seed, epoch, index)) for index in chosen.tolist()]
            for chosen in order[start:, self._rows].unbind()
        )
        shared = self._rows != slice(None)
        for position, batch in enumerate(self._folder.training_batches(keys, self._augment), start + 1):
            if shared and position == len(self):
                self._folder.pool_damage()
            yield batch


@dataclass(frozen=True)
class _Decoded:
    """What came of a batch: the pictures that could be read, and which; and those that could not, and why."""

    pictures: Tensor | None
    indices: list[int]
    damaged: list[tuple[int, str]] = field(default_factory=list)


class _Decoder(TorchDataset[_Decoded]):
    """Decodes one picture, or else one of the `substitutes` that follow it. Runs in the workers."""

    def __init__(self, files: Sequence[Path], preprocessing: Preprocessing, augment: str, substitutes: int) -> None:
        self._files, self._preprocessing, self._augment = files, preprocessing, augment
        self._substitutes = substitutes

    def __getitem__(self, key: tuple[int, int]) -> _Decoded:
        first, seed = key
        damaged: list[tuple[int, str]] = []
        for step in range(self._substitutes + 1):
            index = (first + step) % len(self._files)
            try:
                picture = read_picture(self._files[index], self._preprocessing)
            except InputError as error:
                damaged.append((index, str(error)))
                continue
            if seed != _NO_SEED:
                picture = augmented(picture[None], self._augment, torch.Generator().manual_seed(seed))[0]
            return _Decoded(picture, [index], damaged)
        return _Decoded(None, [], damaged)


def _collate(parts: list[_Decoded]) -> _Decoded:
    pictures = [part.pictures for part in parts if part.pictures is not None]
    return _Decoded(
        torch.stack(pictures) if pictures else None,
        [index for part in parts for index in part.indices],
        [damage for part in parts for damage in part.damaged],
    )
