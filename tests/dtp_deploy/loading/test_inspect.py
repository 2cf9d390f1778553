import io
import os
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dtp_deploy import artefact
from dtp_deploy.errors import InputError
from dtp_deploy.loading.inspect import FOREIGN, PLAN_NAME, CheckpointInfo, inspect_checkpoint

WEIGHTS = {"fc.weight": torch.ones(2, 3)}
LINEAR = "torch.nn.modules.linear.Linear"


class Malicious:
    """Creates the file `victim` when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def program(path: Path) -> Path:
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),)), path)
    return path


def script(path: Path) -> Path:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)), path)
    return path


@pytest.mark.parametrize("content", [WEIGHTS, OrderedDict(WEIGHTS), {"epoch": 3, "model": WEIGHTS}, torch.ones(2)])
@pytest.mark.parametrize("zip_format", [True, False])
def test_what_imports_nothing_is_a_state_dict(tmp_path: Path, content: object, zip_format: bool) -> None:
    path = saved(tmp_path / "w.pt", content, _use_new_zipfile_serialization=zip_format)
    info = inspect_checkpoint(path)
    assert info == CheckpointInfo(path, "state_dict")
    assert info.can_be_pruned
    assert not info.needs_trust


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_pickled_module(tmp_path: Path, zip_format: bool) -> None:
    path = saved(tmp_path / "m.pt", nn.Linear(3, 2), _use_new_zipfile_serialization=zip_format)
    assert inspect_checkpoint(path) == CheckpointInfo(path, "pickled-module", (LINEAR,), None, LINEAR)
    assert inspect_checkpoint(path).needs_trust


def test_a_plain_pickle_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(nn.Linear(3, 2)))
    info = inspect_checkpoint(tmp_path / "m.pkl")
    assert (info.kind, info.model_class) == ("pickled-module", LINEAR)
    assert {LINEAR, "torch.storage._load_from_bytes"} <= set(info.imports)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"model": nn.Linear(3, 2), "ema": None}, "model"),
        ({"model": nn.Linear(3, 2), "ema": nn.Linear(3, 2)}, "ema"),
        (OrderedDict(net=nn.Linear(3, 2), epoch=1), "net"),
    ],
)
def test_a_checkpoint_dict_that_pickles_its_model(tmp_path: Path, content: object, key: str) -> None:
    path = saved(tmp_path / "m.pt", content)
    assert inspect_checkpoint(path) == CheckpointInfo(path, "pickled-dict", (LINEAR,), key, LINEAR)


def test_the_settings_of_the_training_make_a_dict_need_trust(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"model": WEIGHTS, "seen": slice(3)})
    assert inspect_checkpoint(path) == CheckpointInfo(path, "pickled-dict", ("builtins.slice",))


def test_the_users_own_classes_come_first(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"model": nn.Linear(3, 2), "z": slice(3)})
    assert inspect_checkpoint(path).imports == ("builtins.slice", LINEAR)


def test_programs_and_torchscript_by_any_name(tmp_path: Path) -> None:
    for make, kind in ((program, "exported-program"), (script, "torchscript")):
        path = shutil.copy(make(tmp_path / "m.pt2"), tmp_path / "photo.jpg")
        info = inspect_checkpoint(path)
        assert info == CheckpointInfo(path, kind)  # type: ignore[arg-type]
        assert kind in FOREIGN
        assert info.needs_trust
        assert not info.can_be_pruned


def test_a_program_with_a_pickle_inside_names_its_imports(tmp_path: Path) -> None:
    path = program(tmp_path / "m.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/data/constants/custom_obj_0", pickle.dumps(Malicious(tmp_path / "victim")))
    assert inspect_checkpoint(path).imports == ("posix.mkdir",)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_safetensors_by_any_name(tmp_path: Path, name: str) -> None:
    save_file(WEIGHTS, tmp_path / name)
    assert inspect_checkpoint(tmp_path / name) == CheckpointInfo(tmp_path / name, "safetensors")


def test_an_artefact(tmp_path: Path) -> None:
    assert PLAN_NAME == artefact.PLAN
    (tmp_path / artefact.PLAN).touch()
    assert inspect_checkpoint(tmp_path) == CheckpointInfo(tmp_path, "artefact")


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.pt2", "w.safetensors", "w.jpg"])
@pytest.mark.parametrize("zip_format", [True, False])
def test_runs_nothing_whatever_the_name(tmp_path: Path, name: str, zip_format: bool) -> None:
    content = {"model": Malicious(tmp_path / "victim")}
    inspect_checkpoint(saved(tmp_path / name, content, _use_new_zipfile_serialization=zip_format))
    assert not (tmp_path / "victim").exists()


def hidden(module: str, name: str) -> bytes:
    """A pickle that imports one name, while the last two strings before the import are others."""

    def text(word: str) -> bytes:
        return b"\x8c" + bytes([len(word)]) + word.encode()

    decoy = text("collections") + text("OrderedDict") + b"00"  # pushed, and popped again
    return b"\x80\x04" + text(module) + text(name) + decoy + b"\x93" + text("victim") + b"\x85R."


def test_a_name_hidden_behind_a_decoy_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(hidden("posix", "mkdir"))
    info = inspect_checkpoint(path)
    assert info.imports == ("posix.mkdir",)
    assert info.model_class == "posix.mkdir"


def test_a_forged_memo_index_does_not_take_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"\x80\x02cposix\nmkdir\nr" + struct.pack("<I", 2**32 - 1) + b".")
    assert inspect_checkpoint(path).imports == ("posix.mkdir",)


def test_an_entry_of_the_extension_registry_is_never_called(tmp_path: Path) -> None:
    import copyreg

    copyreg.add_extension("posix", "mkdir", 77)
    try:
        path = tmp_path / "m.pt"
        path.write_bytes(b"\x80\x02\x82\x4dX\x06\x00\x00\x00victim\x85R.")
        assert inspect_checkpoint(path).imports == ()
    finally:
        copyreg.remove_extension("posix", "mkdir", 77)
    assert not Path("victim").exists()


def test_refuses_onnx(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x07")
    with pytest.raises(InputError) as caught:
        inspect_checkpoint(path)
    assert str(caught.value) == (
        f"Checkpoint {path} is an ONNX model, which can be profiled (dtp-deploy profile {path}) and not pruned. "
        "Give the PyTorch model that it was exported from."
    )


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    remedy = "Give a file written by torch.save, a .safetensors file, or a folder that dtp-deploy compress wrote."
    for path, problem in ((tmp_path / "none.pt", "does not exist"), (tmp_path, "is a directory")):
        with pytest.raises(InputError) as caught:
            inspect_checkpoint(path)
        assert str(caught.value) == f"Checkpoint {path} {problem}. {remedy}"


def test_a_damaged_zip_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(nn.Linear(2, 2), stream)
    (tmp_path / "m.pt").write_bytes(stream.getvalue()[:200])
    assert inspect_checkpoint(tmp_path / "m.pt").kind == "state_dict"
