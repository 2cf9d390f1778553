import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.foreign import load_foreign

INPUTS = (torch.randn(1, 3),)


@pytest.fixture
def linear() -> nn.Module:
    return nn.Linear(3, 2)


@pytest.fixture
def program(linear: nn.Module, tmp_path: Path) -> Path:
    torch.export.save(torch.export.export(linear, INPUTS), tmp_path / "m.pt2")
    return tmp_path / "m.pt2"


@pytest.fixture
def script(linear: nn.Module, tmp_path: Path) -> Path:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.trace(linear, INPUTS), tmp_path / "m.ts")
    return tmp_path / "m.ts"


def assert_error(kind: type[DtpError], message: str, path: Path, trust: bool = False) -> None:
    with pytest.raises(kind) as caught:
        load_foreign(path, trust=trust)
    assert type(caught.value) is kind
    assert str(caught.value) == message


def test_loads_a_program(linear: nn.Module, program: Path) -> None:
    loaded = load_foreign(program, trust=True)
    assert isinstance(loaded, ExportedProgram)
    assert torch.equal(loaded.module()(*INPUTS), linear(*INPUTS))


def test_loads_torchscript(linear: nn.Module, script: Path) -> None:
    loaded = load_foreign(script, trust=True)
    assert isinstance(loaded, torch.jit.ScriptModule)
    assert torch.equal(loaded(*INPUTS), linear(*INPUTS))


def test_needs_trust(program: Path, script: Path) -> None:
    remedy = "Give --trust if you know where the file comes from, or give an ONNX file."
    for path, kind in ((program, "a torch.export program (.pt2)"), (script, "a TorchScript archive")):
        message = f"Model {path} is {kind}, which may run code when it is loaded; nothing was run. {remedy}"
        assert_error(UsageError, message, path)


def test_a_pickle_in_a_program_is_named_and_not_run(program: Path) -> None:
    class Malicious:
        def __reduce__(self) -> object:
            return Path.touch, (program.with_name("victim"),)

    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr("m/data/constants/custom_obj_0", pickle.dumps(Malicious()))
    with pytest.raises(UsageError, match=r"nothing was run\. It would import .*pathlib\.P"):
        load_foreign(program)
    assert not program.with_name("victim").exists()


def test_refuses_other_kinds(tmp_path: Path, linear: nn.Module) -> None:
    torch.save(linear, tmp_path / "m.pt")
    assert_error(
        InputError,
        f"Model {tmp_path / 'm.pt'} is of the kind pickled-module, which needs an example input to be exported. "
        "Give an ONNX file, a .pt2 file or a TorchScript archive.",
        tmp_path / "m.pt",
        trust=True,
    )


def test_refuses_a_program_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/models/model.json", "{")
    with pytest.raises(InputError) as caught:
        load_foreign(path, trust=True)
    message = str(caught.value)
    assert message.startswith(f"Model {path} could not be loaded by PyTorch {torch.__version__} (")
    assert message.endswith("). Save it again with this version, or give an ONNX file.")
    assert "\n" not in message
