"""The runner's command line, on the board: ``python3 dtp_runner.pyz detect | measure ... | serve``.

``measure`` is for a person: it takes ONNX files and writes one JSON file. ``serve`` is for a host at the other end of a
pipe; when the pipe breaks, everything that was started here ends.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtp_deploy_targets.runner.board import detect
from dtp_deploy_targets.runner.signals import ENDING
from dtp_deploy_targets.runner.tensorrt_backend import Options, TensorRtBackend

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA_VERSION = 1
ROOT_VARIABLE = "DTP_DEPLOY_BOARD_ROOT"
"""Another folder than "/" to read the board's files from: for tests, which replay a board."""

_MEASURE_DEFAULTS = {"blocks": 20, "max_samples": 10_000, "min_samples": 50}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(prog="dtp_runner", description="Measures ONNX models on this board.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("detect", help="print what this board is, as JSON")
    commands.add_parser("serve", help="talk to dtp-deploy over standard input and output")
    measuring = commands.add_parser("measure", help="build and measure ONNX models with TensorRT; write a JSON file")
    measuring.add_argument("models", nargs="+", metavar="NAME=FILE.onnx", help="the models, measured in turns")
    measuring.add_argument("--out", default="result.json", help="where the result goes (default: result.json)")
    measuring.add_argument("--precision", choices=("fp16", "fp32", "int8"), default="fp16")
    measuring.add_argument("--dla", type=int, default=-1, metavar="CORE", help="the DLA core to use (default: none)")
    measuring.add_argument("--seconds", type=float, default=6.0, help="how long each model runs (default: 6)")
    measuring.add_argument("--lock-clocks", action="store_true", help="lock the clocks meanwhile; needs root")
    measuring.add_argument("--cache", default=Options().cache, help="the folder that keeps the engines")
    parsed = parser.parse_args(arguments)
    root = Path(os.environ.get(ROOT_VARIABLE, "/"))
    if parsed.command == "detect":
        print(json.dumps(detect(root)._asdict(), indent=1))
        return 0
    if parsed.command == "serve":
        from dtp_deploy_targets.runner.serve import serve

        return serve(root)
    return _measure(parsed, root)


def _measure(parsed: argparse.Namespace, root: Path) -> int:
    for number in ENDING:
        signal.signal(number, _interrupt)
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "dtp-deploy-measurement",
        "board": detect(root)._asdict(),
        "board_root": str(root),
        "models": {},
        "errors": [],
    }
    options = Options(parsed.precision, parsed.dla, parsed.lock_clocks, parsed.cache)
    with tempfile.TemporaryDirectory(prefix="dtp-deploy-") as folder:
        backend = None
        try:
            backend = TensorRtBackend(Path(folder), options, root)
            models = dict(_named(text) for text in parsed.models)
            for name, path in models.items():
                print(f"building {name} ({path.name}): this can take minutes", file=sys.stderr)
                info = backend.build(name, path)
                result["models"][name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "engine": info}
            print("measuring", file=sys.stderr)
            settings = {**_MEASURE_DEFAULTS, "min_seconds": parsed.seconds}
            attempt = backend.measure(list(models), settings)
            for name in models:
                blocks_ms = [[sample / 1e6 for sample in block] for block in attempt["blocks_ns"][name]]
                found = {**attempt["details"][name], "layers": backend.layers(name)}
                result["models"][name].update(latencies_ms=blocks_ms, **found)
            result.update({key: attempt[key] for key in ("system", "before", "after")}, settings=settings)
        except (RuntimeError, OSError, ValueError, KeyboardInterrupt) as error:
            result["errors"].append(str(error) or type(error).__name__)
        result["command_lines"] = backend.command_lines if backend else []
    Path(parsed.out).write_text(json.dumps(result, indent=1) + "\n")
    for message in result["errors"]:
        print(f"error: {message}", file=sys.stderr)
    print(f"wrote {parsed.out}", file=sys.stderr)
    return 1 if result["errors"] else 0


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    found = Path(path if equals else text)
    if not found.is_file():
        raise RuntimeError(f"there is no file {found}")
    return (name if equals else found.stem), found.resolve()


def _interrupt(number: int, frame: object) -> None:
    for further in ENDING:  # what is put back on the way out is put back in peace
        signal.signal(further, signal.SIG_IGN)
    raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
