import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.data import Dataset, check_shapes, load_data
from dtp_deploy.loading.preprocessing import Preprocessing

WRITE_NPZ = "Write it with np.savez(path, x_train=..., y_train=..., x_val=..., y_val=...)."
ALLOWED = (
    "Give a folder of pictures or of IDX files, an .npz file, pkg.module:factory, 'digits', 'fashion-mnist' or "
    "'synthetic'."
)


class Malicious:
    """Creates the folder `victim` when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def arrays(**changes: Any) -> dict[str, Any]:
    """What an .npz of six training and three validation images of 3x4x5 in two classes holds."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (6, 3, 4, 5), np.uint8),
        "y_train": np.array([0, 1, 0, 1, 0, 1]),
        "x_val": rng.integers(0, 256, (3, 3, 4, 5), np.uint8),
        "y_val": np.array([1, 0, 1], np.uint8),
    } | changes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "photos.npz"


def in_memory(spec: str, **options: Any) -> Dataset:
    data = load_data(spec, **options)
    assert isinstance(data, Dataset)
    return data


def assert_refused(path: Path, message: str, kind: type[DtpError] = InputError) -> None:
    with pytest.raises(kind) as caught:
        load_data(str(path))
    assert str(caught.value) == f"--data {path}{message}"


def test_digits_are_split_the_same_way_every_time() -> None:
    first, second = in_memory("digits"), in_memory("digits")
    assert first.name == "digits"
    assert first.sample_shape == (1, 8, 8)
    assert first.num_classes == 10
    assert np.array_equal(first.x_val, second.x_val)
    assert np.array_equal(first.y_train, second.y_train)
    assert first.x_train.dtype == np.float32
    assert first.y_train.dtype == np.int64
    assert (first.x_train.min(), first.x_train.max()) == (0, 1)
    share = np.bincount(first.y_val) / (np.bincount(first.y_train) + np.bincount(first.y_val))
    assert np.all(np.abs(share - 0.2) < 0.01), "stratified: a fifth of each class"


def test_no_digit_is_in_both_parts() -> None:
    data = in_memory("digits")
    train = {image.tobytes() for image in data.x_train}
    assert not any(image.tobytes() in train for image in data.x_val)


def test_npz_of_bytes_is_scaled(path: Path) -> None:
    given = arrays()
    np.savez_compressed(path, **given, comment=np.arange(3))
    data = in_memory(str(path))
    assert data.name == "photos.npz"
    assert data.sample_shape == (3, 4, 5)
    assert data.num_classes == 2
    assert data.x_train.dtype == data.x_val.dtype == np.float32
    assert data.y_train.dtype == data.y_val.dtype == np.int64
    np.testing.assert_allclose(data.x_val, given["x_val"] / 255, rtol=1e-6)
    assert data.y_val.tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [">f4", np.float16, np.float64])
def test_npz_of_floats_is_taken_as_it_is_and_gets_one_channel(path: Path, dtype: Any) -> None:
    x = np.linspace(-2, 300, 6 * 4 * 5).reshape(6, 4, 5).astype(dtype)
    np.savez(path, **arrays(x_train=x, x_val=x[:3]))
    data = in_memory(str(path))
    assert data.sample_shape == (1, 4, 5)
    assert data.x_train.dtype.isnative
    assert np.array_equal(data.x_train[:, 0], x.astype(np.float32))


def test_classes_that_only_validation_has_are_counted(path: Path) -> None:
    np.savez(path, **arrays(y_val=np.array([0, 1, 6])))
    assert load_data(str(path)).num_classes == 7


def test_unknown_data() -> None:
    with pytest.raises(UsageError) as caught:
        load_data("mnist")
    assert str(caught.value) == f"--data 'mnist' is not known, and there is no such file or folder. {ALLOWED}"


def test_what_is_no_file(tmp_path: Path, path: Path) -> None:
    assert_refused(path, f" does not exist. {ALLOWED}")
    (tmp_path / "folder.npz").mkdir()
    assert_refused(tmp_path / "folder.npz", f" holds no pictures and no IDX files. {ALLOWED}")
    path.touch()
    assert_refused(path, " is empty (0 bytes). Copy or save it again.")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated(path: Path, share: float) -> None:
    np.savez(path, **arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError) as caught:
        load_data(str(path))
    message = str(caught.value)  # what is between the brackets is NumPy's or zipfile's own
    assert message.startswith(f"--data {path} is truncated or no .npz file (")
    assert message.endswith(f"). {WRITE_NPZ}")
    assert "\n" not in message


def test_damaged_member(path: Path) -> None:
    np.savez(path, **arrays())
    content = bytearray(path.read_bytes())
    content[content.index(b"x_val.npy") - 40] ^= 1  # the last bytes of y_train: its checksum no longer fits
    path.write_bytes(content)
    assert_refused(
        path,
        ": y_train is truncated or damaged (BadZipFile: Bad CRC-32 for file 'y_train.npy'). "
        "Copy or save the file again.",
    )


def test_not_an_npz(path: Path) -> None:
    path.write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match=r"is truncated or no \.npz file"):
        load_data(str(path))
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))
    assert_refused(path, f" holds a single array, not an .npz archive. {WRITE_NPZ}")


@pytest.mark.parametrize("member", ["x_train", "y_train", "x_val", "y_val"])
def test_pickles_inside_are_refused_and_not_run(path: Path, member: str) -> None:
    victim = path.parent / "victim"
    np.savez(path, **arrays(**{member: np.array([Malicious(victim)], dtype=object)}))
    assert_refused(
        path,
        f" is refused: {member} holds pickled objects, which need code to load; nothing was run. "
        "Save it as an array of numbers.",
    )
    assert not victim.exists()
    with np.load(path, allow_pickle=True) as unsafe:
        _ = unsafe[member]
    assert victim.exists(), "the pickle would have worked"


def test_a_pickle_in_place_of_the_file_is_refused_and_not_run(path: Path) -> None:
    np.array([Malicious(path.parent / "victim")], dtype=object).dump(path)
    with pytest.raises(InputError, match=r"is truncated or no \.npz file"):
        load_data(str(path))
    assert not (path.parent / "victim").exists()


def test_missing_member(path: Path) -> None:
    given = arrays()
    del given["y_val"]
    np.savez(path, **given)
    assert_refused(path, f" has no array y_val; it needs x_train, y_train, x_val, y_val. {WRITE_NPZ}")


def with_value(value: float, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    x = np.zeros((3, 3, 4, 5), dtype)
    x[1, 2, 0, 0] = value
    return x


FLOATS = np.zeros((6, 3, 4, 5), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_train": np.zeros((6, 3, 4, 5), np.int64)},
            "x_train is int64. Give uint8 (0 to 255, scaled by 1/255) or floating point.",
        ),
        (
            {"x_train": np.array(["a.png"] * 6)},
            "x_train is <U5. Give uint8 (0 to 255, scaled by 1/255) or floating point.",
        ),
        (
            {"x_train": np.zeros((6, 20), np.uint8)},
            "x_train has the shape 6x20. "
            "Give images as samples x height x width, or samples x channels x height x width.",
        ),
        (
            {"x_train": np.zeros((), np.uint8)},
            "x_train has the shape scalar. "
            "Give images as samples x height x width, or samples x channels x height x width.",
        ),
        (
            {"x_val": np.zeros((0, 3, 4, 5), np.uint8)},
            "x_val is empty (shape 0x3x4x5). Give at least one sample.",
        ),
        (
            {"x_train": FLOATS, "x_val": with_value(np.nan)},
            "x_val holds NaN or infinite values. Replace or drop those samples.",
        ),
        (
            {"x_train": FLOATS, "x_val": with_value(1e300, np.float64)},
            "x_val holds NaN or infinite values. Replace or drop those samples.",
        ),
        (
            {"x_train": FLOATS},
            "x_train is float32 and x_val is uint8, so that only one would be scaled by 1/255. "
            "Give both as uint8, or both as floating point.",
        ),
        (
            {"x_val": np.zeros((3, 3, 4, 6), np.uint8)},
            "the samples of x_train are 3x4x5 and those of x_val are 3x4x6. Give both in one shape.",
        ),
        (
            {"y_train": np.zeros(6)},
            "y_train is float64 of shape 6. Give one class index a sample: integers, one dimension.",
        ),
        (
            {"y_train": np.eye(6, dtype=np.int64)},
            "y_train is int64 of shape 6x6. Give one class index a sample: integers, one dimension.",
        ),
        (
            {"y_val": np.array([0, -1, 1])},
            "y_val holds the class -1. Give class indices from 0 to 999999.",
        ),
        (
            {"y_val": np.array([0, 2**64 - 1, 1], np.uint64)},
            "y_val holds the class 18446744073709551615. Give class indices from 0 to 999999.",
        ),
        ({"y_train": np.arange(5)}, "x_train has 6 samples and y_train has 5. Give one label for each."),
        ({"y_val": np.array([], np.int64)}, "x_val has 3 samples and y_val has 0. Give one label for each."),
    ],
)
def test_arrays_that_cannot_be_used(path: Path, changes: dict[str, Any], message: str) -> None:
    np.savez(path, **arrays(**changes))
    assert_refused(path, f": {message}")


def dataset(channels: int, height: int, width: int) -> Dataset:
    x, y = np.zeros((2, channels, height, width), np.float32), np.zeros(2, np.int64)
    return Dataset("photos.npz", x, y, x, y)


@pytest.mark.parametrize("batch", [1, 16])
def test_shapes_that_fit(batch: int) -> None:
    check_shapes(dataset(3, 32, 32), (batch, 3, 32, 32))


@pytest.mark.parametrize(
    ("sample", "input_shape", "message"),
    [
        (
            (1, 8, 8),
            (4, 3, 8, 8),
            "--input 4x3x8x8 does not fit --data photos.npz, whose samples are 1x8x8. "
            "Give --input 4x1x8x8 or other data.",
        ),
        (
            (1, 8, 8),
            (1, 64),
            "--input 1x64 does not fit --data photos.npz, whose samples are 1x8x8. Give --input 1x1x8x8 or other data.",
        ),
        (
            (32, 32, 3),
            (1, 3, 32, 32),
            "--input 1x3x32x32 does not fit --data photos.npz, whose samples are 32x32x3. "
            "Give --input 1x32x32x3 or other data. "
            "If the channels come last in the data, save x.transpose(0, 3, 1, 2).",
        ),
    ],
)
def test_shapes_that_do_not_fit(sample: tuple[int, int, int], input_shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_shapes(dataset(*sample), input_shape)
    assert str(caught.value) == message


def test_one_input_shape_for_each_that_the_data_give() -> None:
    with pytest.raises(InputError) as caught:
        check_shapes(dataset(3, 8, 8), (1, 3, 8, 8), (1, 5))
    assert str(caught.value) == (
        "--data photos.npz gives 1 inputs a sample, and --input names 2. "
        "Name one --input for each that the data give, in the same order."
    )


def test_bytes_go_through_the_preprocessing(path: Path) -> None:
    given = arrays()
    np.savez(path, **given)
    wanted = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5,), channels="bgr")
    data = in_memory(str(path), preprocessing=wanted)
    expected = (given["x_val"][:, ::-1] / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / 0.5
    np.testing.assert_allclose(data.x_val, expected, atol=1e-6)
    assert data.preprocessing == replace(wanted, crop=(4, 5)).to_json()
    assert data.notes == ()


def test_bytes_are_divided_by_255_unless_told_otherwise_and_the_report_says_so(path: Path) -> None:
    np.savez(path, **arrays())
    assert in_memory(str(path)).preprocessing == Preprocessing(crop=(4, 5)).to_json()
    grey = np.zeros((3, 8, 8), np.uint8)
    np.savez(path, **arrays(x_train=np.zeros((6, 8, 8), np.uint8), x_val=grey))
    assert in_memory(str(path)).preprocessing == Preprocessing(crop=(8, 8), channels="grey").to_json()


def test_floats_are_not_preprocessed_and_the_report_says_so(path: Path) -> None:
    np.savez(path, **arrays(x_train=FLOATS, x_val=FLOATS[:3]))
    data = in_memory(str(path), preprocessing=Preprocessing(mean=(5.0,)))
    assert data.preprocessing == {}
    assert data.notes == (
        "Its pixels are floating point and were taken as they are; the preprocessing given was not applied.",
    )
    assert np.array_equal(data.x_train, FLOATS)


@pytest.mark.parametrize("option", ["resize", "crop", "letterbox"])
def test_arrays_are_never_resized(path: Path, option: str) -> None:
    np.savez(path, **arrays())
    with pytest.raises(UsageError) as caught:
        load_data(str(path), preprocessing=Preprocessing(), options=["mean", option])
    assert str(caught.value) == (
        f"--{option} does not apply to --data {path}, whose arrays are never resized. "
        "Leave it out; it is for folders of pictures."
    )


def test_what_a_model_suggests_is_not_refused(path: Path) -> None:
    np.savez(path, **arrays())
    suggested = Preprocessing(resize=6, crop=(4, 5), mean=(0.5,))
    assert in_memory(str(path), preprocessing=suggested).preprocessing == suggested.to_json()
    assert load_data("digits", preprocessing=suggested).preprocessing == {}


@pytest.mark.parametrize(
    ("spec", "why"),
    [("digits", "which come as they are"), ("mine:make", "whose loaders make the inputs themselves. Preprocess there")],
)
def test_preprocessing_of_what_needs_none(spec: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_data(spec, preprocessing=Preprocessing(mean=(0.5,)), options=["mean"])
    assert str(caught.value) == (
        f"--mean does not apply to --data {spec}, {why}. Leave it out; it is for folders of pictures."
    )


def test_grey_arrays_need_no_word_that_they_are(path: Path) -> None:
    np.savez(path, **arrays(x_train=np.zeros((6, 8, 8), np.uint8), x_val=np.zeros((3, 8, 8), np.uint8)))
    data = in_memory(str(path), preprocessing=Preprocessing(mean=(0.5,)), options=["mean"])
    assert data.preprocessing == Preprocessing(crop=(8, 8), channels="grey", mean=(0.5,)).to_json()


def test_preprocessing_for_other_channels(path: Path) -> None:
    np.savez(path, **arrays())
    with pytest.raises(InputError) as caught:
        load_data(str(path), preprocessing=Preprocessing(channels="grey"))
    assert str(caught.value) == (
        f"--data {path}: its samples have 3 channels, and grey preprocessing makes 1. "
        "Give the channels that the samples have."
    )


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("a,b")
    with pytest.raises(UsageError) as caught:
        load_data(str(file))
    assert str(caught.value) == f"--data {file} is a file that is not known as data. {ALLOWED}"


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_a_validation_split_that_is_no_share(share: float) -> None:
    with pytest.raises(UsageError) as caught:
        load_data("digits", val_split=share)
    assert str(caught.value) == (f"--val-split {share:g} is not allowed. Give a share between 0 and 1, such as 0.2.")


@pytest.mark.parametrize("spec", ["digits", "photos.npz", "synthetic", "mynets:loaders"])
def test_a_validation_split_where_there_is_one_already(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_data(spec, val_split=0.3)
    assert str(caught.value) == (
        f"--val-split does not apply to --data {spec}, which has its own validation part. "
        "Leave it out; it is for folders of pictures."
    )


def test_a_number_of_workers_below_zero() -> None:
    with pytest.raises(UsageError) as caught:
        load_data("digits", workers=-1)
    assert str(caught.value) == "--workers -1 is not allowed. Give 0 (decode in the main process) or more."
