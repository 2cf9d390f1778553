from pathlib import Path

import pytest

from dtp_deploy_targets.runner import board
from dtp_deploy_targets.runner.trtexec import Version

SAMPLES = Path(__file__).parent.parent / "samples"


def test_releases():
    lines = (SAMPLES / "nv_tegra_release-all.txt").read_text().splitlines()
    found = [board.parse_release(line) for line in lines]
    assert found == ["32.7.1", "35.2.1", "35.3.1", "36.4.3", "36.4.4", "36.4.7", "38.2.0", "38.4.0", "39.2.0"]
    jetpack = [board.jetpack_version({}, l4t) for l4t in found]
    assert jetpack == ["4.6.1", "5.1", "5.1.1", "6.2", "6.2.1", "6.2.1", "7.0", "7.1", "7.2"]


def test_release_with_more_lines():
    assert board.parse_release((SAMPLES / "nv_tegra_release-r36.4.4.txt").read_text()) == "36.4.4"
    assert board.parse_release("# some other system") == ""


def test_modules():
    lines = (SAMPLES / "device-tree-compatible.txt").read_text().splitlines()
    found = [board.parse_compatible(line) for line in lines]
    assert found == [("p3767-0005", "tegra234"), ("p3701-0000", "tegra234"), ("p3834-0008", "tegra264")]
    assert board.parse_compatible("raspberrypi,5-model-b\0brcm,bcm2712\0") == ("", "")


def test_packages():
    listed = board.parse_packages((SAMPLES / "dpkg-tensorrt-r36.4.4.txt").read_text())
    assert board.tensorrt_version(listed) == "10.3.0.30"
    assert board.jetpack_version(listed, "") == "6.2.1"
    shown = board.parse_packages((SAMPLES / "dpkg-nvidia-jetpack-4.5.txt").read_text())
    assert board.jetpack_version(shown, "") == "4.5"


@pytest.fixture
def orin(tmp_path):
    texts = {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n",
        "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0",
        "proc/meminfo": "MemTotal:       16000000 kB\n",
        "usr/local/cuda/version.json": '{"cuda" : {"name" : "CUDA SDK", "version" : "12.6.11"}}',
        "usr/src/tensorrt/bin/trtexec": "#!/bin/sh\n",
        "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so": "",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "usr/src/tensorrt/bin/trtexec").chmod(0o755)
    return tmp_path


def test_whole_board(orin, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = board.detect(orin)
    assert found == board.Board(
        is_jetson=True,
        model="NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        module="p3767-0000",
        module_name="Orin NX 16 GB",
        soc="tegra234",
        compute_capability="8.7",
        l4t="36.4.3",
        jetpack="6.2",
        tensorrt="",
        cuda="12.6.11",
        trtexec=str(orin / "usr/src/tensorrt/bin/trtexec"),
        has_dla_compiler=True,
        ram_mb=15625,
    )


def test_no_board(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert board.detect(tmp_path) == board.Board()


@pytest.mark.parametrize(
    ("version", "refused"),
    [((8, 6, 2), True), ((10, 2), True), ((10, 3), False), ((10, 16, 2), False), ((11, 4, 1), False)],
)
def test_supported_from_10_3_on(version, refused):
    fault = board.unsupported(board.Board(is_jetson=True, trtexec="/trtexec"), Version(*version))
    assert bool(fault) == refused
    assert "TensorRT 10.3 (JetPack 6.1)" in fault or not refused


def test_elsewhere_than_on_a_jetson_it_is_10():
    elsewhere = board.Board(trtexec="/x")
    assert board.unsupported(elsewhere, Version(10, 0, 1)) == ""
    assert board.unsupported(elsewhere, Version(8, 6)) == "has TensorRT 8.6.0; supported from TensorRT 10 on"


def test_unknown_version_is_refused():
    assert "tells no version" in board.unsupported(board.Board(trtexec="/trtexec"), None)
