"""Runs of a benchmark, kept in a file so that one that was cut off goes on."""

import json
import re
from functools import partial
from operator import or_
from pathlib import Path

import pytest

from benchmarks.rows import run_missing

NAMES = ("method", "base", "seed")
FOUND = {"accuracy": 0.5, "accuracy_at_hardening": 0.25, "seconds": 1.0}


def test_what_the_file_holds_is_not_run_again_and_what_is_missing_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(method: str, seed: int) -> dict[str, object]:
        return {"method": method, "base": 0, "seed": seed}

    path = tmp_path / "rows.json"
    known = {"method": "dtp", "seed": 1} | FOUND | {"accuracy": 0.9}  # written before there were several bases
    other = row("random", 7) | FOUND
    path.write_text(json.dumps({"rows": [known, other]}))
    wanted = [row("dtp", seed) for seed in (0, 1, 2)]
    rows = run_missing(wanted, partial(or_, FOUND), NAMES, 1, path)
    assert [row for row in rows if row["seed"] == 1] == [known]
    assert sorted(row["seed"] for row in rows) == [0, 1, 2]
    assert [row["accuracy"] for row in rows if row["seed"] != 1] == [0.5, 0.5]
    assert re.search(r"^\[2/2\] seed [02]: 50.00 \(25.0 at hardening, 1 s\)$", capsys.readouterr().out, re.MULTILINE)
    written = json.loads(path.read_text())["rows"]
    assert all(row in written for row in (*rows, other))
    assert len(written) == 4
    assert run_missing(wanted, partial(or_, {"accuracy": 0.0}), NAMES, 1, path) == rows
    assert json.loads(path.read_text())["rows"] == written
