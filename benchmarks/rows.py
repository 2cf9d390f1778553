"""Runs in processes of their own, one row each, kept in a JSON file so that a benchmark that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Row = dict[str, Any]


def run_missing(
    wanted: Sequence[Row], run: Callable[[Row], Row], names: Sequence[str], workers: int, path: Path | None
) -> list[Row]:
    """All rows that are wanted: those of the JSON file, and the others run now. The file is written after every run.

    Args:
        wanted: rows without their results.
        run: gives a row its results: accuracy, accuracy_at_hardening and seconds, and what else there is. It can be
            pickled.
        names: what tells one run from another; 0 where a row of the file lacks it.
        workers: processes.
        path: of the file; it may hold other rows, which stay. None keeps nothing.
    """
    done: list[Row] = json.loads(path.read_text())["rows"] if path is not None and path.is_file() else []
    known = [[row.get(name, 0) for name in names] for row in done]
    rows = [row for row in wanted if [row[name] for name in names] not in known]
    telling = [name for name in names if len({row[name] for row in rows}) > 1] or ["method"]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, row) for row in rows]
        for number, future in enumerate(as_completed(futures), 1):
            row = future.result()
            done.append(row)
            what = " ".join(f"{name} {row[name]}" for name in telling if row[name] is not None)
            print(
                f"[{number}/{len(futures)}] {what}: {100 * row['accuracy']:.2f} "
                f"({100 * row['accuracy_at_hardening']:.1f} at hardening, {row['seconds']:.0f} s)",
                flush=True,
            )
            if path is not None:
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps({"rows": done}, indent=1))
                partial.replace(path)
    asked = [[row[name] for name in names] for row in wanted]
    return [row for row in done if [row.get(name, 0) for name in names] in asked]


def in_points(values: Sequence[float]) -> str:
    """Mean and standard deviation of points; nothing of none.

    >>> in_points([50.0, 60.0]), in_points([50.0]), in_points([])
    ('55.00 ± 7.07', '50.00', '')
    """
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
