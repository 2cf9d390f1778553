"""Results that a board sent back: the runner's JSON, or the JSON of trtexec's ``--exportTimes``."""

import json
from pathlib import Path
from typing import Any

from dtp_deploy.errors import InputError
from dtp_deploy.target import EngineInfo, ImportedMeasurement
from dtp_deploy_targets.runner.exports import parse_times
from dtp_deploy_targets.runner.trtexec import Version

_KIND = "dtp-deploy-measurement"
_MODEL, _DENSE = "model", "dense"
_REMEDY = "Give the result.json of the bundle's run.sh, or what trtexec wrote with --exportTimes."
_BLOCKS = 20


def read_measurement(path: Path, precision: str) -> ImportedMeasurement:
    """Read one result.

    Args:
        path: the file.
        precision: what was asked of trtexec, for a result that does not say.

    Raises:
        InputError: it cannot be read, is something else, or holds an error in place of a measurement.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}). {_REMEDY}") from error
    if isinstance(document, dict) and document.get("kind") == _KIND:
        return _of_runner(path, document)
    if isinstance(document, list):
        return _of_trtexec(path, text, precision)
    raise InputError(f"{path} is JSON, but no measurement. {_REMEDY}")


def _of_runner(path: Path, document: dict[str, Any]) -> ImportedMeasurement:
    errors = document.get("errors") or []
    if errors:
        raise InputError(f"{path} holds an error of the board, and no measurement: {errors[0]}. Run it there again.")
    models = document.get("models", {})
    model = models.get(_MODEL) or (next(iter(models.values())) if len(models) == 1 else None)
    if not model or not model.get("latencies_ms"):
        raise InputError(f"{path} holds no latencies of '{_MODEL}' (models: {', '.join(models) or 'none'}). {_REMEDY}")
    engine = model.get("engine", {})
    known = {name: engine[name] for name in ("runtime", "runtime_version", "device", "precision") if name in engine}
    info = EngineInfo(
        runtime=str(known.get("runtime", "tensorrt")),
        runtime_version=str(known.get("runtime_version", "")),
        device=str(known.get("device", document.get("board", {}).get("model", ""))),
        threads=None,
        precision=str(known.get("precision", "")),
    )
    kept: dict[str, Any] = {
        key: document[key] for key in ("board", "system", "before", "after", "settings") if key in document
    }
    dense = models.get(_DENSE, {}).get("latencies_ms")
    return ImportedMeasurement(model["latencies_ms"], dense, model.get("sha256"), info, kept)


def _of_trtexec(path: Path, text: str, precision: str) -> ImportedMeasurement:
    try:
        times = parse_times(text, Version(10, 3, 0), warm_up_ms=0.0)
    except ValueError as error:
        raise InputError(f"{path} is no result of trtexec ({error}). {_REMEDY}") from error
    size = max(1, -(-len(times) // _BLOCKS))
    blocks = [times[first : first + size] for first in range(0, len(times), size)]
    info = EngineInfo("tensorrt", "", "by trtexec --exportTimes", None, precision)
    return ImportedMeasurement(blocks, None, None, info, {"source": "trtexec --exportTimes"})
