"""Data to train and validate with, from what the user names: see `load_data` and docs/data.md."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.arrays import checked, scaled
from dtp_deploy.loading.batches import TrainBatches, check_batching
from dtp_deploy.loading.files import require_file
from dtp_deploy.loading.folders import check_val_split, holds_pictures, open_folder
from dtp_deploy.loading.idx import FASHION_CLASSES, FASHION_MNIST, holds_idx, read_idx_folder
from dtp_deploy.loading.images import PictureFolder
from dtp_deploy.loading.loaders import open_loaders
from dtp_deploy.loading.npz import read_npz
from dtp_deploy.loading.preprocessing import Preprocessing
from dtp_deploy.loading.source import Batch, DataSource
from dtp_deploy.loading.synthetic import SyntheticData
from dtp_deploy.loading.wording import shape_text

_DIGITS_SPLIT_SEED = 0  # part of what "digits" means: an accuracy on it is comparable between runs, whatever their seed
_CHANNEL_COUNTS = (1, 3, 4)
_ALLOWED = (
    "Give a folder of pictures or of IDX files, an .npz file, pkg.module:factory, 'digits', 'fashion-mnist' or "
    "'synthetic'."
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their classes, in memory. It is a `DataSource`.

    Attributes:
        name: what it is called in the report: "digits", or the file's name.
        x_train, x_val: float32 [n, channels, height, width].
        y_train, y_val: int64 [n], class indices from 0.
        class_names: in the order of the class indices; None where they have no names.
        preprocessing: what a picture would need to become such an image; {} if that is not known.
        notes: what a reader of the report should know.
    """

    name: str
    x_train: npt.NDArray[np.float32]
    y_train: npt.NDArray[np.int64]
    x_val: npt.NDArray[np.float32]
    y_val: npt.NDArray[np.int64]
    class_names: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """Always: an image without a class has no place here."""
        return True

    @property
    def num_classes(self) -> int:
        """One more than the largest class index, in training or validation."""
        return int(max(self.y_train.max(), self.y_val.max())) + 1

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.x_train.shape
        return channels, height, width

    @property
    def sample_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of the only input."""
        return (self.sample_shape,)

    @property
    def validation_size(self) -> int:
        """Number of validation images."""
        return len(self.x_val)

    def train(self, batch_size: int, seed: int, augment: str = "none") -> TrainBatches:
        """See `DataSource.train`."""
        return TrainBatches(self.x_train, self.y_train, batch_size, seed, augment)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """See `DataSource.validation`."""
        check_batching(batch_size)
        for start in range(0, len(self.x_val), batch_size):
            x, y = self.x_val[start : start + batch_size], self.y_val[start : start + batch_size]
            yield (torch.from_numpy(x),), torch.from_numpy(y)


def load_data(
    spec: str | None,
    *,
    preprocessing: Preprocessing | None = None,
    options: Collection[str] = (),
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    val_split: float | None = None,
    seed: int = 0,
    workers: int = 0,
) -> DataSource:
    """The data that `spec` names.

    * a folder of pictures: `folders.open_folder`; a folder of IDX files: `idx.read_idx_folder`;
    * an ``.npz`` with `x_train`, `y_train`, `x_val` and `y_val`: x is (N, H, W) or (N, C, H, W), either uint8 (scaled
      as `preprocessing` says, by default by 1/255) or floating point (taken as it is); y is (N,), class indices;
    * ``pkg.module:factory``: `loaders.open_loaders`;
    * "digits": scikit-learn's (1,797 images of 1x8x8 in [0, 1], 10 classes), 20 % of each class for validation, always
      the same ones; "fashion-mnist": the files of the Debian package;
    * "synthetic" or None: no data at all, `synthetic.SyntheticData`.

    Args:
        spec: one of the above.
        preprocessing: what makes inputs of pictures and bytes; by default they are fitted to the input's shape,
            0 to 1.
        options: what of the preprocessing the user asked for ("resize", "mean"): refused where it does not apply. What
            the model's configuration suggests is no such thing, and is passed over there.
        input_shapes: shape of each input of the model, batch first; needed where the data have no shape of their own.
        val_split: share of a folder's pictures that is held out, where it is not split already; 0.2 unless given.
        seed: of synthetic data.
        workers: processes that decode pictures; 0 for none. The batches are the same for any number.

    Raises:
        UsageError: the spec is none of these, or an option does not apply to it.
        InputError: the data cannot be read or used.

    >>> data = load_data("digits")
    >>> data.sample_shapes, data.validation_size, data.num_classes
    (((1, 8, 8),), 360, 10)
    """
    if workers < 0:
        raise UsageError(f"--workers {workers} is not allowed. Give 0 (decode in the main process) or more.")
    if val_split is not None:
        check_val_split(val_split)
    path = None if spec is None else Path(spec)
    if path is not None and spec not in _NAMED and path.is_dir() and not holds_idx(path):
        fitted = _fitted(path, preprocessing, input_shapes)
        return open_folder(path, fitted, val_split=val_split, workers=workers)
    if val_split is not None:
        raise UsageError(
            f"--val-split does not apply to --data {spec or 'synthetic'}, which has its own validation part. "
            "Leave it out; it is for folders of pictures."
        )
    _check_options(spec, path, options)
    if path is None or spec == "synthetic":
        return SyntheticData(_needed(input_shapes), preprocessing, seed)
    if spec == "digits":
        return _digits()
    if spec == "fashion-mnist":
        return _in_memory(_fashion_mnist(), preprocessing, options, name=spec, class_names=FASHION_CLASSES)
    if path.is_dir() or path.suffix == ".npz":
        return _in_memory(path, preprocessing, options, name=path.name)
    if ":" in str(spec) and not path.exists():
        return open_loaders(str(spec))
    if path.exists():
        raise UsageError(f"--data {spec} is a file that is not known as data. {_ALLOWED}")
    raise UsageError(f"--data {spec!r} is not known, and there is no such file or folder. {_ALLOWED}")


def check_shapes(data: DataSource, *input_shapes: tuple[int, ...]) -> None:
    """Check that samples of the data are what the model takes, whatever the batch size.

    Args:
        data: has one shape for each input of the model.
        input_shapes: of each input, batch first.

    Raises:
        InputError: they differ.
    """
    samples = data.sample_shapes
    if len(input_shapes) != len(samples):
        raise InputError(
            f"--data {data.name} gives {len(samples)} inputs a sample, and --input names {len(input_shapes)}. "
            "Name one --input for each that the data give, in the same order."
        )
    for shape, sample in zip(input_shapes, samples, strict=True):
        if shape[1:] == sample:
            continue
        if isinstance(data, PictureFolder):
            raise InputError(_size_differs(data, shape, sample))
        hint = ""
        if len(sample) == 3 and sample[2] in _CHANNEL_COUNTS and sample[0] > sample[2]:
            hint = " If the channels come last in the data, save x.transpose(0, 3, 1, 2)."
        raise InputError(
            f"--input {shape_text(shape)} does not fit --data {data.name}, whose samples are {shape_text(sample)}. "
            f"Give --input {shape_text((shape[0], *sample))} or other data.{hint}"
        )


_GEOMETRY = ("resize", "crop", "letterbox")
_NAMED = ("synthetic", "digits", "fashion-mnist")


def _size_differs(data: PictureFolder, shape: tuple[int, ...], sample: tuple[int, ...]) -> str:
    """What to say of pictures, whose shape follows from the preprocessing alone."""
    size = next(name for name in ("letterbox", "crop", "resize") if data.preprocessing[name] is not None)
    is_now, fitting = [], []
    if shape[1] != sample[0]:
        is_now.append(f"--channels {data.preprocessing['channels']}")
        fitting.append(f"--channels {'grey' if shape[1] == 1 else 'rgb'}")
    if shape[2:] != sample[1:]:
        is_now.append(f"--{size} {shape_text(sample[1:])}")
        fitting.append(f"--{size} {shape_text(shape[2:])}")
    return (
        f"--input {shape_text(shape)} does not fit --data {data.name}, whose pictures {' and '.join(is_now)} makes "
        f"{shape_text(sample)}. Give --input {shape_text((shape[0], *sample))}, or {' '.join(fitting)}."
    )


def _check_options(spec: str | None, path: Path | None, options: Collection[str]) -> None:
    """Refuse what was asked of the preprocessing and has nothing to do: only folders of pictures take all of it."""
    refused, why = list(options), ""
    if spec is None or path is None or spec == "synthetic":
        return
    if spec == "digits":
        why = "which come as they are"
    elif spec == "fashion-mnist" or path.is_dir() or path.suffix == ".npz":
        refused, why = [name for name in options if name in _GEOMETRY], "whose arrays are never resized"
    elif ":" in spec and not path.exists():
        why = "whose loaders make the inputs themselves. Preprocess there"
    if refused and why:
        raise UsageError(
            f"--{refused[0]} does not apply to --data {spec}, {why}. Leave it out; it is for folders of pictures."
        )


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    x_train, x_val, y_train, y_val = train_test_split(
        x, labels.astype(np.int64), test_size=0.2, stratify=labels, random_state=_DIGITS_SPLIT_SEED
    )
    return Dataset("digits", x_train, y_train, x_val, y_val)


def _fashion_mnist() -> Path:
    if not FASHION_MNIST.is_dir():
        raise InputError(
            f"--data fashion-mnist: {FASHION_MNIST} does not exist. Install the Debian package dataset-fashion-mnist, "
            "or give a folder with its four IDX files."
        )
    return FASHION_MNIST


def _in_memory(
    path: Path,
    preprocessing: Preprocessing | None,
    options: Collection[str],
    *,
    name: str,
    class_names: tuple[str, ...] | None = None,
) -> Dataset:
    """The data set in an ``.npz`` or a folder of IDX files."""
    if path.is_dir() and path.suffix != ".npz":
        raw = read_idx_folder(path)
    else:
        require_file(path, "--data", _ALLOWED)
        raw = read_npz(path)
    arrays, used, notes = scaled(path, checked(path, raw), preprocessing, options)
    return Dataset(name, **arrays, class_names=class_names, preprocessing=used, notes=notes)


def _needed(input_shapes: Sequence[tuple[int, ...]] | None) -> Sequence[tuple[int, ...]]:
    if input_shapes:
        return input_shapes
    raise UsageError("Synthetic data have no shape of their own. Give --input, the batch first: 1x3x224x224.")


def _fitted(
    path: Path, preprocessing: Preprocessing | None, input_shapes: Sequence[tuple[int, ...]] | None
) -> Preprocessing:
    """The preprocessing of pictures, with its size from the only input of the model where it sets none itself."""
    if not holds_pictures(path):
        raise InputError(f"--data {path} holds no pictures and no IDX files. {_ALLOWED}")
    if not input_shapes:
        if preprocessing is None or preprocessing.output_shape is None:
            raise UsageError(
                f"--data {path} holds pictures, and nothing says how large the model takes them. "
                "Give --input 1x3x224x224, or --crop or --letterbox."
            )
        return preprocessing
    shape = input_shapes[0][1:]
    if len(input_shapes) > 1 or len(shape) != 3 or shape[0] not in (1, 3):
        text = " and ".join(shape_text(given) for given in input_shapes)
        raise InputError(
            f"--data {path} holds pictures, which make one input of 1 or 3 channels x height x width; --input is "
            f"{text}. Give pkg.module:factory, whose loaders make such inputs."
        )
    channels, height, width = shape
    chosen = preprocessing or Preprocessing(channels="grey" if channels == 1 else "rgb")
    return chosen.sized(height, width)
