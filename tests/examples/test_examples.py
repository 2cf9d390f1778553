"""The examples are code that users copy: they are tried like the rest."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples import digits_cnn, fashion_resnet, idx_to_npz, train_classifier


@pytest.mark.parametrize(
    ("model", "side"),
    [
        (digits_cnn.make_model(), 8),
        (fashion_resnet.make_model(), 28),
        (fashion_resnet.make_wide_model(), 28),
    ],
)
def test_models_give_ten_logits_an_image(model: nn.Module, side: int) -> None:
    assert model(torch.zeros(2, 1, side, side)).shape == (2, 10)


def test_augment_moves_each_image_by_itself_and_by_no_more_than_it_may() -> None:
    x = torch.zeros(200, 2, 5, 5)
    x[:, :, 2, 2] = torch.tensor([1.0, 2.0])
    moved = train_classifier.augment(x, shift=1, flip=False)
    assert torch.equal(moved[:, :, 1:4, 1:4].sum((2, 3)), torch.tensor([1.0, 2.0]).expand(200, 2))
    assert len(moved.unique(dim=0)) == 9


def test_augment_mirrors_about_half_of_the_images() -> None:
    x = torch.arange(5.0).expand(200, 1, 5, 5)
    y = train_classifier.augment(x, shift=0, flip=True)
    mirrored = (y == x.flip(3)).all(dim=(1, 2, 3))
    assert 60 < int(mirrored.sum()) < 140
    assert torch.equal(y[~mirrored], x[~mirrored])


def test_training_writes_weights_that_have_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new/model.pt"
    options = f"--model examples.digits_cnn:make_model --data digits --epochs 2 --batch-size 64 --out {out}"
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", *options.split()])
    train_classifier.main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("accuracy ")
    assert float(last.split()[1]) > 60
    assert [path.name for path in out.parent.iterdir()] == ["model.pt"]
    digits_cnn.make_model().load_state_dict(torch.load(out, weights_only=True))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "idx"
    folder.mkdir()
    for prefix, count in (("train", 6), ("t10k", 2)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", np.arange(count * 12, dtype=np.uint8).reshape(count, 3, 4))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return folder


def run_idx_to_npz(monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["idx_to_npz.py", str(folder), str(out)])
    idx_to_npz.main()


def test_idx_files_become_one_npz(idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data.npz"
    run_idx_to_npz(monkeypatch, idx_folder, out)
    with np.load(out, allow_pickle=False) as data:
        assert {name: data[name].shape for name in data} == {
            "x_train": (6, 1, 3, 4),
            "y_train": (6,),
            "x_val": (2, 1, 3, 4),
            "y_val": (2,),
        }
        assert data["x_train"].dtype == np.uint8
        assert data["x_train"][5, 0, 2, 3] == 71


def test_idx_to_npz_overwrites_nothing(idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data.npz"
    out.write_bytes(b"mine")
    with pytest.raises(SystemExit) as stop:
        run_idx_to_npz(monkeypatch, idx_folder, out)
    assert stop.value.code == f"{out} exists and is not overwritten. Give another name, or remove it."
    assert out.read_bytes() == b"mine"


def test_idx_to_npz_refuses_what_is_no_idx_file(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = idx_folder / "t10k-labels-idx1-ubyte.gz"
    bad.write_bytes(gzip.compress(b"not an IDX file"))
    with pytest.raises(SystemExit) as stop:
        run_idx_to_npz(monkeypatch, idx_folder, tmp_path / "data.npz")
    assert stop.value.code == f"{bad} is not an IDX file of bytes. Give the files as they were published."
    assert not (tmp_path / "data.npz").exists()
