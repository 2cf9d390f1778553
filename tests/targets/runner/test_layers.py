import json
from pathlib import Path

import pytest

from dtp_deploy_targets.runner.exports import ProfiledLayer, parse_profile
from dtp_deploy_targets.runner.layers import (
    gpu_fallback_share,
    parse_layers,
    precision_fault,
    precision_shares,
    timed_layers,
)

SAMPLES = Path(__file__).parent.parent / "samples"


def layers(name):
    return parse_layers((SAMPLES / name).read_text())


def test_fp16_engine():
    found = {layer.name: layer for layer in layers("layerinfo-detailed-8.4-fp16.json")}
    assert found["Conv_0 + Relu_1"].precision == "fp16"
    assert found["MaxPool_2"].precision == "fp16"
    assert not found["Reformatting CopyNode for Input Tensor 0 to Conv_0 + Relu_1"].is_compute
    assert [layer.has_weights for layer in found.values()] == [False, True, False, True, True]


def test_an_int8_convolution_that_writes_fp32_is_int8():
    found = layers("layerinfo-detailed-8.4-int8.json")
    assert {layer.precision for layer in found if layer.has_weights} == {"int8"}
    assert precision_shares(found, []) == {"int8": 1.0}


def test_one_line_layers_show_tf32():
    (layer,) = parse_layers(json.dumps({"Layers": [(SAMPLES / "layerinfo-oneline-10.8.txt").read_text().strip()]}))
    assert (layer.name, layer.kind, layer.precision) == ("matMul1_myl0_0", "gemm", "tf32")
    assert layer.has_weights


def test_names_only_tell_nothing():
    found = layers("layerinfo-names-only.json")
    assert [layer.name for layer in found][1] == "Conv_0 + Relu_1"
    assert precision_shares(found, []) == {}


def test_11_keeps_its_tensors_elsewhere():
    assert layers("layerinfo-11-io-tensors.json") == []


def test_a_list_without_a_heading():
    whole = json.loads((SAMPLES / "layerinfo-detailed-8.4-fp16.json").read_text())["Layers"]
    assert parse_layers(json.dumps(whole)) == layers("layerinfo-detailed-8.4-fp16.json")
    assert parse_layers(json.dumps({"LayerInfo": whole})) == layers("layerinfo-detailed-8.4-fp16.json")


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Channel major INT8 format where channel % 16 == 0", "int8"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Row major linear FP8 format", "fp8"),
        ("Row major linear FP4 format (kLINEAR)", "fp4"),
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("BFloat16", "bf16"),
    ],
)
def test_format_strings(text, precision):
    entry = {"Name": "a", "LayerType": "PointWise", "Inputs": [{"Name": "x", "Format/Datatype": text}]}
    assert parse_layers(json.dumps([entry]))[0].precision == precision


def test_shares_are_by_time():
    found = layers("layerinfo-detailed-8.4-fp16.json")
    profile = parse_profile((SAMPLES / "profile-8.4.json").read_text())
    assert precision_shares(found, profile) == {"fp16": pytest.approx(1)}
    mixed = [found[1], found[3]._replace(precision="fp32")]
    times = [ProfiledLayer(found[1].name, 3.0), ProfiledLayer(found[3].name, 1.0)]
    assert precision_shares(mixed, times) == {"fp16": 0.75, "fp32": 0.25}


def test_every_layer_has_its_time_and_its_precision():
    profile = parse_profile((SAMPLES / "profile-8.4.json").read_text())
    timed = timed_layers(layers("layerinfo-detailed-8.4-fp16.json"), profile)
    assert len(timed) == len(profile)
    by_name = {layer["name"]: layer for layer in timed}
    convolution = by_name["Conv_0 + Relu_1"]
    assert (convolution["mean_ms"], convolution["median_ms"], convolution["precision"]) == (0.111616, 0.111616, "fp16")
    assert by_name["Reformatting CopyNode for Input Tensor 0 to Conv_0 + Relu_1"]["precision"] == ""
    on_dla = timed_layers([], [ProfiledLayer("{ForeignNode[a]}", 1.0)], ["{ForeignNode[a]}"], "int8")
    assert on_dla == [{"name": "{ForeignNode[a]}", "mean_ms": 1.0, "median_ms": None, "precision": "int8"}]


def test_layers_of_the_dla_count_as_what_was_asked():
    (layer,) = parse_layers('["{ForeignNode[Conv_0...Relu_7]}"]')
    assert precision_shares([layer], [], [layer.name], "fp16") == {"fp16": 1.0}


def test_layers_that_were_not_timed_are_counted():
    fault = precision_fault("fp16", {"fp32": 0.75, "fp16": 0.25}, "layers")
    assert fault == "asked for fp16, but the engine has 75 % of its layers in fp32 and 25 % in fp16"


def test_a_share_that_nothing_tells_is_not_zero():
    assert gpu_fallback_share([], [], [ProfiledLayer("a", 1.0)]) is None
    assert gpu_fallback_share([], ["a"], [ProfiledLayer("a", 1.0)]) == 1.0


@pytest.mark.parametrize(
    ("asked", "shares", "fault"),
    [
        ("fp16", {"fp16": 0.6, "fp32": 0.4}, ""),
        ("int8", {"fp16": 0.6, "int8": 0.4}, "the engine spends 60 % of its time in fp16 and 40 % in int8"),
        ("fp32", {"tf32": 1.0}, "the engine spends 100 % of its time in tf32"),
        ("fp16", {}, "does not tell what its layers run in"),
    ],
)
def test_another_precision_is_a_fault(asked, shares, fault):
    assert precision_fault(asked, shares).endswith(fault)
    assert bool(precision_fault(asked, shares)) == bool(fault)
