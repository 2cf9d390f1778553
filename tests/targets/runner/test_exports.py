from pathlib import Path

import pytest

from dtp_deploy_targets.runner.exports import ProfiledLayer, parse_outputs, parse_profile, parse_times
from dtp_deploy_targets.runner.trtexec import Version

SAMPLES = Path(__file__).parent.parent / "samples"
TIMES = (SAMPLES / "times-8.4.json").read_text()
PROFILE = (SAMPLES / "profile-8.4.json").read_text()


def test_times_of_old_versions_hold_the_warm_up():
    assert parse_times(TIMES, Version(8, 4), 200) == [0.862305, 0.861328]
    assert len(parse_times(TIMES, Version(8, 5), 200)) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds no query"),
        ("{}", "holds no list"),
        ("[3]", "without computeMs"),
        ('[{"startInMs": 1, "latencyMs": 2}]', "without computeMs: TensorRT 7 or older wrote it"),
    ],
)
def test_times_that_cannot_be_used(text, message):
    with pytest.raises(ValueError, match=message):
        parse_times(text, Version(10, 3), 200)


def test_times_of_an_old_version_without_their_start():
    with pytest.raises(ValueError, match="without computeMs"):
        parse_times('[{"computeMs": 1}]', Version(8, 4), 200)


def test_profile():
    layers = parse_profile(PROFILE)
    assert layers[1].name == "Conv_0 + Relu_1"
    assert layers[1] == ProfiledLayer("Conv_0 + Relu_1", 0.111616, 0.111616)
    before_8_4 = '[{"count": 2}, {"name": "a", "timeMs": 2, "averageMs": 1, "percentage": 100}]'
    assert parse_profile(before_8_4) == [ProfiledLayer("a", 1.0, None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds no layer"),
        ("no JSON", "holds no layer"),
        ("[3]", "without averageMs"),
        ('[{"name": "a", "timeMs": 1}]', "without averageMs"),
        ('[{"name": "a", "averageMs": "much"}]', "could not convert"),
    ],
)
def test_a_profile_that_cannot_be_used(text, message):
    with pytest.raises(ValueError, match=message):
        parse_profile(text)


def test_profile_with_names_that_break_the_json():
    broken = PROFILE.replace("MaxPool_2", 'Max"Pool\\2')
    found = {layer.name: layer[1:] for layer in parse_profile(broken)}
    assert found['Max"Pool\\2'] == {layer.name: layer[1:] for layer in parse_profile(PROFILE)}["MaxPool_2"]
    assert len(found) == len(parse_profile(PROFILE))


def test_outputs():
    text = '[\n { "name" : "a"\n , "dimensions" : "1x3"\n , "values" : [ 1e-05, -inf, nan ]\n }\n]'
    shape, values = parse_outputs(text)["a"]
    assert shape == [1, 3]
    assert values[:2] == [1e-05, float("-inf")]
    assert values[2] != values[2]
