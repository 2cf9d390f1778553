"""The contract of report.json: nothing is lost on the way through a file, and nonsense is refused."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from dtp_deploy.budget import BudgetKind
from dtp_deploy.errors import InputError
from dtp_deploy.parity import ParityResult
from dtp_deploy.report import Report, hide_home, read_report
from dtp_deploy.report.privacy import find_private
from dtp_deploy.report.schema import (
    Basis,
    BlockEntry,
    BudgetEntry,
    GroupEntry,
    LatencyEntry,
    LatencyRatioEntry,
    LayerEntry,
    LayerTimeEntry,
    ModelEntry,
    ParityEntry,
    PassEntry,
    StageAccuracyEntry,
    StageEntry,
    TargetEntry,
)

SAMPLE = Path(__file__).parent / "sample_report.json"
PARTS: tuple[type[BaseModel], ...] = (
    Report,
    TargetEntry,
    BudgetEntry,
    LatencyEntry,
    LayerTimeEntry,
    ModelEntry,
    GroupEntry,
    LayerEntry,
    BlockEntry,
    ParityEntry,
    PassEntry,
    StageEntry,
    StageAccuracyEntry,
    LatencyRatioEntry,
)

positive = st.floats(min_value=1e-9, max_value=1e9)
counts = st.integers(min_value=0, max_value=10**15)
fractions = st.none() | st.floats(min_value=0, max_value=1)
words = st.text(max_size=20).filter(lambda text: find_private({text: text}) is None)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
latencies = st.builds(
    LatencyEntry,
    p50_ms=positive,
    p90_ms=positive,
    p99_ms=positive,
    samples_ms=st.lists(positive, max_size=5).map(tuple),
    stable=st.booleans(),
    coefficient_of_variation=st.none() | positive,
    outlier_share=fractions,
)
models = st.builds(
    ModelEntry, accuracy=fractions, macs=counts, params=counts, size_bytes=counts, latency=st.none() | latencies
)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    changes = {
        "model": draw(words),
        "dense": draw(models),
        "pruned": draw(models),
        "latency_ratio": None,
        "settings": draw(st.dictionaries(words, json_values, max_size=3)),
        "notes": tuple(draw(st.lists(words, max_size=3))),
    }
    return Report.model_validate({**dict(read_report(SAMPLE)), **changes})


@settings(deadline=None)
@given(reports())
def test_object_to_json_to_object_is_the_identity(report: Report) -> None:
    again = Report.from_json(report.to_json())

    assert again == report
    assert again.to_json() == report.to_json()


def test_json_to_object_to_json_is_the_identity() -> None:
    assert read_report(SAMPLE).to_json() == SAMPLE.read_text(encoding="utf-8")


@settings(deadline=None)
@given(words)
def test_one_line_lists_change_no_text(text: str) -> None:
    report = sample(notes=(text, "[\n 1,\n 2\n]"))

    assert json.loads(report.to_json()) == report.model_dump(mode="json")


def sample(**changes: Any) -> Report:
    return Report.model_validate({**json.loads(SAMPLE.read_text(encoding="utf-8")), **changes})


def test_samples_stand_on_one_line() -> None:
    assert '"samples_ms": [2.0, 1.9, 2.1, 2.5],' in sample().to_json()


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("dense", "accuracy", 92.3),
        ("dense", "accuracy", math.nan),
        ("dense", "macs", -1),
        ("budget", "met", False),
        ("budget", "achieved", None),
        ("budget", "basis", "guessed"),
        ("budget", "limit", 0),
        ("target", "host", "workbench"),
        ("latency_ratio", "ratio", math.inf),
    ],
)
def test_values_out_of_range_are_refused(part: str, field: str, value: object) -> None:
    document = json.loads(SAMPLE.read_text(encoding="utf-8"))
    document[part][field] = value

    with pytest.raises(ValidationError):
        Report.model_validate(document)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        sample(flops=1)


def test_met_must_agree_with_the_figures() -> None:
    budget = {"kind": "macs", "requested": "50%", "relative": True, "unit": "MACs", "basis": "computed"}

    assert BudgetEntry(**budget, limit=10, achieved=10, met=True).met
    assert BudgetEntry(**budget, limit=10, achieved=None, met=None).met is None
    with pytest.raises(ValidationError, match=r"met is True, but 11\.0 was achieved with a limit of 10\.0"):
        BudgetEntry(**budget, limit=10, achieved=11, met=True)


def test_a_layer_never_grows() -> None:
    with pytest.raises(ValidationError, match="layer stem keeps 9 of 8 weights"):
        LayerEntry(name="stem", weights=8, kept=9, left_because=None)


def test_a_group_never_grows() -> None:
    with pytest.raises(ValidationError, match="group stem grew from 8 to 9 channels"):
        GroupEntry(name="stem", width_before=8, width_after=9, frozen_because=None)


def test_an_error_that_is_not_finite_is_null() -> None:
    entry = ParityEntry.model_validate(ParityResult("engine", math.inf, math.inf, 1e-4, False))

    assert (entry.stage, entry.max_abs_error, entry.max_rel_error, entry.passed) == ("engine", None, None, False)


@pytest.mark.parametrize("field", ["settings", "environment"])
def test_the_home_folder_is_refused_anywhere(field: str) -> None:
    private = {"nested": [{"path": str(Path.home() / "models")}]}

    with pytest.raises(ValidationError, match=rf"{field}\.nested\.0\.path holds the home folder"):
        sample(**{field: private})
    assert getattr(sample(**{field: hide_home(private)}), field) == {"nested": [{"path": "~/models"}]}


def test_the_home_folder_is_found_in_a_note_and_not_in_longer_names() -> None:
    sample(notes=[f"{Path.home()}less", f"{Path.home()}-2/x", f"/mnt{Path.home()}/x"])
    with pytest.raises(ValidationError, match=r"notes\.0 holds the home folder"):
        sample(notes=[f"read {Path.home()}."])


def test_a_home_that_is_the_root_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")

    assert sample(notes=["/opt/models"]).notes == ("/opt/models",)
    assert hide_home("/opt/models") == "/opt/models"


def test_a_host_name_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"environment\.hostname names a host"):
        sample(environment={"hostname": "workbench"})


def call_host(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: name)


def test_where_the_links_of_the_home_folder_lead_is_private_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "me").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for home in ("me", "disk"):
        note = f"read {tmp_path}/{home}/x"
        with pytest.raises(ValidationError, match=r"notes\.0 holds the home folder"):
            sample(notes=[note])
        assert hide_home(note) == "read ~/x"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("ssh to workbench failed", "ssh to (host) failed"),
        ("Workbench:22, me@workbench.lab.example.", "(host):22, me@(host)."),
        ("on workbench.", "on (host)."),
    ],
)
def test_the_name_of_this_host_is_found_and_replaced(text: str, hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call_host(monkeypatch, "workbench.lab.example")

    with pytest.raises(ValidationError, match=r"notes\.0 holds the name of this host"):
        sample(notes=[text])
    assert sample(notes=[hide_home(text)]).notes == (hidden,)


@pytest.mark.parametrize(
    ("host", "note"),
    [
        ("workbench", "my-workbench, workbench-2, workbenches, workbench_x"),  # other words
        ("vm", "a vm"),  # too short to be told from a word
        ("2024", "in 2024"),
        ("localhost", "localhost:80"),
    ],
)
def test_what_does_not_name_this_host_stays(host: str, note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call_host(monkeypatch, host)

    assert sample(notes=[hide_home(note)]).notes == (note,)


def test_keys_are_searched_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    call_host(monkeypatch, "workbench")
    private = {"times": {"workbench": 1, f"{Path.home()}/x.jpg": 2}}

    with pytest.raises(ValidationError, match=r"a key of settings\.times holds the name of this host"):
        sample(settings=private)
    with pytest.raises(ValidationError, match=r"a key of settings holds the home folder"):
        sample(settings={str(Path.home()): 1})
    assert sample(settings=hide_home(private)).settings == {"times": {"(host)": 1, "~/x.jpg": 2}}


def test_a_host_that_is_called_as_a_part_of_the_report_does_not_spoil_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {*get_args(BudgetKind), *get_args(Basis), *(name for part in PARTS for name in part.model_fields)}
    assert {"model", "latency", "measured", "unit"} <= words
    for word in sorted(word for word in words if "_" not in word):  # which no host name holds
        call_host(monkeypatch, word)
        document = hide_home(json.loads(SAMPLE.read_text(encoding="utf-8")))
        assert Report.model_validate(document) == read_report(SAMPLE), word


def test_a_report_from_elsewhere_is_read_on_any_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text(sample(notes=["the word workbench"]).to_json(), encoding="utf-8")
    call_host(monkeypatch, "workbench")

    assert read_report(path).notes == ("the word workbench",)


def test_a_report_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="Instance is frozen"):
        sample().model = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "r.json is not JSON (Expecting value: line 1 column 1 (char 0)). "
            "Give a report.json of dtp-deploy compress.",
        ),
        (
            '{"schema_version": 2}',
            "r.json has schema_version 2; this dtp-deploy reads 1. "
            "Read it with the dtp-deploy that wrote it, or compress again.",
        ),
        (
            "[]",
            "r.json has schema_version null; this dtp-deploy reads 1. "
            "Read it with the dtp-deploy that wrote it, or compress again.",
        ),
        (
            '{"schema_version": 1}',
            "r.json is not a report: dtp_deploy_version: Field required. Compress again.",
        ),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Report.from_json(text, "r.json")
    assert str(caught.value) == message


def test_what_contradicts_itself_is_told_in_our_own_words() -> None:
    document = json.loads(SAMPLE.read_text(encoding="utf-8"))
    document["groups"][0] |= {"width_before": 8, "width_after": 9}
    name = document["groups"][0]["name"]

    with pytest.raises(InputError) as caught:
        Report.from_json(json.dumps(document), "r.json")
    assert str(caught.value) == (
        f"r.json is not a report: groups.0: group {name} grew from 8 to 9 channels. Compress again."
    )


def test_reading_converts_nothing() -> None:
    text = SAMPLE.read_text(encoding="utf-8").replace('"macs": 20000000', '"macs": "20000000"')

    with pytest.raises(InputError, match=r"The report is not a report: dense\.macs: Input should be a valid integer"):
        Report.from_json(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_report(tmp_path / "report.json")
    assert str(caught.value) == (
        f"{tmp_path / 'report.json'} cannot be read (No such file or directory). "
        "Give a report.json of dtp-deploy compress."
    )
