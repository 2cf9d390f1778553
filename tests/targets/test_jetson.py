"""The whole path to a Jetson over a real ssh server, with stand-ins that replay recorded sessions (replay/README.md).

What is tested is what we do with what a board says. No figure here is a measurement.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.profile import MeasureSettings, measure
from dtp_deploy.target import LayerTime, TargetSpec, find_target, random_inputs
from dtp_deploy.testing.conformance import write_small_model
from dtp_deploy_targets.remote import RemoteBoard

JETSON = "dtp_deploy_targets.jetson:JetsonTarget"
HERE = Path(__file__).parent
SAMPLES = HERE / "samples"
QUICK = MeasureSettings(min_samples=12, min_seconds=0.0, blocks=4, repeats=0, layers=True)
REPLAYED = "REPLAY of a recorded session: nothing here was measured."


class Board:
    """A Jetson that replays: an ssh server whose sessions see its files and its programs."""

    def __init__(self, tmp_path: Path, remote_folder: Path, start_sshd) -> None:
        self.root = tmp_path / "root"
        self.calls_path = tmp_path / "calls"
        self.home = tmp_path / "home"
        self.home.mkdir()
        self._files()
        self._start, self._remote_folder = start_sshd, remote_folder

    def _files(self) -> None:
        texts = {
            "etc/nv_tegra_release": (SAMPLES / "nv_tegra_release-r36.4.4.txt").read_text(),
            "proc/device-tree/model": "REPLAY of an Orin Nano Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
            "sys/class/thermal/thermal_zone0/type": "gpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "47625\n",
        }
        for name, text in texts.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def spec(self, replay: dict[str, str] | None = None, **options) -> TargetSpec:
        path = f"{HERE / 'replay'}:{os.environ['PATH']}"
        self.sshd = self._start(
            PATH=path,
            HOME=str(self.home),
            DTP_DEPLOY_BOARD_ROOT=str(self.root),
            REPLAY_CALLS=str(self.calls_path),
            **(replay or {}),
        )
        base = {"host": self.sshd.host, "config": self.sshd.config, "python": sys.executable}
        return TargetSpec(JETSON, base | {"folder": str(self._remote_folder)} | options)

    def calls(self, program: str) -> list[str]:
        lines = self.calls_path.read_text().splitlines() if self.calls_path.exists() else []
        return [line for line in lines if line.startswith(program + " ") and "--help" not in line]


@pytest.fixture
def board(tmp_path, remote_folder, start_sshd):
    return Board(tmp_path, remote_folder, start_sshd)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "small.onnx"
    write_small_model(path)
    return path


def test_the_whole_path(board, model):
    spec = board.spec()
    reports = measure({"dense": model, "again": model}, spec, QUICK)
    report = reports["dense"]
    engine, details = report.environment["engine"], report.environment["details"]
    assert set(report.samples_ms) == {0.873472, 0.8448, 0.843776, 0.862305, 0.861328}
    assert len(report.block_sizes) == 4
    assert (engine["runtime"], engine["runtime_version"], engine["precision"]) == ("tensorrt", "10.3.0", "fp16")
    assert engine["device"] == (
        "REPLAY of an Orin Nano Developer Kit (Orin Nano 8 GB developer kit, L4T 36.4.4, JetPack 6.2.1)"
    )
    assert engine["options"]["engine"].startswith("~/.cache/dtp-deploy/engines/")
    assert str(board.home) not in json.dumps(report.environment)
    assert REPLAYED in details["warnings"]
    assert REPLAYED in engine["options"]["warnings"]
    assert "layers" not in details
    assert report.layer_times is not None
    assert report.layer_times[1] == LayerTime("Conv_0 + Relu_1", 0.111616, 0.111616, "fp16")
    assert report.environment["before"]["power_mode"] == {"name": "MODE_40W", "id": 3}
    assert report.environment["after"]["temperatures_c"] == {"gpu-thermal": 47.625}
    assert report.environment["before"]["clocks"]["gpu_mhz"] == 114.75


def test_commands_in_order_and_the_engine_is_kept(board, model):
    spec = board.spec()
    engine = find_target(spec).build(model)
    find_target(spec).build(model)
    first, inspect, again = board.calls("trtexec")
    assert "--fp16" in first.split()
    assert "--skipInference" in first.split()
    assert "--exportLayerInfo" in inspect
    assert "--saveEngine" not in again
    (kept,) = (board.home / ".cache/dtp-deploy/engines").glob("*.engine")
    assert str(engine.info.options["engine"]).endswith(kept.name)


def test_power_is_read_meanwhile(board, model):
    spec = board.spec({"REPLAY_SECONDS": "0.4"})
    details = measure({"dense": model}, spec, QUICK)["dense"].environment["details"]
    assert details["power"]["total_mw"] == pytest.approx(12479)
    assert details["power"]["rails_mw"]["VDD_SOC"] == pytest.approx(2817)
    assert details["power"]["samples"] > 0


def test_outputs_come_back(board, model):
    with find_target(board.spec()).build(model).open() as session:
        outputs = session.run(random_inputs(session.inputs, 1)[0])
    assert outputs["output"].shape == (1, 10)
    assert outputs["output"].dtype == np.float32
    assert outputs["output"][0, 0] == 0.5
    assert np.isnan(outputs["output"][0, 9])


def test_another_precision_than_asked_is_an_error(board, model):
    spec = board.spec({"REPLAY_LAYERS": "layerinfo-oneline-10.8.txt"})
    with pytest.raises(TargetError, match=r"asked for fp16, but the engine spends 100 % of its time in tf32"):
        find_target(spec).build(model)


def test_fp32_that_became_fp16_is_an_error(board, model):
    with pytest.raises(TargetError, match=r"asked for fp32, but the engine spends 100 % of its time in fp16"):
        find_target(board.spec(precision="fp32")).build(model)
    assert not any("--fp16" in call for call in board.calls("trtexec"))
    assert all("--noTF32" in call for call in board.calls("trtexec") if "--onnx" in call)


def test_an_engine_that_hides_its_layers_is_an_error(board, model):
    spec = board.spec({"REPLAY_LAYERS": "layerinfo-names-only.json"})
    with pytest.raises(TargetError, match=r"asked for fp16, but the engine does not tell what its layers run in"):
        find_target(spec).build(model)


def test_int8_needs_quantize_nodes(board, model):
    with pytest.raises(TargetError, match=r"precision='int8' for small\.onnx, which has no quantize nodes"):
        find_target(board.spec(precision="int8")).build(model)
    with pytest.raises(TargetError, match=r"precision='int8' for small\.onnx, which has no quantize nodes"):
        find_target(TargetSpec(JETSON, {"precision": "int8"})).predict(model)


@pytest.mark.parametrize(("version", "named"), [("8602", r"8\.6\.2"), ("100200", r"10\.2\.0")])
def test_old_tensorrt_is_refused_with_the_reason(board, model, version, named):
    with pytest.raises(TargetError, match=rf"has TensorRT {named} .* supported from TensorRT 10\.3 \(JetPack 6\.1\)"):
        find_target(board.spec({"REPLAY_VERSION": version})).build(model)


def test_tensorrt_11_gets_a_converted_model_and_no_flag(board, model, monkeypatch):
    sent = []
    add = RemoteBoard.add
    monkeypatch.setattr(
        RemoteBoard, "add", lambda self, path, samples: (sent.append(path.read_bytes()), add(self, path, samples))[1]
    )
    find_target(board.spec({"REPLAY_VERSION": "110100"})).build(model)
    assert not any("--fp16" in call for call in board.calls("trtexec"))
    find_target(board.spec()).build(model)
    converted, as_it_is = (onnx.load_from_string(content) for content in sent)
    types = {weight.data_type for weight in converted.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert as_it_is == onnx.load(model)


def test_failed_build_says_why_and_leaves_no_engine(board, model):
    with pytest.raises(TargetError, match=r"small\.onnx|out of memory") as caught:
        find_target(board.spec({"REPLAY_FAIL": "error-oom-10.3.txt"})).build(model)
    assert "out of memory (Error[1]: [defaultAllocator.cpp::allocate::31] Error Code 1" in str(caught.value)
    assert list((board.home / ".cache/dtp-deploy/engines").glob("*.engine*")) == []


def test_dla_is_refused_without_its_compiler(board, model):
    with pytest.raises(TargetError, match=r"DLA core 0 is asked for, but REPLAY .* has no DLA compiler"):
        find_target(board.spec(dla=0)).build(model)


def test_dla_share_that_fell_back(board, model):
    library = board.root / "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so"
    library.parent.mkdir(parents=True)
    library.touch()
    engine = find_target(board.spec(dla=0)).build(model)
    assert engine.info.options["fell_back_to_gpu_share"] == 0.5
    assert (engine.info.options["dla_layers"], engine.info.options["gpu_layers"]) == (1, 1)
    assert all("--useDLACore=0" in call for call in board.calls("trtexec"))


def test_clocks_are_locked_only_when_asked_and_put_back(board, model):
    measure({"dense": model}, board.spec(), QUICK)
    assert not any(call != "jetson_clocks --show" for call in board.calls("jetson_clocks"))
    measure({"dense": model}, board.spec(lock_clocks=True), QUICK)
    calls = [call.split()[1:2] for call in board.calls("jetson_clocks") if call != "jetson_clocks --show"]
    assert calls == [["--store"], [], ["--restore"]]


def test_clocks_are_put_back_when_the_connection_is_cut(board, model):
    spec = board.spec({"REPLAY_SECONDS": "30"}, lock_clocks=True)
    target = find_target(spec)
    engine = target.build(model)
    settings = {"blocks": 4, "min_seconds": 0.0, "min_samples": 4, "max_samples": 10, "timeout_s": 60.0}

    from threading import Thread

    def cut() -> None:
        deadline = time.monotonic() + 20
        while not any("--exportTimes" in call for call in board.calls("trtexec")) and time.monotonic() < deadline:
            time.sleep(0.05)
        board.sshd.cut()

    thread = Thread(target=cut)
    thread.start()
    with pytest.raises(TargetError, match=r"The connection to board 'loopback' was cut"):
        target.measure({"dense": engine}, settings)
    thread.join()
    deadline = time.monotonic() + 10
    while not any("--restore" in call for call in board.calls("jetson_clocks")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "--restore" in board.calls("jetson_clocks")[-1]


def test_the_wrong_board_answers(board, model):
    with pytest.raises(TargetError, match=r"is module p3767-0005 \(.*\), and not 'agx-orin'"):
        find_target(board.spec(board="agx-orin")).build(model)


def test_no_trtexec(tmp_path, remote_folder, start_sshd, model):
    board = Board(tmp_path, remote_folder, start_sshd)
    spec = board.spec()
    bare = start_sshd(DTP_DEPLOY_BOARD_ROOT=str(board.root))
    spec = TargetSpec(JETSON, dict(spec.options) | {"config": bare.config})
    with pytest.raises(TargetError, match=r"has no trtexec in PATH, /usr/src/tensorrt/bin or /usr/bin; install it"):
        find_target(spec).build(model)


def test_without_board_and_host_it_says_what_to_give():
    state = find_target(TargetSpec(JETSON)).availability()
    assert (state.available, state.reason, state.install) == (False, "found no board here", "give --host user@board")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "precision='bf16' is not possible for target 'jetson'. Give one of: fp32, fp16, int8."),
        ({"board": "orin-nano", "dla": 0}, "dla=0 is not possible for orin-nano, which has no DLA cores."),
        ({"dla": 0, "precision": "fp32"}, "dla with precision='fp32' is not possible: a DLA has no fp32."),
        ({"board": "nano"}, "Board 'nano' is not supported: JetPack 4.6.6 is its newest, with TensorRT 8.2.1"),
        ({"board": "xyz"}, "Board 'xyz' is unknown. Give one of: agx-orin"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UsageError) as caught:
        find_target(TargetSpec(JETSON, options))
    assert str(caught.value).startswith(message)
