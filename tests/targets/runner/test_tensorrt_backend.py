"""Which engines are taken from the cache, and where timings are kept. Nothing is built."""

import shutil
import tempfile
from pathlib import Path

import pytest

from dtp_deploy.testing.conformance import write_small_model
from dtp_deploy_targets.runner import tensorrt_backend
from dtp_deploy_targets.runner.processes import Done
from dtp_deploy_targets.runner.tensorrt_backend import Options, TensorRtBackend

SAMPLES = Path(__file__).parent.parent / "samples"
RELEASE, COMPATIBLE = "etc/nv_tegra_release", "proc/device-tree/compatible"
DLA_COMPILER = "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so"
BOARD = {
    RELEASE: (SAMPLES / "nv_tegra_release-r36.4.4.txt").read_text(),
    COMPATIBLE: "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
}


class Trtexec:
    """In place of its process: leaves recorded files where it is told to, and remembers its builds."""

    def __init__(self):
        self.version, self.builds = "", []

    def run(self, command, timeout_s=None, folder=None):
        options = dict(word.lstrip("-").partition("=")[::2] for word in command[1:])
        if "saveEngine" in options:
            self.builds.append(options)
            Path(options["saveEngine"]).touch()
        elif "loadEngine" in options:
            shutil.copy(SAMPLES / "profile-8.4.json", options["exportProfile"])
            shutil.copy(SAMPLES / "layerinfo-detailed-8.4-fp16.json", options["exportLayerInfo"])
        return Done(0, f"&&&& RUNNING TensorRT.trtexec [TensorRT v{self.version}] # trtexec\n", "")


@pytest.fixture
def trtexec(monkeypatch, tmp_path):
    found = Trtexec()
    program = tmp_path / "bin/trtexec"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(tensorrt_backend, "run", found.run)
    return found


@pytest.fixture
def build(tmp_path, trtexec):
    """Builds a model on a board of these files; the engine's name."""
    write_small_model(tmp_path / "model.onnx")

    def call(model="model.onnx", files=BOARD, version="100300", **options):
        trtexec.version = version
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        backend = TensorRtBackend(root, Options(cache=str(tmp_path / "cache"), **options), root)
        return Path(backend.build("model", tmp_path / model)["options"]["engine"]).name

    return call


def test_the_same_again_is_taken_from_the_cache(build, trtexec):
    assert build() == build()
    assert len(trtexec.builds) == 1


def test_an_engine_without_its_log_is_built_again(build, trtexec, tmp_path):
    name = build()
    (tmp_path / "cache/engines" / name).with_suffix(".log").unlink()
    assert build() == name
    assert len(trtexec.builds) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"model": "wide.onnx"},
        {"version": "101000"},
        {"files": BOARD | {RELEASE: BOARD[RELEASE].replace("R36", "R37")}},
        {"files": BOARD | {COMPATIBLE: BOARD[COMPATIBLE].replace("0005", "0003")}},
        {"gpu": "Another GPU"},
        {"files": BOARD | {DLA_COMPILER: ""}, "dla": 0},
    ],
    ids=["model", "TensorRT", "L4T", "module", "GPU", "options"],
)
def test_whatever_an_engine_depends_on_makes_another(build, trtexec, tmp_path, other):
    write_small_model(tmp_path / "wide.onnx", width=32)
    assert build() != build(**other)
    assert len(trtexec.builds) == 2


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "timing-10.3.0-tegra234.cache"),
        ({"version": "101000"}, "timing-10.10.0-tegra234.cache"),
        ({"files": {}, "gpu": "NVIDIA RTX A6000/sm 8.6"}, "timing-10.3.0-NVIDIA-RTX-A6000-sm-8.6.cache"),
        ({"files": {}}, "timing-10.3.0-gpu.cache"),
    ],
)
def test_timings_are_kept_for_each_version_and_chip(build, trtexec, tmp_path, options, name):
    build(**options)
    assert [built["timingCacheFile"] for built in trtexec.builds] == [str(tmp_path / "cache/engines" / name)]
