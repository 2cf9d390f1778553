"""Writing a model file: at once or not at all, the same bytes each time, and nothing of the machine that made it."""

from collections.abc import Iterator
from pathlib import Path

import onnx

from dtp_deploy.errors import GraphError

MAX_ONNX_BYTES = 2**31 - 1
"""The largest message that protobuf can hold, so the largest ONNX file with its weights inside."""


def anonymise(model: onnx.ModelProto) -> None:
    """Remove, in place, doc strings and metadata: exporters put stack traces with local paths into them."""
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    for function in model.functions:
        for part in (function, *function.node):
            part.ClearField("doc_string")
            part.ClearField("metadata_props")
    for graph in _graphs(model):
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            part.ClearField("doc_string")
            part.ClearField("metadata_props")


def serialise(model: onnx.ModelProto) -> bytes:
    """The bytes of the model, without what `anonymise` removes: equal models give equal bytes.

    Raises:
        GraphError: the model is above 2 GB.
        onnx.checker.ValidationError: the model breaks the rules of ONNX.
    """
    anonymise(model)
    if model.ByteSize() > MAX_ONNX_BYTES:
        raise too_large(model.ByteSize())
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def too_large(size_bytes: int) -> GraphError:
    """The error for a model that does not fit into one ONNX file."""
    return GraphError(
        f"The model has {size_bytes / 1e9:.1f} GB of weights; one ONNX file holds at most 2 GB. "
        "Prune a smaller model, or part of this one."
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at no moment `path` holds a part of it."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph, and those inside its nodes (the branches of an If, say), at any depth."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
