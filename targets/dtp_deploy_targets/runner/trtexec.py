"""trtexec, NVIDIA's command-line program for TensorRT: its options by version, and what it prints.

Read in the public repository NVIDIA/TensorRT (samples/common, samples/trtexec) at the tags 8.0.1 to v11.1. The same
option can be unknown, off by default or on by default, by version: so every option that changes a time is set.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

PRECISIONS = ("fp32", "fp16", "int8")
STRONGLY_TYPED_FROM = (11,)
"""The version from which on the types of the ONNX tensors decide, and there is no option for the precision."""

# They mean the same from 8.0 to 11.1: below 11 they turn on what is off by default, from 11 on they are accepted and
# change nothing. Without the last one, 8.6 to 10.16 write neither a summary nor the times when they profile.
MEASURE_FLAGS = ("--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun")

WORKSPACE_MIB_BELOW_8_4 = 1024
"""Up to 8.3 the builder has 16 MiB to work in unless told, far too little; later it may take the whole memory."""


class Version(NamedTuple):
    """A TensorRT version.

    >>> Version.parse("10.3.0.30-1+cuda12.5") >= Version(10, 3)
    True
    """

    major: int
    minor: int = 0
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> Version | None:
        """The version that a text starts with, or None."""
        match = re.match(r"\s*v?(\d+)\.(\d+)(?:\.(\d+))?", text)
        return cls(*(int(part or 0) for part in match.groups())) if match else None

    @classmethod
    def from_number(cls, number: int) -> Version:
        """The version that a banner's number means: its form changed with 10.0.

        >>> Version.from_number(8601), Version.from_number(101303)
        (Version(major=8, minor=6, patch=1), Version(major=10, minor=13, patch=3))
        """
        unit = 10_000 if number >= 100_000 else 1_000
        return cls(number // unit, number % unit // 100, number % 100)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class Banner(NamedTuple):
    """A line ``&&&& RUNNING TensorRT.trtexec [TensorRT v100700] [b23] # command``; 7.x gives no version."""

    status: str
    version: Version | None
    build: str
    command: str


def parse_banners(text: str) -> list[Banner]:
    """All banners of a log, in order: RUNNING first, then PASSED, FAILED or WAIVED."""
    found = []
    pattern = r"^&&&& (\w+) TensorRT\.trtexec(?: \[TensorRT v(\d+)\])?(?: \[(b\d+)\])? # (.*)$"
    for status, number, build, command in re.findall(pattern, text, re.MULTILINE):
        found.append(Banner(status, Version.from_number(int(number)) if number else None, build, command.strip()))
    return found


def parse_version(text: str) -> Version | None:
    """The version that a log tells, or None."""
    for banner in parse_banners(text):
        if banner.version is not None:
            return banner.version
    match = re.search(r"TensorRT version: ([\d.]+)", text)
    return Version.parse(match.group(1)) if match else None


# ---- command lines -------------------------------------------------------------------------------------------------


def build_command(
    program: str,
    version: Version,
    onnx: str,
    engine: str,
    precision: str,
    *,
    timing_cache: str = "",
    dla_core: int = -1,
    sparsity: bool = False,
) -> list[str]:
    """The command that builds an engine and does not run it.

    Args:
        program: the path of trtexec.
        version: its version.
        onnx: the model, with static shapes.
        engine: where the engine is written.
        precision: "fp32", "fp16" or "int8" (the model has Q/DQ nodes; what they leave out may run as fp16). From 11.0
            on there is no such option: the types of the ONNX tensors decide.
        timing_cache: a file that keeps the timings of kernels, so that building again is faster and gives the same.
        dla_core: the DLA to use, with the GPU for what it cannot do; -1 for none.
        sparsity: use 2:4 kernels where the weights are 2:4.
    """
    command = [program, f"--onnx={onnx}", f"--saveEngine={engine}", "--noTF32"]
    if version >= (8, 2):
        command.append("--profilingVerbosity=detailed")
    if timing_cache:
        command.append(f"--timingCacheFile={timing_cache}")
    if version < (8, 4):
        command.append(f"--workspace={WORKSPACE_MIB_BELOW_8_4}")
    if version < STRONGLY_TYPED_FROM:
        command += {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[precision]
    if dla_core >= 0:
        command += [f"--useDLACore={dla_core}", "--allowGPUFallback"]
    if sparsity:
        command.append("--sparsity=enable")
    command.append("--skipInference" if version >= (8, 6) else "--buildOnly")
    return command


def measure_command(
    program: str,
    version: Version,
    engine: str,
    times: str,
    *,
    seconds: float,
    warm_up_ms: int = 500,
    iterations: int = 20,
    dla_core: int = -1,
) -> list[str]:
    """The command that measures an engine, the same way in every version: GPU time only, with a CUDA graph.

    Args:
        program: the path of trtexec.
        version: its version.
        engine: the engine.
        times: where the time of every query is written.
        seconds: it runs for at least this long,
        warm_up_ms: after this warm-up,
        iterations: and at least this often.
        dla_core: as it was built.
    """
    # Up to 8.2 whole numbers only.
    duration = f"{seconds:g}" if version >= (8, 4) else f"{max(1, round(seconds))}"
    return [
        *_load(program, engine, dla_core),
        *MEASURE_FLAGS,
        f"--warmUp={warm_up_ms}",
        f"--duration={duration}",
        f"--iterations={iterations}",
        "--avgRuns=100",
        "--percentile=" + ("50,90,95,99" if version >= (8, 5) else "99"),
        f"--exportTimes={times}",
    ]


def inspect_command(
    program: str, version: Version, engine: str, profile: str, layers: str, *, iterations: int = 20, dla_core: int = -1
) -> list[str]:
    """The command that writes the time of each layer and what each layer is (the latter from 8.2 on)."""
    command = [
        *_load(program, engine, dla_core),
        *MEASURE_FLAGS,
        "--warmUp=100",
        "--duration=0",
        f"--iterations={iterations}",
        f"--exportProfile={profile}",
    ]
    if version >= (8, 2):
        command.append(f"--exportLayerInfo={layers}")
    return command


def run_command(program: str, engine: str, inputs: Mapping[str, str], outputs: str, *, dla_core: int = -1) -> list[str]:
    """The command that runs an engine once on given inputs.

    Args:
        program: the path of trtexec.
        engine: the engine.
        inputs: a raw binary file for each input.
        outputs: where the outputs are written, as JSON.
        dla_core: as it was built.
    """
    loaded = ",".join(f"{_quoted(name)}:{path}" for name, path in inputs.items())
    run_once = ["--warmUp=0", "--duration=0", "--iterations=1"]
    return [*_load(program, engine, dla_core), f"--loadInputs={loaded}", *run_once, f"--exportOutput={outputs}"]


def _load(program: str, engine: str, dla_core: int) -> list[str]:
    return [program, f"--loadEngine={engine}", *([f"--useDLACore={dla_core}"] if dla_core >= 0 else [])]


def _quoted(name: str) -> str:
    return f"'{name}'" if ":" in name else name


# ---- the log -------------------------------------------------------------------------------------------------------

_PREFIX = r"^(?:\[[\d/:-]+\] )?\[[IWEFV]\] "


class Summary(NamedTuple):
    """The performance summary: each figure of each line, in ms; totals in s; and what trtexec warns of."""

    throughput_qps: float
    lines_ms: dict[str, dict[str, float]]
    host_walltime_s: float
    gpu_compute_s: float
    warnings: list[str]

    @property
    def compute_median_ms(self) -> float:
        """The figure to quote for an edge device: trtexec's "Latency" is that of a pipelined query."""
        return self.lines_ms["GPU Compute Time"]["median"]


def parse_summary(text: str) -> Summary | None:
    """The performance summary of a log, or None if there is none (8.0 or newer; 7.x prints another form)."""
    throughput = re.search(r"Throughput: ([\d.e+-]+) qps", text)
    if throughput is None:
        return None
    lines = {}
    pattern = r"(End-to-End Host Latency|Latency|Enqueue Time|H2D Latency|GPU Compute Time|D2H Latency): (min = .*)$"
    for name, figures in re.findall(_PREFIX + pattern, text, re.MULTILINE):
        lines[name] = {key: float(value) for key, value in re.findall(r"([\w()%.]+) = ([\d.e+-]+) ms", figures)}
    return Summary(
        float(throughput.group(1)),
        lines,
        _seconds(text, "Total Host Walltime"),
        _seconds(text, "Total GPU Compute Time"),
        parse_warnings(text),
    )


def _seconds(text: str, name: str) -> float:
    match = re.search(name + r": ([\d.e+-]+) s", text)
    return float(match.group(1)) if match else 0.0


def parse_warnings(text: str) -> list[str]:
    """What trtexec says against its own figures: unstable, bound by something else, no CUDA graph; without repeats."""
    found = re.findall(r"\[W\] \* (.*)$", text, re.MULTILINE)
    patterns = (
        "The specified --useCudaGraph flag has been ignored",
        "CUDA graph capture failed",
        "no shapes were provided",
    )
    found += [line.strip() for line in text.splitlines() if any(pattern in line for pattern in patterns)]
    return list(dict.fromkeys(re.sub(_PREFIX, "", line).strip() for line in found))


def parse_options(text: str) -> dict[str, str]:
    """The options and the device that trtexec echoes, by their name in the log ("CUDA Graph": "Enabled").

    What is asked for and what is done can differ, by version: judge by this.
    """
    found: dict[str, str] = {}
    section = False
    for line in text.splitlines():
        match = re.match(_PREFIX + r"(.*)$", line)
        if match is None:
            continue
        content = match.group(1)
        if content.startswith("==="):
            section = content.endswith("Options ===") or "Device Information" in content
        elif section and ":" in content and "[TRT]" not in content:
            key, _, value = content.partition(":")
            found.setdefault(key.strip(), value.strip())
    return found


def measured_the_agreed_way(options: Mapping[str, str]) -> list[str]:
    """The echoed options that differ from what `measure_command` asks for; empty if all is right or nothing is echoed.

    >>> measured_the_agreed_way({"CUDA Graph": "Disabled", "Spin-wait": "Enabled"})
    ['CUDA Graph: Disabled']
    """
    wanted = {"Data transfers": "Disabled", "Spin-wait": "Enabled", "CUDA Graph": "Enabled"}
    return [f"{name}: {options[name]}" for name, value in wanted.items() if options.get(name, value) != value]


class Placement(NamedTuple):
    """The layers that the log says run on the DLA, and those on the GPU."""

    dla: list[str]
    gpu: list[str]


def parse_placement(text: str) -> Placement:
    """Where the layers of a build for the DLA run."""
    dla = re.findall(r"\[DlaLayer\] (.+?)\s*$", text, re.MULTILINE)
    gpu = re.findall(r"\[GpuLayer\] (.+?)\s*$", text, re.MULTILINE)
    return Placement(dla, gpu)


class Sparsity(NamedTuple):
    """The layers whose weights are 2:4, and those for which a sparse kernel was the fastest."""

    eligible: list[str]
    picked: list[str]


def parse_sparsity(text: str) -> Sparsity | None:
    """What a build with ``--sparsity=enable`` says, or None if it says nothing (recorded for 8.x only)."""
    eligible = re.search(r"\(Sparsity\) Layers eligible for sparse math:(.*)", text)
    picked = re.search(r"\(Sparsity\) TRT inference plan picked sparse implementation for layers:(.*)", text)
    if eligible is None and picked is None:
        return None
    return Sparsity(_names(eligible), _names(picked))


def _names(match: re.Match[str] | None) -> list[str]:
    return [name.strip() for name in match.group(1).split(",") if name.strip()] if match else []
