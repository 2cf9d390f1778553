import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.data import load_data
from dtp_deploy.loading.folders import PICTURES
from dtp_deploy.loading.images import PictureFolder
from dtp_deploy.loading.preprocessing import Preprocessing

ENDINGS = ".bmp, .gif, .jpeg, .jpg, .pbm, .pgm, .png, .ppm, .tif, .tiff, .webp"
WritePatches = Callable[..., list[Path]]


def load(root: Path, **options: Any) -> PictureFolder:
    data = load_data(str(root), **({"input_shapes": [(1, 3, 16, 16)]} | options))
    assert isinstance(data, PictureFolder)
    return data


def assert_refused(root: Path, message: str, kind: type[DtpError] = InputError, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        load(root, **options)
    assert str(caught.value) == f"--data {message}"


@pytest.fixture
def split(tmp_path: Path, write_patches: WritePatches) -> Path:
    """train/ and val/, each with china/ and flower/."""
    root = tmp_path / "split"
    for part, start, count in (("train", 0, 6), ("val", 100, 3)):
        for photo in ("china", "flower"):
            write_patches(root / part / photo, photo, count, start=start)
    return root


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_classes_that_are_split_already(split: Path, name: str, write_patches: WritePatches) -> None:
    (split / "val").rename(split / name)
    if name == "val":
        write_patches(split / "test" / "other", "china", 1)  # val/ comes first
    write_patches(split / "train" / "china" / "deeper", "china", 1, ending=".JPG", start=50)
    (split / "train" / "readme.txt").write_text("no picture")
    data = load(split)
    assert data.name == "split"
    assert data.labelled
    assert data.class_names == ("china", "flower")
    assert data.num_classes == 2
    assert (data.train_size, data.validation_size) == (13, 6)
    assert data.notes == ()
    assert torch.cat([targets for _, targets in data.validation(4)]).tolist() == [0, 0, 0, 1, 1, 1]
    labels = torch.cat([targets for _, targets in data.train(1, seed=0)])
    assert labels.bincount().tolist() == [7, 6]


def test_inputs_that_are_not_finite(split: Path) -> None:
    data = load(split, preprocessing=Preprocessing(crop=(16, 16), std=(1e-42,)))
    with pytest.raises(InputError) as caught:
        next(data.validation(4))
    assert str(caught.value) == (
        f"--data {split}: the first validation batch holds NaN or infinite inputs. Replace or drop those samples, or "
        "correct the preprocessing (a division by zero, say)."
    )


def test_labels_belong_to_their_pictures(split: Path) -> None:
    """The sky over the temple makes the patches of one photo differ from the other's: told from the pixels alone."""
    data = load(split)
    alone = {
        name: {x.numpy().tobytes() for (x,), _ in load(split / "train" / name).train(1, 0)}
        | {x.numpy().tobytes() for (x,), _ in load(split / "train" / name).validation(1)}
        for name in ("china", "flower")
    }
    for (x,), targets in data.train(1, seed=0):
        assert x.numpy().tobytes() in alone[("china", "flower")[int(targets)]]


def test_classes_of_which_a_fifth_is_held_out(two_classes: Path, write_patches: WritePatches) -> None:
    write_patches(two_classes / "flower", "flower", 20, start=50)
    data = load(two_classes)
    assert (data.train_size, data.validation_size) == (32, 8)
    labels = torch.cat([targets for _, targets in data.validation(4)])
    assert labels.bincount().tolist() == [2, 6], "a fifth of each class"
    assert data.notes == ("8 of 40 pictures (20% of each class) were held out for validation.",)
    assert load(two_classes, val_split=0.5).validation_size == 20
    assert load(two_classes, val_split=0.001).validation_size == 2, "at least one of each"
    assert load(two_classes, val_split=0.999).train_size == 2


def test_no_picture_is_in_both_parts_and_the_parts_stay(two_classes: Path, tmp_path: Path) -> None:
    def pictures(root: Path) -> tuple[set[bytes], set[bytes]]:
        data = load(root)
        train, validation = data.train(1, 0), data.validation(1)
        return {x.numpy().tobytes() for (x,), _ in train}, {x.numpy().tobytes() for (x,), _ in validation}

    train, validation = pictures(two_classes)
    assert len(train) == 16
    assert len(validation) == 4
    assert not train & validation
    shutil.copytree(two_classes, tmp_path / "elsewhere")
    assert pictures(tmp_path / "elsewhere") == (train, validation)


def test_photos_without_classes(tmp_path: Path, write_patches: WritePatches) -> None:
    root = tmp_path / "flat"
    write_patches(root, "china", 10, ending=".jpg")
    (root / "thumbnails").mkdir()
    (root / ".cache.png").write_text("hidden")
    data = load(root)
    assert not data.labelled
    assert data.class_names is None
    assert data.num_classes is None
    assert (data.train_size, data.validation_size) == (8, 2)
    assert data.notes == ("2 of 10 pictures (20%) were held out for validation.",)
    assert next(iter(data.train(4, 0)))[1] is None


def test_photos_without_classes_that_are_split_already(tmp_path: Path, write_patches: WritePatches) -> None:
    write_patches(tmp_path / "train", "china", 5)
    write_patches(tmp_path / "val", "flower", 2)
    data = load(tmp_path)
    assert not data.labelled
    assert (data.train_size, data.validation_size) == (5, 2)


def test_endings_are_what_the_messages_say() -> None:
    assert ", ".join(sorted(PICTURES)) == ENDINGS


def test_the_size_comes_from_the_preprocessing_or_the_input(two_classes: Path) -> None:
    given = Preprocessing(resize=20, mean=(0.5,))
    assert (
        load(two_classes, preprocessing=given).preprocessing
        == Preprocessing(resize=20, crop=(16, 16), mean=(0.5,)).to_json()
    )
    assert load(two_classes, preprocessing=given, input_shapes=None).sample_shapes == ((3, 20, 20),)
    grey = load(two_classes, input_shapes=[(1, 1, 8, 12)])
    assert grey.sample_shapes == ((1, 8, 12),)
    assert grey.preprocessing == Preprocessing(crop=(8, 12), channels="grey").to_json()


@pytest.mark.parametrize("preprocessing", [None, Preprocessing(mean=(0.5,))])
def test_a_size_that_nothing_tells(two_classes: Path, preprocessing: Preprocessing | None) -> None:
    assert_refused(
        two_classes,
        f"{two_classes} holds pictures, and nothing says how large the model takes them. "
        "Give --input 1x3x224x224, or --crop or --letterbox.",
        UsageError,
        input_shapes=None,
        preprocessing=preprocessing,
    )


@pytest.mark.parametrize(
    ("shapes", "text"),
    [([(1, 3, 8, 8), (1, 5)], "1x3x8x8 and 1x5"), ([(1, 4, 8, 8)], "1x4x8x8"), ([(1, 64)], "1x64")],
)
def test_an_input_that_no_picture_is(two_classes: Path, shapes: list[tuple[int, ...]], text: str) -> None:
    assert_refused(
        two_classes,
        f"{two_classes} holds pictures, which make one input of 1 or 3 channels x height x width; --input is {text}. "
        "Give pkg.module:factory, whose loaders make such inputs.",
        input_shapes=shapes,
    )


def test_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "notes.txt").write_text("no picture")
    assert_refused(
        tmp_path,
        f"{tmp_path} holds no pictures and no IDX files. Give a folder of pictures or of IDX files, an .npz file, "
        "pkg.module:factory, 'digits', 'fashion-mnist' or 'synthetic'.",
    )


def test_no_pictures_in_one_part(split: Path) -> None:
    shutil.rmtree(split / "val")
    (split / "val").mkdir()
    assert_refused(split, f"{split / 'val'} holds no pictures. Give a folder with {ENDINGS} files.")


def test_one_class(two_classes: Path) -> None:
    shutil.rmtree(two_classes / "flower")
    assert_refused(
        two_classes,
        f"{two_classes} has one class only, china. Give at least two folders of classes, "
        f"or {two_classes / 'china'} for pictures without classes.",
    )


def test_an_empty_class(two_classes: Path) -> None:
    (two_classes / "dogs").mkdir()
    assert_refused(
        two_classes,
        f"{two_classes}: these classes hold no pictures: dogs. Add some ({ENDINGS}), or remove the folders.",
    )


def test_pictures_beside_classes(two_classes: Path, write_patches: WritePatches) -> None:
    write_patches(two_classes, "china", 1)
    assert_refused(
        two_classes,
        f"{two_classes} holds both pictures (china_000.png) and folders of pictures (china, flower). "
        "Give either folders, one a class, or pictures without classes.",
    )


def test_classes_that_differ_between_the_parts(split: Path) -> None:
    (split / "val" / "flower").rename(split / "val" / "flowers")
    assert_refused(
        split,
        f"{split}: train/ and val/ have different classes (only in train/: flower; only in val/: flowers). "
        "Give the same folders in both.",
    )


def test_a_class_that_only_training_has(split: Path, write_patches: WritePatches) -> None:
    write_patches(split / "train" / "zebra", "china", 1)
    assert_refused(
        split,
        f"{split}: train/ and val/ have different classes (only in train/: zebra). Give the same folders in both.",
    )


def test_classes_in_one_part_only(split: Path, write_patches: WritePatches) -> None:
    shutil.rmtree(split / "val")
    write_patches(split / "val", "china", 2)
    assert_refused(
        split,
        f"{split}: train/ has folders of classes, and val/ has pictures without. Give both in the same way.",
    )


def test_training_without_validation(split: Path) -> None:
    shutil.rmtree(split / "val")
    assert_refused(
        split,
        f"{split} has train/, but neither val/, validation/ nor test/. "
        f"Add one, or give {split / 'train'} to have a part of it held out.",
    )
    assert load(split / "train").class_names == ("china", "flower")


def test_a_validation_split_of_what_is_split_already(split: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(split, val_split=0.25)
    assert str(caught.value) == (
        f"--val-split 0.25 does not apply to --data {split}, which has val/ already. "
        f"Leave it out, or give {split / 'train'}."
    )


def test_a_class_with_a_single_picture(two_classes: Path, write_patches: WritePatches) -> None:
    write_patches(two_classes / "zebra", "china", 1)
    assert_refused(
        two_classes,
        f"{two_classes}: the class zebra has a single picture, so that none can be held out for validation. "
        "Add pictures, or give train/ and val/.",
    )


def test_a_single_photo(tmp_path: Path, write_patches: WritePatches) -> None:
    write_patches(tmp_path, "china", 1)
    assert_refused(
        tmp_path,
        f"{tmp_path}: there is a single picture, so that none can be held out for validation. "
        "Add pictures, or give train/ and val/.",
    )
