"""Exporting a PyTorch model: ONNX with its weights inside, and a `torch.export` program.

Both come from one capture of the model, and both are written without a trace of this machine: exporters record a
stack trace with local paths at every node, and `torch.export` the sample that it traced with, a user's photo perhaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from dtp_deploy.errors import GraphError
from dtp_deploy.export.files import MAX_ONNX_BYTES, serialise, too_large, write_atomically
from dtp_deploy.export.quiet import first_line, held_back
from dtp_deploy.export.translations import translations_kept
from dtp_deploy.modules import Inputs, as_inputs, capture, evaluating, shapes_of
from dtp_deploy.nested import flatten_outputs

if TYPE_CHECKING:
    import onnx_ir

OPSET = 18
"""The lowest that PyTorch's exporter writes as asked, so the one that most runtimes take."""

_SHOWN_LINES = 20


def export_onnx(
    model: nn.Module, inputs: torch.Tensor | Inputs, path: Path, input_names: Sequence[str] | None = None
) -> None:
    """Write the model as one ONNX file, in evaluation mode, with static shapes.

    The input is named "input", or "input_0", "input_1", ... unless names are given; the output "output", or "output_0",
    "output_1", ... where there are several, in the order of `flatten_outputs`. The same model gives the same bytes. The
    model is left in the modes that it had.

    Args:
        model: what to export; its weights are embedded.
        inputs: an example, each tensor batch first, on the model's device; only shapes and types matter.
        path: the file to write, replaced at once if it exists.
        input_names: one a tensor.

    Raises:
        GraphError: the model cannot be captured or holds operators that ONNX has not, it returns something else than
            tensors, or it is above 2 GB.
    """
    size_bytes = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    if size_bytes > MAX_ONNX_BYTES:
        raise too_large(size_bytes)
    inputs = as_inputs(inputs)
    with _explained("ONNX", model, inputs):
        names = _output_names(model, inputs)
        captured = capture(model, inputs)
        with translations_kept():
            program = torch.onnx.export(captured, dynamo=True, opset_version=OPSET, verbose=False)
        assert program is not None
        _name_values(program.model.graph, list(input_names or default_input_names(len(inputs))), names)
        content = serialise(program.model_proto)
    write_atomically(path, content)


def export_program(model: nn.Module, inputs: torch.Tensor | Inputs, path: Path) -> None:
    """Write the model as a `torch.export` program (``.pt2``), in evaluation mode, with static shapes.

    Arguments as for `export_onnx`. ``torch.export.load(path).module()`` runs it.

    Raises:
        GraphError: the model cannot be captured.
    """
    inputs = as_inputs(inputs)
    with _explained("a torch.export program", model, inputs):
        program = capture(model, inputs)
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)
        # A buffer, because the archive would otherwise be named after the file, and its bytes with it.
        buffer = BytesIO()
        torch.export.save(program, buffer)
    write_atomically(path, buffer.getvalue())


def default_input_names(count: int) -> list[str]:
    """How inputs are called where nobody named them.

    >>> default_input_names(1), default_input_names(2)
    (['input'], ['input_0', 'input_1'])
    """
    return ["input"] if count == 1 else [f"input_{index}" for index in range(count)]


def _name_values(graph: onnx_ir.Graph, inputs: list[str], outputs: list[str]) -> None:
    """Name the graph's inputs and outputs, and first give way where something inside has such a name.

    The exporter's own `output_names` breaks a model with a parameter that is called "output".
    """
    public = dict(zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True))
    taken = set(public.values())
    inside = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in inside:
        if value.name in taken and value not in public:
            value.name = f"{value.name}_inside"
    for value, name in public.items():
        value.name = name


def _output_names(model: nn.Module, inputs: Inputs) -> list[str]:
    with evaluating(model), torch.no_grad():
        count = len(flatten_outputs(model(*(torch.zeros_like(tensor) for tensor in inputs))))
    if count == 0:
        raise GraphError(
            f"{type(model).__name__} returns no tensor; an exported model needs at least one output. "
            "Return the tensors that you want from its forward()."
        )
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


@contextmanager
def _explained(form: str, model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Keep PyTorch's exporters quiet, and turn whatever they raise into one error with all that they said."""
    said: list[str] = []
    try:
        with held_back() as said:
            yield
    except GraphError:
        raise
    except Exception as error:  # the exporters raise classes of their own, and any class of the traced code
        reasons = "\n".join(f"  {line}" for line in [*_causes(error), *said][:_SHOWN_LINES])
        raise GraphError(
            f"{type(model).__name__} could not be exported to {form} with inputs of shape {shapes_of(inputs)}. "
            "torch.export must be able to trace it: no branches that depend on values, tensors in and out, operators "
            f"that ONNX has. Change the part named here:\n{reasons}"
        ) from error


def _causes(error: BaseException) -> Iterator[str]:
    """The first line of each error of a chain, the root first, each with the places in the model that it names."""
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)
    yield first_line(error)
    yield from (line.strip() for line in str(error).splitlines() if line.strip().startswith('File "'))
