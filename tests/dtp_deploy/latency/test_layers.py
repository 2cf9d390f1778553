"""Layers as they are traced, their widths after pruning, and the small graphs of them."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dtp_deploy.cost import count_macs
from dtp_deploy.graph import Groups, find_groups
from dtp_deploy.latency.graphs import write_layer
from dtp_deploy.latency.layers import Layer, gemm, trace_layers
from dtp_deploy.prune import make_plan, prove, remove_channels
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.testing.zoo import ZOO, ZooEntry


def traced(model: nn.Module, inputs: torch.Tensor) -> list[Layer]:
    return trace_layers(model, Groups((), (inputs,)))


@pytest.mark.parametrize("entry", [entry for name, entry in ZOO.items() if name != "group_norm"], ids=str)
def test_widths_after_pruning_are_those_of_the_pruned_network(entry: ZooEntry) -> None:
    model = entry.model()
    groups = prove(model, find_groups(model, entry.inputs()))
    rng = np.random.default_rng(0)
    counts = [int(rng.integers(1, group.units + 1)) for group in groups.prunable]
    kept = {group.name: range(count) for group, count in zip(groups.prunable, counts, strict=True)}
    small = remove_channels(model, make_plan(groups, kept, fingerprint_of(model)))
    for layer, real in zip(trace_layers(model, groups), traced(small, entry.inputs()), strict=True):
        for channels, width in ((layer.input_channels, real.inputs), (layer.output_channels, real.outputs)):
            predicted = channels.offset + sum(s * c for s, c in zip(channels.slopes, counts, strict=True))
            assert predicted == pytest.approx(width), layer.name
        assert layer.signature == real.signature or layer.signature.is_depthwise or real.signature.is_depthwise


@pytest.mark.parametrize("name", ["residual", "depthwise", "grouped", "unet", "conv1d", "plain"])
def test_operations_of_the_layers_are_those_of_the_network(name: str) -> None:
    model, inputs = ZOO[name].model(), ZOO[name].inputs()
    assert sum(layer.macs for layer in traced(model, inputs)) == pytest.approx(count_macs(model, inputs), rel=0.01)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(8, 6, 3, stride=2, padding=1), (2, 8, 9, 7)),
        (nn.Conv2d(8, 8, 5, padding=2, groups=8), (1, 8, 9, 7)),
        (nn.Conv2d(8, 12, 3, padding="same", groups=4, dilation=2), (1, 8, 9, 7)),
        (nn.Conv2d(8, 6, 3, padding="valid"), (1, 8, 9, 7)),
        (nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1), (1, 8, 5, 5)),
        (nn.Conv1d(4, 6, 3), (1, 4, 20)),
        (nn.Linear(8, 5), (3, 8)),
    ],
    ids=["strided", "depthwise", "grouped and dilated", "valid", "transposed", "one dimension", "linear"],
)
def test_the_graph_of_a_layer_is_that_layer(module: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    (layer,) = traced(nn.Sequential(module), torch.zeros(shape))
    write_layer(tmp_path / "layer.onnx", layer.signature, layer.inputs, layer.outputs, copies=2)
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": np.ones(shape, np.float32)})
    assert output.shape == tuple(module(torch.zeros(shape)).shape)
    assert output.any()
    graph = onnx.load(tmp_path / "layer.onnx").graph
    assert [node.op_type for node in graph.node].count(layer.signature.op) == 2


def test_a_layer_that_is_used_twice_is_two_layers() -> None:
    shared = nn.Linear(4, 4)
    assert [layer.name for layer in traced(nn.Sequential(shared, shared), torch.zeros(1, 4))] == ["0", "0"]


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = ZOO["residual"].model().train()
    traced(model, ZOO["residual"].inputs())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_signatures_are_named_for_people() -> None:
    (conv,) = traced(nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, groups=4)), torch.zeros(1, 4, 9, 7))
    assert str(conv.signature) == "Conv 3x3/2 depthwise on 1x9x7"
    assert str(gemm(3)) == "Gemm on 3"
