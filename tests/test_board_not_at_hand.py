"""A board that is not at hand: predicted, bundled, and completed with what the board measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dtp_deploy
from dtp_deploy.budget import parse_budget
from dtp_deploy.errors import BudgetError, InputError, TargetError
from dtp_deploy.imports import import_measurement
from dtp_deploy.loading import Dataset
from dtp_deploy.report import Report, headlines, read_report, render_markdown
from dtp_deploy.report.schema import LayerTimeEntry
from dtp_deploy.report.table import milliseconds
from dtp_deploy.target import TargetSpec
from dtp_deploy.train import Settings


def make() -> nn.Module:
    """Wide enough for a Jetson to be limited by arithmetic, not by the start of kernels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 128, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def few_images() -> Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.random((16, 3, 48, 48), np.float32), rng.integers(0, 10, 16)
    return Dataset("noise", x, y, x[:4], y[:4])


def predicted(out: Path, budget: str, **options: Any) -> Report:
    return dtp_deploy.compress(
        make(),
        data=few_images(),
        budget=parse_budget("latency", budget),
        out=out,
        settings=Settings(epochs=1, batch_size=8),
        **{"target": "jetson:orin-nano"} | options,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("jetson") / "out"
    predicted(out, "60%")
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run, tmp_path / "out"))


def result(run: Path, model_ms: float, dense_ms: float | None, **changed: Any) -> dict[str, Any]:
    """What the runner writes, with latencies of the test's choice: material for the parser, and no measurement."""
    report = read_report(run / "report.json")
    engine = {"runtime": "tensorrt", "runtime_version": "10.3.0", "device": "Orin Nano", "precision": "fp16"}
    models = {"model": {"sha256": report.onnx_sha256, "engine": engine, "latencies_ms": [[model_ms] * 5] * 5}}
    if dense_ms is not None:
        models["dense"] = {"sha256": report.dense_onnx_sha256, "engine": engine, "latencies_ms": [[dense_ms] * 5] * 5}
    return {"schema_version": 1, "kind": "dtp-deploy-measurement", "models": models, "errors": [], **changed}


def written(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_a_share_of_the_latency_is_kept_by_the_prediction_and_called_so(run: Path) -> None:
    report = read_report(run / "report.json")
    assert report.budget.basis == "predicted"
    assert report.budget.met is True
    assert report.dense.predicted_ms is not None
    assert report.pruned.predicted_ms is not None
    assert report.budget.limit == pytest.approx(0.6 * report.dense.predicted_ms)
    assert report.budget.achieved == report.pruned.predicted_ms
    assert report.dense.latency is None
    assert report.pruned.latency is None
    assert report.latency_ratio is None
    assert report.target.runtime == "predicted, not measured"
    text = render_markdown(report)
    assert "**Latency is predicted, not measured.**" in text
    assert "Budget met: p50 latency" in text
    assert ", predicted, not measured.**" in text


def test_everything_to_measure_it_on_the_board_is_there(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"model.onnx", "dense.onnx", "dtp_runner.pyz", "run.sh", "INSTRUCTIONS.md"} <= names
    assert "model=model.onnx dense=dense.onnx" in (run / "run.sh").read_text()
    instructions = (run / "INSTRUCTIONS.md").read_text()
    assert "partial" not in instructions
    assert len(instructions.splitlines()) <= 10


def test_a_measurement_completes_the_report(copy: Path, tmp_path: Path) -> None:
    report = import_measurement(copy, written(tmp_path / "result.json", result(copy, 5.5, 10.0)))
    assert report.budget.basis == "measured"
    assert report.budget.limit == pytest.approx(6.0)
    assert (report.budget.achieved, report.budget.met) == (5.5, True)
    assert report.pruned.latency is not None
    assert report.pruned.latency.p50_ms == 5.5
    assert report.target.runtime_version == "10.3.0"
    assert not any("predicted, not measured" in note for note in report.notes)
    assert read_report(copy / "report.json") == report


def test_a_measurement_that_breaks_the_budget_is_written_and_fails(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"--latency 60% was not met: 7 ms were measured, the limit is 6 ms\."):
        import_measurement(copy, written(tmp_path / "result.json", result(copy, 7.0, 10.0)))
    assert read_report(copy / "report.json").budget.met is False


def test_a_share_cannot_be_judged_without_the_dense_model(copy: Path, tmp_path: Path) -> None:
    report = import_measurement(copy, written(tmp_path / "result.json", result(copy, 5.0, None)))
    assert report.budget.met is None
    assert report.budget.achieved == 5.0


def test_times_of_plain_trtexec_are_taken(copy: Path, tmp_path: Path) -> None:
    times = [{"computeMs": 4.0 + 0.001 * index, "startComputeMs": index} for index in range(100)]
    report = import_measurement(copy, written(tmp_path / "times.json", times))
    assert report.pruned.latency is not None
    assert len(report.pruned.latency.samples_ms) == 100
    assert report.pruned.latency.p50_ms == pytest.approx(4.0495)


def test_times_of_layers_reach_the_report(copy: Path, tmp_path: Path) -> None:
    times = written(tmp_path / "times.json", [{"computeMs": 4.0}] * 50)
    profile = [{"count": 9}, {"name": "conv", "timeMs": 27.0, "averageMs": 3.0, "medianMs": 2.5, "percentage": 100}]
    report = import_measurement(copy, times, layers=written(tmp_path / "profile.json", profile))
    assert report.pruned.latency is not None
    assert report.pruned.latency.layer_times == (LayerTimeEntry(name="conv", mean_ms=3.0, median_ms=2.5, precision=""),)
    assert "| conv | 100.0% | 3 ms | 2.5 ms | - |" in (copy / "report.md").read_text()
    layers = [{"name": "gemm", "mean_ms": 1.0, "median_ms": 1.0, "precision": "fp16"}]
    document = result(copy, 5.0, 10.0)
    for model in document["models"].values():
        model["layers"] = layers
    report = import_measurement(copy, written(tmp_path / "result.json", document), force=True)
    assert report.dense.latency is not None
    assert report.dense.latency.layer_times == (
        LayerTimeEntry(name="gemm", mean_ms=1.0, median_ms=1.0, precision="fp16"),
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"some": "json"}, r"is JSON, but no measurement\."),
        ([{"other": 1}], r"is no result of trtexec"),
        ({"kind": "dtp-deploy-measurement", "models": {}, "errors": ["no trtexec"]}, r"holds an error of the board"),
        ({"kind": "dtp-deploy-measurement", "models": {}, "errors": []}, r"holds no latencies of 'model'"),
    ],
)
def test_what_is_no_measurement_is_refused(document: object, message: str, copy: Path, tmp_path: Path) -> None:
    before = (copy / "report.json").read_bytes()
    with pytest.raises(InputError, match=message):
        import_measurement(copy, written(tmp_path / "result.json", document))
    assert (copy / "report.json").read_bytes() == before


def test_a_measurement_of_another_model_is_refused(copy: Path, tmp_path: Path) -> None:
    document = result(copy, 5.0, 10.0)
    document["models"]["model"]["sha256"] = "f" * 64
    with pytest.raises(InputError, match=r"is of another model: it was measured on ffffffffffff\.\.\."):
        import_measurement(copy, written(tmp_path / "result.json", document))


def test_a_dense_model_that_is_another_is_refused(copy: Path, tmp_path: Path) -> None:
    document = result(copy, 5.0, 10.0)
    document["models"]["dense"]["sha256"] = "e" * 64
    with pytest.raises(InputError, match=r"eeeeeeeeeeee\.\.\., and .* Measure the dense\.onnx of this folder\.$"):
        import_measurement(copy, written(tmp_path / "result.json", document))


def test_another_precision_than_the_run_asked_for_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    predicted(out, "60%", target=TargetSpec("jetson", {"board": "orin-nano", "precision": "fp32", "host": ""}))
    assert read_report(out / "report.json").target.options == {"board": "orin-nano", "precision": "fp32"}
    with pytest.raises(
        InputError, match=r"was measured in fp16, and the run asked for fp32\. Measure with --precision"
    ):
        import_measurement(out, written(tmp_path / "result.json", result(out, 5.0, 10.0)))


def test_another_board_than_the_run_asked_for_is_refused(copy: Path, tmp_path: Path) -> None:
    document = result(copy, 5.0, 10.0, board={"module": "p3701-0005"})
    with pytest.raises(InputError, match=r"of another board: it was measured on module p3701-0005, and not on 'orin-"):
        import_measurement(copy, written(tmp_path / "result.json", document))
    document["board"]["module"] = "p3767-0005"
    import_measurement(copy, written(tmp_path / "result.json", document))


def test_a_measured_latency_is_replaced_only_by_force(copy: Path, tmp_path: Path) -> None:
    import_measurement(copy, written(tmp_path / "result.json", result(copy, 5.0, 10.0)))
    with pytest.raises(InputError, match=r"^The latency in .*report\.json is measured already\. Give --force"):
        import_measurement(copy, written(tmp_path / "result.json", result(copy, 4.0, 10.0)))
    report = import_measurement(copy, tmp_path / "result.json", force=True)
    assert report.budget.achieved == 4.0
    assert len(report.notes) == len(set(report.notes))


def test_a_result_that_does_not_say_of_what_it_is_is_noted(copy: Path, tmp_path: Path) -> None:
    report = import_measurement(copy, written(tmp_path / "times.json", [{"computeMs": 4.0}] * 50))
    assert report.notes[-1].endswith("model and options could not be verified.")
    report = import_measurement(copy, written(tmp_path / "result.json", result(copy, 5.0, 10.0)), force=True)
    assert not any("verified" in note for note in report.notes)


def test_what_was_measured_is_no_longer_called_predicted(run: Path, copy: Path, tmp_path: Path) -> None:
    before = read_report(run / "report.json")
    assert before.environment["basis"] == "predicted"
    assert not any("measured latency" in note for note in before.notes)
    after = import_measurement(copy, written(tmp_path / "result.json", result(copy, 5.0, 10.0)))
    assert after.environment["basis"] == "measured"
    assert after.environment["prediction"] == {key: before.environment[key] for key in ("device", "assumptions")}
    assert "predicted" not in headlines(after)[0]


def test_a_limit_that_stays_a_prediction_is_called_so(copy: Path, tmp_path: Path) -> None:
    report = import_measurement(copy, written(tmp_path / "result.json", result(copy, 5.0, None)))
    limit = milliseconds(report.budget.limit)
    assert headlines(report)[0] == (
        f"Budget not checked: p50 latency 5 ms, measured on jetson; the limit of {limit} (60% of the dense model) is "
        "predicted, as the dense model was not measured."
    )


def test_a_measurement_can_be_required(tmp_path: Path) -> None:
    with pytest.raises(
        TargetError, match=r"--require-measured: target 'jetson' found no board here: give --host user@board\.$"
    ):
        predicted(tmp_path / "out", "60%", require_measured=True)


def test_what_the_board_cannot_reach_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"1% is below what can be reached on jetson: .* is predicted to take"):
        predicted(tmp_path / "out", "1%")
