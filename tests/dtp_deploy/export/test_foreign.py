from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.errors import GraphError, UsageError
from dtp_deploy.export.callables import onnx_callable
from dtp_deploy.export.foreign import export_foreign

INPUTS = (torch.randn(2, 3, 8, 8),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layers(x)
        return y, y.mean((2, 3))


def scripted(model: nn.Module) -> torch.jit.ScriptModule:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        return torch.jit.trace(model, INPUTS)


@pytest.mark.parametrize("form", ["program", "torchscript"])
def test_the_onnx_file_gives_the_same_outputs(tmp_path: Path, form: str) -> None:
    model = Net().eval()
    path = tmp_path / "m.onnx"
    if form == "program":
        export_foreign(torch.export.export(model, INPUTS), path)
    else:
        export_foreign(scripted(model), path, INPUTS)
    onnx.checker.check_model(path)
    name = onnx.load(path).graph.input[0].name
    for found, wanted in zip(onnx_callable(path)({name: INPUTS[0].numpy()}), model(*INPUTS), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


def test_nothing_of_this_machine_is_written(tmp_path: Path) -> None:
    export_foreign(torch.export.export(Net().eval(), INPUTS), tmp_path / "m.onnx")
    assert str(Path.cwd()).encode() not in (tmp_path / "m.onnx").read_bytes()


def test_torchscript_needs_its_shape(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export_foreign(scripted(Net().eval()), tmp_path / "m.onnx")
    assert str(caught.value) == (
        "A TorchScript archive does not say what it takes. Give the shape: --input 1x3x224x224."
    )


def test_says_what_could_not_be_exported(tmp_path: Path) -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).real

    program = torch.export.export(Sorted(), (torch.eye(3),))
    with pytest.raises(GraphError) as caught:
        export_foreign(program, tmp_path / "m.onnx")
    message = str(caught.value)
    assert message.startswith("The program could not be exported to ONNX (")
    assert message.endswith("). Export the PyTorch model that it was made from.")
    assert "\n" not in message
    assert not (tmp_path / "m.onnx").exists()
