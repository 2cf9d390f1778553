"""Which board this is, and which software it has: from files, the device tree and dpkg, never by guessing.

The tables come from rbonghi/jetson_stats (jetson_variables.py, f41d5cad) and OE4T/meta-tegra (d5d93dc6).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dtp_deploy_targets.runner.trtexec import Version

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_TENSORRT = Version(10, 3)
"""On a Jetson: the one of JetPack 6.1."""
LEAST_ELSEWHERE = Version(10)

_JETPACK = {
    "32.1": "4.2", "32.2.0": "4.2.1", "32.2.1": "4.2.2", "32.2.3": "4.2.3", "32.3.1": "4.3", "32.4.2": "4.4 DP",
    "32.4.3": "4.4", "32.4.4": "4.4.1", "32.5.0": "4.5", "32.5.1": "4.5.1", "32.5.2": "4.5.1", "32.6.1": "4.6",
    "32.7.1": "4.6.1", "32.7.2": "4.6.2", "32.7.3": "4.6.3", "32.7.4": "4.6.4", "32.7.5": "4.6.5", "32.7.6": "4.6.6",
    "34.1.0": "5.0 DP", "34.1.1": "5.0.1 DP", "35.1.0": "5.0.2", "35.2.1": "5.1", "35.3.1": "5.1.1",
    "35.4.1": "5.1.2", "35.5.0": "5.1.3", "35.6.0": "5.1.4", "35.6.1": "5.1.5", "35.6.2": "5.1.5", "35.6.3": "5.1.5",
    "35.6.4": "5.1.6", "36.2.0": "6.0 DP", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.2": "6.1", "36.4.3": "6.2",
    "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5.0": "6.2.2", "36.5.2": "6.2.3", "38.2.0": "7.0", "38.2.1": "7.0",
    "38.2.2": "7.0", "38.4.0": "7.1", "39.0.0": "7.2 EA", "39.2.0": "7.2", "39.2.1": "7.2.1",
}  # fmt: skip
_COMPUTE = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
_MODULES = {
    "p3448-0000": "Nano", "p3448-0002": "Nano", "p3448-0003": "Nano 2 GB", "p3310-1000": "TX2",
    "p2888-0001": "AGX Xavier 16 GB", "p2888-0003": "AGX Xavier 32 GB", "p2888-0004": "AGX Xavier 32 GB",
    "p2888-0005": "AGX Xavier 64 GB", "p2888-0006": "AGX Xavier 8 GB", "p2888-0008": "AGX Xavier industrial",
    "p3668-0000": "Xavier NX", "p3668-0001": "Xavier NX", "p3668-0003": "Xavier NX 16 GB",
    "p3701-0000": "AGX Orin", "p3701-0004": "AGX Orin 32 GB", "p3701-0005": "AGX Orin 64 GB",
    "p3701-0002": "IGX Orin", "p3701-0008": "AGX Orin industrial 64 GB",
    "p3767-0000": "Orin NX 16 GB", "p3767-0001": "Orin NX 8 GB", "p3767-0003": "Orin Nano 8 GB",
    "p3767-0004": "Orin Nano 4 GB", "p3767-0005": "Orin Nano 8 GB developer kit", "p3834-0008": "AGX Thor T5000",
}  # fmt: skip
_TRTEXEC = ("usr/src/tensorrt/bin/trtexec", "usr/bin/trtexec")
_DLA_LIBRARY = "libnvdla_compiler.so"
_LIBRARIES = ("usr/lib/aarch64-linux-gnu/nvidia", "usr/lib/aarch64-linux-gnu/tegra")
_ROOT = Path("/")


class Board(NamedTuple):
    """What there is; "" or None for what the board does not tell.

    Attributes:
        is_jetson: whether it is one.
        model: the device tree's name of the board.
        module: the module's part number ("p3767-0005"), which tells boards of one name apart.
        module_name: what that number stands for.
        soc: "tegra234".
        compute_capability: of the GPU.
        l4t: version of NVIDIA's Linux ("36.4.3").
        jetpack: version of the whole package of software.
        tensorrt: version of TensorRT, by its packages; the banner of trtexec is what counts.
        cuda: version of CUDA.
        trtexec: the path of trtexec.
        has_dla_compiler: whether the library that DLA needs is there.
        ram_mb: memory, shared by CPU and GPU.
    """

    is_jetson: bool = False
    model: str = ""
    module: str = ""
    module_name: str = ""
    soc: str = ""
    compute_capability: str = ""
    l4t: str = ""
    jetpack: str = ""
    tensorrt: str = ""
    cuda: str = ""
    trtexec: str = ""
    has_dla_compiler: bool = False
    ram_mb: int | None = None


def detect(root: Path = _ROOT) -> Board:
    """The board that this runs on. Reads only; what cannot be read is left empty."""
    release = _read(root / "etc/nv_tegra_release")
    compatible = _read(root / "proc/device-tree/compatible")
    packages = parse_packages(output_of(["dpkg-query", "-W", "-f", "${Package} ${Version}\\n"]))
    module, soc = parse_compatible(compatible)
    l4t = parse_release(release) or packages.get("nvidia-l4t-core", "").partition("-")[0]
    return Board(
        is_jetson=bool(release) or "nvidia,tegra" in compatible,
        model=_read(root / "proc/device-tree/model").strip("\0 \n"),
        module=module,
        module_name=_MODULES.get(module, ""),
        soc=soc,
        compute_capability=_COMPUTE.get(soc, ""),
        l4t=l4t,
        jetpack=jetpack_version(packages, l4t),
        tensorrt=tensorrt_version(packages),
        cuda=_cuda(root),
        trtexec=find_trtexec(root),
        has_dla_compiler=any((root / folder / _DLA_LIBRARY).exists() for folder in _LIBRARIES),
        ram_mb=_ram_mb(root),
    )


def parse_release(text: str) -> str:
    """The L4T version in ``/etc/nv_tegra_release``.

    >>> parse_release("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic")
    '36.4.3'
    """
    match = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match.group(1)}.{match.group(2)}" if match else ""


def parse_compatible(text: str) -> tuple[str, str]:
    r"""Module number and SoC in ``/proc/device-tree/compatible``, whose entries a NUL separates.

    >>> parse_compatible("nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
    ('p3767-0005', 'tegra234')
    """
    modules = re.findall(r"(?:nvidia,|\+)(p\d{4}-\d{4})", text)
    soc = re.search(r"nvidia,(tegra\d+)", text)
    module = next((name for name in modules if name in _MODULES), modules[0] if modules else "")
    return module, soc.group(1) if soc else ""


def parse_packages(text: str) -> dict[str, str]:
    """Versions by package: from ``dpkg -l``, from ``dpkg-query -W``, or from ``Package:`` and ``Version:`` lines."""
    found = dict(re.findall(r"^(?:ii +)?([a-z0-9][a-z0-9.+-]+)\s+(\d\S*)", text, re.MULTILINE))
    found.update(re.findall(r"^Package: (\S+)\nVersion: (\S+)", text, re.MULTILINE))
    return found


def jetpack_version(packages: dict[str, str], l4t: str) -> str:
    """The JetPack version: by its own package or one of its parts, else by the L4T version.

    >>> jetpack_version({"nvidia-cudnn": "6.2.1+b38"}, ""), jetpack_version({}, "36.4.0"), jetpack_version({}, "99.1")
    ('6.2.1', '6.1', '')
    """
    for name in ("nvidia-jetpack", "nvidia-cudnn", "nvidia-tensorrt", "nvidia-cuda"):
        match = re.match(r"(\d+\.\d+(?:\.\d+)?)[+-]b\d+", packages.get(name, ""))
        if match:
            return match.group(1)
    return _JETPACK.get(l4t, "")


def tensorrt_version(packages: dict[str, str]) -> str:
    """The TensorRT version that is installed.

    >>> tensorrt_version({"libnvinfer-bin": "10.3.0.30-1+cuda12.5"})
    '10.3.0.30'
    """
    names = ("libnvinfer-bin", "libnvinfer11", "libnvinfer10", "libnvinfer8", "libnvinfer7", "libnvinfer-dev")
    return next((packages[name].partition("-")[0] for name in names if name in packages), "")


def unsupported(board: Board, version: Version | None) -> str:
    """Why a board cannot be used, or "" if it can: TensorRT 8 does not read the models that are written here.

    >>> unsupported(Board(is_jetson=True, trtexec="/x", jetpack="6.0", l4t="36.3.0"), Version(8, 6, 2))
    'has TensorRT 8.6.2 (JetPack 6.0); supported from TensorRT 10.3 (JetPack 6.1) on, because older versions do not \
read ONNX opset 18'
    """
    if not board.trtexec:
        return "has no trtexec in PATH, /usr/src/tensorrt/bin or /usr/bin; install it: sudo apt install nvidia-jetpack"
    if version is None:
        return f"has a trtexec ({board.trtexec}) that tells no version; supported from TensorRT 10.3 (JetPack 6.1) on"
    if not board.is_jetson:
        return "" if version >= LEAST_ELSEWHERE else f"has TensorRT {version}; supported from TensorRT 10 on"
    if version < LEAST_TENSORRT:
        return (
            f"has TensorRT {version} (JetPack {board.jetpack or 'unknown'}); supported from TensorRT 10.3 (JetPack "
            "6.1) on, because older versions do not read ONNX opset 18"
        )
    return ""


def find_trtexec(root: Path = _ROOT) -> str:
    """The path of trtexec, or "": it is seldom in PATH."""
    paths = (str(root / path) for path in _TRTEXEC)
    return shutil.which("trtexec") or next((path for path in paths if os.access(path, os.X_OK)), "")


def _cuda(root: Path) -> str:
    text = _read(root / "usr/local/cuda/version.json") or _read(root / "usr/local/cuda/version.txt")
    match = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"|CUDA Version ([\d.]+)', text)
    return (match.group(1) or match.group(2)) if match else ""


def _ram_mb(root: Path) -> int | None:
    match = re.search(r"MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo"))
    return int(match.group(1)) // 1024 if match else None


def output_of(command: Sequence[str], timeout_s: float = 30) -> str:
    """What a command prints, or "" if it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=timeout_s, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
