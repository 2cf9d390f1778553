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
    try:
        if version < (8, 5):
            records = [record for record in records if record["startComputeMs"] >= warm_up_ms]
        times = [float(record["computeMs"]) for record in records]
    except (KeyError, TypeError) as error:
        raise ValueError("--exportTimes holds a record without computeMs: TensorRT 7 or older wrote it") from error
    if not times:
        raise ValueError("--exportTimes holds no query")
    return times


class ProfiledLayer(NamedTuple):
    """The time of one layer over the profiled runs; no median up to 8.3."""

    name: str
    mean_ms: float
    median_ms: float | None = None


def parse_profile(text: str) -> list[ProfiledLayer]:
    """The time of each layer, from ``--exportProfile``. Profiling slows a run: use the shares.

    trtexec writes names without escaping them, so a file that is no JSON is read line by line.

    Raises:
        ValueError: it is no such file, or holds no layer.
    """
    try:
        found = []
        for row in _profile_rows(text):
            median = row.get("medianMs")
            found.append(ProfiledLayer(row["name"], float(row["averageMs"]), None if median is None else float(median)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("--exportProfile holds a record without averageMs") from error
    if not found:
        raise ValueError("--exportProfile holds no layer")
    return found


def _profile_rows(text: str) -> Iterator[dict[str, Any]]:
    try:
        records = json.loads(text)
    except ValueError:
        number = r"\s*:\s*([\d.e+-]+)"
        pattern = rf'"name"\s*:\s*"(.*)",\s*"timeMs".*?"averageMs"{number}(?:,\s*"medianMs"{number})?'
        records = [
            {"name": name, "averageMs": average, "medianMs": median or None}
            for name, average, median in re.findall(pattern, text)
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
