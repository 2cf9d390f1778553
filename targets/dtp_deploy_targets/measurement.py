"""Results that a board sent back: the runner's JSON, or that of trtexec's ``--exportTimes`` and ``--exportProfile``."""

import json
import math
from pathlib import Path
from typing import Any

from dtp_deploy.errors import InputError
from dtp_deploy.target import EngineInfo, ImportedMeasurement, LayerTime
from dtp_deploy_targets.runner.exports import parse_profile, parse_times
from dtp_deploy_targets.runner.trtexec import Version

_KIND = "dtp-deploy-measurement"
_SCHEMA_VERSION = 1
_MODEL, _DENSE = "model", "dense"
_REMEDY = "Give the result.json of the bundle's run.sh, or what trtexec wrote with --exportTimes."
_BLOCKS = 20
_KINDS: dict[type, str] = {dict: "object", list: "list"}
_REPLAY = "REPLAY"
"""In a warning: what was run is a stand-in that replays a recorded session."""
_DETAILS = ("warnings", "power", "throughput_qps", "command")


def read_measurement(path: Path, precision: str, layers: Path | None = None) -> ImportedMeasurement:
    """Read one result.

    Args:
        path: the file.
        precision: what the run asked for; a result that says another is refused.
        layers: what trtexec wrote with ``--exportProfile``, beside its ``--exportTimes``.

    Raises:
        InputError: it cannot be read, is something else, holds an error in place of a measurement, replays a recorded
            session, or is of another precision.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}). {_REMEDY}") from error
    if isinstance(document, dict) and document.get("kind") == _KIND:
        if layers is not None:
            raise InputError(f"{path} holds the times of the layers itself. Leave --layers {layers} out.")
        return _of_runner(path, document, precision)
    if isinstance(document, list):
        if any(isinstance(record, dict) and "averageMs" in record for record in document):
            raise InputError(
                f"{path} holds times of layers (--exportProfile), which are no latency: profiling slows a run down. "
                "Give what trtexec wrote with --exportTimes, and this file by --layers."
            )
        return _of_trtexec(path, text, precision, layers)
    raise InputError(f"{path} is JSON, but no measurement. {_REMEDY}")


def _of_runner(path: Path, document: dict[str, Any], precision: str) -> ImportedMeasurement:
    schema = document.get("schema_version", _SCHEMA_VERSION)
    if schema != _SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {schema!r}, and this dtp-deploy reads {_SCHEMA_VERSION}. Import it with the "
            "dtp-deploy that wrote the bundle."
        )
    _check_form(path, document)
    if errors := document.get("errors"):
        raise InputError(f"{path} holds an error of the board, and no measurement: {errors[0]}. Run it there again.")
    models = document.get("models", {})
    model = models.get(_MODEL) or (next(iter(models.values())) if len(models) == 1 else None)
    if not model or not model.get("latencies_ms"):
        raise InputError(f"{path} holds no latencies of '{_MODEL}' (models: {', '.join(models) or 'none'}). {_REMEDY}")
    _check_measured(path, document)
    engine = model.get("engine", {})
    _check_precision(path, engine, precision)
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
    kept["engine"] = engine
    kept["details"] = {name: {key: found[key] for key in _DETAILS if found.get(key)} for name, found in models.items()}
    dense = models.get(_DENSE, {})
    return ImportedMeasurement(
        _blocks(path, model["latencies_ms"]),
        _blocks(path, dense["latencies_ms"]) if dense.get("latencies_ms") else None,
        model.get("sha256"),
        info,
        kept,
        dense.get("sha256"),
        _layers(path, model),
        _layers(path, dense),
    )


def _check_form(path: Path, document: dict[str, Any]) -> None:
    """Raise an `InputError` where a part that is there is not of the kind that the runner writes."""

    def check(holder: dict[str, Any], **kinds: type) -> None:
        for key, kind in kinds.items():
            if not isinstance(holder.get(key, kind()), kind):
                raise InputError(f"{path} is damaged: '{key}' is no {_KINDS[kind]}. {_REMEDY}")

    check(document, errors=list, models=dict, board=dict)
    models = document.get("models", {})
    check(models, **dict.fromkeys(models, dict))
    for model in models.values():
        check(model, engine=dict, warnings=list)
        check(model.get("engine", {}), options=dict)


def _blocks(path: Path, blocks: Any) -> list[list[float]]:  # noqa: ANN401 - from a file
    """Blocks of times, all of them more than zero.

    Raises:
        InputError: they are something else.
    """
    try:
        found = [[float(time) for time in block] for block in blocks]
    except (TypeError, ValueError):
        found = []
    if not found or not all(block and all(0 < time < math.inf for time in block) for block in found):
        raise InputError(f"{path} is damaged: its latencies are not all times in ms. {_REMEDY}")
    return found


def _layers(path: Path, model: dict[str, Any]) -> tuple[LayerTime, ...] | None:
    found = model.get("layers")
    try:
        return None if found is None else tuple(LayerTime(**layer) for layer in found)
    except TypeError as error:
        raise InputError(f"{path} holds layers of another form ({error}). Measure with the bundle's run.sh.") from error


def _check_measured(path: Path, document: dict[str, Any]) -> None:
    """Refuse what the tests of this project make on a machine that is no board."""
    root = document.get("board_root", "/")
    warnings = [
        str(warning)
        for model in document["models"].values()
        for warning in (*model.get("warnings", ()), model.get("engine", {}).get("options", {}).get("warnings", ""))
    ]
    replayed = next((warning for warning in warnings if _REPLAY in warning), "")
    if root != "/" or replayed:
        why = replayed.rstrip(".") or f"the files of the board were read from {root}"
        raise InputError(f"{path} is no measurement ({why}). Run run.sh on the board itself.")


def _check_precision(path: Path, engine: dict[str, Any], precision: str) -> None:
    asked = engine.get("options", {}).get("precision_asked") or engine.get("precision", "")
    if asked and precision not in asked.split("+"):
        raise InputError(
            f"{path} was measured in {asked}, and the run asked for {precision}. Measure with --precision {precision}, "
            f"or compress for {asked}."
        )


def _of_trtexec(path: Path, text: str, precision: str, layers: Path | None) -> ImportedMeasurement:
    try:
        times = parse_times(text, Version(10, 3, 0), warm_up_ms=0.0)
    except ValueError as error:
        raise InputError(f"{path} is no result of trtexec ({error}). {_REMEDY}") from error
    size = max(1, -(-len(times) // _BLOCKS))
    blocks = _blocks(path, [times[first : first + size] for first in range(0, len(times), size)])
    info = EngineInfo("tensorrt", "", "by trtexec --exportTimes", None, precision)
    timed = None if layers is None else _of_profile(layers)
    return ImportedMeasurement(blocks, None, None, info, {"source": "trtexec --exportTimes"}, layers=timed)


def _of_profile(path: Path) -> tuple[LayerTime, ...]:
    try:
        found = parse_profile(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"--layers {path} cannot be read ({error}). Give what trtexec wrote with --exportProfile."
        ) from error
    return tuple(LayerTime(layer.name, layer.mean_ms, layer.median_ms) for layer in found)
