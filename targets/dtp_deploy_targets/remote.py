"""Models on a board, at the far end of a connection: what the targets `ssh` and `jetson` share."""

import math
import os
import select
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy.typing as npt

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.target import (
    Arrays,
    Attempt,
    Engine,
    EngineInfo,
    LayerTime,
    Session,
    Target,
    TensorSpec,
    random_inputs,
)
from dtp_deploy_targets.connection import Connection
from dtp_deploy_targets.cpu import CpuTarget
from dtp_deploy_targets.parcel import LEAST_PYTHON, RUNNER, write_runner
from dtp_deploy_targets.runner.onnx_backend import to_arrays, to_blobs
from dtp_deploy_targets.runner.wire import GREETING, Blob, Message, read_message, write_message

_START_S = 60.0
_BACKEND_S = 300.0
BUILD_TIMEOUT_S = 3600.0
"""How long building one engine, or one run of a benchmark command, may take unless the user says so."""
_SLACK_S = 60.0
"""How much longer than the board itself the host waits: the board says better what took so long."""
_RUN_S = 300.0
_END_S = 5.0
_CUT_S = 2.0
_KILLED = 255  # what ssh gives where a signal ended the command
_STDERR_LINES = 3
_DOING = {"start": "starting", "build": "building", "run": "running", "measure": "measuring", "layers": "profiling"}


class RemoteBoard:
    """A runner on a board, and the models that it holds. It ends with its connection.

    Args:
        connection: to the board; the runner then owns it.
        python: the Python on the board.
        backend: "onnxruntime", "command" or "tensorrt".
        options: of that backend.
        build_timeout_s: the longest that making one model ready may take.

    Attributes:
        facts: what the board says it is.
        runtime_version: of what runs models there; "" where it does not say.
        is_used: whether an engine is on it.

    Raises:
        TargetError: Python, or what the backend needs, is missing there.
    """

    def __init__(
        self,
        connection: Connection,
        python: str,
        backend: str,
        options: Mapping[str, Any],
        build_timeout_s: float = BUILD_TIMEOUT_S,
    ) -> None:
        self.connection = connection
        self.python = python
        self._build_timeout_s = build_timeout_s
        self.is_used = False
        self._count = 0
        self._end: Callable[[], object] = lambda: None
        try:
            self._start(backend, options)
        except BaseException:
            self.close()
            raise

    def _start(self, backend: str, options: Mapping[str, Any]) -> None:
        connection = self.connection
        self._check_python()
        with tempfile.TemporaryDirectory(prefix="dtp-deploy-") as folder:
            path = connection.put(write_runner(Path(folder)), RUNNER)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the runner
        self._process = connection.start([self.python, "-u", path, "serve"], self._errors)
        self._end = weakref.finalize(self, _end, self._process, self._errors)
        self._pipe = _Pipe(self._process)
        self._greet()
        start = {"command": "start", "backend": backend, "options": options, "folder": connection.folder}
        reply = self.call(start, (), _BACKEND_S)
        self.facts: dict[str, Any] = reply.header["board"]
        self.runtime_version: str = reply.header["runtime_version"]

    def _check_python(self) -> None:
        script = '"$1" -c "import sys; print(*sys.version_info[:2])"'
        done = self.connection.run(script, [self.python])
        least = ".".join(map(str, LEAST_PYTHON))
        if done.returncode != 0:
            raise TargetError(
                f"The {self.connection.label} has no '{self.python}'. Install Python {least} or newer there (sudo apt "
                "install python3), or name it: python=/path/to/python3."
            )
        version = tuple(int(part) for part in done.stdout.split()[-2:])
        if version < LEAST_PYTHON:
            raise TargetError(
                f"The {self.connection.label} has Python {version[0]}.{version[1]} as '{self.python}'. The runner "
                f"needs {least} or newer; name another one: python=/path/to/python3."
            )

    def _greet(self) -> None:
        self._pipe.deadline = time.monotonic() + _START_S
        try:
            while (line := self._pipe.readline()) != GREETING:
                if not line.endswith(b"\n"):
                    raise self._broken("starting")
        except TimeoutError:
            raise TargetError(
                f"The runner on {self.connection.label} did not start in {_START_S:g} s. Check the load of the board."
            ) from None

    def call(self, header: dict[str, Any], blobs: Sequence[Blob], timeout_s: float) -> Message:
        """Ask the runner for something, and give its answer.

        Raises:
            TargetError: the board said no, the connection was cut, the runner died, or it took too long.
        """
        self._pipe.deadline = time.monotonic() + timeout_s
        doing = _DOING[header["command"]]
        try:
            write_message(self._pipe, header, blobs)
            reply = read_message(self._pipe)
        except TimeoutError:
            self.close()
            option = {"build": "build_timeout_s", "measure": "timeout_s"}.get(header["command"])
            remedy = f"Raise {option} if it is only slow." if option else "Check the load of the board."
            raise TargetError(
                f"The {self.connection.label} took more than {timeout_s:g} s while {doing}. {remedy}"
            ) from None
        except OSError:
            raise self._broken(doing) from None
        if reply is None:
            raise self._broken(doing)
        if not reply.header["ok"]:
            raise TargetError(f"On {self.connection.label}: {self._advise(reply.header['error'])}")
        return reply

    def _advise(self, error: str) -> str:
        for package in ("onnxruntime", "numpy"):
            if f"No module named '{package}'" in error:
                return (
                    f"{self.python} has no package {package}. Install it there: {self.python} -m pip install "
                    "onnxruntime; or name a Python that has it: python=/path/to/python3."
                )
        if "No space left on device" in error:
            return f"{error}. Free some space there, or name another folder of that board: folder=/path."
        return error if error.endswith(".") else f"{error}."

    def _broken(self, doing: str) -> TargetError:
        """The runner's pipe ended: because the connection was cut, or because the runner died."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        said = self._last_words()
        try:
            self.connection.check(_CUT_S)
        except TargetError as error:
            return error
        status = self._process.returncode
        known = f" (status {status})" if status not in (None, _KILLED) else ""
        return TargetError(
            f"The runner on {self.connection.label} died while {doing}{known}. Where memory runs out, the system does "
            f"that: use a smaller model. Last lines of its output: {said or '(none)'}"
        )

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-_STDERR_LINES:])

    def add(self, model_path: Path, samples: Arrays) -> tuple[str, dict[str, Any]]:
        """Copy a model to the board and make it ready there; its name there, and what runs."""
        name = f"model-{self._count}"
        self._count += 1
        path = self.connection.put(model_path, f"{name}.onnx")
        reply = self.call(
            {"command": "build", "model": name, "path": path}, to_blobs(samples), self._build_timeout_s + _SLACK_S
        )
        return name, reply.header["info"]

    def run(self, name: str, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run a model once on the board."""
        return to_arrays(self.call({"command": "run", "model": name}, to_blobs(inputs), _RUN_S).blobs)

    def layers(self, name: str) -> list[dict[str, Any]] | None:
        """The time of each layer, or None if the board's runtime does not tell."""
        reply = self.call({"command": "layers", "model": name}, (), _RUN_S)
        found: list[dict[str, Any]] | None = reply.header["layers"]
        return found

    def measure(self, names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
        """One attempt at measuring models in turns, timed on the board."""
        header = {"command": "measure", "models": list(names), "settings": dict(settings)}
        attempt: dict[str, Any] = self.call(header, (), float(settings["timeout_s"])).header["attempt"]
        return attempt

    def close(self) -> None:
        """End the runner and the connection. Closing twice does no harm."""
        self._end()
        self.connection.close()


class _Pipe:
    """A process's standard input and output, read and written with a deadline (of `time.monotonic`)."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._out, self._in = process.stdin.fileno(), process.stdout.fileno()
        self._received = bytearray()
        self._sent = bytearray()
        self.deadline = math.inf
        os.set_blocking(self._out, False)

    def readline(self) -> bytes:
        while (end := self._received.find(b"\n")) < 0 and self._receive():
            pass
        return self._take(len(self._received) if end < 0 else end + 1)

    def read(self, size: int, /) -> bytes:
        while len(self._received) < size and self._receive():
            pass
        return self._take(min(size, len(self._received)))

    def _take(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _receive(self) -> bool:
        if not select.select([self._in], [], [], self._left_s())[0]:
            raise TimeoutError
        chunk = os.read(self._in, 1 << 16)
        self._received += chunk
        return bool(chunk)

    def write(self, data: bytes, /) -> None:
        self._sent += data

    def flush(self) -> None:
        while self._sent:
            if not select.select([], [self._out], [], self._left_s())[1]:
                raise TimeoutError
            del self._sent[: os.write(self._out, self._sent[: 1 << 16])]

    def _left_s(self) -> float | None:
        return None if math.isinf(self.deadline) else max(0.0, self.deadline - time.monotonic())


def check_build_timeout(target: str, build_timeout_s: float) -> None:
    """Raise a `UsageError` unless it is a time."""
    if isinstance(build_timeout_s, bool) or not 0 < build_timeout_s < math.inf:
        raise UsageError(
            f"build_timeout_s={build_timeout_s!r} is not possible for target '{target}'. Give seconds, more than 0."
        )


def _end(process: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()


class RemoteTarget(Target):
    """A target whose engines live on a board. A subclass says how to reach it, in `_connect`."""

    _board: RemoteBoard | None = None

    def _connect(self) -> RemoteBoard:
        """The board, connected anew."""
        raise NotImplementedError

    def _build(self, model_path: Path) -> Engine:
        # ONNX Runtime here refuses what is no model before it is sent anywhere, and knows its inputs and outputs.
        with CpuTarget().build(model_path).open() as session:
            inputs, outputs = session.inputs, session.outputs
        if self._board is None:
            self._board = self._connect()
        board = self._board
        try:
            with tempfile.TemporaryDirectory(prefix="dtp-deploy-") as folder:
                sent = self._prepared(board, model_path, Path(folder))
                engine = RemoteEngine(model_path, sent, board, inputs, outputs)
        except BaseException:
            if not board.is_used:
                self._board = None
                board.close()
            raise
        board.is_used = True
        return engine

    def _prepared(self, board: RemoteBoard, model_path: Path, folder: Path) -> Path:
        """The file to send: the model itself, as here, or another form of it, written into `folder`."""
        return model_path

    def measure(self, engines: Mapping[str, Engine], settings: Mapping[str, Any]) -> Attempt | None:
        """Measured on the board: over the network, a time would be the network's."""
        remote = {name: engine for name, engine in engines.items() if isinstance(engine, RemoteEngine)}
        assert remote.keys() == engines.keys()
        boards = {id(engine.board): engine.board for engine in remote.values()}
        assert len(boards) == 1
        (board,) = boards.values()
        found = board.measure([engine.name for engine in remote.values()], settings)

        def named(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: values[engine.name] for name, engine in remote.items()}

        per_model = {key: named(found[key]) for key in ("blocks_ns", "warm_up", "details")}
        return Attempt(**per_model, **{key: found[key] for key in ("system", "before", "after")})


class RemoteEngine(Engine):
    """A model on a board."""

    def __init__(
        self,
        model_path: Path,
        sent: Path,
        board: RemoteBoard,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        super().__init__(model_path)
        self.board = board
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self.name, info = board.add(sent, random_inputs(self._inputs, 1)[0])
        self._info = EngineInfo(**{"threads": None} | info)

    @property
    def info(self) -> EngineInfo:
        """What runs on the board, as the board says."""
        return self._info

    def _layer_times(self) -> list[LayerTime] | None:
        found = self.board.layers(self.name)
        return None if found is None else [LayerTime(**layer) for layer in found]

    def _open(self) -> Session:
        return RemoteSession(self)


class RemoteSession(Session):
    """One use of a model on a board."""

    def __init__(self, engine: RemoteEngine) -> None:
        super().__init__(engine._inputs, engine._outputs)
        self._engine = engine

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        found = self._engine.board.run(self._engine.name, inputs)
        missing = [spec.name for spec in self.outputs if spec.name not in found]
        if missing:
            raise TargetError(f"{self.label} gave no output '{missing[0]}', but {', '.join(found) or 'nothing'}.")
        # trtexec writes its outputs as numbers in a text, so their type is lost on the way.
        return {spec.name: found[spec.name].astype(spec.dtype).reshape(spec.shape) for spec in self.outputs}
