import pytest

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy_targets import devices
from dtp_deploy_targets.devices import find_device, shipped_devices, user_devices
from dtp_deploy_targets.runner.board import _COMPUTE

DEVICES = shipped_devices()
MINE = """
[devices.mine]
title = "My board"
supported = true
soc = "x1"
compute_capability = "8.7"
gpu_sm = 4
gpu_mhz = 1000
fp32_tflops = 1
fp16_tflops = 8.5
int8_tops = 0
memory_bandwidth_gb_s = 50
emc_mhz = 2000
dla_cores = 0
sparse_2_4 = true
"""


@pytest.fixture(autouse=True)
def no_files_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "USER_FILES", (tmp_path / "targets.toml",))


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_every_figure_has_its_source(device):
    figures = ["compute_capability", "gpu_sm", "gpu_mhz", "fp32_tflops", "fp16_tflops", "int8_tops"]
    figures += ["memory_bandwidth_gb_s", "emc_mhz", "dla_cores"] + (["power_modes"] if device.power_modes else [])
    assert [name for name in figures if not device.sources.get(name)] == []


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_the_chip_gives_the_compute_capability(device):
    assert _COMPUTE[device.soc] == device.compute_capability


def test_old_boards_are_named_as_such():
    old = {name for name, device in DEVICES.items() if not device.supported}
    assert old == {"nano", "tx2", "xavier-nx", "agx-xavier"}
    assert all("supported from TensorRT 10.3 (JetPack 6.1) on" in DEVICES[name].unsupported_reason for name in old)


def test_bandwidth_follows_clock_and_bus():
    # Of LPDDR: clock x 2 x bytes; the bus is 4, 8, 16 or 32 bytes wide.
    for device in DEVICES.values():
        width = device.memory_bandwidth_gb_s * 1e3 / device.emc_mhz / 2
        assert min(abs(width / wide - 1) for wide in (4, 8, 16, 32)) < 0.01, device.name


def test_power_modes_scale_the_rates():
    board = find_device("orin-nano")
    fast = board.in_mode("MAXN_SUPER")
    assert fast.fp16_tflops == pytest.approx(board.fp16_tflops * 1020 / 625)
    assert fast.memory_bandwidth_gb_s == pytest.approx(102.4, rel=0.01)
    slow = board.in_mode("7W")
    assert slow.fp16_tflops == pytest.approx(board.fp16_tflops * 408 / 625 / 2)


def test_unknown_power_modes():
    with pytest.raises(UsageError, match=r"^Board 'orin-nano' has no power mode 'X'\. Give one of: 15W, 7W, 25W, MAXN"):
        find_device("orin-nano").in_mode("X")
    with pytest.raises(UsageError, match=r"clocks of power mode 'MAXN' of board 'thor' are not known"):
        find_device("thor").in_mode("MAXN")


def test_unknown_board():
    with pytest.raises(UsageError, match=r"^Board 'x' is unknown\. Give one of: agx-orin.* under \[devices\.x\]"):
        find_device("x")


def test_boards_of_the_users_own(tmp_path):
    (tmp_path / "targets.toml").write_text(MINE)
    assert find_device("mine").fp16_tflops == 8.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[targets", "is no TOML file"),
        ("devices = 3", "'devices' holds something else than tables"),
        (MINE.replace("gpu_sm = 4\n", ""), "board 'mine' has a wrong or missing gpu_sm: Field required"),
        (MINE.replace("emc_mhz = 2000", "emc_mhz = 0"), "wrong or missing emc_mhz: Input should be greater than 0"),
        (MINE + "colour = 'red'\n", "wrong or missing colour: Unexpected keyword argument"),
        (MINE + "schema_version = 2\n", r"has schema_version 2\. This version reads 1"),
    ],
)
def test_damaged_files(tmp_path, text, message):
    path = tmp_path / "targets.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        user_devices(path)
