"""A folder of pictures: where its classes and its validation part are.

* ``train/CLASS/*`` and ``val/CLASS/*`` (``validation`` and ``test`` serve as ``val`` too, in this order);
* ``CLASS/*``, of which a part is held out;
* pictures without classes, of which a part is held out, or in ``train/*`` and ``val/*``.

Which pictures are held out depends on their names alone, not on a seed: accuracies of runs can be compared, and a
picture that is added moves no other from one part to the other, but for rounding.
"""

import hashlib
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.images import Damage, PictureFolder, Pictures, check_header
from dtp_deploy.loading.preprocessing import Preprocessing
from dtp_deploy.loading.wording import listing

PICTURES = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"],
)
"""Endings of the files that are taken for pictures, in lower case; other files are ignored."""

VALIDATION_SPLIT = 0.2
_VALIDATION_NAMES = ("val", "validation", "test")


def open_folder(
    root: Path, preprocessing: Preprocessing, *, val_split: float | None = None, workers: int = 0
) -> PictureFolder:
    """The data set in a folder of pictures. Every picture's header is read; damaged ones are counted and left out.

    Classes are the names of folders, sorted as text, as torchvision sorts them. Pictures may lie deeper in them.

    Args:
        root: holds at least one picture.
        preprocessing: with a size.
        val_split: share to hold out; 0.2 unless given.
        workers: processes that decode.

    Raises:
        UsageError: val_split is given, but the folder is split already.
        InputError: the folder has none of the layouts above, or too many damaged pictures.
    """
    parts = _parts(root, val_split)
    names = {part: _classes(folder) for part, folder in parts.items()}
    class_names = _agreed(root, names)
    pictures = {part: _pictures(folder, class_names) for part, folder in parts.items()}
    damage = _damage(root, [path for part in pictures.values() for path in part.files])
    readable = {part: found.without(damage) for part, found in pictures.items()}
    for part, found in readable.items():
        _check_left(parts[part], found, class_names)
    notes: tuple[str, ...] = ()
    if len(parts) == 2:
        (_, train), (_, validation) = readable.items()
    else:
        share = VALIDATION_SPLIT if val_split is None else val_split
        ((_, whole),) = readable.items()
        train, validation = _split(root, whole, share, class_names)
        held = f"{len(validation.files)} of {len(whole.files)} pictures"
        notes = (f"{held} ({share:.0%}{' of each class' if class_names else ''}) were held out for validation.",)
    return PictureFolder(
        root, train, validation, preprocessing, damage, class_names=class_names, notes=notes, workers=workers
    )


def check_val_split(share: float) -> None:
    """Check the share of pictures to hold out.

    Raises:
        UsageError: it is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"--val-split {share:g} is not allowed. Give a share between 0 and 1, such as 0.2.")


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture somewhere in the folder."""
    return any(_is_picture(name) for _, _, files in os.walk(folder) for name in files)


def _parts(root: Path, val_split: float | None) -> dict[str, Path]:
    """The folders of the parts by name, training first; the root alone where it is still to be split."""
    folders = {folder.name for folder in _folders(root)}
    validation = next((name for name in _VALIDATION_NAMES if name in folders), None)
    if "train" not in folders:
        return {"": root}
    if validation is None:
        raise InputError(
            f"--data {root} has train/, but neither val/, validation/ nor test/. "
            f"Add one, or give {root / 'train'} to have a part of it held out."
        )
    if val_split is not None:
        raise UsageError(
            f"--val-split {val_split:g} does not apply to --data {root}, which has {validation}/ already. "
            f"Leave it out, or give {root / 'train'}."
        )
    return {"train": root / "train", validation: root / validation}


def _classes(folder: Path) -> tuple[str, ...] | None:
    """The folders of classes, sorted; None where the pictures lie in the folder itself."""
    names = tuple(sorted(found.name for found in _folders(folder)))
    loose = sorted(path.name for path in folder.iterdir() if path.is_file() and _is_picture(path.name))
    if not loose and not names:
        raise InputError(f"--data {folder} holds no pictures. Give a folder with {_endings()} files.")
    if not names:
        return None
    empty = [name for name in names if not holds_pictures(folder / name)]
    if loose and len(empty) < len(names):
        raise InputError(
            f"--data {folder} holds both pictures ({listing(loose)}) and folders of pictures ({listing(names)}). "
            "Give either folders, one a class, or pictures without classes."
        )
    if loose:
        return None
    if empty:
        raise InputError(
            f"--data {folder}: these classes hold no pictures: {listing(empty)}. "
            f"Add some ({_endings()}), or remove the folders."
        )
    if len(names) == 1:
        raise InputError(
            f"--data {folder} has one class only, {names[0]}. Give at least two folders of classes, "
            f"or {folder / names[0]} for pictures without classes."
        )
    return names


def _agreed(root: Path, names: dict[str, tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """The class names that all parts have."""
    (first, expected), *rest = names.items()
    for part, found in rest:
        if found == expected:
            continue
        if found is None or expected is None:
            labelled, other = (first, part) if found is None else (part, first)
            raise InputError(
                f"--data {root}: {labelled}/ has folders of classes, and {other}/ has pictures without. "
                "Give both in the same way."
            )
        only_first = [name for name in expected if name not in found]
        only_part = [name for name in found if name not in expected]
        differences = [
            f"only in {where}/: {listing(only)}" for where, only in ((first, only_first), (part, only_part)) if only
        ]
        raise InputError(
            f"--data {root}: {first}/ and {part}/ have different classes ({'; '.join(differences)}). "
            "Give the same folders in both."
        )
    return expected


def _pictures(folder: Path, class_names: tuple[str, ...] | None) -> Pictures:
    """All pictures of a part, sorted by class and name."""
    if class_names is None:
        return Pictures(tuple(sorted(path for path in folder.iterdir() if path.is_file() and _is_picture(path.name))))
    files, labels = [], []
    for label, name in enumerate(class_names):
        found = sorted(
            Path(place) / file for place, _, names in os.walk(folder / name) for file in names if _is_picture(file)
        )
        files += found
        labels += [label] * len(found)
    return Pictures(tuple(files), tuple(labels))


def _damage(root: Path, files: Sequence[Path]) -> Damage:
    damage = Damage(root, len(files))
    damage.add({path: reason for path in files if (reason := check_header(path)) is not None})
    return damage


def _check_left(folder: Path, pictures: Pictures, class_names: tuple[str, ...] | None) -> None:
    """Check that leaving out the damaged pictures left some, in every class."""
    if not pictures.files:
        raise InputError(f"--data {folder}: none of its pictures can be read. Replace them.")
    if class_names is not None and pictures.labels is not None:
        lost = [name for label, name in enumerate(class_names) if label not in set(pictures.labels)]
        if lost:
            raise InputError(
                f"--data {folder}: no picture can be read of these classes: {listing(lost)}. "
                "Replace the pictures, or remove the folders."
            )


def _split(root: Path, whole: Pictures, share: float, class_names: tuple[str, ...] | None) -> tuple[Pictures, Pictures]:
    """The pictures to train with, and those held out: the share of each class, at least one and not all."""
    labels = whole.labels or (0,) * len(whole.files)
    held: set[Path] = set()
    for label, group in groupby(zip(labels, whole.files, strict=True), key=lambda pair: pair[0]):
        files = [path for _, path in group]
        if len(files) < 2:
            what = f"the class {class_names[label]} has" if class_names else "there is"
            raise InputError(
                f"--data {root}: {what} a single picture, so that none can be held out for validation. "
                "Add pictures, or give train/ and val/."
            )
        count = min(max(1, round(share * len(files))), len(files) - 1)
        held.update(sorted(files, key=lambda path: _draw(path.relative_to(root)))[:count])
    parts = ([index for index, path in enumerate(whole.files) if (path in held) is kept] for kept in (False, True))
    train, validation = (
        Pictures(
            tuple(whole.files[index] for index in part),
            None if whole.labels is None else tuple(whole.labels[index] for index in part),
        )
        for part in parts
    )
    return train, validation


def _draw(path: Path) -> bytes:
    """A number as good as random that belongs to the path for good."""
    return hashlib.sha256(os.fsencode(path.as_posix())).digest()


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in PICTURES


def _endings() -> str:
    return ", ".join(sorted(PICTURES))
