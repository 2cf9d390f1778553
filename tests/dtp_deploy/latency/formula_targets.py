"""Targets whose times follow from a formula, so that tests know the truth; found as ``formula_targets:Class``.

A file named by the environment variable FORMULA_LOG gets the name of every model that is measured. One named by
FORMULA_FAULT may hold "how number": in which way to go wrong, once that many models were measured.
"""

import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dtp_deploy.target import Arrays, Attempt, Availability, Engine, EngineInfo, Session, Target, TensorSpec

SPEC = TensorSpec("x", (1,), "float32")
NODES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BLOCKS = 4


class Formula(Target):
    """Every layer takes a fixed time and one in proportion to its operations, with widths rounded up to `step`."""

    name = "formula"
    summary = "a staircase"

    def __init__(self, *, step: int = 1, device: str = "here") -> None:
        self.step, self.device = step, device

    def availability(self) -> Availability:
        return Availability(True)

    def _build(self, model_path: Path) -> Engine:
        return FormulaEngine(model_path, self)

    def measure(self, engines: Mapping[str, Engine], settings: Mapping[str, Any]) -> Attempt:
        for name in engines:
            _record(name)
        _go_wrong()
        return Attempt(
            blocks_ns={name: [[self.time_ns(engine.model_path)]] * BLOCKS for name, engine in engines.items()},
            warm_up={name: {} for name in engines},
            system={"cpu_model": "formula"},
            before={},
            after={},
            details={name: {} for name in engines},
        )

    def time_ns(self, path: Path) -> int:
        graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
        shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in [*graph.value_info, *graph.output]
        }
        weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        total = 10_000.0
        for node in graph.node:
            if node.op_type in NODES:
                first, second, *kernel = weights[node.input[1]]
                # A depthwise layer has a second width of 1, with one channel too, where it is not told from others.
                widths = self.up(first) * (1 if second == 1 else self.up(second))
                positions = math.prod(shapes[node.output[0]]) / shapes[node.output[0]][1]
                total += 2000 + 10 * widths * math.prod(kernel) * positions
        return round(total)

    def up(self, width: int) -> int:
        return math.ceil(width / self.step) * self.step


class Spiked(Formula):
    """Load of others comes when whole structures are measured: all models of some rounds take three times as long."""

    name = "spiked"

    def measure(self, engines: Mapping[str, Engine], settings: Mapping[str, Any]) -> Attempt:
        attempt = super().measure(engines, settings)
        if "dense" in engines:
            for blocks in attempt.blocks_ns.values():
                blocks[0] = [3 * each for each in blocks[0]]
        return attempt


class Uneven(Formula):
    """Blocks of 8 channels, four at once; the first of four takes more than half of the time of all."""

    name = "uneven"

    def up(self, width: int) -> int:
        return 32 * ((width - 1) // 32) + (18, 22, 26, 32)[(width - 1) % 32 // 8]


class SlowToBuild(Formula):
    name = "slow-to-build"
    build_is_slow = True


class FormulaEngine(Engine):
    def __init__(self, model_path: Path, target: Formula) -> None:
        super().__init__(model_path)
        self.target = target

    def _open(self) -> Session:
        return FormulaSession([SPEC], [SPEC])

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("formula", "1", self.target.device, 1, "fp32")


class FormulaSession(Session):
    def _run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return dict(inputs)


def _record(name: str) -> None:
    if path := os.environ.get("FORMULA_LOG"):
        with Path(path).open("a") as log:
            log.write(f"{name}\n")


def _go_wrong() -> None:
    fault, log = os.environ.get("FORMULA_FAULT"), os.environ.get("FORMULA_LOG")
    if not (fault and log and Path(fault).exists()):
        return
    how, number = Path(fault).read_text().rsplit(maxsplit=1)
    if len(Path(log).read_text().splitlines()) < int(number):
        return
    match how:
        case "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hangs":
            time.sleep(600)
        case "prints rubbish":
            os.write(1, b'{"event": "result", "attempts_ns": "rubbish"}\n\xff\xfe\x00')
            os._exit(0)
