from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from dtp_deploy.errors import GraphError
from dtp_deploy.export.callables import onnx_callable, torch_callable
from dtp_deploy.nested import flatten_outputs

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Detections:
    boxes: torch.Tensor


def tensors(count):
    return [torch.tensor(float(index)) for index in range(count)]


def test_outputs_are_flattened_in_order():
    a, b, c, d, e = tensors(5)
    nested = OrderedDict(z=Pair(a, [b, None]), a={"y": c, "x": (d,)}, none=None, last=e)
    assert [tensor.item() for tensor in flatten_outputs(nested)] == [0, 1, 2, 3, 4]
    assert flatten_outputs(a) == [a]
    assert flatten_outputs(None) == []


@pytest.mark.parametrize("value", [3, "text", Detections(torch.zeros(1))], ids=["int", "str", "dataclass"])
def test_other_outputs_are_refused(value):
    with pytest.raises(GraphError) as caught:
        flatten_outputs((torch.zeros(1), value))
    assert str(caught.value) == (
        f"The model returns a value of type {type(value).__name__}; tensors, and tuples, lists and dicts of them, "
        "can be exported. Wrap the model in a module that returns only these."
    )


def test_torch_callable_evaluates_and_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9)).train()
    batch = {"input": np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)}
    run = torch_callable(model)
    (first,), (second,) = run(batch), run(batch)
    np.testing.assert_array_equal(first, second)
    assert model.training
    assert model[1].training
    assert model[0].num_batches_tracked == 0


def test_torch_callable_protects_the_batch_from_a_model_that_writes_into_its_input():
    batch = {"input": np.float32([-1, 2])}
    (output,) = torch_callable(nn.ReLU(inplace=True))(batch)
    assert output.tolist() == [0, 2]
    assert batch["input"].tolist() == [-1, 2]


def test_torch_callable_gives_arrays_by_position():
    class Difference(nn.Module):
        def forward(self, x, y):
            return x - y

    (output,) = torch_callable(Difference())({"b": np.float32([5]), "a": np.float32([3])})
    assert output.tolist() == [2]


def test_onnx_callable_names_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(GraphError, match=r"^ONNX Runtime [\d.]+ cannot load broken\.onnx: .*Export the model again"):
        onnx_callable(path)
