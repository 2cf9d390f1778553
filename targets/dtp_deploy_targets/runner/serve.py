"""The runner at the far end of a pipe: answers a host's requests, one after the other, until the pipe breaks.

Requests: ``start`` (which backend, with which options; first), ``build``, ``run``, ``measure``, ``layers``. Each is
answered with ``{"ok": true, ...}`` or ``{"ok": false, "error": "one line"}``.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from dtp_deploy_targets.runner.board import detect
from dtp_deploy_targets.runner.processes import kill_all
from dtp_deploy_targets.runner.signals import ENDING
from dtp_deploy_targets.runner.wire import GREETING, Blob, Message, read_message, write_message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Backend(Protocol):
    """What runs models on the board: by ONNX Runtime, by TensorRT, or by the user's own command."""

    def build(self, name: str, onnx: Path, samples: Mapping[str, Blob]) -> dict[str, Any]:
        """Make a model ready; what runs, as `EngineInfo` has it."""

    def run(self, name: str, blobs: Mapping[str, Blob]) -> list[Blob]:
        """Run a model once."""

    def layers(self, name: str) -> list[dict[str, Any]] | None:
        """The time of each layer, as `LayerTime` has it; None where the runtime does not tell."""

    def measure(self, names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
        """One attempt at measuring, the models in turns; as `Attempt` has it."""


def serve(root: Path) -> int:
    """Answer requests on standard input until it ends. What anything here prints goes to the standard error."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for number in ENDING:
        signal.signal(number, lambda *_: _end())
    replies.write(GREETING)
    replies.flush()
    requests: queue.Queue[Message | None] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    server = Server(root)
    while (request := requests.get()) is not None:
        header: dict[str, Any]
        blobs: list[Blob] = []
        try:
            header, blobs = server.answer(request)
        except Exception as error:  # whatever a runtime on the board raises is the host's to report
            header = {"ok": False, "error": _one_line(error)}
        write_message(replies, header, blobs)
    return 0


def _listen(stream: BinaryIO, requests: queue.Queue[Message | None]) -> None:
    while True:
        message = None
        with suppress(OSError, ValueError):
            message = read_message(stream)
        if message is None:
            _end()
        requests.put(message)


def _end() -> None:
    # The host has gone, perhaps in the middle of a measurement: nothing that was started here may go on. Clocks that
    # are locked are restored by who removes our folder.
    kill_all()
    os._exit(0)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else "no message"
    return (
        said if isinstance(error, RuntimeError) and type(error) is RuntimeError else f"{type(error).__name__}: {said}"
    )


class Server:
    """Answers requests; holds the backend that ``start`` chose."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._backend: Backend | None = None

    def answer(self, request: Message) -> tuple[dict[str, Any], list[Blob]]:
        """The answer to one request, and the arrays that go with it.

        Raises:
            RuntimeError: what is asked for is not possible; anything else: what the runtime raised.
        """
        header = request.header
        if header["command"] == "start":
            self._start(header)
            version = str(getattr(self._backend, "version", ""))
            return {"ok": True, "board": detect(self._root)._asdict(), "runtime_version": version}, []
        backend = self._backend
        if backend is None:
            raise RuntimeError("the runner was not started")
        if header["command"] == "build":
            return {"ok": True, "info": backend.build(header["model"], Path(header["path"]), request.blobs)}, []
        if header["command"] == "run":
            return {"ok": True}, backend.run(header["model"], request.blobs)
        if header["command"] == "layers":
            return {"ok": True, "layers": backend.layers(header["model"])}, []
        if header["command"] == "measure":
            return {"ok": True, "attempt": backend.measure(header["models"], header["settings"])}, []
        raise RuntimeError(f"the runner knows no command {header['command']!r}")

    def _start(self, header: dict[str, Any]) -> None:
        options = header["options"]
        # Imported when chosen: the standard library is enough for the others.
        if header["backend"] == "onnxruntime":
            from dtp_deploy_targets.runner.onnx_backend import OnnxBackend

            self._backend = OnnxBackend(**options)
        elif header["backend"] == "command":
            from dtp_deploy_targets.runner.command_backend import CommandBackend

            self._backend = CommandBackend(**options)
        else:
            from dtp_deploy_targets.runner.tensorrt_backend import Options, TensorRtBackend

            self._backend = TensorRtBackend(Path(header["folder"]), Options(**options), self._root)
