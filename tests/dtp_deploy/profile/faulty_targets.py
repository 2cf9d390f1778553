"""Targets that go wrong, each in its own way, found by the child process as ``faulty_targets:Class``."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtp_deploy.target import Arrays, Availability, Engine, EngineInfo, Session, Target, TensorSpec

SPEC = TensorSpec("x", (2,), "float32")


class Works(Target):
    """Doubles its input, and is the base of those that do not work."""

    name = "works"
    summary = "doubles"

    def __init__(self, *, factor: int = 2) -> None:
        self.factor = factor

    def availability(self) -> Availability:
        return Availability(True)

    def _build(self, model_path: Path) -> Engine:
        return FaultyEngine(model_path, self)

    def compute(self, x: np.ndarray) -> Any:
        return x * self.factor


class FaultyEngine(Engine):
    def __init__(self, model_path: Path, target: Works) -> None:
        super().__init__(model_path)
        self.target = target

    def _open(self) -> Session:
        return FaultySession(self.target)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("numpy", "1", "none", 1, "fp32", {"factor": self.target.factor})


class FaultySession(Session):
    def __init__(self, target: Works) -> None:
        super().__init__([SPEC], [TensorSpec("y", (2,), "float32")])
        self.target = target

    def _run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return {"y": self.target.compute(inputs["x"])}


@dataclass(frozen=True)
class BuildsSlowly(Works):
    """Tells how far it is."""

    factor: int = 2

    def _build(self, model_path: Path) -> Engine:
        with self.progress.task("engine, percent", 4) as advance:
            for _ in range(4):
                time.sleep(0.2)
                advance()
            self.ends()
        self.progress.note("built")
        return super()._build(model_path)

    def ends(self) -> None:
        pass


class FailsSlowly(BuildsSlowly):
    def ends(self) -> None:
        raise ValueError("the engine is not what it should be")


class DiesSlowly(BuildsSlowly):
    def ends(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class HangsInBuild(BuildsSlowly):
    def ends(self) -> None:
        time.sleep(60)


class Crashes(Works):
    def compute(self, x: np.ndarray) -> Any:
        print("kernel: bad address", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)


class CrashesInSecondModel(Works):
    def _build(self, model_path: Path) -> Engine:
        if model_path.stem == "second":
            os.kill(os.getpid(), signal.SIGABRT)
        return super()._build(model_path)


class Hangs(Works):
    """Hangs, with a process of its own that would outlive it."""

    def compute(self, x: np.ndarray) -> Any:
        helper = subprocess.Popen(["sleep", "600"])
        print(f"helper {helper.pid}", flush=True)
        time.sleep(600)


class Chatters(Works):
    """Prints what looks like a result on the standard output, from Python and from below it."""

    def compute(self, x: np.ndarray) -> Any:
        print('{"event": "result", "attempts_ns": "rubbish"}')
        os.write(1, b"\xff\xfe\x00 rubbish\n")
        return super().compute(x)


class Leaves(Works):
    """Ends the process as if all were well."""

    def compute(self, x: np.ndarray) -> Any:
        os._exit(0)


class Raises(Works):
    def compute(self, x: np.ndarray) -> Any:
        raise RuntimeError("device lost\nsecond line")


class GivesRubbish(Works):
    def compute(self, x: np.ndarray) -> Any:
        return np.zeros((3, 3), np.float32)


class IsMissing(Works):
    name = "missing"

    def availability(self) -> Availability:
        return Availability(False, "needs the package nothing", "pip install nothing")
