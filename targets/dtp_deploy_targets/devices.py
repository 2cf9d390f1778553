"""What is known about boards, from the data files in ``devices/`` and from files of the user's own.

A user's file (``~/.config/dtp-deploy/targets.toml``, or ``dtp-deploy.toml`` in the working directory) may hold, beside
the targets that `dtp_deploy.config` reads,

    [devices.my-board]          # a board that is not among ours, in the form of the files in devices/
    title = "My board"
    ...
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dtp_deploy.config import CONFIG_FILE, USER_TARGETS
from dtp_deploy.errors import InputError, UsageError

USER_FILES = (USER_TARGETS, CONFIG_FILE)

_SCHEMA_VERSION = 1
_CHECKS = ConfigDict(extra="forbid")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class PowerMode:
    """One power mode: clocks and units that it leaves; None where nobody has told.

    Attributes:
        name: what nvpmodel calls it.
        id: its number, which means other modes on other boards.
        gpu_mhz: the GPU's highest clock.
        sm: multiprocessors that are left on.
        emc_mhz: the memory's highest clock.
        dla_mhz: the DLA's highest clock.
        cpu_cores: CPU cores that are left on.
        super: whether it exists only where a Super configuration was flashed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CHECKS

    name: str
    id: int
    gpu_mhz: Positive | None = None
    sm: int | None = None
    emc_mhz: Positive | None = None
    dla_mhz: Positive | None = None
    cpu_cores: int | None = None
    super: bool = False


@dataclass(frozen=True)
class DeviceProfile:
    """A board. Rates are dense, and of the GPU alone.

    Attributes:
        name: what a user calls it ("orin-nano").
        title: its name in full.
        supported: whether this project can measure on it.
        unsupported_reason: if not, why.
        soc: the chip.
        compute_capability: of the GPU.
        gpu_sm: multiprocessors.
        gpu_mhz: the clock that the rates are for.
        fp32_tflops: without tensor cores.
        fp16_tflops: with tensor cores where it has them.
        int8_tops: 0 where it has no fast int8.
        memory_bandwidth_gb_s: the peak.
        emc_mhz: the memory clock that the bandwidth is for.
        dla_cores: deep learning accelerators.
        sparse_2_4: whether its tensor cores gain from 2:4 sparse weights.
        sources: where each figure comes from, by its name.
        module_part_numbers: the modules that it may be.
        model_strings: what the device tree calls it.
        power_modes: what nvpmodel offers.
        dla_mhz: the DLA's clock.
        dla_int8_tops: of all DLA cores together.
        power_min_w: the smallest power mode.
        power_max_w: the largest power mode.
        newest_jetpack: the newest software for it.
        note: what else to know.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CHECKS

    name: str
    title: str
    supported: bool
    soc: str
    compute_capability: str
    gpu_sm: Annotated[int, Field(gt=0)]
    gpu_mhz: Positive
    fp32_tflops: Positive
    fp16_tflops: Positive
    int8_tops: float
    memory_bandwidth_gb_s: Positive
    emc_mhz: Positive
    dla_cores: int
    sparse_2_4: bool
    sources: Mapping[str, str]
    unsupported_reason: str = ""
    module_part_numbers: tuple[str, ...] = ()
    model_strings: tuple[str, ...] = ()
    power_modes: tuple[PowerMode, ...] = ()
    dla_mhz: float | None = None
    dla_int8_tops: float | None = None
    power_min_w: float | None = None
    power_max_w: float | None = None
    newest_jetpack: str = ""
    note: str = ""

    def in_mode(self, name: str) -> "DeviceProfile":
        """This board in a power mode: its rates follow the multiprocessors and the clocks that the mode leaves.

        Where several modes have that name, the last one (of the Super configuration) counts.

        Raises:
            UsageError: it has no such mode, or its clocks are not known.
        """
        modes = {mode.name: mode for mode in self.power_modes}
        if name not in modes:
            known = ", ".join(modes) or "(none known)"
            raise UsageError(f"Board '{self.name}' has no power mode '{name}'. Give one of: {known}.")
        mode = modes[name]
        if mode.gpu_mhz is None or mode.sm is None or mode.emc_mhz is None:
            raise UsageError(
                f"The clocks of power mode '{name}' of board '{self.name}' are not known. Leave the mode out, or add "
                "the board with these clocks to dtp-deploy.toml."
            )
        gpu = mode.gpu_mhz * mode.sm / (self.gpu_mhz * self.gpu_sm)
        return replace(
            self,
            title=f"{self.title}, {name}",
            gpu_sm=mode.sm,
            gpu_mhz=mode.gpu_mhz,
            fp32_tflops=self.fp32_tflops * gpu,
            fp16_tflops=self.fp16_tflops * gpu,
            int8_tops=self.int8_tops * gpu,
            memory_bandwidth_gb_s=self.memory_bandwidth_gb_s * mode.emc_mhz / self.emc_mhz,
            emc_mhz=mode.emc_mhz,
        )


def shipped_devices() -> dict[str, DeviceProfile]:
    """All boards that come with this package, by name.

    >>> shipped_devices()["orin-nano"].compute_capability
    '8.7'
    """
    found = {}
    for entry in sorted(files("dtp_deploy_targets").joinpath("devices").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".toml"):
            name = entry.name.removesuffix(".toml")
            found[name] = _device(name, tomllib.loads(entry.read_text("utf-8")), entry.name)
    return found


def find_device(name: str) -> DeviceProfile:
    """The board of that name, of the user's own or ours.

    Raises:
        UsageError: nobody knows it.
        InputError: a file of the user's own is damaged.
    """
    known = shipped_devices()
    for path in USER_FILES:
        known |= user_devices(path)
    if name not in known:
        raise UsageError(
            f"Board '{name}' is unknown. Give one of: {', '.join(known)}; or describe it under [devices.{name}] in "
            f"{USER_FILES[-1]}."
        )
    return known[name]


def user_devices(path: Path) -> dict[str, DeviceProfile]:
    """The boards that a user's file describes; none if there is no such file.

    Raises:
        InputError: it is no TOML, or a board in it is not described as one.
    """
    path = path.expanduser()
    try:
        tables = tomllib.loads(path.read_text("utf-8")).get("devices", {})
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML file: {error}. Correct that line.") from error
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise InputError(f"{path}: 'devices' holds something else than tables. Write [devices.NAME] above each.")
    return {name: _device(name, table, str(path)) for name, table in tables.items()}


def _device(name: str, table: Mapping[str, Any], where: str) -> DeviceProfile:
    values = dict(table)
    version = values.pop("schema_version", _SCHEMA_VERSION)
    if version != _SCHEMA_VERSION:
        raise InputError(f"{where}: board '{name}' has schema_version {version}. This version reads {_SCHEMA_VERSION}.")
    try:
        return TypeAdapter(DeviceProfile).validate_python({"name": name, "sources": {}} | values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{where}: board '{name}' has a wrong or missing {place}: {first['msg']}. Write it as in the board files "
            "of dtp_deploy_targets/devices."
        ) from None
