import json

import pytest

from dtp_deploy.profile.environment import cpu_model, snapshot, system_info


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A system that shows everything, with two CPUs for this process."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr("os.getloadavg", lambda: (0.12345, 1.0, 2.0))
    files = {
        "proc/cpuinfo": "processor : 0\nmodel name : Fast Chip 9000\ncpu MHz : 1000.5\n",
        "proc/self/status": "Name: python\nThreads:\t7\n",
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian 12"\n',
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "800000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "3200000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
        "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
        "sys/class/thermal/thermal_zone0/temp": "45500\n",
        "sys/class/thermal/thermal_zone1/temp": "61000\n",
        "sys/class/thermal/thermal_zone2/temp": "unreadable\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_reads_what_the_system_shows(root):
    state = snapshot(root)
    assert isinstance(state.pop("involuntary_switches"), int)
    assert state == {
        "frequency_mhz": [800.0, 3200.0],
        "governor": "performance,powersave",
        "load_average": [0.12, 1.0, 2.0],
        "temperature_c": 61.0,
        "throttle_count": 7,
        "affinity": [0, 1],
        "threads": 7,
    }
    assert system_info(root)["cpu_model"] == "Fast Chip 9000"
    assert system_info(root)["os"] == "Debian 12"


def test_what_is_not_shown_is_none(tmp_path):
    state = snapshot(tmp_path)
    for key in ("frequency_mhz", "governor", "temperature_c", "throttle_count", "threads"):
        assert state[key] is None
    assert system_info(tmp_path)["os"] == "Linux"


def test_virtual_machine_tells_its_frequency_in_cpuinfo(root):
    for path in root.glob("sys/devices/system/cpu/*/cpufreq/scaling_cur_freq"):
        path.unlink()
    assert snapshot(root)["frequency_mhz"] == [1000.5, 1000.5]


def test_arm_board_is_named_by_its_device_tree(tmp_path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nBogoMIPS : 108.00\n")
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    assert cpu_model(tmp_path) == "Raspberry Pi 5 Model B Rev 1.0"


def test_this_machine_can_be_described():
    json.dumps([system_info(), snapshot()])
