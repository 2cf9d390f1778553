"""ONNX from models that are graphs already: a torch.export program, or a TorchScript module."""

from io import BytesIO
from pathlib import Path

import onnx
import torch
from torch.export import ExportedProgram

from dtp_deploy.errors import GraphError, UsageError
from dtp_deploy.export.files import serialise, write_atomically
from dtp_deploy.export.onnx import OPSET, default_input_names
from dtp_deploy.export.quiet import first_line, held_back
from dtp_deploy.modules import Inputs


def export_foreign(model: ExportedProgram | torch.jit.ScriptModule, path: Path, inputs: Inputs | None = None) -> None:
    """Write a program or a TorchScript module as one ONNX file.

    Args:
        model: as `dtp_deploy.loading.load_foreign` gives it.
        path: the file to write, replaced at once if it exists.
        inputs: an example for a TorchScript module, which does not know its shapes; a program has its own.

    Raises:
        UsageError: a TorchScript module without `inputs`.
        GraphError: it holds operators that ONNX has not, or it is above 2 GB.
    """
    if isinstance(model, torch.jit.ScriptModule) and inputs is None:
        raise UsageError("A TorchScript archive does not say what it takes. Give the shape: --input 1x3x224x224.")
    try:
        with held_back():
            content = _from_program(model) if isinstance(model, ExportedProgram) else _from_script(model, inputs or ())
    except GraphError:
        raise
    except Exception as error:  # the exporters raise classes of their own
        raise GraphError(
            f"The {'program' if isinstance(model, ExportedProgram) else 'TorchScript module'} could not be exported to "
            f"ONNX ({first_line(error)}). Export the PyTorch model that it was made from."
        ) from error
    write_atomically(path, content)


def _from_program(program: ExportedProgram) -> bytes:
    exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    assert exported is not None
    return serialise(exported.model_proto)


def _from_script(module: torch.jit.ScriptModule, inputs: Inputs) -> bytes:
    buffer = BytesIO()
    module.eval()
    names = default_input_names(len(inputs))
    # The other exporter cannot trace TorchScript.
    torch.onnx.export(module, inputs, buffer, dynamo=False, opset_version=OPSET, input_names=names)  # type: ignore[arg-type]
    return serialise(onnx.load_model_from_string(buffer.getvalue()))
