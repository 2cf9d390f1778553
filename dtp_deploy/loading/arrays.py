"""Images and class indices as arrays, checked and brought into one form, whatever file they came from."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import InputError
from dtp_deploy.loading.preprocessing import Preprocessing
from dtp_deploy.loading.wording import shape_text

MEMBERS = ("x_train", "y_train", "x_val", "y_val")
"""The arrays that make a data set."""

LARGEST_CLASS = 999_999


def checked(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `MEMBERS`: x as [n, channels, height, width], uint8 or float32, and y as int64 [n].

    Args:
        path: where they came from, for messages.
        arrays: x [n, height, width] or [n, channels, height, width], uint8 or floating point; y [n], whole numbers.

    Raises:
        InputError: they are of another kind, empty, not finite, or do not agree.
    """
    result = {
        member: _images(path, member, arrays[member])
        if member.startswith("x")
        else _labels(path, member, arrays[member])
        for member in MEMBERS
    }
    for part in ("train", "val"):
        images, labels = len(result[f"x_{part}"]), len(result[f"y_{part}"])
        if images != labels:
            raise InputError(
                f"--data {path}: x_{part} has {images} samples and y_{part} has {labels}. Give one label for each."
            )
    train, val = result["x_train"], result["x_val"]
    if train.shape[1:] != val.shape[1:]:
        raise InputError(
            f"--data {path}: the samples of x_train are {shape_text(train.shape[1:])} and those of x_val are "
            f"{shape_text(val.shape[1:])}. Give both in one shape."
        )
    if (train.dtype == np.uint8) != (val.dtype == np.uint8):
        raise InputError(
            f"--data {path}: x_train is {arrays['x_train'].dtype} and x_val is {arrays['x_val'].dtype}, so that only "
            "one would be scaled by 1/255. Give both as uint8, or both as floating point."
        )
    return result


def scaled(
    path: Path,
    arrays: dict[str, npt.NDArray[Any]],
    preprocessing: Preprocessing | None,
    options: Collection[str] = (),
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any], tuple[str, ...]]:
    """The arrays with x as float32, the preprocessing that a picture would need to become such an x, and notes.

    uint8 goes through the range, mean and std of the preprocessing (by default it is divided by 255); floating point
    is taken as it is. Nothing is resized.

    Args:
        path: where the arrays came from, for messages.
        arrays: as `checked` gives them.
        preprocessing: None for the usual one.
        options: those that the user typed; without "channels" among them, the samples tell the channels.

    Raises:
        InputError: the preprocessing is for another number of channels.
    """
    x_train, x_val = arrays["x_train"], arrays["x_val"]
    if x_train.dtype != np.uint8:
        kept = "Its pixels are floating point and were taken as they are; the preprocessing given was not applied."
        return arrays, {}, () if preprocessing is None else (kept,)
    _, channels, height, width = x_train.shape
    if preprocessing is not None and options and "channels" not in options and channels == 1:
        preprocessing = replace(preprocessing, channels="grey")
    if preprocessing is None:
        used = Preprocessing(channels="grey" if channels == 1 else "rgb")
    elif preprocessing.num_channels == channels:
        used = preprocessing
    else:
        raise InputError(
            f"--data {path}: its samples have {channels} channels, and {preprocessing.channels} preprocessing makes "
            f"{preprocessing.num_channels}. Give the channels that the samples have."
        )
    both = {"x_train": used.scale(x_train), "x_val": used.scale(x_val)}
    return arrays | both, used.sized(height, width).to_json() if channels in (1, 3) else {}, ()


def _images(path: Path, member: str, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """x as uint8 or float32 [n, channels, height, width]."""
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise InputError(
            f"--data {path}: {member} is {x.dtype}. Give uint8 (0 to 255, scaled by 1/255) or floating point."
        )
    if x.ndim not in (3, 4):
        raise InputError(
            f"--data {path}: {member} has the shape {shape_text(x.shape)}. "
            "Give images as samples x height x width, or samples x channels x height x width."
        )
    if 0 in x.shape:
        raise InputError(f"--data {path}: {member} is empty (shape {shape_text(x.shape)}). Give at least one sample.")
    images = x if x.ndim == 4 else x[:, np.newaxis]
    if x.dtype == np.uint8:
        return images
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused as such
        images = images.astype(np.float32)
    if not np.isfinite(images).all():
        raise InputError(f"--data {path}: {member} holds NaN or infinite values. Replace or drop those samples.")
    return images


def _labels(path: Path, member: str, y: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """y as int64 [n]."""
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise InputError(
            f"--data {path}: {member} is {y.dtype} of shape {shape_text(y.shape)}. "
            "Give one class index a sample: integers, one dimension."
        )
    outside = y[(y < 0) | (y > LARGEST_CLASS)]
    if outside.size:
        raise InputError(
            f"--data {path}: {member} holds the class {outside[0]}. Give class indices from 0 to {LARGEST_CLASS}."
        )
    return y.astype(np.int64)
