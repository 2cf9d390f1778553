import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import dtp_deploy
from dtp_deploy.errors import GraphError
from dtp_deploy.export.callables import onnx_callable, torch_callable
from dtp_deploy.export.onnx import export_onnx, export_program
from dtp_deploy.parity import compare
from dtp_deploy.testing.zoo import ZOO

X = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
TRACES = [str(path).encode() for path in (Path(__file__).parent, Path(torch.__file__).parent, Path.home(), Path.cwd())]
TRACES += [b"stack_trace", b"pkg.torch", b'File "', Path(__file__).name.encode()]


class Small(nn.Module):
    """A model whose forward is in this file, so that a stack trace would name it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class Nested(nn.Module):
    def forward(self, x):
        y = 2 * x
        return {"z": (y, None, x), "a": [y.mean(-1), {"again": y}]}


class Clashing(nn.Module):
    """Parameters with the names that the exported model gives to its input and output."""

    def __init__(self):
        super().__init__()
        self.input = nn.Parameter(torch.eye(4))
        self.register_buffer("output", torch.full((4,), 0.5))

    def forward(self, x):
        return torch.sin(x @ self.input + self.output) * self.output


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real


def exported(model, folder, inputs=X):
    path = folder / "model.onnx"
    export_onnx(model, inputs, path)
    return path


def agrees(model, path, inputs=X):
    batches = [{"input": inputs.numpy()}, {"input": 3 * inputs.numpy() + 1}]
    return compare("onnx", torch_callable(model), onnx_callable(path), batches).passed


def test_one_file_with_everything_inside(tmp_path):
    path = exported(Small(), tmp_path)
    model = onnx.load(path, load_external_data=False)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [1, 4, 4]


def test_nested_outputs_are_named_in_order(tmp_path):
    path = exported(Nested(), tmp_path)
    names = [value.name for value in onnx.load(path).graph.output]
    assert names == ["output_0", "output_1", "output_2", "output_3"]
    assert agrees(Nested(), path)


def test_names_inside_the_model_give_way_to_the_public_ones(tmp_path):
    path = exported(Clashing(), tmp_path)
    model = onnx.load(path)
    assert ([model.graph.input[0].name], [model.graph.output[0].name]) == (["input"], ["output"])
    assert agrees(Clashing(), path)


def test_another_model_does_not_agree(tmp_path):
    path = exported(Clashing(), tmp_path)
    other = Clashing()
    other.output += 0.01
    assert not agrees(other, path)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = Small()
    export_onnx(model, X, tmp_path / "a.onnx")
    export_onnx(model, X + 1, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_another_process_gives_the_same_bytes(tmp_path):
    entry = ZOO["squeeze_excite"]
    export_onnx(entry.model(), entry.inputs(), tmp_path / "here.onnx")
    code = (
        "import sys; from pathlib import Path; from dtp_deploy.testing.zoo import ZOO\n"
        "from dtp_deploy.export.onnx import export_onnx\n"
        "entry = ZOO['squeeze_excite']; export_onnx(entry.model(), entry.inputs(), Path(sys.argv[1]))"
    )
    root = Path(dtp_deploy.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there.onnx")],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root)},
    )
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "there.onnx").read_bytes()


def test_no_trace_of_the_machine_is_left(tmp_path):
    content = exported(Small(), tmp_path).read_bytes()
    assert [trace for trace in TRACES if trace in content] == []


def test_the_exporter_itself_does_leave_traces():
    with pytest.warns(FutureWarning):
        program = torch.onnx.export(Small().eval(), (X,), dynamo=True, opset_version=18, verbose=False)
    content = program.model_proto.SerializeToString()
    assert any(trace in content for trace in TRACES)


def test_nothing_is_shown_on_success(tmp_path, capfd, caplog, recwarn):
    exported(Small(), tmp_path)
    export_program(Small(), X, tmp_path / "model.pt2")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not recwarn.list


def test_the_model_is_left_as_it_was(tmp_path):
    model = Small().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = exported(model, tmp_path)
    assert (model.training, model.conv.training, model.norm.training) == (True, True, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert agrees(model, path)


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_a_model_that_cannot_be_traced_is_explained_and_nothing_is_written(export, tmp_path, capfd):
    path = tmp_path / "model"
    path.write_bytes(b"old")
    model = Branching().train()
    with pytest.raises(GraphError) as caught:
        export(model, X, path)
    message = str(caught.value)
    form = "ONNX" if export is export_onnx else "a torch.export program"
    assert message.startswith(
        f"Branching could not be exported to {form} with inputs of shape (1, 4, 4). torch.export must be able to "
        "trace it: no branches that depend on values"
    )
    assert f'File "{__file__}", line' in message
    assert capfd.readouterr() == ("", "")
    assert model.training
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_operator_that_onnx_has_not_is_named(tmp_path):
    with pytest.raises(GraphError, match=r"No ONNX function found for .*linalg_eig"):
        exported(Unknown(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_does_not_fit_is_explained(tmp_path):
    with pytest.raises(GraphError, match=r"inputs of shape \(1, 4, 5\)[\s\S]*RuntimeError: mat1 and mat2"):
        exported(nn.Linear(4, 2), tmp_path, torch.zeros(1, 4, 5))


def test_a_model_without_outputs_is_refused(tmp_path):
    class Silent(nn.Module):
        def forward(self, x):
            return {"loss": None}

    with pytest.raises(GraphError) as caught:
        exported(Silent(), tmp_path)
    assert str(caught.value) == (
        "Silent returns no tensor; an exported model needs at least one output. "
        "Return the tensors that you want from its forward()."
    )


def test_a_model_above_two_gigabytes_is_refused_before_any_work(tmp_path):
    with pytest.raises(GraphError) as caught:
        exported(nn.Linear(30_000, 30_000, device="meta"), tmp_path)
    assert str(caught.value) == (
        "The model has 3.6 GB of weights; one ONNX file holds at most 2 GB. Prune a smaller model, or part of this one."
    )


def test_a_program_reloads_and_computes_the_same(tmp_path):
    model = Small().train()
    export_program(model, X, tmp_path / "model.pt2")
    assert model.training
    module = torch.export.load(tmp_path / "model.pt2").module()
    (expected,) = torch_callable(model)({"input": X.numpy()})
    np.testing.assert_allclose(module(X).detach().numpy(), expected, rtol=1e-6)


def test_a_program_keeps_neither_its_sample_nor_a_trace_of_the_machine(tmp_path):
    photo = torch.full((1, 4, 4), 0.123)
    export_program(Small(), photo, tmp_path / "model.pt2")
    content = (tmp_path / "model.pt2").read_bytes()
    with zipfile.ZipFile(BytesIO(content)) as archive:
        unpacked = b"".join(archive.read(name) for name in archive.namelist())
    assert photo.numpy().tobytes() not in unpacked
    assert [trace for trace in TRACES if trace in content + unpacked] == []


def test_the_same_program_gives_the_same_bytes_under_any_name(tmp_path):
    model = Small()
    export_program(model, X, tmp_path / "a.pt2")
    export_program(model, X, tmp_path / "b.pt2")
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()
