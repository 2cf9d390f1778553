"""Power, temperatures, clocks and the power mode of a Jetson: reading them, and parsing what its tools print.

The forms are those recorded from boards of every generation, from the Nano to Thor.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from dtp_deploy_targets.runner.board import output_of

_ROOT = Path("/")
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")
_NO_RAILS = ("NC",)
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (\d+)(?:mW)?((?:/\d+(?:mW)?)+)(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C(?:/-?[\d.]+C)?(?!\S)")
_OFF_C = -200
_CONSTANT_SENSORS = ("PMIC",)


class Tegrastats(NamedTuple):
    """One line of tegrastats. None where the line does not tell; power in mW, now."""

    ram_mb: int | None
    cpu_percent: list[int | None]
    emc_percent: int | None
    emc_mhz: int | None
    gpu_percent: int | None
    gpu_mhz: list[int]
    temperatures_c: dict[str, float]
    rails_mw: dict[str, int]

    @property
    def total_mw(self) -> int | None:
        """The power of the whole module: its input rail, or the sum of the rails where there is none."""
        for name in _TOTAL_RAILS:
            if name in self.rails_mw:
                return self.rails_mw[name]
        return sum(self.rails_mw.values()) if self.rails_mw else None


def parse_tegrastats(line: str) -> Tegrastats:
    """What one line says, of JetPack 4 to 7.

    The averages that it prints start with tegrastats and not with the load, so they are not read.

    >>> parse_tegrastats("RAM 1/2MB CPU [5%@102,off] GR3D_FREQ 12%@76 GPU@22.5C PMIC@100C POM_5V_IN 933/900").total_mw
    933
    """
    ram = re.search(r"\bRAM (\d+)/\d+MB", line)
    cpu = re.search(r"\bCPU \[([^\]]*)\]", line)
    emc = re.search(r"\bEMC_FREQ (\d+)%(?:@(\d+))?", line)
    gpu = re.search(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?", line)
    return Tegrastats(
        ram_mb=int(ram.group(1)) if ram else None,
        cpu_percent=[_percent(core) for core in cpu.group(1).split(",")] if cpu else [],
        emc_percent=int(emc.group(1)) if emc else None,
        emc_mhz=int(emc.group(2)) if emc and emc.group(2) else None,
        gpu_percent=int(gpu.group(1)) if gpu and gpu.group(1) else None,
        gpu_mhz=[int(mhz) for mhz in gpu.group(2).split(",")] if gpu and gpu.group(2) else [],
        temperatures_c={
            name: float(value)
            for name, value in _TEMPERATURE.findall(line)
            if float(value) > _OFF_C and name not in _CONSTANT_SENSORS
        },
        rails_mw={
            name: int(now)
            for name, now, _ in _RAIL.findall(line)
            if name not in _NO_RAILS and name not in ("RAM", "SWAP", "IRAM")
        },
    )


def _percent(core: str) -> int | None:
    match = re.match(r"(\d+)%", core)
    return int(match.group(1)) if match else None


class PowerMode(NamedTuple):
    """The power mode; the same id means different modes on different boards, so only the name says something."""

    name: str
    id: int | None


def parse_power_mode(text: str) -> PowerMode | None:
    """What ``nvpmodel -q`` says, with or without warnings, with or without ``--verbose``.

    >>> parse_power_mode("NVPM WARN: fan mode is not set!\\nNV Power Mode: MAXN\\n0\\n")
    PowerMode(name='MAXN', id=0)
    """
    match = re.search(r"NV Power Mode: ?(\S+)\s*\n\s*(\d+)?", text + "\n")
    return PowerMode(match.group(1), int(match.group(2)) if match.group(2) else None) if match else None


def parse_power_modes(text: str) -> tuple[list[PowerMode], int | None]:
    """All modes in ``/etc/nvpmodel.conf``, and the id of the default one if it is named."""
    modes = [
        PowerMode(name, int(number)) for number, name in re.findall(r"< ?POWER_MODEL ID=(\d+) NAME=(\S+) ?>", text)
    ]
    default = re.search(r"< ?PM_CONFIG DEFAULT=(\d+) ?>", text)
    return modes, int(default.group(1)) if default else None


class Clocks(NamedTuple):
    """The GPU's and the memory's clock in MHz; `gpu_locked` if the GPU's cannot change."""

    gpu_mhz: float | None
    gpu_min_mhz: float | None
    gpu_max_mhz: float | None
    emc_mhz: float | None
    gpu_locked: bool | None


def parse_clocks(text: str) -> Clocks:
    """What ``jetson_clocks --show`` says (it prints the GPU's and the memory's in Hz)."""
    gpu = _hertz(text, "GPU")
    emc = _hertz(text, "EMC")
    locked = None if not gpu else gpu["MinFreq"] == gpu["MaxFreq"] == gpu["CurrentFreq"]
    return Clocks(
        gpu.get("CurrentFreq"), gpu.get("MinFreq"), gpu.get("MaxFreq"), emc.get("CurrentFreq"), locked
    )  # fmt: skip


def _hertz(text: str, unit: str) -> dict[str, float]:
    line = re.search(rf"^\s*{unit} (MinFreq=.*)$", text, re.MULTILINE)
    return {key: int(value) / 1e6 for key, value in re.findall(r"(\w+Freq)=(\d+)", line.group(1))} if line else {}


def read_clocks(root: Path = _ROOT) -> Clocks:
    """The clocks: by jetson_clocks where that is allowed (it needs root), else the GPU's from the system's files."""
    shown = parse_clocks(output_of(["jetson_clocks", "--show"]))
    if shown.gpu_mhz is not None:
        return shown
    patterns = (
        "sys/class/devfreq/*gpu*",
        "sys/class/devfreq/*ga10b*",
        "sys/devices/gpu.0/devfreq/*",
        "sys/devices/*.gv11b/devfreq/*",
    )
    for pattern in patterns:
        for folder in sorted(root.glob(pattern)):
            current, least, most = (_number(folder / name) for name in ("cur_freq", "min_freq", "max_freq"))
            if current is not None:
                locked = None if least is None or most is None else least == most
                return Clocks(current / 1e6, _mega(least), _mega(most), None, locked)
    return Clocks(None, None, None, None, None)


def read_temperatures(root: Path = _ROOT) -> dict[str, float]:
    """The temperature of every zone in degrees Celsius, by its type; those that are off are left out."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = _number(zone / "temp")
        if value is not None and value / 1e3 > _OFF_C:
            found[_text(zone / "type") or zone.name] = value / 1e3
    return found


def snapshot(root: Path = _ROOT) -> dict[str, Any]:
    """What may change while measuring, as plain JSON: power mode, clocks, temperatures."""
    mode = parse_power_mode(output_of(["nvpmodel", "-q"]))
    return {
        "power_mode": mode._asdict() if mode else None,
        "clocks": read_clocks(root)._asdict(),
        "temperatures_c": read_temperatures(root),
    }


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


class PowerMeter:
    """Runs tegrastats in the background, where there is one: ``with PowerMeter() as meter: meter.between(a, b)``."""

    def __init__(self, program: str = "tegrastats", interval_ms: int = 100) -> None:
        self._command = [program, "--interval", str(interval_ms)]
        self._lines: list[tuple[float, Tegrastats]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PowerMeter:
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError:
            return self
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._process is not None and self._thread is not None:
            self._process.kill()
            self._process.wait()
            self._thread.join(5)
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _read(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            for line in self._process.stdout:
                self._lines.append((time.monotonic(), parse_tegrastats(line.decode(errors="replace"))))

    def between(self, start: float, end: float) -> dict[str, Any] | None:
        """What was read from `start` to `end` (of `time.monotonic`), or None if nothing was.

        Keys: samples, total_mw (its mean), rails_mw (means), gpu_mhz (lowest and highest), temperatures_c (highest).
        """
        read = [stats for at, stats in self._lines if start <= at <= end]
        totals = [stats.total_mw for stats in read if stats.total_mw is not None]
        if not read:
            return None
        clocks = [mhz for stats in read for mhz in stats.gpu_mhz]
        return {
            "samples": len(read),
            "total_mw": sum(totals) / len(totals) if totals else None,
            "rails_mw": {
                name: sum(stats.rails_mw.get(name, 0) for stats in read) / len(read) for name in read[0].rails_mw
            },
            "gpu_mhz": [min(clocks), max(clocks)] if clocks else None,
            "temperatures_c": {
                name: max(stats.temperatures_c.get(name, value) for stats in read)
                for name, value in read[0].temperatures_c.items()
            },
        }
