"""The examples of docs/data.md, run as they stand there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

import dtp_deploy
from dtp_deploy.loading.folders import PICTURES
from dtp_deploy.loading.loaders import LoaderData
from dtp_deploy.loading.preprocessing import METADATA_KEY, Preprocessing, preprocessing_json
from dtp_deploy.profile.measure import MeasureSettings

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
LOADERS, PREDICT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_predict(tmp_path: Path, photos: dict[str, npt.NDArray[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model that gives the mean of each channel."""
    preprocessing = Preprocessing(resize=64, crop=(48, 56), mean=(0.5, 0.4, 0.3), std=(0.2,), channels="bgr")
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["input"], ["output"], axes=[2, 3], keepdims=0)],
        "means",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 48, 56])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: preprocessing_json(preprocessing)})
    onnx.save(model, tmp_path / "model.onnx")
    Image.fromarray(photos["china"]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (output,) = run(PREDICT)["outputs"]
    with Image.open(tmp_path / "photo.jpg") as photo:
        expected = preprocessing.apply(photo).mean((1, 2))
    np.testing.assert_allclose(output[0], expected, rtol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_loaders() -> None:
    data = LoaderData("mine:loaders", *run(LOADERS)["loaders"]())
    assert data.sample_shapes == ((3, 32, 32),)
    assert len(data.train(64, 0)) == 4
    assert data.validation_size == 64


def test_a_model_is_pruned_with_the_loaders(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    report = dtp_deploy.compress(
        model,
        data=LoaderData("mine:loaders", *run(LOADERS)["loaders"]()),
        budget=dtp_deploy.parse_budget("macs", "60%"),
        out=tmp_path / "out",
        settings=dtp_deploy.Settings(epochs=1),
        measuring=MeasureSettings(min_samples=20, min_seconds=0.05, blocks=5, warm_up_seconds=0.01, repeats=0),
    )
    assert any("training data are those of the loader given" in note for note in report.notes)
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_the_page_names_every_ending_of_a_picture() -> None:
    assert set(re.findall(r"\.[a-z]+\b", PAGE.split("files that end in")[1].split(";")[0])) == PICTURES
