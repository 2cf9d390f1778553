"""Arrays from IDX files, the format of MNIST and Fashion-MNIST, compressed with gzip or not.

Format: http://yann.lecun.com/exdb/mnist/ - two zero bytes, a byte for the type (8: uint8), a byte for the number of
dimensions, each dimension as four bytes (highest first), then the values.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import InputError
from dtp_deploy.loading.files import require_file
from dtp_deploy.loading.wording import cause, listing, shape_text

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts it."""

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_FILES = {
    "x_train": ("train-images", 3),
    "y_train": ("train-labels", 1),
    "x_val": ("t10k-images", 3),
    "y_val": ("t10k-labels", 1),
}
_UINT8 = 8
_GZIP_MAGIC = b"\x1f\x8b"
_AGAIN = "Copy or download it again."


def holds_idx(folder: Path) -> bool:
    """Whether at least one of the four files of an IDX data set is in the folder."""
    return any(_find(folder, stem, dimensions) for stem, dimensions in _FILES.values())


def read_idx_folder(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The four arrays of an IDX data set; its t10k files are for validation.

    Raises:
        InputError: a file is missing, no IDX file, or damaged.
    """
    found = {member: _find(folder, stem, dimensions) for member, (stem, dimensions) in _FILES.items()}
    paths = {member: path for member, path in found.items() if path is not None}
    missing = [f"{stem}-idx{dimensions}-ubyte" for member, (stem, dimensions) in _FILES.items() if member not in paths]
    if missing:
        raise InputError(
            f"--data {folder} lacks {listing(missing, shown=4)}. Give a folder with the images and labels of both "
            "train and t10k, with .gz at the end of their names or not."
        )
    return {member: read_idx(path, _FILES[member][1]) for member, path in paths.items()}


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of bytes.

    Args:
        path: compressed with gzip or not, whatever its name.
        dimensions: how many the array must have: 3 for images, 1 for labels.

    Raises:
        InputError: it is not such a file, or it is damaged.
    """
    require_file(path, "--data", "Give a folder of IDX files.")
    content = _content(path)
    magic = bytes([0, 0, _UINT8, dimensions])
    if content[:4] != magic:
        raise InputError(
            f"--data {path} begins with 0x{content[:4].hex()}; an IDX file of bytes in {dimensions} dimensions begins "
            f"with 0x{magic.hex()}. Give the file that its name promises."
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise InputError(f"--data {path} is truncated: it ends within its header. {_AGAIN}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise InputError(
            f"--data {path} is truncated or damaged: its header announces {shape_text(shape)} bytes, "
            f"and {len(content) - start} follow. {_AGAIN}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"--data {path} is truncated or damaged ({cause(error)}). {_AGAIN}") from error


def _find(folder: Path, stem: str, dimensions: int) -> Path | None:
    names = (f"{stem}{join}idx{dimensions}-ubyte{ending}" for join in ("-", ".") for ending in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).exists()), None)
