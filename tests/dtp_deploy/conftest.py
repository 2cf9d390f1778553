"""Folders of pictures to test with: patches of scikit-learn's two photos, named after the photo that they are from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

WritePatches = Callable[..., list[Path]]


@pytest.fixture(scope="session")
def photos() -> dict[str, npt.NDArray[Any]]:
    """The photos "china" and "flower", uint8 [427, 640, 3]."""
    loaded = load_sample_images()
    return {Path(name).stem: image for name, image in zip(loaded.filenames, loaded.images, strict=True)}


@pytest.fixture(scope="session")
def write_patches(photos: dict[str, npt.NDArray[Any]]) -> WritePatches:
    """(folder, photo, count, size=40, ending=".png", start=0) -> files: `count` patches, each from another place."""

    def write(folder: Path, photo: str, count: int, size: int = 40, ending: str = ".png", start: int = 0) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([ord(photo[0]), start])
        files = []
        for number in range(start, start + count):
            top, left = rng.integers(0, 427 - size), rng.integers(0, 640 - size)
            files.append(folder / f"{photo}_{number:03}{ending}")
            Image.fromarray(photos[photo][top : top + size, left : left + size]).save(files[-1])
        return files

    return write


@pytest.fixture
def two_classes(tmp_path: Path, write_patches: WritePatches) -> Path:
    """A folder china/ and flower/ with 10 patches each."""
    root = tmp_path / "photos"
    for photo in ("china", "flower"):
        write_patches(root / photo, photo, 10)
    return root
