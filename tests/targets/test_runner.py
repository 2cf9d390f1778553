"""The runner as boards run it: as one file, by whatever Python from 3.8 on is at hand."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtp_deploy.testing.conformance import write_small_model
from dtp_deploy_targets.parcel import write_runner

HERE = Path(__file__).parent


def pythons() -> dict[tuple[int, int], str]:
    """Every Python 3 at hand, by version: in PATH, and of pyenv."""
    paths = [shutil.which(f"python3.{minor}") for minor in range(6, 16)]
    paths += sorted(map(str, Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python3")))
    found = {sys.version_info[:2]: sys.executable}
    for path in filter(None, paths):
        code = "import sys; print(*sys.version_info[:2])"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if done.returncode == 0:
            major, minor = map(int, done.stdout.split())
            found.setdefault((major, minor), path)
    return dict(sorted(found.items()))


PYTHONS = pythons()
NEW = {version: path for version, path in PYTHONS.items() if version >= (3, 8)}
OLD = {version: path for version, path in PYTHONS.items() if version < (3, 8)}


def named(versions):
    return pytest.mark.parametrize("python", versions.values(), ids=[f"{a}.{b}" for a, b in versions])


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return write_runner(tmp_path_factory.mktemp("runner"))


@pytest.fixture
def environment(tmp_path):
    """A board's programs and files, replayed."""
    release = tmp_path / "root/etc/nv_tegra_release"
    release.parent.mkdir(parents=True)
    release.write_text((HERE / "samples/nv_tegra_release-r36.4.4.txt").read_text())
    return {
        "PATH": f"{HERE / 'replay'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "DTP_DEPLOY_BOARD_ROOT": str(tmp_path / "root"),
        "REPLAY_CALLS": str(tmp_path / "calls"),
    }


def call(python, runner, *arguments, environment=None, **options):
    return subprocess.run(
        [python, str(runner), *arguments], env=environment, capture_output=True, text=True, timeout=120, **options
    )


@named(NEW)
def test_detects_the_board(python, runner, environment):
    done = call(python, runner, "detect", environment=environment)
    assert done.stderr == ""
    facts = json.loads(done.stdout)
    assert (facts["is_jetson"], facts["l4t"], facts["jetpack"]) == (True, "36.4.4", "6.2.1")
    assert facts["tensorrt"] == "10.3.0.30"


@named(NEW)
def test_measures_and_writes_one_file(python, runner, environment, tmp_path):
    write_small_model(tmp_path / "model.onnx")
    arguments = ["measure", "dense=model.onnx", "--seconds", "0", "--out", "result.json"]
    done = call(python, runner, *arguments, environment=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["schema_version"], result["kind"], result["errors"]) == (1, "dtp-deploy-measurement", [])
    dense = result["models"]["dense"]
    assert dense["engine"]["precision"] == "fp16"
    assert {sample for block in dense["latencies_ms"] for sample in block} >= {0.8448}
    assert dense["warnings"] == ["REPLAY of a recorded session: nothing here was measured."]
    assert len(dense["sha256"]) == 64
    assert dense["layers"][1] == {
        "name": "Conv_0 + Relu_1",
        "mean_ms": 0.111616,
        "median_ms": 0.111616,
        "precision": "fp16",
    }
    assert result["before"]["power_mode"]["name"] == "MODE_40W"
    assert len(result["command_lines"]) == 8  # build, inspect, six turns


@pytest.mark.skipif(not OLD, reason="no Python older than 3.8 is at hand")
@named(OLD)
def test_an_old_python_is_told(python, runner):
    done = call(python, runner, "detect")
    assert done.returncode == 1
    assert re.fullmatch(r"dtp_runner needs Python 3\.8 or newer; this is Python 3\.[67]\n", done.stderr)


def test_what_goes_wrong_is_in_the_result(runner, environment, tmp_path):
    write_small_model(tmp_path / "model.onnx")
    failing = environment | {"REPLAY_FAIL": "error-unsupported-op-8.0.txt"}
    done = call(sys.executable, runner, "measure", "model.onnx", environment=failing, cwd=tmp_path)
    assert done.returncode == 1
    (error,) = json.loads((tmp_path / "result.json").read_text())["errors"]
    assert error.startswith("this TensorRT has no operator Round")
    assert f"error: {error}" in done.stderr


def test_int8_needs_quantize_nodes(runner, environment, tmp_path):
    write_small_model(tmp_path / "model.onnx")
    words = ("measure", "model.onnx", "--precision", "int8")
    assert call(sys.executable, runner, *words, environment=environment, cwd=tmp_path).returncode == 1
    (error,) = json.loads((tmp_path / "result.json").read_text())["errors"]
    assert error.startswith("int8 is asked for, but model.onnx has no quantize nodes")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_locked_clocks_come_back_after_a_signal(runner, environment, tmp_path, number):
    write_small_model(tmp_path / "model.onnx")
    calls = Path(environment["REPLAY_CALLS"])
    process = subprocess.Popen(
        [sys.executable, str(runner), "measure", "model.onnx", "--lock-clocks"],
        env=environment | {"REPLAY_SECONDS": "30"},
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 60
    while not (calls.exists() and "--exportTimes" in calls.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    killed = number == signal.SIGKILL
    assert process.wait(20) == (-signal.SIGKILL if killed else 1)
    while killed and "--restore" not in calls.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = calls.read_text().splitlines()
    changes = [line for line in lines if line.startswith("jetson_clocks") and "--show" not in line]
    assert [line.split()[1:2] for line in changes] == [["--store"], [], ["--restore"]]
    assert killed or "ended by" in json.loads((tmp_path / "result.json").read_text())["errors"][0]


def test_the_same_sources_give_the_same_file(runner, tmp_path):
    assert write_runner(tmp_path).read_bytes() == runner.read_bytes()


def test_it_needs_nothing_but_the_standard_library(runner):
    done = call(sys.executable, runner, "detect")
    alone = subprocess.run([sys.executable, "-I", "-S", str(runner), "detect"], capture_output=True, text=True)
    assert alone.stdout == done.stdout
