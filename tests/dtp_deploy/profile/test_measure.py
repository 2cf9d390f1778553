import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from dtp_deploy.errors import InputError, TargetError, UsageError
from dtp_deploy.profile import MeasureSettings, measure, median_ratio, worker
from dtp_deploy.profile.measure import _reports, _result
from dtp_deploy.profile.protocol import Job, read_events, write_event
from dtp_deploy.profile.relay import Follower, Relay
from dtp_deploy.target import TargetSpec
from dtp_deploy.testing.conformance import write_small_model

QUICK = MeasureSettings(
    min_samples=20, max_samples=100, min_seconds=0.02, warm_up_seconds=0.01, max_warm_up_seconds=0.3, repeats=0
)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A file that the faulty targets take for a model; they are on the import path."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    path = tmp_path / "model.onnx"
    path.touch()
    return path


def faulty(name, **options):
    return TargetSpec(f"faulty_targets:{name}", options)


def test_measures_onnx_models_in_turns(tmp_path):
    paths = {"dense": tmp_path / "dense.onnx", "pruned": tmp_path / "pruned.onnx"}
    write_small_model(paths["dense"], width=32, size=48)
    write_small_model(paths["pruned"], width=4, size=48)
    reports = measure(paths, "cpu", QUICK)
    assert list(reports) == ["dense", "pruned"]
    dense, pruned = reports.values()
    assert len(dense.block_sizes) == len(pruned.block_sizes) > 1
    assert all(len(report.samples_ms) >= QUICK.min_samples for report in reports.values())
    interval = median_ratio(pruned, dense)
    assert 0 < interval.low <= interval.ratio <= interval.high
    environment = dense.environment
    assert environment["engine"]["runtime"] == "onnxruntime"
    assert environment["engine"]["threads"] == 1
    assert environment["interleaved_with"] == ["pruned"]
    assert environment["settings"]["seed"] == 0
    assert environment["before"]["affinity"] == environment["after"]["affinity"]
    assert environment["attempts"] == [{"p50_ms": dense.p50_ms, "stable": dense.stable}]


class Heard:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.steps: dict[tuple[str, int | None], int] = {}
        self.open: list[str] = []
        self.failed: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def task(self, name: str, total: int | None = None, *, passing: bool = False) -> Iterator[Callable[[], None]]:
        key = name, total
        self.steps[key] = 0
        self.open.append(name)

        def advance() -> None:
            self.steps[key] += 1

        try:
            yield advance
        except Exception:
            self.failed.append(name)
            raise
        self.open.remove(name)

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_slow_builds_tell_how_far_they_are(model, monkeypatch):
    monkeypatch.setattr(import_module("dtp_deploy.profile.measure"), "_LOOK_S", 0.01)
    heard = Heard()
    measure({"a": model}, faulty("BuildsSlowly"), QUICK, heard)
    title = "building model.onnx for faulty_targets:BuildsSlowly"
    assert heard.steps[f"{title}: engine, percent", 4] == 4
    assert heard.notes == ["built"]
    assert not heard.open


@pytest.mark.parametrize("name", ["FailsSlowly", "DiesSlowly", "HangsInBuild"])
def test_a_build_that_comes_to_nothing_is_not_shown_as_done(name, model, monkeypatch):
    monkeypatch.setattr(import_module("dtp_deploy.profile.measure"), "_LOOK_S", 0.01)
    heard = Heard()
    with pytest.raises(TargetError):
        measure({"a": model}, faulty(name), replace(QUICK, timeout_s=4), heard)
    title = f"building model.onnx for faulty_targets:{name}"
    assert heard.failed == [f"{title}: engine, percent"]


@pytest.fixture
def told(tmp_path, model):
    """What a relay in the child writes and a follower in the parent hears, without a child."""
    job = Job(faulty("Works"), {"a": model}, QUICK, tmp_path / "events")
    heard = Heard()
    with Follower(job, heard) as follower:
        follower.look()  # the child has not begun
        with job.events.open("w") as events:
            yield Relay(events, "a"), events, follower, heard


def test_builds_of_a_moment_tell_nothing(told):
    relay, events, follower, heard = told
    with relay.task("engine", 2) as advance:
        advance()
        advance()
    write_event(events, "stage", stage="measuring", model=None)
    follower.look()
    assert not heard.steps


def test_events_are_followed_line_by_line(told):
    relay, events, follower, heard = told
    relay.note("first")
    with relay.task("engine", 2) as advance:
        follower.look()
        assert (heard.notes, list(heard.steps.values())) == (["first"], [0])
        events.write('{"event": "no')
        events.flush()
        follower.look()
        assert heard.notes == ["first"]
        events.write('te", "message": "second"}\n')
        advance()
        advance()
    follower.look()
    assert (heard.notes, list(heard.steps.values())) == (["first", "second"], [2])
    with relay.task("engine", 2):
        follower.look()
        assert heard.open == ["building model.onnx for faulty_targets:Works: engine"]
        assert list(heard.steps.values()) == [0], "a task of its own, though it has the same name"
    write_event(events, "stage", stage="measuring", model=None)
    follower.look()
    assert (heard.open, heard.failed) == ([], [])


def test_many_steps_are_few_events(told):
    relay, events, _, _ = told
    with relay.task("engine", 100_000) as advance:
        for _ in range(100_000):
            advance()
    lines = Path(events.name).read_text().splitlines()
    assert len(lines) < 1000
    assert json.loads(lines[-1])["done"] == 100_000


def test_jobs_of_many_models_reach_the_child(model):
    models = {f"{number:0200d}": model for number in range(1000)}
    with pytest.raises(UsageError, match="--target 'nowhere' is unknown"):
        measure(models, "nowhere", replace(QUICK, timeout_s=60))


def test_layers_are_profiled_only_when_asked(tmp_path, model):
    write_small_model(tmp_path / "small.onnx", width=4)
    spec = TargetSpec("cpu", {"threads": 1})
    assert measure({"a": tmp_path / "small.onnx"}, spec, QUICK)["a"].layer_times is None
    layers = measure({"a": tmp_path / "small.onnx"}, spec, replace(QUICK, layers=True))["a"].layer_times
    assert layers
    assert all(layer.mean_ms >= 0 and layer.name for layer in layers)
    assert measure({"a": model}, faulty("Works"), replace(QUICK, layers=True))["a"].layer_times is None


def test_report_tells_neither_host_nor_home(model):
    text = json.dumps(measure({"a": model}, faulty("Works"), QUICK)["a"].environment)
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
    assert str(model.parent) not in text


def test_options_reach_the_child(model):
    report = measure({"a": model}, faulty("Works", factor=3), QUICK)["a"]
    assert report.environment["engine"]["options"] == {"factor": 3}


def test_crash_is_a_result(model):
    message = (
        "Target 'faulty_targets:Crashes' failed while loading model 'dense' (model.onnx): the measuring process was "
        "ended by SIGSEGV. The runtime crashed; its own error report follows, if it made one. "
        "Last lines of its output: kernel: bad address"
    )
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        measure({"dense": model}, faulty("Crashes"), QUICK)


def test_crash_names_the_model_that_did_it(model):
    second = model.with_name("second.onnx")
    second.touch()
    with pytest.raises(TargetError, match=r"while building model 'b' \(second\.onnx\): .* ended by SIGABRT"):
        measure({"a": model, "b": second}, faulty("CrashesInSecondModel"), QUICK)


def test_hang_is_ended_with_all_that_it_started(model):
    settings = MeasureSettings(timeout_s=2)
    with pytest.raises(TargetError, match=r"was killed after 2 s without a result\. Raise timeout_s") as caught:
        measure({"a": model}, faulty("Hangs"), settings)
    found = re.search(r"helper (\d+)", str(caught.value))
    assert found
    assert has_ended(int(found[1]))


def has_ended(pid):
    status = Path(f"/proc/{pid}/status")
    for _ in range(100):  # the system may take a moment to bury it
        if not status.exists() or re.search(r"^State:\s+Z", status.read_text(), re.MULTILINE):
            return True
        time.sleep(0.05)
    return False


def test_printing_does_no_harm(model, capfd):
    assert measure({"a": model}, faulty("Chatters"), QUICK)["a"].p50_ms > 0
    assert capfd.readouterr() == ("", "")


def test_child_that_leaves_without_a_result(model):
    with pytest.raises(TargetError, match="ended with exit status 0 and no result"):
        measure({"a": model}, faulty("Leaves"), QUICK)


def test_exception_is_one_line(model):
    message = "Target 'works' with model.onnx failed to run: RuntimeError: device lost"
    with pytest.raises(TargetError, match=f"^{message}$"):
        measure({"a": model}, faulty("Raises"), QUICK)


def test_wrong_outputs_are_not_timed(model):
    with pytest.raises(TargetError, match=r"gave outputs \{'y': \(3, 3\)\} where its engine says \{'y': \(2,\)\}"):
        measure({"a": model}, faulty("GivesRubbish"), QUICK)


def test_missing_runtime_says_how_to_install_it(model):
    with pytest.raises(TargetError, match=r"^Target 'missing' needs the package nothing: pip install nothing\.$"):
        measure({"a": model}, faulty("IsMissing"), QUICK)


CALM = [[1_000_000] * 5] * 20
DRIFTING = [[1_000_000 + 10_000 * index] * 5 for index in range(20)]
SPIKED = [[900_000] * 5] * 8 + [[5_000_000] * 5] * 3 + [[900_000] * 5] * 9


@pytest.mark.parametrize(
    ("repeats", "attempts", "taken"),
    [(2, [CALM, SPIKED], 1), (2, [SPIKED, CALM, SPIKED], 2), (2, [SPIKED] * 9, 3), (0, [SPIKED] * 9, 1)],
)
def test_noisy_attempt_is_repeated(model, monkeypatch, repeats, attempts, taken):
    queue = iter(attempts)
    monkeypatch.setattr(worker, "interleave", lambda runs, *arguments: dict.fromkeys(runs, next(queue)))
    job = Job(faulty("Works"), {"a": model, "b": model}, replace(QUICK, repeats=repeats), model)
    assert worker._measure(job, io.StringIO())["attempts_ns"] == [{"a": one, "b": one} for one in attempts[:taken]]


def test_no_repeat_when_time_runs_out(model, monkeypatch):
    monkeypatch.setattr(worker, "interleave", lambda runs, *arguments: dict.fromkeys(runs, SPIKED))
    job = Job(faulty("Works"), {"a": model}, replace(QUICK, repeats=100, timeout_s=0.001), model)
    assert len(worker._measure(job, io.StringIO())["attempts_ns"]) == 1


@pytest.mark.parametrize(
    ("attempts", "p50_ms", "stable"),
    [
        ([SPIKED, DRIFTING], 1.095, False),  # the calmer one, although it is the slower one
        ([DRIFTING, SPIKED], 1.095, False),
        ([SPIKED, DRIFTING, CALM], 1.0, True),
    ],
)
def test_calmest_attempt_is_given_and_marked(attempts, p50_ms, stable):
    parts = {key: {"a": {}} for key in ("system", "before", "after", "engines", "warm_up", "details", "layers")}
    report = _reports({"attempts_ns": [{"a": blocks} for blocks in attempts], **parts}, QUICK)["a"]
    assert report.p50_ms == pytest.approx(p50_ms)
    assert report.stable == stable
    assert len(report.environment["attempts"]) == len(attempts)


def test_user_errors_of_the_child_are_ours(model):
    with pytest.raises(UsageError, match="--target 'toaster' is unknown"):
        measure({"a": model}, "toaster", QUICK)
    with pytest.raises(UsageError, match="does not take the options"):
        measure({"a": model}, faulty("Works", colour="red"), QUICK)


def test_no_model_and_missing_model_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"^measure\(\) got no model\. Give one or more\.$"):
        measure({}, "cpu")
    with pytest.raises(InputError, match=r"There is no model file at .*absent\.onnx\. Give the path"):
        measure({"a": tmp_path / "absent.onnx"}, "cpu")


@pytest.mark.parametrize("text", ["", "rubbish\n", '[1]\n"text"\n', '{"event": "result", "attempts_ns": [', "\x00\xff"])
def test_rubbish_events_are_no_result(tmp_path, text):
    path = tmp_path / "events"
    path.write_text(text)
    assert read_events(path) == []
    job = Job(TargetSpec("cpu"), {"a": Path("a.onnx")}, QUICK, path)
    with pytest.raises(TargetError, match=r"^Target 'cpu' failed while starting: .*exit status 0 and no result"):
        _result(job, read_events(path), 0, "")


def test_crash_after_the_result_is_a_failure(tmp_path):
    job = Job(TargetSpec("cpu"), {"a": Path("a.onnx")}, QUICK, tmp_path)
    with pytest.raises(TargetError, match="failed after measuring: the measuring process was ended by SIGSEGV"):
        _result(job, [{"event": "result"}], -11, "")


def test_kill_from_outside_points_to_memory(tmp_path):
    job = Job(TargetSpec("cpu"), {"a": Path("a.onnx")}, QUICK, tmp_path)
    with pytest.raises(TargetError, match=r"was killed from outside\. The system does that where memory runs out"):
        _result(job, [{"event": "stage", "stage": "measuring", "model": "a"}], -9, "")


def test_worker_imports_neither_torch_nor_onnx():
    code = (
        "import sys, dtp_deploy.profile.worker\nfrom dtp_deploy.target import find_target\nfind_target('cpu')\n"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'sklearn', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
