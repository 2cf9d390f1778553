"""Results that a board sent back, read: what is refused, and what is carried over. No figure here is a measurement."""

import json
from pathlib import Path

import pytest

from dtp_deploy.errors import InputError
from dtp_deploy.target import LayerTime
from dtp_deploy_targets.measurement import read_measurement

SAMPLES = Path(__file__).parent / "samples"

REPLAYED = "REPLAY of a recorded session: nothing here was measured."


def document(**changed):
    engine = {"runtime": "tensorrt", "precision": "fp16", "options": {"precision_asked": "fp16", "warnings": ""}}
    model = {"sha256": "a" * 64, "engine": engine, "latencies_ms": [[1.0, 2.0]]} | changed
    return {"kind": "dtp-deploy-measurement", "board_root": "/", "models": {"model": model}, "errors": []}


@pytest.fixture
def read(tmp_path):
    def call(content, precision="fp16"):
        path = tmp_path / "result.json"
        path.write_text(json.dumps(content))
        return read_measurement(path, precision)

    return call


def test_a_replay_is_refused_by_its_warning(read):
    with pytest.raises(InputError, match=r"is no measurement \(REPLAY of a recorded session: nothing here was measure"):
        read(document(warnings=["unstable", REPLAYED]))
    with pytest.raises(InputError, match=r"is no measurement \(other; REPLAY"):
        read(document(engine={"options": {"warnings": f"other; {REPLAYED}"}}))


def test_a_replaced_root_is_refused(read):
    content = document() | {"board_root": "/tmp/root"}
    with pytest.raises(
        InputError, match=r"is no measurement \(the files of the board were read from /tmp/root\)\. Run"
    ):
        read(content)


def test_a_result_of_an_older_runner_is_taken(read):
    content = document()
    del content["board_root"]
    assert read(content).blocks_ms == [[1.0, 2.0]]


def test_what_the_board_found_is_carried_over(read):
    details = {"warnings": ["GPU compute time is unstable"], "power": {"total_mw": 5.0}}
    environment = read(document(**details)).environment
    assert environment["details"]["model"] == details
    assert environment["engine"]["options"]["precision_asked"] == "fp16"


@pytest.mark.parametrize("latencies", [[[]], [1.0], [["fast"]], [[0.0]], [[1.0], [-1.0]], "1.0"])
def test_latencies_that_are_no_times_are_refused(read, latencies):
    with pytest.raises(InputError, match=r"is damaged: its latencies are not all times in ms\. Give the result"):
        read(document(latencies_ms=latencies))


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"models": []}, "models"),
        ({"models": {"model": 3}}, "model"),
        ({"models": {"model": {"latencies_ms": [[1.0]]}, "dense": None}}, "dense"),
        ({"board": None}, "board"),
        ({"errors": "none"}, "errors"),
        (document(engine=3), "engine"),
        (document(engine={"options": "fp16"}), "options"),
        (document(warnings=None), "warnings"),
    ],
)
def test_parts_of_another_kind_are_refused(read, changed, part):
    with pytest.raises(InputError, match=rf"is damaged: '{part}' is no (object|list)\. Give the result"):
        read(document() | changed)


def test_a_result_of_another_schema_is_refused(read):
    assert read(document() | {"schema_version": 1}).blocks_ms
    with pytest.raises(InputError, match=r"has schema version 2, and this dtp-deploy reads 1\. Import it with"):
        read(document() | {"schema_version": 2})


def test_layers_are_carried_over(read):
    layers = [{"name": "conv", "mean_ms": 2.0, "median_ms": None, "precision": "fp16"}]
    assert read(document(layers=layers)).layers == (LayerTime("conv", 2.0, None, "fp16"),)
    assert read(document()).layers is None
    with pytest.raises(InputError, match=r"holds layers of another form \(.*average_ms"):
        read(document(layers=[{"name": "conv", "average_ms": 2.0}]))


def test_layers_of_plain_trtexec_are_a_file_of_their_own(tmp_path):
    times, profile = tmp_path / "times.json", SAMPLES / "profile-8.4.json"
    times.write_text(json.dumps([{"computeMs": 4.0}] * 50))
    found = read_measurement(times, "fp16", profile)
    assert found.layers is not None
    assert found.layers[1] == LayerTime("Conv_0 + Relu_1", 0.111616, 0.111616)
    with pytest.raises(InputError, match=r"holds times of layers \(--exportProfile\), which are no latency"):
        read_measurement(profile, "fp16")
    with pytest.raises(InputError, match=r"^--layers .*times\.json cannot be read \(--exportProfile holds no layer\)"):
        read_measurement(times, "fp16", times)
    runner = tmp_path / "result.json"
    runner.write_text(json.dumps(document()))
    with pytest.raises(InputError, match=r"holds the times of the layers itself\. Leave --layers .* out\.$"):
        read_measurement(runner, "fp16", profile)


@pytest.mark.parametrize(("engine", "asked"), [({"options": {"precision_asked": "fp32"}}, "fp32"), ({}, "fp16")])
def test_another_precision_is_refused(read, engine, asked):
    content = document(engine={"precision": "fp16"} | engine)
    with pytest.raises(InputError, match=rf"was measured in {asked}, and the run asked for int8\."):
        read(content, "int8")


def test_a_mixed_engine_is_of_the_precision_that_was_asked_for(read):
    content = document(engine={"precision": "fp16+int8", "options": {"precision_asked": "int8"}})
    assert read(content, "int8").engine.precision == "fp16+int8"
