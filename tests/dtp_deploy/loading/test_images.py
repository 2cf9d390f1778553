"""Streaming: damaged pictures, workers, memory."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dtp_deploy.errors import InputError
from dtp_deploy.loading.data import load_data
from dtp_deploy.loading.images import PictureFolder
from dtp_deploy.loading.source import Batch

WritePatches = Callable[..., list[Path]]


def load(root: Path, **options: Any) -> PictureFolder:
    data = load_data(str(root), **({"input_shapes": [(1, 3, 16, 16)]} | options))
    assert isinstance(data, PictureFolder)
    return data


@pytest.fixture
def split(tmp_path: Path, write_patches: WritePatches) -> Path:
    """Photos without classes: 40 to train, 20 to validate."""
    write_patches(tmp_path / "train", "china", 40, ending=".jpg")
    write_patches(tmp_path / "val", "flower", 20, ending=".jpg")
    return tmp_path


def cut(path: Path) -> None:
    """Leave half of the body of a JPEG; its header stays whole."""
    content = path.read_bytes()
    body = content.index(b"\xff\xda")  # the marker "start of scan"
    path.write_bytes(content[: (body + len(content)) // 2])


def all_same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(torch.equal(a[0][0], b[0][0]) for a, b in zip(first, second, strict=True))


def test_damaged_headers_are_found_at_once_and_named(split: Path) -> None:
    (split / "train" / "china_003.jpg").write_bytes(b"")
    (split / "val" / "flower_004.jpg").write_text("this is no picture")
    data = load(split)
    assert (data.train_size, data.validation_size) == (39, 19)
    assert data.notes == (
        "2 of 60 pictures could not be read and were left out: "
        "train/china_003.jpg: empty, val/flower_004.jpg: no picture.",
    )
    assert len(list(data.train(1, 0))) == 39
    assert sum(len(x) for (x,), _ in data.validation(4)) == 19


def test_a_damaged_png_is_found_at_once(split: Path, write_patches: WritePatches) -> None:
    (path,) = write_patches(split / "val", "china", 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    data = load(split)
    assert data.validation_size == 20
    assert "1 of 61 pictures could not be read" in data.notes[0]
    assert "val/china_000.png: " in data.notes[0]


def test_a_cut_picture_is_met_on_the_way_and_left_out_of_validation(split: Path) -> None:
    whole = [x for (x,), _ in load(split).validation(1)]
    for number in (0, 7):
        cut(split / "val" / f"flower_{number:03}.jpg")
    data = load(split)
    assert data.notes == ()
    batches = list(data.validation(4))
    assert [len(x) for (x,), _ in batches] == [4, 4, 4, 4, 2]
    kept = [x for number, x in enumerate(whole) if number not in (0, 7)]
    assert torch.equal(torch.cat([x for (x,), _ in batches]), torch.cat(kept))
    assert data.validation_size == 18
    (note,) = data.notes
    assert note.startswith("2 of 60 pictures could not be read and were left out: val/flower_000.jpg: OSError: ")
    assert all_same(batches, list(data.validation(4))), "and so in later passes"


def test_the_next_picture_takes_the_place_of_a_cut_one_in_training(split: Path) -> None:
    intact = list(load(split).train(4, 3))
    cut(split / "train" / "china_010.jpg")
    cut(split / "train" / "china_039.jpg")
    data = load(split)
    epoch = list(data.train(4, 3))
    assert [len(x) for (x,), _ in epoch] == [4] * 10
    before, after = (torch.cat([x for (x,), _ in batches]) for batches in (intact, epoch))
    changed = [index for index in range(40) if not torch.equal(before[index], after[index])]
    assert len(changed) == 2
    known = {x.numpy().tobytes() for x in before}
    assert all(after[index].numpy().tobytes() in known for index in changed)
    assert data.notes[0].startswith("2 of 60 pictures could not be read and were left out: train/china_010.jpg: ")
    assert all_same(epoch, list(data.train(4, 3))), "the same in the next run"


def test_a_substitute_brings_its_own_label(two_classes: Path) -> None:
    for path in two_classes.glob("*/*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    for part in ("train", "val"):
        shutil.copytree(two_classes, two_classes.parent / "split" / part)
    cut(two_classes.parent / "split" / "train" / "china" / "china_009.jpg")  # what follows it is a flower
    labels = torch.cat([targets for _, targets in load(two_classes.parent / "split").train(1, 0)])
    assert labels.bincount().tolist() == [9, 11]


def test_more_than_a_twentieth_damaged(split: Path) -> None:
    for number in range(3):
        (split / "train" / f"china_{number:03}.jpg").write_text("no picture")
    assert load(split).train_size == 37, "3 of 60 are 5 %"
    (split / "val" / "flower_000.jpg").write_text("no picture")
    with pytest.raises(InputError) as caught:
        load(split)
    assert str(caught.value) == (
        f"--data {split}: 4 of 60 pictures cannot be read (train/china_000.jpg: no picture, "
        "train/china_001.jpg: no picture, train/china_002.jpg: no picture and 1 more). "
        "At most 3 may be damaged (5 %, at least 1). Replace or remove them."
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_a_twentieth_cut(split: Path, workers: int) -> None:
    for number in range(4):
        cut(split / "train" / f"china_{number:03}.jpg")
    with pytest.raises(InputError) as caught:
        list(load(split, workers=workers).train(4, 0))
    message = str(caught.value)
    assert message.startswith(f"--data {split}: 4 of 60 pictures cannot be read (train/china_000.jpg: OSError: ")
    assert message.endswith("and 1 more). At most 3 may be damaged (5 %, at least 1). Replace or remove them.")
    assert "\n" not in message


def test_one_of_few_may_be_damaged(tmp_path: Path, write_patches: WritePatches) -> None:
    files = write_patches(tmp_path, "china", 4)
    files[0].write_text("no picture")
    assert load(tmp_path).notes[1] == (
        "1 of 4 pictures could not be read and were left out: china_000.png: no picture."
    )


def test_damage_that_leaves_a_part_or_a_class_empty(split: Path, two_classes: Path) -> None:
    for path in (split / "val").iterdir():
        path.unlink()
    (split / "val" / "a.jpg").write_text("no picture")
    with pytest.raises(InputError) as caught:
        load(split)
    assert str(caught.value) == f"--data {split / 'val'}: none of its pictures can be read. Replace them."
    (two_classes / "zebra").mkdir()
    (two_classes / "zebra" / "a.png").write_text("no picture")
    with pytest.raises(InputError) as caught:
        load(two_classes)
    assert str(caught.value) == (
        f"--data {two_classes}: no picture can be read of these classes: zebra. "
        "Replace the pictures, or remove the folders."
    )


def test_the_only_picture_of_a_part_is_cut(split: Path) -> None:
    for path in sorted((split / "val").iterdir())[1:]:
        path.unlink()
    cut(split / "val" / "flower_000.jpg")
    with pytest.raises(InputError) as caught:
        list(load(split).validation(1))
    assert str(caught.value) == f"--data {split}: none of its pictures can be read. Replace them."


def test_workers_change_nothing(split: Path) -> None:
    cut(split / "train" / "china_010.jpg")
    cut(split / "val" / "flower_000.jpg")
    alone, helped = load(split), load(split, workers=2)
    first, second = alone.train(4, 1, "shift-flip"), helped.train(4, 1, "shift-flip")
    for _ in range(2):
        assert all_same(list(first), list(second))
    assert all_same(list(alone.validation(6)), list(helped.validation(6)))
    assert alone.notes == helped.notes != ()
    assert alone.validation_size == helped.validation_size == 19


def test_augmentation_moves_the_prepared_picture(split: Path) -> None:
    data = load(split)
    plain, moved = list(data.train(40, 0)), list(data.train(40, 0, "shift"))
    ((x,), _), ((y,), _) = plain[0], moved[0]
    offsets = set()
    for image, result in zip(x, y, strict=True):
        candidates = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(
                result[:, max(down, 0) : 16 + min(down, 0), max(right, 0) : 16 + min(right, 0)],
                image[:, max(-down, 0) : 16 - max(down, 0), max(-right, 0) : 16 - max(right, 0)],
            )
        ]
        assert candidates
        offsets.update(candidates)
    assert len(offsets) > 5, "each in its own way"


def resident_bytes() -> int:
    """Memory of this process, whoever allocated it (tracemalloc would not see PyTorch's and Pillow's)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(root: Path, keeps: bool) -> int:
    """How much memory one pass over a folder needs beyond what its first batches have taken."""
    data = load(root, input_shapes=[(1, 3, 256, 256)])
    kept: list[Batch] = []
    most = start = 0
    for number, batch in enumerate(chain(data.train(4, 0), data.validation(4))):
        if keeps:
            kept.append(batch)
        most = max(most, resident_bytes())
        start = most if number == 2 else start  # the first batches fill the buffers that stay
    return most - start


def test_memory_does_not_grow_with_the_folder(tmp_path: Path) -> None:
    """Two parts of 100 photos, 1 MB each when decoded and 0.8 MB as an input."""
    pixels = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        Image.fromarray(pixels).save(tmp_path / part / "0.jpg", quality=30)
        for number in range(1, 100):
            shutil.copy(tmp_path / part / "0.jpg", tmp_path / part / f"{number}.jpg")
    # In processes of their own: memory that other tests have freed, and that this process still holds, hides growth.
    context = get_context("spawn")
    for keeps in (False, True):
        with ProcessPoolExecutor(1, mp_context=context) as fresh:
            grown = fresh.submit(growth, tmp_path, keeps).result()
        if keeps:
            assert grown > 100_000_000, "the same measure, where everything is kept"
        else:
            assert grown < 40_000_000
