"""The state of the machine around a measurement: what a reader needs to judge a latency.

What the system does not show is None. There is no host name, user name or path among it. This file also runs on
boards: standard library only, Python 3.8 or newer.
"""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Dict

if TYPE_CHECKING:
    from collections.abc import Iterator

State = Dict[str, object]

_ROOT = Path("/")


def system_info(root: Path = _ROOT) -> State:
    """What does not change while measuring: the processor, the system, Python."""
    return {
        "cpu_model": cpu_model(root),
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "os": _os_name(root),
        "kernel": platform.release(),
        "python_version": platform.python_version(),
    }


def snapshot(root: Path = _ROOT) -> State:
    """What may change while measuring. Taken before and after.

    Keys: frequency_mhz (lowest and highest of the CPUs that this process may use), governor, load_average (over 1, 5
    and 15 minutes), temperature_c (the hottest sensor), throttle_count (of the CPUs since boot: a rise is a throttled
    run), affinity (the CPUs that this process may use), threads (of this process), involuntary_switches (how often the
    system took the CPU away from this process).
    """
    affinity = sorted(os.sched_getaffinity(0))
    return {
        "frequency_mhz": _frequency_mhz(root, affinity),
        "governor": _governor(root, affinity),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "temperature_c": _temperature_c(root),
        "throttle_count": _throttle_count(root),
        "affinity": affinity,
        "threads": _threads(root),
        "involuntary_switches": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
    }


def cpu_model(root: Path = _ROOT) -> str:
    """The processor's name as the system tells it; on most ARM boards that is the board's name."""
    names = list(_fields(root / "proc/cpuinfo", "model name"))
    if names:
        return names[0]
    board = _read(root / "proc/device-tree/model")
    return board.strip("\0 ") if board else platform.machine()


def _os_name(root: Path) -> str:
    for line in (_read(root / "etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip("\"'")
    return platform.system()


def _frequency_mhz(root: Path, cpus: list[int]) -> list[float] | None:
    kilohertz = [_number(_cpu(root, cpu) / "cpufreq/scaling_cur_freq") for cpu in cpus]
    found = [value / 1e3 for value in kilohertz if value is not None]
    if not found:  # virtual machines often have no cpufreq, but tell a frequency here
        found = [float(value) for value in _fields(root / "proc/cpuinfo", "cpu MHz")]
    return [min(found), max(found)] if found else None


def _governor(root: Path, cpus: list[int]) -> str | None:
    names = {_read(_cpu(root, cpu) / "cpufreq/scaling_governor") for cpu in cpus} - {None}
    return ",".join(sorted(name for name in names if name)) or None


def _temperature_c(root: Path) -> float | None:
    # A zone's file may be there and refuse to be read: such a sensor is skipped.
    millidegrees = [_number(zone / "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    return max((value / 1e3 for value in millidegrees if value is not None), default=None)


def _throttle_count(root: Path) -> int | None:
    paths = (root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/core_throttle_count")
    counts = [value for value in map(_number, paths) if value is not None]
    return int(sum(counts)) if counts else None


def _threads(root: Path) -> int | None:
    counts = [int(value) for value in _fields(root / "proc/self/status", "Threads")]
    return counts[0] if counts else None


def _cpu(root: Path, index: int) -> Path:
    return root / f"sys/devices/system/cpu/cpu{index}"


def _fields(path: Path, key: str) -> Iterator[str]:
    for line in (_read(path) or "").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            yield value.strip()


def _number(path: Path) -> float | None:
    text = _read(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
