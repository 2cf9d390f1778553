"""``dtp-deploy profile``."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from dtp_deploy.profile import LatencyReport, MeasureSettings
from dtp_deploy.target import LayerTime, TargetSpec
from dtp_deploy_cli.profile import settings_for


def test_a_model_is_measured(run_cli, onnx_file: Path) -> None:
    outcome = run_cli("profile", onnx_file, "--min-seconds", "0.02", "--json")

    report = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert 0 < report["p50_ms"] <= report["p90_ms"] <= report["p99_ms"]
    assert len(report["samples_ms"]) >= MeasureSettings().min_samples
    assert report["environment"]["engine"]["threads"] == 1


def test_the_time_of_every_layer_is_told_when_asked(run_cli, onnx_file: Path) -> None:
    report = json.loads(run_cli("profile", onnx_file, "--min-seconds", "0.02", "--layers", "--json").out)
    assert report["layer_times"]
    assert {"name", "mean_ms", "median_ms", "precision"} == report["layer_times"][0].keys()
    assert json.loads(run_cli("profile", onnx_file, "--min-seconds", "0.02", "--json").out)["layer_times"] is None


def test_layers_are_shown_the_slowest_first(run_cli, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = (LayerTime("quick", 1.0), LayerTime("slow", 3.0, 2.5, "fp16"))
    monkeypatch.setattr("dtp_deploy.profile.measure", lambda *given: {"model": fake_report(layer_times=layers)})
    lines = run_cli("profile", onnx_file, "--layers").out.splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    shown = [row for row in rows if row[0] in ("quick", "slow")]
    assert shown == [["slow", "75.0%", "3 ms", "2.5 ms", "fp16"], ["quick", "25.0%", "1 ms", "-", "-"]]


def test_a_runtime_that_tells_no_layers_is_said_to(run_cli, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtp_deploy.profile.measure", lambda *given: {"model": fake_report()})
    assert "The runtime does not tell the times of the layers." in run_cli("profile", onnx_file, "--layers").out
    assert "layers" not in run_cli("profile", onnx_file).out


def fake_report(**changes: object) -> LatencyReport:
    report = LatencyReport.from_samples([1.0, 1.1, 1.2, 1.3] * 25, environment={"system": {"cpu_model": "a CPU"}})
    for name, value in changes.items():
        object.__setattr__(report, name, value)
    return report


@pytest.mark.parametrize(("stable", "word", "warned"), [(True, "yes", False), (False, "no", True)])
def test_the_table_says_all_figures(
    run_cli, onnx_file: Path, monkeypatch: pytest.MonkeyPatch, stable: bool, word: str, warned: bool
) -> None:
    monkeypatch.setattr("dtp_deploy.profile.measure", lambda *given: {"model": fake_report(stable=stable)})

    outcome = run_cli("profile", onnx_file)

    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in outcome.out.splitlines()]
    figures = {row[0]: row[1] for row in cells if len(row) == 2}
    assert figures["p50"] == "1.15 ms"
    assert figures["samples"] == "100"
    assert figures["stable"] == word
    assert figures["system.cpu_model"] == "a CPU"
    assert ("The latency was unstable" in outcome.out) is warned


def test_the_options_reach_the_measurement(run_cli, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def measure(*given: object) -> dict[str, LatencyReport]:
        seen.extend(given)
        return {"model": fake_report()}

    monkeypatch.setattr("dtp_deploy.profile.measure", measure)
    outcome = run_cli("profile", onnx_file, "--threads", "1", "--min-seconds", "30", "--verbose")

    assert outcome.code == 0
    assert seen[:-1] == [{"model": onnx_file}, TargetSpec("cpu", {"threads": 1}), settings_for(30)]
    assert outcome.err.startswith(f"measuring {onnx_file.name}: ")


def test_time_limits_leave_room_for_what_was_asked() -> None:
    settings = settings_for(1000)

    assert settings.min_seconds == 1000
    assert settings.max_seconds >= 1000
    assert settings.timeout_s > (settings.repeats + 1) * 1000
    assert settings_for(MeasureSettings().min_seconds).max_seconds == MeasureSettings().max_seconds


def test_the_default_is_the_librarys(run_cli) -> None:
    assert f"[default: {MeasureSettings().min_seconds}; x>=0.01]" in " ".join(run_cli("profile", "--help").out.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Model {path} does not exist. Give the path of an ONNX file."),
        (b"", "Model {path} is empty (0 bytes). Copy or save it again."),
        (
            b"hello, world\n",
            "Model {path} is no ONNX file, or a damaged one "
            "(ValidationError: The model does not have an ir_version set properly.). Copy or export it again.",
        ),
    ],
)
def test_what_is_no_model_is_refused(run_cli, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)

    assert run_cli("profile", path) == (2, "", f"Error: {message.format(path=path)}\n")


def test_a_truncated_model_is_refused(run_cli, onnx_file: Path) -> None:
    onnx_file.write_bytes(onnx_file.read_bytes()[:-40])

    outcome = run_cli("profile", onnx_file)

    assert outcome.code == 2
    assert outcome.err.startswith(f"Error: Model {onnx_file} is no ONNX file, or a damaged one (")
    assert outcome.err.count("\n") == 1


def test_an_unknown_target_is_refused_before_the_file_is_read(run_cli) -> None:
    outcome = run_cli("profile", "missing.onnx", "--target", "toaster")

    assert outcome.code == 2
    assert outcome.err.startswith("Error: --target 'toaster' is unknown. Give one of: ")


class Halves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "halves.pt2"
    torch.export.save(torch.export.export(Halves(), (torch.zeros(1, 4),)), path)
    return path


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "halves.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.trace(Halves(), torch.zeros(1, 4)).save(str(path))
    return path


def test_a_program_is_exported_and_measured(run_cli, program: Path) -> None:
    outcome = run_cli("profile", program, "--trust", "--min-seconds", "0.02", "--json")

    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out)["p50_ms"] > 0


def test_a_torchscript_archive_needs_its_input(run_cli, script: Path) -> None:
    words = ("profile", script, "--trust", "--min-seconds", "0.02", "--json")

    assert run_cli(*words, "--input", "1x4").code == 0
    assert run_cli(*words).err == (
        "Error: A TorchScript archive does not say what it takes. Give the shape: --input 1x3x224x224.\n"
    )


def test_a_program_needs_trust(run_cli, program: Path) -> None:
    outcome = run_cli("profile", program)

    assert outcome.code == 2
    assert "which may run code when it is loaded; nothing was run." in outcome.err


def test_a_checkpoint_is_no_program(run_cli, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")

    outcome = run_cli("profile", tmp_path / "weights.pt", "--trust")

    assert outcome.code == 2
    assert "is of the kind state_dict, which needs an example input to be exported." in outcome.err


def test_an_onnx_file_knows_its_inputs(run_cli, onnx_file: Path) -> None:
    assert run_cli("profile", onnx_file, "--input", "1x4").err == (
        f"Error: --input 1x4 is for TorchScript archives; {onnx_file} says itself what it takes.\n"
    )
