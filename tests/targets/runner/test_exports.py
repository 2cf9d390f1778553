from pathlib import Path

import pytest

from dtp_deploy_targets.runner.exports import parse_outputs, parse_profile, parse_times
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
        ('[{"startInMs": 1, "latencyMs": 2}]', "without computeMs: TensorRT 7 or older wrote it"),
    ],
)
def test_times_that_cannot_be_used(text, message):
    with pytest.raises(ValueError, match=message):
        parse_times(text, Version(10, 3), 200)


def test_profile():
    layers = parse_profile(PROFILE)
    assert layers[1].name == "Conv_0 + Relu_1"
    assert layers[1].average_ms == 0.111616
    assert sum(layer.share for layer in layers) == pytest.approx(1)


def test_profile_with_names_that_break_the_json():
    broken = PROFILE.replace("MaxPool_2", 'Max"Pool\\2')
    names = [layer.name for layer in parse_profile(broken)]
    assert 'Max"Pool\\2' in names
    assert len(names) == len(parse_profile(PROFILE))


def test_outputs():
    text = '[\n { "name" : "a"\n , "dimensions" : "1x3"\n , "values" : [ 1e-05, -inf, nan ]\n }\n]'
    shape, values = parse_outputs(text)["a"]
    assert shape == [1, 3]
    assert values[:2] == [1e-05, float("-inf")]
    assert values[2] != values[2]
