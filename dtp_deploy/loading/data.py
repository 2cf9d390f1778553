"""Labelled images to train and validate with: the embedded digits, or an ``.npz`` of the user's.

An ``.npz`` holds `x_train`, `y_train`, `x_val` and `y_val`. x is (N, H, W) or (N, C, H, W), either uint8 (scaled by
1/255) or floating point (taken as it is); y is (N,), a class index for each sample. Pickled objects in it are refused
and never unpickled.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.files import require_file
from dtp_deploy.loading.wording import cause

MEMBERS = ("x_train", "y_train", "x_val", "y_val")
"""The arrays that an ``.npz`` must hold."""

_DIGITS_SPLIT_SEED = 0  # part of what "digits" means: an accuracy on it is comparable between runs, whatever their seed
_CHANNEL_COUNTS = (1, 3, 4)
_LARGEST_CLASS = 999_999
_WRITE_NPZ = "Write it with np.savez(path, x_train=..., y_train=..., x_val=..., y_val=...)."


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their classes, in memory.

    Attributes:
        name: what it is called in the report: "digits", or the file's name.
        x_train, x_val: float32 [n, channels, height, width].
        y_train, y_val: int64 [n], class indices from 0.
    """

    name: str
    x_train: npt.NDArray[np.float32]
    y_train: npt.NDArray[np.int64]
    x_val: npt.NDArray[np.float32]
    y_val: npt.NDArray[np.int64]

    @property
    def num_classes(self) -> int:
        """One more than the largest class index, in training or validation."""
        return int(max(self.y_train.max(), self.y_val.max())) + 1

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.x_train.shape
        return channels, height, width


def load_data(spec: str) -> Dataset:
    """The data set that `spec` names: "digits", or the path of an ``.npz``.

    "digits" is scikit-learn's (1,797 images of 1x8x8 in [0, 1], 10 classes); 20 % of each class are for validation,
    always the same ones.

    Raises:
        UsageError: the spec is neither.
        InputError: the file cannot be read, or its arrays are not as described above.

    >>> data = load_data("digits")
    >>> data.x_train.shape, data.x_val.shape, data.num_classes
    ((1437, 1, 8, 8), (360, 1, 8, 8), 10)
    """
    if spec == "digits":
        return _digits()
    path = Path(spec)
    if path.suffix != ".npz":
        raise UsageError(f"--data {spec!r} is not known. Give 'digits' or the path of an .npz file.")
    require_file(path, "--data", "Give 'digits' or the path of an .npz file.")
    arrays = _read_npz(path)
    data = Dataset(
        name=path.name,
        x_train=_images(path, "x_train", arrays["x_train"]),
        y_train=_labels(path, "y_train", arrays["y_train"]),
        x_val=_images(path, "x_val", arrays["x_val"]),
        y_val=_labels(path, "y_val", arrays["y_val"]),
    )
    _check_agreement(path, data)
    if (arrays["x_train"].dtype == np.uint8) != (arrays["x_val"].dtype == np.uint8):
        raise InputError(
            f"--data {path}: x_train is {arrays['x_train'].dtype} and x_val is {arrays['x_val'].dtype}, so that only "
            "one would be scaled by 1/255. Give both as uint8, or both as floating point."
        )
    return data


def parse_input_shape(text: str) -> tuple[int, ...]:
    """Read the shape of the model's input, batch first, as a user types it.

    Raises:
        UsageError: the text is no such shape.

    >>> parse_input_shape("1x3x32x32")
    (1, 3, 32, 32)
    """
    if not re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8})+", text):
        raise UsageError(
            f"--input {text!r} is not a shape. Give whole numbers above zero joined by x, the batch first: 1x3x32x32."
        )
    return tuple(int(size) for size in text.split("x"))


def check_shapes(dataset: Dataset, input_shape: tuple[int, ...]) -> None:
    """Check that samples of the data set are what the model takes, whatever the batch size.

    Raises:
        InputError: they differ.
    """
    sample = dataset.sample_shape
    if input_shape[1:] == sample:
        return
    hint = ""
    if sample[2] in _CHANNEL_COUNTS and sample[0] > sample[2]:
        hint = " If the channels come last in the data, save x.transpose(0, 3, 1, 2)."
    raise InputError(
        f"--input {_shape(input_shape)} does not fit --data {dataset.name}, whose samples are {_shape(sample)}. "
        f"Give --input {_shape((input_shape[0], *sample))} or other data.{hint}"
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


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    with path.open("rb") as stream:  # opened here, because np.load leaves a file open that it cannot read
        try:
            archive = np.load(stream, allow_pickle=False)
        except Exception as error:
            raise InputError(f"--data {path} is truncated or no .npz file ({cause(error)}). {_WRITE_NPZ}") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"--data {path} holds a single array, not an .npz archive. {_WRITE_NPZ}")
        with archive:
            return {member: _read_member(path, archive, member) for member in MEMBERS}


def _read_member(path: Path, archive: Mapping[str, npt.NDArray[Any]], member: str) -> npt.NDArray[Any]:
    if member not in archive:
        raise InputError(f"--data {path} has no array {member}; it needs {', '.join(MEMBERS)}. {_WRITE_NPZ}")
    try:
        return archive[member]
    except Exception as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"--data {path} is refused: {member} holds pickled objects, which need code to load; nothing was run. "
                "Save it as an array of numbers."
            ) from error
        raise InputError(
            f"--data {path}: {member} is truncated or damaged ({cause(error)}). Copy or save the file again."
        ) from error


def _images(path: Path, member: str, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """x as float32 [n, channels, height, width]."""
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise InputError(
            f"--data {path}: {member} is {x.dtype}. Give uint8 (0 to 255, scaled by 1/255) or floating point."
        )
    if x.ndim not in (3, 4):
        raise InputError(
            f"--data {path}: {member} has the shape {_shape(x.shape)}. "
            "Give images as samples x height x width, or samples x channels x height x width."
        )
    if 0 in x.shape:
        raise InputError(f"--data {path}: {member} is empty (shape {_shape(x.shape)}). Give at least one sample.")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused as such
        images = x.astype(np.float32)
    if not np.isfinite(images).all():
        raise InputError(f"--data {path}: {member} holds NaN or infinite values. Replace or drop those samples.")
    if x.dtype == np.uint8:
        images /= 255
    return images if x.ndim == 4 else images[:, np.newaxis]


def _labels(path: Path, member: str, y: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """y as int64 [n]."""
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise InputError(
            f"--data {path}: {member} is {y.dtype} of shape {_shape(y.shape)}. "
            "Give one class index a sample: integers, one dimension."
        )
    outside = y[(y < 0) | (y > _LARGEST_CLASS)]
    if outside.size:
        raise InputError(
            f"--data {path}: {member} holds the class {outside[0]}. Give class indices from 0 to {_LARGEST_CLASS}."
        )
    return y.astype(np.int64)


def _check_agreement(path: Path, data: Dataset) -> None:
    for part, x, y in (("train", data.x_train, data.y_train), ("val", data.x_val, data.y_val)):
        if len(x) != len(y):
            raise InputError(
                f"--data {path}: x_{part} has {len(x)} samples and y_{part} has {len(y)}. Give one label for each."
            )
    if data.x_train.shape[1:] != data.x_val.shape[1:]:
        raise InputError(
            f"--data {path}: the samples of x_train are {_shape(data.x_train.shape[1:])} and those of x_val are "
            f"{_shape(data.x_val.shape[1:])}. Give both in one shape."
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
