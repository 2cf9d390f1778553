"""Building, running and measuring engines with the board's own trtexec."""

from __future__ import annotations

import array
import hashlib
import math
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dtp_deploy_targets.runner import telemetry, trtexec
from dtp_deploy_targets.runner.board import Board, detect, unsupported
from dtp_deploy_targets.runner.clocks import LockedClocks
from dtp_deploy_targets.runner.exports import parse_outputs, parse_profile, parse_times
from dtp_deploy_targets.runner.failures import explain_failure
from dtp_deploy_targets.runner.layers import (
    gpu_fallback_share,
    parse_layers,
    precision_fault,
    precision_shares,
    timed_layers,
)
from dtp_deploy_targets.runner.processes import Done, run
from dtp_deploy_targets.runner.wire import Blob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BLOCKS = 6
"""Rounds of an interleaved measurement: each is one start of trtexec, which loads the engine and warms up."""
LEAST_BLOCK_SECONDS = 0.5
WARM_UP_MS = 500
_CALL_TIMEOUT_S = 600.0
_SHOWN_SHARE = 0.01
_TYPED_HINT = ": TensorRT 11 takes the precision from the ONNX model's types, so convert the model first"


class Options(NamedTuple):
    """How engines are built and measured.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        dla: the DLA core, -1 for none.
        lock_clocks: lock the clocks while measuring.
        cache: the folder that keeps the engines; "~" is the home folder on the board.
        build_timeout_s: the longest that building one engine may take.
        device: the index of the GPU; -1 for the only one.
        gpu: what that GPU is, where the board's files do not say: engines of one do not fit another.
    """

    precision: str = "fp16"
    dla: int = -1
    lock_clocks: bool = False
    cache: str = "~/.cache/dtp-deploy"
    build_timeout_s: float = 3600.0
    device: int = -1
    gpu: str = ""


class BuiltEngine(NamedTuple):
    """An engine on the board, and what was found in it."""

    path: Path
    info: dict[str, Any]
    layers: list[dict[str, Any]]


class TensorRtBackend:
    """Engines by name, on this board.

    Raises:
        RuntimeError: the board has no TensorRT that is supported, or not the DLA that is asked for.
    """

    def __init__(self, folder: Path, options: Options, root: Path) -> None:
        self._folder, self._options, self._root = folder, options, root
        self.board: Board = detect(root)
        help_text = run([self.board.trtexec, "--help"], timeout_s=120) if self.board.trtexec else Done(1, "", "")
        if help_text.status == 127 or "error while loading shared libraries" in help_text.stderr:
            raise RuntimeError(str(explain_failure(help_text.stdout, help_text.stderr)))
        version = trtexec.parse_version(help_text.stdout) or trtexec.Version.parse(self.board.tensorrt)
        if fault := unsupported(self.board, version):
            raise RuntimeError(f"the board ({self.board.model or 'not a Jetson'}) {fault}")
        if options.dla >= 0 and not self.board.has_dla_compiler:
            raise RuntimeError(
                f"DLA core {options.dla} is asked for, but {self.board.model or 'this board'} with JetPack "
                f"{self.board.jetpack or 'unknown'} has no DLA compiler (libnvdla_compiler.so)"
            )
        self.version = version or trtexec.Version(0)
        self._device_flags = [f"--device={options.device}"] if options.device >= 0 else []
        self._engines: dict[str, BuiltEngine] = {}
        self.command_lines: list[str] = []

    def build(self, name: str, onnx: Path, samples: Mapping[str, Blob] | None = None) -> dict[str, Any]:
        """Build an engine, or take it from the cache, and see what it runs in.

        Raises:
            RuntimeError: trtexec refuses the model, or the engine is not of the precision that was asked for.
        """
        if self._options.precision == "int8" and b"QuantizeLinear" not in onnx.read_bytes():
            # trtexec would invent the ranges: fast, and wrong.
            raise RuntimeError(
                f"int8 is asked for, but {onnx.name} has no quantize nodes: quantize the model first, or ask for fp16"
            )
        folder = Path(self._options.cache).expanduser() / "engines"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (self._key(onnx) + ".engine")
        log_path = path.with_suffix(".log")
        seconds = 0.0
        if not (path.exists() and log_path.exists()):
            began = time.monotonic()
            log_path.write_text(self._build(onnx, path))
            seconds = time.monotonic() - began
        self._engines[name] = self._inspect(path, log_path.read_text(), seconds)
        return self._engines[name].info

    def _key(self, onnx: Path) -> str:
        board, options = self.board, self._options
        # The command without its paths holds every option, so one that is added later makes other engines.
        command = self._build_command("", "", "")
        parts = (board.module, board.soc, board.l4t, str(self.version), options.gpu, *command[1:])
        digest = hashlib.sha256("\n".join(parts).encode() + onnx.read_bytes()).hexdigest()
        return f"{digest[:24]}-{options.precision}"

    def _build(self, onnx: Path, path: Path) -> str:
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        timing_cache = path.parent / f"timing-{self.version}-{self._gpu_slug()}.cache"
        command = self._build_command(str(onnx), str(partial), str(timing_cache))
        try:
            done = self._call([*command, *self._device_flags], self._options.build_timeout_s)
            partial.replace(path)
        finally:
            if partial.exists():
                partial.unlink()
        return f"{done.stdout}\n{done.stderr}"

    def _build_command(self, onnx: str, engine: str, timing_cache: str) -> list[str]:
        # Sparse kernels are taken only where the weights are 2:4, which the builder sees for itself.
        return trtexec.build_command(
            self.board.trtexec, self.version, onnx, engine, self._options.precision,
            timing_cache=timing_cache, dla_core=self._options.dla, sparsity=True,
        )  # fmt: skip

    def _inspect(self, path: Path, build_log: str, seconds: float) -> BuiltEngine:
        profile, layers = self._folder / "profile.json", self._folder / "layers.json"
        command = trtexec.inspect_command(
            self.board.trtexec, self.version, str(path), str(profile), str(layers), dla_core=self._options.dla
        )
        self._call([*command, *self._device_flags], _CALL_TIMEOUT_S)
        times = parse_profile(profile.read_text())
        placement = trtexec.parse_placement(build_log)
        on_dla = "int8" if self._options.precision == "int8" else "fp16"
        inspected = parse_layers(layers.read_text())
        shares = precision_shares(inspected, times, placement.dla, on_dla)
        if fault := precision_fault(self._options.precision, shares):
            raise RuntimeError(fault + (_TYPED_HINT if self.version >= (11,) else ""))
        info: dict[str, Any] = {
            "runtime": "tensorrt",
            "runtime_version": str(self.version),
            "device": self._device(),
            "precision": "+".join(name for name, share in shares.items() if share >= _SHOWN_SHARE),
            "options": {
                "engine": _without_home(str(path)),
                "engine_bytes": path.stat().st_size,
                "build_seconds": round(seconds, 1),
                "precision_asked": self._options.precision,
                "precision_shares": ", ".join(f"{name} {share:.0%}" for name, share in shares.items()),
                "warnings": "; ".join(trtexec.parse_warnings(build_log)),
                "dla_core": self._options.dla,
                "lock_clocks": self._options.lock_clocks,
            },
        }
        sparsity = trtexec.parse_sparsity(build_log)
        if sparsity is not None:
            info["options"].update(sparse_eligible=len(sparsity.eligible), sparse_picked=len(sparsity.picked))
        if self._options.dla >= 0:
            share = gpu_fallback_share(placement.dla, placement.gpu, times)
            info["options"].update(dla_layers=len(placement.dla), gpu_layers=len(placement.gpu))
            info["options"]["fell_back_to_gpu_share"] = "unknown" if share is None else share
        return BuiltEngine(path, info, timed_layers(inspected, times, placement.dla, on_dla))

    def _device(self) -> str:
        details = [self.board.module_name, self.board.l4t and f"L4T {self.board.l4t}"]
        details.append(self.board.jetpack and f"JetPack {self.board.jetpack}")
        known = ", ".join(detail for detail in details if detail)
        model = self.board.model or self._options.gpu or "GPU"
        return f"{model} ({known})" if known else model

    def _gpu_slug(self) -> str:
        return self.board.soc or re.sub(r"[^A-Za-z0-9.]+", "-", self._options.gpu) or "gpu"

    def run(self, name: str, blobs: Mapping[str, Blob]) -> list[Blob]:
        """Run an engine once. The outputs are float64, with the six significant digits that trtexec writes."""
        inputs = {}
        for index, blob in enumerate(blobs.values()):
            path = self._folder / f"input-{index}.bin"
            path.write_bytes(blob.data)
            inputs[blob.name] = str(path)
        outputs = self._folder / "outputs.json"
        engine = self._engines[name].path
        self._call(
            [
                *trtexec.run_command(self.board.trtexec, str(engine), inputs, str(outputs), dla_core=self._options.dla),
                *self._device_flags,
            ],
            _CALL_TIMEOUT_S,
        )
        return [
            Blob(output, "float64", tuple(shape), array.array("d", values).tobytes())
            for output, (shape, values) in parse_outputs(outputs.read_text()).items()
        ]

    def layers(self, name: str) -> list[dict[str, Any]]:
        """The time of each layer, found when the engine was inspected."""
        return self._engines[name].layers

    def measure(self, names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
        """One attempt: the engines in turns, each turn one run of trtexec.

        The times are those of the GPU, with a CUDA graph and without transfers; power is read meanwhile.
        """
        if not self._options.lock_clocks:
            return self._measure(names, settings)
        with LockedClocks(self._folder, Path(self._options.cache).expanduser()):
            return self._measure(names, settings)

    def _measure(self, names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
        rounds = min(int(settings["blocks"]), BLOCKS)
        before = telemetry.snapshot(self._root)
        blocks: dict[str, list[list[int]]] = {name: [] for name in names}
        summaries: dict[str, list[trtexec.Summary]] = {name: [] for name in names}
        power: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        commands: dict[str, str] = {}
        faults: dict[str, list[str]] = {name: [] for name in names}
        with telemetry.PowerMeter() as meter:
            idle_began = time.monotonic()
            time.sleep(float(settings.get("idle_seconds", 1.0)))
            idle = meter.between(idle_began, time.monotonic())
            for index in range(rounds):
                for name in names if index % 2 == 0 else list(reversed(names)):
                    command, times = self._measure_command(name, settings, rounds)
                    done = self._call(command, _CALL_TIMEOUT_S)
                    ended = time.monotonic()
                    most = max(1, int(settings["max_samples"]) // rounds)
                    found = parse_times(times.read_text(), self.version, WARM_UP_MS)[:most]
                    blocks[name].append([max(1, round(value * 1e6)) for value in found])
                    commands[name] = _without_home(" ".join(command))
                    faults[name] += trtexec.measured_the_agreed_way(trtexec.parse_options(done.stdout))
                    summary = trtexec.parse_summary(f"{done.stdout}\n{done.stderr}")
                    if summary is not None:
                        summaries[name].append(summary)
                        if read := meter.between(ended - summary.host_walltime_s, ended):
                            power[name].append(read)
        after = telemetry.snapshot(self._root)
        return {
            "blocks_ns": blocks,
            "warm_up": {name: {"seconds": WARM_UP_MS / 1e3, "by": "trtexec"} for name in names},
            "system": {"board": self.board._asdict(), "tensorrt": str(self.version)},
            "before": before,
            "after": after,
            "details": {
                name: {
                    "command": commands[name],
                    "warnings": _distinct(
                        [warning for summary in summaries[name] for warning in summary.warnings] + faults[name]
                    ),
                    "power": _mean_power(power[name], idle),
                    "throughput_qps": [summary.throughput_qps for summary in summaries[name]],
                }
                for name in names
            },
        }

    def _measure_command(self, name: str, settings: Mapping[str, Any], rounds: int) -> tuple[list[str], Path]:
        times = self._folder / "times.json"
        if times.exists():
            times.unlink()
        command = trtexec.measure_command(
            self.board.trtexec,
            self.version,
            str(self._engines[name].path),
            str(times),
            seconds=max(float(settings["min_seconds"]) / rounds, LEAST_BLOCK_SECONDS),
            warm_up_ms=WARM_UP_MS,
            iterations=math.ceil(int(settings["min_samples"]) / rounds),
            dla_core=self._options.dla,
        )
        return [*command, *self._device_flags], times

    def _call(self, command: Sequence[str], timeout_s: float | None) -> Done:
        self.command_lines.append(_without_home(" ".join(command)))
        done = run(command, timeout_s, str(self._folder))
        if done.status != 0:
            raise RuntimeError(str(explain_failure(done.stdout, done.stderr)))
        return done


def _distinct(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _mean_power(read: Sequence[Mapping[str, Any]], idle: Mapping[str, Any] | None) -> dict[str, Any] | None:
    totals = [entry["total_mw"] for entry in read if entry["total_mw"] is not None]
    if not totals:
        return None
    names = read[0]["rails_mw"]
    return {
        "total_mw": sum(totals) / len(totals),
        "idle_mw": idle["total_mw"] if idle else None,
        "rails_mw": {name: sum(entry["rails_mw"].get(name, 0.0) for entry in read) / len(read) for name in names},
        "samples": sum(entry["samples"] for entry in read),
    }


def _without_home(text: str) -> str:
    """A text that is passed on tells nobody's name."""
    home = str(Path.home())
    return text if home == "/" else re.sub(re.escape(home) + r"(?=/)", "~", text)
