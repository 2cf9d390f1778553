"""Whatever happens to a file on its way, it is read or refused in one line; it never ends in a traceback."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from dtp_deploy.errors import InputError
from dtp_deploy.loading import load_data, load_weights, read_checkpoint


def save(path: Path) -> None:
    weights = nn.BatchNorm2d(3).state_dict()
    if path.suffix == ".npz":
        x, y = np.ones((4, 8, 8), np.uint8), np.arange(4)
        np.savez_compressed(path, x_train=x, y_train=y, x_val=x, y_val=y)
    elif path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=path.stem != "legacy")


def read(path: Path) -> None:
    if path.suffix == ".npz":
        load_data(str(path))
    else:
        load_weights(nn.BatchNorm2d(3), read_checkpoint(path))


@pytest.fixture(scope="module", params=["zip.pt", "legacy.pt", "w.safetensors", "photos.npz"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / request.param
    save(path)
    read(path)
    return path


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_is_refused(whole: Path, share: float) -> None:
    content = whole.read_bytes()
    path = whole.with_stem("damaged")
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError):
        read(path)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_wrong_bytes_is_read_or_refused(whole: Path, changes: list[tuple[float, int]]) -> None:
    content = bytearray(whole.read_bytes())
    for share, value in changes:
        content[int(share * len(content))] = value
    path = whole.with_stem("damaged")
    path.write_bytes(content)
    refusal = f"{path} is read"
    try:
        read(path)
    except InputError as error:
        refusal = str(error)
    assert str(path) in refusal
    assert "\n" not in refusal
