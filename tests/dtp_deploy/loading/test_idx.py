import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dtp_deploy.errors import InputError
from dtp_deploy.loading.data import Dataset, load_data
from dtp_deploy.loading.idx import FASHION_CLASSES, FASHION_MNIST, read_idx
from dtp_deploy.loading.preprocessing import Preprocessing

AGAIN = "Copy or download it again."


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def contents() -> dict[str, npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (6, 4, 5), np.uint8),
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (2, 4, 5), np.uint8),
        "t10k-labels-idx1-ubyte": np.array([2, 0], np.uint8),
    }


@pytest.fixture(params=["{}", "{}.gz", "dots"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for name, array in contents().items():
        if request.param == "{}.gz":
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            name = name if request.param == "{}" else name.replace("-idx", ".idx")
            (tmp_path / name).write_bytes(idx_bytes(array))
    return tmp_path


def load(spec: str, **options: Any) -> Dataset:
    data = load_data(spec, **options)
    assert isinstance(data, Dataset)
    return data


def test_a_folder_of_idx_files(folder: Path) -> None:
    data = load(str(folder))
    given = contents()
    np.testing.assert_allclose(data.x_val[:, 0], given["t10k-images-idx3-ubyte"] / 255, rtol=1e-6)
    np.testing.assert_allclose(data.x_train[:, 0], given["train-images-idx3-ubyte"] / 255, rtol=1e-6)
    assert data.y_train.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.y_val.tolist() == [2, 0]
    assert data.name == folder.name
    assert data.class_names is None
    assert data.preprocessing == Preprocessing(crop=(4, 5), channels="grey").to_json()


def test_mean_and_std_are_applied(folder: Path) -> None:
    options = Preprocessing(channels="grey", mean=(0.25,), std=(0.5,))
    data = load(str(folder), preprocessing=options)
    np.testing.assert_allclose(data.x_val[:, 0], (contents()["t10k-images-idx3-ubyte"] / 255 - 0.25) / 0.5, atol=1e-6)


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_fashion_mnist() -> None:
    data = load("fashion-mnist")
    assert data.name == "fashion-mnist"
    assert data.sample_shape == (1, 28, 28)
    assert (len(data.x_train), data.validation_size) == (60000, 10000)
    assert data.class_names == FASHION_CLASSES
    assert data.num_classes == len(FASHION_CLASSES) == 10
    assert np.bincount(data.y_val).tolist() == [1000] * 10
    assert (data.x_val.min(), data.x_val.max()) == (0, 1)


def test_fashion_mnist_where_it_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / "fashion-mnist"
    monkeypatch.setattr("dtp_deploy.loading.data.FASHION_MNIST", missing)
    with pytest.raises(InputError) as caught:
        load_data("fashion-mnist")
    assert str(caught.value) == (
        f"--data fashion-mnist: {missing} does not exist. Install the Debian package dataset-fashion-mnist, "
        "or give a folder with its four IDX files."
    )


def test_a_missing_file(folder: Path) -> None:
    for path in folder.glob("t10k-*"):
        path.unlink()
    with pytest.raises(InputError) as caught:
        load_data(str(folder))
    assert str(caught.value) == (
        f"--data {folder} lacks t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte. Give a folder with the images and "
        "labels of both train and t10k, with .gz at the end of their names or not."
    )


def test_labels_and_images_that_do_not_agree(folder: Path) -> None:
    for path in folder.glob("train-labels*"):
        content = idx_bytes(np.zeros(5, np.uint8))
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    with pytest.raises(InputError) as caught:
        load_data(str(folder))
    assert str(caught.value) == (f"--data {folder}: x_train has 6 samples and y_train has 5. Give one label for each.")


def assert_refused(path: Path, content: bytes, message: str, dimensions: int = 3) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_idx(path, dimensions)
    assert str(caught.value) == f"--data {path} {message}"


IMAGES = idx_bytes(np.zeros((2, 4, 5), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGES[:-1], f"is truncated or damaged: its header announces 2x4x5 bytes, and 39 follow. {AGAIN}"),
        (IMAGES + b"\0", f"is truncated or damaged: its header announces 2x4x5 bytes, and 41 follow. {AGAIN}"),
        (IMAGES[:10], f"is truncated: it ends within its header. {AGAIN}"),
        (
            b"\x89PNG and more",
            "begins with 0x89504e47; an IDX file of bytes in 3 dimensions begins with 0x00000803. "
            "Give the file that its name promises.",
        ),
        (
            b"\0\0\x0d\x03" + IMAGES[4:],
            "begins with 0x00000d03; an IDX file of bytes in 3 dimensions begins with 0x00000803. "
            "Give the file that its name promises.",
        ),
        (
            idx_bytes(np.zeros(3, np.uint8)),
            "begins with 0x00000801; an IDX file of bytes in 3 dimensions begins with 0x00000803. "
            "Give the file that its name promises.",
        ),
        (b"", "is empty (0 bytes). Copy or save it again."),
        (
            gzip.compress(IMAGES, mtime=0)[:-10],
            "is truncated or damaged (EOFError: Compressed file ended before the end-of-stream marker was reached). "
            f"{AGAIN}",
        ),
    ],
)
def test_files_that_are_damaged(tmp_path: Path, content: bytes, message: str) -> None:
    assert_refused(tmp_path / "train-images-idx3-ubyte", content, message)
