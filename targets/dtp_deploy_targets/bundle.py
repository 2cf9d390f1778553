"""What measures a model on a board that is not at hand: one folder to copy there, a script, and how to use it."""

import shlex
from pathlib import Path

from dtp_deploy.errors import UsageError
from dtp_deploy_targets.parcel import write_runner
from dtp_deploy_targets.prepare import PRECISIONS

SCRIPT = "run.sh"
INSTRUCTIONS = "INSTRUCTIONS.md"
RESULT = "result.json"
DENSE = "dense.onnx"


def write_bundle(folder: Path, onnx: Path, board: str, precision: str) -> list[Path]:
    """Make a folder that holds a model ready to be measured on a board.

    Args:
        folder: holds the model already, and gets the runner, a script and instructions.
        onnx: the model, inside the folder.
        board: its name, for the reader; may be empty.
        precision: "fp32", "fp16", or "int8" for a model with Q/DQ nodes.

    Returns:
        The files that make up the bundle, the model first.

    Raises:
        UsageError: the model is not directly in the folder, or the precision is unknown.
    """
    if onnx.parent.resolve() != folder.resolve() or not onnx.is_file():
        raise UsageError(f"{onnx} is no file of the folder {folder}. Write the model there first.")
    if precision not in PRECISIONS:
        raise UsageError(f"Precision {precision!r} cannot be measured. Give fp32, fp16 or int8.")
    runner = write_runner(folder)
    models = f"model={shlex.quote(onnx.name)}"
    if (folder / DENSE).is_file():
        models += f" dense={DENSE}"  # measured in turns: a share of the dense latency can be judged
    script = folder / SCRIPT
    script.write_text(
        "#!/bin/sh\n"
        f"# Builds and measures {onnx.name} on this board. More options: ./{SCRIPT} --help\n"
        "set -eu\n"
        'cd "$(dirname "$0")"\n'
        f"exec python3 {runner.name} measure {models} --precision {precision} --out {RESULT} "
        '"$@"\n'
    )
    script.chmod(0o755)
    instructions = folder / INSTRUCTIONS
    instructions.write_text(
        _instructions(folder.resolve().name.removesuffix(".partial"), onnx.name, board or "the board", precision)
    )
    return [onnx, runner, script, instructions]


def _instructions(folder: str, model: str, board: str, precision: str) -> str:
    return f"""# Measure {model} on {board}

The latency in the report is predicted, not measured. To measure it ({precision}; TensorRT 10.3, JetPack 6.1 or newer):

1. Copy this folder to {board}:  `scp -r {shlex.quote(folder)} user@board:`
2. Run it there; building the engine takes minutes:  `ssh user@board {shlex.quote(folder)}/{SCRIPT}`
   Add `--lock-clocks` (needs root) for steadier times; the board is otherwise left as it is,
   except that the built engines stay in its `~/.cache/dtp-deploy` (`--cache` names another folder); delete them there.
3. Bring the result back:  `scp user@board:{shlex.quote(folder)}/{RESULT} .`
4. Complete the report:  `dtp-deploy import-measurement {shlex.quote(folder)} {RESULT}`
"""
