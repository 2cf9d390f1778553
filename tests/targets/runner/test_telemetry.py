from pathlib import Path

import pytest

from dtp_deploy_targets.runner import telemetry

SAMPLES = Path(__file__).parent.parent / "samples"


def lines(name):
    return [telemetry.parse_tegrastats(line) for line in (SAMPLES / f"tegrastats-{name}.txt").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "totals"),
    [
        ("nano", [933, 933]),
        ("tx2", [1383, 5297]),
        ("agx-xavier", [463 + 618 + 2936 + 309 + 3306, 1155 + 385 + 2502 + 192 + 2692]),
        ("agx-orin-jp5", [None, 2390 + 796 + 3522 + 301]),
        ("agx-orin-jp7", [5139 + 3268 + 5500]),
        ("agx-thor-jp7", [19780]),
        ("orin-nano-jp6", [12479, 4824]),
    ],
)
def test_total_power_of_every_board(name, totals):
    assert [stats.total_mw for stats in lines(name)] == totals


@pytest.mark.parametrize(
    ("name", "clocks"),
    [
        ("nano", [[], [76]]),
        ("agx-xavier", [[], [1377]]),
        ("agx-orin-jp7", [[1300, 1300]]),
        ("agx-thor-jp7", [[314, 314, 314]]),
        ("orin-nano-jp6", [[621], []]),
    ],
)
def test_gpu_clocks(name, clocks):
    assert [stats.gpu_mhz for stats in lines(name)] == clocks


def test_one_whole_line():
    stats = lines("orin-nano-jp6")[0]
    assert (stats.ram_mb, stats.emc_percent, stats.emc_mhz, stats.gpu_percent) == (6185, 43, 2133, 63)
    assert stats.cpu_percent == [15, 11, 14, 13, 11, 8]
    assert stats.temperatures_c["gpu"] == 53.343
    assert stats.rails_mw == {"VDD_IN": 12479, "VDD_CPU_GPU_CV": 4667, "VDD_SOC": 2817}


def test_sensors_that_are_off_or_constant_are_left_out():
    temperatures = lines("agx-orin-jp5")[0].temperatures_c
    assert "GPU" not in temperatures
    assert temperatures["tj"] == 41.468
    assert "PMIC" not in lines("nano")[0].temperatures_c
    assert lines("agx-orin-jp7")[0].temperatures_c["cpu"] == 52.968


def test_rails_and_temperatures_of_one_name():
    stats = lines("agx-xavier")[1]
    assert (stats.rails_mw["GPU"], stats.temperatures_c["GPU"]) == (1155, 28.0)


def test_a_core_that_is_off():
    assert telemetry.parse_tegrastats("CPU [15%@729,off,off]").cpu_percent == [15, None, None]


def test_power_modes():
    text = (SAMPLES / "nvpmodel-q.txt").read_text().splitlines()
    assert telemetry.parse_power_mode("\n".join(text[0:2])) == ("MODE_15W_6CORE", 2)
    assert telemetry.parse_power_mode("\n".join(text[2:4])) == ("MODE_40W", 3)
    assert telemetry.parse_power_mode("\n".join(text[4:7])) == ("MAXN", 0)
    verbose = (SAMPLES / "nvpmodel-q-verbose-xavier-nx.txt").read_text()
    assert telemetry.parse_power_mode(verbose) == ("MODE_15W_6CORE", 2)
    assert telemetry.parse_power_mode("nvpmodel: command not found") is None


def test_power_mode_files():
    modes, default = telemetry.parse_power_modes((SAMPLES / "nvpmodel-conf-headers.txt").read_text())
    assert [mode.name for mode in modes] == ["MAXN", "MODE_15W", "MODE_30W", "MODE_50W"]
    assert default == 2
    modes, default = telemetry.parse_power_modes((SAMPLES / "nvpmodel-conf-headers-thor-UNVERIFIED.txt").read_text())
    assert (len(modes), default) == (4, None)


def test_clocks():
    clocks = telemetry.parse_clocks((SAMPLES / "jetson_clocks-show.txt").read_text())
    assert clocks == (114.75, 114.75, 1134.75, 1600.0, False)
    locked = telemetry.parse_clocks("GPU MinFreq=918000000 MaxFreq=918000000 CurrentFreq=918000000")
    assert (locked.gpu_locked, locked.emc_mhz) == (True, None)


@pytest.mark.parametrize(
    "folder",
    [
        "sys/class/devfreq/17000000.gpu",
        "sys/class/devfreq/17000000.ga10b",
        "sys/class/devfreq/gpu-gpc-0",
        "sys/devices/gpu.0/devfreq/57000000.gpu",
        "sys/devices/17000000.gv11b/devfreq/17000000.gv11b",
    ],
)
def test_clocks_without_root(folder, tmp_path):
    (tmp_path / folder).mkdir(parents=True)
    for name, value in {"cur_freq": 306000000, "min_freq": 306000000, "max_freq": 918000000}.items():
        (tmp_path / folder / name).write_text(f"{value}\n")
    assert telemetry.read_clocks(tmp_path) == (306.0, 306.0, 918.0, None, False)


def test_temperatures(tmp_path):
    for index, (kind, value) in enumerate([("gpu-thermal", "47625"), ("cv0-thermal", "-256000"), ("tj", "broken")]):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{index}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(kind + "\n")
        (zone / "temp").write_text(value + "\n")
    assert telemetry.read_temperatures(tmp_path) == {"gpu-thermal": 47.625}


def test_no_tegrastats_no_power():
    with telemetry.PowerMeter("no-such-program") as meter:
        assert meter.between(0, 1e12) is None
