"""The JSON files that trtexec writes: times of the queries, times of the layers, outputs."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dtp_deploy_targets.runner.trtexec import Version


def parse_times(text: str, version: Version, warm_up_ms: float) -> list[float]:
    """The GPU compute time of every query in ms, from ``--exportTimes``.

    Up to 8.4 the file holds the queries of the warm-up too: they are left out.

    Raises:
        ValueError: it is no such file, or holds no query.
    """
    records = json.loads(text)
    if not isinstance(records, list):
        raise ValueError("--exportTimes holds no list")
    if version < (8, 5):
        records = [record for record in records if record["startComputeMs"] >= warm_up_ms]
    try:
        times = [float(record["computeMs"]) for record in records]
    except (KeyError, TypeError) as error:
        raise ValueError("--exportTimes holds a record without computeMs: TensorRT 7 or older wrote it") from error
    if not times:
        raise ValueError("--exportTimes holds no query")
    return times


class LayerTime(NamedTuple):
    """The time of one layer: its average over the profiled runs, and its share (0 to 1) of their sum."""

    name: str
    average_ms: float
    share: float


def parse_profile(text: str) -> list[LayerTime]:
    """The time of each layer, from ``--exportProfile``. Profiling slows a run: use the shares.

    trtexec writes names without escaping them, so a file that is no JSON is read line by line.
    """
    rows = [(row["name"], float(row["averageMs"])) for row in _profile_rows(text)]
    total = sum(average for _, average in rows) or 1.0
    return [LayerTime(name, average, average / total) for name, average in rows]


def _profile_rows(text: str) -> Iterator[dict[str, Any]]:
    try:
        records = json.loads(text)
    except ValueError:
        records = [
            {"name": name, "averageMs": average}
            for name, average in re.findall(r'"name"\s*:\s*"(.*)",\s*"timeMs".*?"averageMs"\s*:\s*([\d.e+-]+)', text)
        ]
    return (record for record in records if "name" in record)


def parse_outputs(text: str) -> dict[str, tuple[list[int], list[float]]]:
    """Shape and values of every output, from ``--exportOutput``; the values have six significant digits.

    >>> parse_outputs('[ { "name" : "y", "dimensions" : "1x2", "values" : [ 0.5, nan ] } ]')
    {'y': ([1, 2], [0.5, nan])}
    """
    repaired = re.sub(r"(?<=[\s,\[])(-?)nan(?=[\s,\]])", "NaN", text, flags=re.IGNORECASE)
    repaired = re.sub(r"(?<=[\s,\[])(-?)inf(?=[\s,\]])", r"\1Infinity", repaired, flags=re.IGNORECASE)
    return {
        record["name"]: (
            [int(size) for size in record["dimensions"].split("x") if size],
            [float(value) for value in record["values"]],
        )
        for record in json.loads(repaired)
    }
