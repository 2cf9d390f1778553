"""Half precision written into the ONNX file: every float32 tensor inside the graph becomes float16.

Runtimes without weak typing (TensorRT 11, TensorRT for RTX, strongly typed builds of TensorRT 10) compute in the types
that the file states, so this is what asking them for fp16 means. Inputs and outputs stay float32, with a Cast at each.

Which inputs and outputs of a node may be float16 is read from the operator's schema in ONNX, not from a list: the
scales of a Resize, for example, must stay float32, and get a Cast back. Operators that sum squares or exponentials,
where float16 ends at 65504, are computed in float32 (`KEPT`).
"""

from collections.abc import Collection, Iterator
from typing import ClassVar

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, inliner, numpy_helper

from dtp_deploy.errors import GraphError

KEPT = frozenset(
    [
        "CumSum",
        "Exp",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LogSoftmax",
        "LpNormalization",
        "MeanVarianceNormalization",
        "Pow",
        "RMSNormalization",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceSumSquare",
        "Softmax",
    ]
)
"""Operators that stay in float32."""

LARGEST = float(np.finfo(np.float16).max)
"""The largest float16. Larger finite constants (the -1e9 of an attention mask, say) are cut to it."""

_HALF = "tensor(float16)"


class Float16Pass:
    """`to_float16` as a pass over an ONNX model, to be checked with a tolerance of about 1e-2."""

    name: ClassVar[str] = "float16"

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model with half precision inside."""
        return to_float16(model)


def to_float16(model: onnx.ModelProto, kept: Collection[str] = KEPT) -> onnx.ModelProto:
    """A copy of `model` with float32 inputs and outputs as before, and float16 between them.

    Args:
        model: a valid ONNX model without control flow; it is not changed.
        kept: operators that shall stay in float32.

    Raises:
        GraphError: the model holds control flow (If, Loop, Scan), or its types cannot be inferred.
    """
    model = inliner.inline_local_functions(model)
    for node in model.graph.node:
        if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
            raise GraphError(
                f"Node '{node.name}' is a {node.op_type}, whose branches cannot be converted to float16. "
                "Export the model without control flow, or ask for fp32."
            )
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        converted = _Conversion(model, kept).model()
        onnx.checker.check_model(converted, full_check=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GraphError(f"The model cannot be converted to float16: {reason} Ask for fp32.") from error
    return converted


class _Conversion:
    """The state of one conversion. A float32 tensor `x` of the original is float16 under one name, and can be had as
    float32 under another; the Cast between them is written when the second one is first asked for."""

    def __init__(self, model: onnx.ModelProto, kept: Collection[str]) -> None:
        self._source = model
        self._kept = kept
        self._opsets = {opset.domain: opset.version for opset in model.opset_import}
        graph = model.graph
        values = [*graph.input, *graph.output, *graph.value_info]
        self._floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._weights = {w.name: w for w in graph.initializer if w.data_type == TensorProto.FLOAT}
        self._floats |= self._weights.keys()
        self._taken = {name for node in graph.node for name in (*node.input, *node.output)} | self._floats
        self._half: dict[str, str] = {}
        self._single: dict[str, str] = {v.name: v.name for v in graph.input if v.name in self._floats}
        self._nodes: list[NodeProto] = []
        self._new_weights: list[TensorProto] = []

    def model(self) -> onnx.ModelProto:
        """The converted model."""
        for node in self._source.graph.node:
            self._convert(node)
        for value in self._source.graph.output:
            if value.name in self._floats and value.name not in self._single.values():
                self._cast(self._as_half(value.name), value.name, TensorProto.FLOAT)
        result = onnx.ModelProto()
        result.CopyFrom(self._source)
        graph = result.graph
        others = [weight for weight in graph.initializer if weight.data_type != TensorProto.FLOAT]
        for field in ("node", "initializer", "value_info"):
            graph.ClearField(field)
        graph.node.extend(self._nodes)
        graph.initializer.extend([*others, *self._new_weights])
        return result

    def _convert(self, node: NodeProto) -> None:
        allowed_in, allowed_out = self._allowed(node)
        new = NodeProto()
        new.CopyFrom(node)
        for index, (name, half) in enumerate(zip(node.input, allowed_in, strict=True)):
            if name in self._floats:
                new.input[index] = self._as_half(name) if half else self._as_single(name)
        made_half = _set_element_type(new) if any(allowed_out) else False
        follows = any(name in self._floats and half for name, half in zip(node.input, allowed_in, strict=True))
        self._nodes.append(new)
        outputs = {value.name for value in self._source.graph.output}
        for index, (name, half) in enumerate(zip(node.output, allowed_out, strict=True)):
            if name not in self._floats:
                continue
            if half and (made_half or follows):
                # The float32 output of the graph keeps its name, so the tensor inside gets another.
                new.output[index] = self._half[name] = self._fresh(f"{name}_half") if name in outputs else name
            else:
                new.output[index] = self._single[name] = name if name in outputs else self._fresh(f"{name}_single")

    def _allowed(self, node: NodeProto) -> tuple[list[bool], list[bool]]:
        """Which inputs and outputs of a node can be float16."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self._opsets.get(domain, self._opsets.get("ai.onnx", 1))
        if node.op_type in self._kept or not onnx.defs.has(node.op_type, domain):
            return [False] * len(node.input), [False] * len(node.output)
        schema = onnx.defs.get_schema(node.op_type, version, domain)

        def half(formals: list[onnx.defs.OpSchema.FormalParameter], count: int) -> Iterator[bool]:
            for index in range(count):
                yield _HALF in formals[min(index, len(formals) - 1)].types

        return list(half(list(schema.inputs), len(node.input))), list(half(list(schema.outputs), len(node.output)))

    def _as_half(self, name: str) -> str:
        if name not in self._half:
            if name in self._weights:
                self._half[name] = self._fresh(f"{name}_half")
                self._new_weights.append(_half_tensor(self._weights[name], self._half[name]))
            else:
                self._half[name] = self._cast(self._single[name], self._fresh(f"{name}_half"), TensorProto.FLOAT16)
        return self._half[name]

    def _as_single(self, name: str) -> str:
        if name not in self._single:
            if name in self._weights:
                self._single[name] = name
                self._new_weights.append(self._weights[name])
            else:
                self._single[name] = self._cast(self._half[name], self._fresh(f"{name}_single"), TensorProto.FLOAT)
        return self._single[name]

    def _cast(self, source: str, destination: str, to: int) -> str:
        self._nodes.append(helper.make_node("Cast", [source], [destination], name=f"Cast_{destination}", to=to))
        return destination

    def _fresh(self, wish: str) -> str:
        name, number = wish, 1
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._taken.add(name)
        return name


def _set_element_type(node: NodeProto) -> bool:
    """Change, in place, the attribute by which a node states that its output is float32; whether there was one."""
    changed = False
    if node.op_type == "Cast":
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
                changed = True
    elif node.op_type in ("Constant", "ConstantOfShape"):
        for attribute in node.attribute:
            tensor = None
            if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                tensor = attribute.t
            elif attribute.name in ("value_float", "value_floats"):
                numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                tensor = numpy_helper.from_array(np.asarray(numbers, np.float32))
            if tensor is not None:
                attribute.CopyFrom(helper.make_attribute("value", _half_tensor(tensor, tensor.name)))
                changed = True
    return changed


def _half_tensor(tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    finite = np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), values)
    return numpy_helper.from_array(finite.astype(np.float16), name)
