"""``dtp-deploy compress``: what it asks of the library, and what it says (whole runs: tests/test_compress.py)."""

import json
import os
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import typer
from torch import nn

import dtp_deploy.job
from dtp_deploy.budget import Budget, parse_budget
from dtp_deploy.config import CompressConfig, flag_of
from dtp_deploy.errors import BudgetError
from dtp_deploy.prune import MaskSettings
from dtp_deploy.report import Report, headlines, summary_rows
from dtp_deploy.target import TargetSpec
from dtp_deploy.task import CLASSIFICATION, UNLABELLED
from dtp_deploy.testing import zoo
from dtp_deploy.train import Settings
from dtp_deploy_cli.main import app


def test_the_defaults_are_the_librarys(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    assert run_cli(*job, "--macs", "50%").code == 0

    assert asked["settings"] == Settings()
    assert asked["budget"] == (Budget("macs", 0.5, relative=True),)
    assert asked["task"] == CLASSIFICATION
    assert asked["target"] == TargetSpec("cpu")
    assert asked["input_shape"] == (1, 1, 8, 8)
    assert asked["out"] == Path("small")
    assert asked["force"] is asked["resume"] is asked["require_measured"] is asked["pickled"] is False
    assert asked["checkpoint_minutes"] == 10
    assert asked["finish"] is asked["pruned_by"] is asked["inputs"] is asked["input_names"] is None
    assert asked["model_name"] == "tiny.pt"
    assert asked["data"].name == "digits"


def test_the_weights_are_loaded(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    run_cli(*job, "--macs", "50%")

    assert torch.equal(asked["model"].state_dict()["0.weight"], torch.load("tiny.pt")["0.weight"])


def test_every_flag_reaches_the_library(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    flags = (
        "--epochs 3 --seed 7 --lr 0.5 --batch-size 8 --no-distill --augment shift --solver sinkhorn-1 --round-to 4 "
        "--threads 1 --force --per-layer --checkpoint-every 2.5 --save-module --require-measured "
        "--finish nets_of_cli_test:same"
    )

    assert run_cli(*job, "--channel-count", "50%", "--size", "2kB", *flags.split()).code == 0

    assert asked["settings"] == Settings(
        epochs=3,
        seed=7,
        learning_rate=0.5,
        batch_size=8,
        distill=False,
        augment="shift",
        masks=MaskSettings(solver="sinkhorn-1", round_to=4),
    )
    assert asked["budget"] == (
        Budget("size", 2000, scope="per-layer"),
        Budget("channels", 0.5, relative=True, scope="per-layer"),
    )
    assert asked["target"] == TargetSpec("cpu", {"threads": 1})
    assert asked["force"] is asked["pickled"] is asked["require_measured"] is True
    assert asked["checkpoint_minutes"] == 2.5
    assert asked["finish"](asked["model"]) is asked["model"]


@pytest.mark.parametrize(
    ("flag", "kind", "text"),
    [
        ("--macs", "macs", "1k"),
        ("--params", "params", "1k"),
        ("--size", "size", "2MB"),
        ("--channel-count", "channels", "3"),
        ("--latency", "latency", "5ms"),
    ],
)
def test_each_kind_of_budget(run_cli, job: list[str], asked: dict[str, Any], flag: str, kind: Any, text: str) -> None:
    assert run_cli(*job, flag, text).code == 0
    assert asked["budget"] == (parse_budget(kind, text),)


@pytest.mark.parametrize(("option", "owner"), [("solver", MaskSettings), ("augment", Settings)])
def test_the_choices_are_the_librarys(option: str, owner: type) -> None:
    assert get_args(get_type_hints(CompressConfig)[option]) == get_args(get_type_hints(owner)[option])


def test_every_key_has_its_flag_and_every_flag_its_key() -> None:
    command = typer.main.get_group(app).commands["compress"]
    flags = {parameter.opts[0] for parameter in command.params if parameter.name != "checkpoint"}
    keys = {flag_of(name) for name in CompressConfig.model_fields if name != "checkpoint"}

    assert flags - keys == {"--config", "--resume"}
    assert keys <= flags


def test_the_file_is_read_and_flags_win(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    Path("dtp-deploy.toml").write_text(
        '[compress]\nepochs = 3\nseed = 5\nmacs = "40%"\nforce = true\n[targets.bench]\nkind = "cpu"\nthreads = 1\n'
    )

    assert run_cli(*job, "--seed", "6", "--no-force", "--target", "bench").code == 0

    assert (asked["settings"].epochs, asked["settings"].seed, asked["force"]) == (3, 6, False)
    assert asked["budget"] == (parse_budget("macs", "40%"),)
    assert asked["target"] == TargetSpec("cpu", {"threads": 1})


def test_the_file_alone_is_enough(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    Path("mine.toml").write_text(
        '[compress]\ncheckpoint = "tiny.pt"\nmodel = "nets_of_cli_test:tiny"\ndata = "digits"\nmacs = "50%"\n'
    )

    assert run_cli("compress", "--config", "mine.toml").code == 0

    assert asked["out"] == Path("tiny-compressed")
    assert asked["input_shape"] == (1, 1, 8, 8)  # of the data, which have a shape of their own


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        ((), "epochs = 3", "dtp-deploy.toml: there is no table 'epochs'. Known are: compress, targets, devices, gate."),
        ((), "[compress]\nepoch = 3", "dtp-deploy.toml: there is no key 'epoch'. Did you mean 'epochs'?"),
        (
            (),
            '[compress]\nepochs = "many"',
            "dtp-deploy.toml: epochs = 'many' is not allowed. Input should be a valid integer, unable to parse string "
            "as an integer.",
        ),
        ((), "[compress", "dtp-deploy.toml is no TOML file: "),
        (("--config", "none.toml"), "", "--config none.toml does not exist. Give the path of a file; "),
    ],
)
def test_a_wrong_file_is_refused(run_cli, job: list[str], words: tuple[str, ...], text: str, message: str) -> None:
    Path("dtp-deploy.toml").write_text(text)

    outcome = run_cli(*job, *words)

    assert outcome.code == 2
    assert outcome.err.startswith(f"Error: {message}")


def test_the_budget_is_half_of_the_latency_where_that_can_be_measured(
    run_cli, job: list[str], asked: dict[str, Any]
) -> None:
    assert run_cli(*job).code == 0
    assert asked["budget"] == (Budget("latency", 0.5, relative=True),)


def test_the_budget_is_half_of_the_macs_elsewhere(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    assert run_cli(*job, "--target", "ssh").code == 0
    assert asked["budget"] == (Budget("macs", 0.5, relative=True),)


def test_a_measurement_that_is_required_and_impossible_is_code_5(run_cli, job: list[str]) -> None:
    outcome = run_cli(*job, "--target", "ssh", "--require-measured")

    assert (outcome.code, outcome.out) == (5, "")
    assert outcome.err.startswith("Error: --require-measured: target 'ssh' needs the name of a board")
    assert not Path("small").exists()


def test_no_model_at_all(run_cli) -> None:
    assert run_cli("compress").err == (
        'Error: No model is given. Give its file, `dtp-deploy compress model.pt`, or a line checkpoint = "model.pt" '
        "in dtp-deploy.toml.\n"
    )


@pytest.fixture
def pickled(job: list[str], asked: dict[str, Any]) -> list[str]:
    """A command with a pickled model."""
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)), "pickled.pt")
    return ["compress", "pickled.pt", "--input", "1x1x8x8", "--macs", "50%"]


def test_a_pickle_without_trust_is_refused_where_nobody_can_be_asked(run_cli, pickled: list[str]) -> None:
    outcome = run_cli(*pickled)

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Error: Checkpoint pickled.pt needs code to load: it would import torch.nn.")
    assert "nothing was run. Give --trust" in outcome.err


def test_trust_may_be_given(run_cli, pickled: list[str], asked: dict[str, Any]) -> None:
    assert run_cli(*pickled, "--trust").code == 0
    assert asked["task"] is UNLABELLED
    assert asked["data"].name == "synthetic"


@pytest.mark.parametrize(("answer", "code"), [(True, 0), (False, 2)])
def test_at_a_terminal_the_classes_are_listed_and_trust_is_asked_for_once(
    run_cli, pickled: list[str], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, answer: bool, code: int
) -> None:
    questions: list[str] = []
    monkeypatch.setattr("dtp_deploy_cli.compress._can_ask", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda text, **given: questions.append(text) or answer)

    outcome = run_cli(*pickled)

    assert outcome.code == code
    assert questions == ["Do you trust it? (--trust answers yes)"]
    lines = outcome.err.splitlines()
    assert lines[0] == "pickled.pt needs code to load. It would import:"
    assert "  torch.nn.modules.conv.Conv2d" in lines
    assert ("model" in asked) is answer


def test_a_dry_run_trains_and_writes_nothing(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    before = sorted(Path().iterdir())

    outcome = run_cli(*job, "--dry-run", "--macs", "50%")
    document = json.loads(run_cli(*job, "--dry-run", "--macs", "50%", "--json").out)

    assert (outcome.code, outcome.err, asked) == (0, "", {})
    assert (
        "Imports: nets_of_cli_test (--model)\nReads: tiny.pt\nBudget: macs 50%; target: cpu; would write: small\n"
        "--macs 50%: can be met. The limit is "
    ) in outcome.out
    assert outcome.out.endswith("Nothing was trained and nothing was written.\n")
    assert [one["kind"] for one in document["reach"]] == ["macs", "params", "size", "channels", "latency"]
    assert {one["kind"]: one["smallest"] for one in document["reach"]}["channels"] == 1
    assert [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"] == before


def test_a_dry_run_of_two_of_four_shows_its_layers(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    outcome = run_cli(*job, "--dry-run", "--granularity", "2:4")

    assert outcome.code == 0
    assert "Budget: 2:4; target: cpu" in outcome.out
    assert "no: four does not divide its 1 inputs" in outcome.out
    assert not asked


def test_two_of_four_is_asked_of_the_library_without_a_budget(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    assert run_cli(*job, "--granularity", "2:4").code == 0

    assert asked["budget"] == ()
    assert asked["settings"] == Settings(granularity="2:4")


def test_single_weights_refuse_a_latency_with_its_reason(run_cli, job: list[str]) -> None:
    outcome = run_cli(*job, "--granularity", "weights", "--latency", "5ms")

    assert outcome.code == 2
    assert outcome.err == (
        "Error: --latency 5ms cannot be kept by --granularity weights: no runtime is faster for single zeros. Give "
        "--params, or --granularity channels.\n"
    )


def test_a_dry_run_shows_what_patterns_freeze(run_cli, job: list[str]) -> None:
    document = json.loads(run_cli(*job, "--dry-run", "--macs", "50%", "--only", "0", "--json").out)
    assert [(name, reason is None) for name, _, reason in document["groups"]] == [("0", True), ("3", False)]

    outcome = run_cli(*job, "--dry-run", "--macs", "50%", "--keep", "1", "--keep", "0*")
    assert outcome.code == 2
    assert "all 2 channel groups are frozen (0: kept by --keep '0*'; " in outcome.err
    assert "Leave --keep and --only out, or give patterns that leave some layers to prune." in outcome.err

    outcome = run_cli(*job, "--dry-run", "--macs", "50%", "--keep", "stem*")
    assert outcome.code == 2
    assert "--keep 'stem*' matches no layer of Sequential. Its first are '0', '1', '2'." in outcome.err


def test_leave_to_remove_blocks_reaches_the_library(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    assert run_cli(*job, "--macs", "50%", "--allow-depth").code == 0

    assert asked["settings"] == Settings(allow_depth=True)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--granularity weights --params 50%", "--allow-depth removes layers, and --granularity weights sets"),
        ("--granularity 2:4", "--allow-depth removes layers, and --granularity 2:4 sets single weights to zero. Leave"),
        ("--macs 50% --per-layer", "--per-layer keeps the same ratio in every layer. Leave one of the two out."),
        (
            "--macs 50% --dry-run",
            "--allow-depth: Sequential has no residual block that could be removed as a whole: it",
        ),
    ],
)
def test_leave_to_remove_blocks_is_refused_where_it_means_nothing(
    run_cli, job: list[str], flags: str, reason: str
) -> None:
    outcome = run_cli(*job, "--allow-depth", *flags.split())

    assert outcome.code == 2
    assert reason in outcome.err


def test_a_dry_run_shows_the_blocks_that_may_go(run_cli, job: list[str]) -> None:
    torch.save(zoo.residual().state_dict(), "residual.pt")
    words = "compress residual.pt --model dtp_deploy.testing.zoo:residual --input 1x3x16x16 --macs 50% --allow-depth"
    command = [*words.split(), "--dry-run", "--keep", "features.3"]

    outcome = run_cli(*command)
    document = json.loads(run_cli(*command, "--json").out)

    assert outcome.code == 0
    assert "may be removed as a whole" in outcome.out
    assert document["blocks"] == [["features.1", None], ["features.3", "kept by --keep 'features.3'"]]


def test_a_dry_run_without_trust_says_what_it_can(run_cli, pickled: list[str], asked: dict[str, Any]) -> None:
    outcome = run_cli(*pickled, "--dry-run")

    assert (outcome.code, outcome.err, asked) == (0, "", {})
    lines = outcome.out.splitlines()
    assert lines[0] == "Model: pickled.pt, not loaded"
    assert lines[1].startswith("Imports: torch.nn.")
    assert lines[2] == "Reads: pickled.pt"
    assert lines[4].startswith("pickled.pt needs code to load, and --trust is missing: nothing of it was run, ")


def test_a_budget_that_cannot_be_met_is_said_by_a_dry_run(run_cli, job: list[str]) -> None:
    outcome = run_cli(*job, "--dry-run", "--channel-count", "50%", "--params", "10")

    assert outcome.code == 3
    assert outcome.err.startswith("Error: --params 10: cannot be met. The limit is 10 parameters; ")
    assert outcome.err.endswith(" Give that or more.\n")
    assert "\n--params 10: cannot be met. The limit is 10 parameters; the least possible is " in outcome.out
    assert "Nothing was trained" in outcome.out
    assert (
        "\n--channel-count 50%: can be met. The limit is 2 channels; the least possible is 1 channels." in outcome.out
    )


def test_a_refused_pickle_has_all_its_imports_named_and_the_dangerous_first(run_cli, job: list[str]) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("true",)

    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.GELU()]
    Path("evil.pt").write_bytes(pickle.dumps([*layers, Evil()], protocol=2))

    outcome = run_cli("compress", "evil.pt", "--macs", "50%")

    assert outcome.code == 2
    assert "it would import posix.system, " in outcome.err
    assert " more;" not in outcome.err
    assert all(f".{type(layer).__name__}" in outcome.err for layer in layers)


@pytest.fixture
def cut_off(job: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the checkpoint of a run holds that was cut off."""
    origin = {"compress": {"checkpoint": "tiny.pt", "model": "nets_of_cli_test:tiny", "data": "digits", "macs": "30%"}}
    monkeypatch.setattr("dtp_deploy.checkpoints.read_origin", lambda out: origin)
    return origin


def test_resume_needs_nothing_else(run_cli, cut_off: dict[str, Any], asked: dict[str, Any]) -> None:
    assert run_cli("compress", "--resume", "small", "--macs", "30%").code == 0

    assert (asked["resume"], asked["out"]) == (True, Path("small"))
    assert asked["budget"] == (parse_budget("macs", "30%"),)
    assert asked["origin"]["compress"] == {**cut_off["compress"], "out": "small"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--macs", "40%", "--epochs", "3"],
            "--resume small: changed since the run was started: --macs (was 30%, is 40%), --epochs (was not given, is "
            "3). Leave these out: all options come from the checkpoint; or start over with --force.",
        ),
        (
            ["--config", "other.toml"],
            "--resume small takes all options from the run that it goes on with. Leave --config other.toml out.",
        ),
    ],
)
def test_resume_refuses_other_options(run_cli, cut_off: dict[str, Any], words: list[str], message: str) -> None:
    assert run_cli("compress", "--resume", "small", *words) == (2, "", f"Error: {message}\n")


def test_resume_of_a_run_started_from_python(run_cli, cut_off: dict[str, Any]) -> None:
    del cut_off["compress"]
    assert run_cli("compress", "--resume", "small").err == (
        "Error: --resume small: that run was started from Python. Go on with dtp_deploy.compress(..., resume=True).\n"
    )


def test_resume_without_checkpoints(run_cli, job: list[str]) -> None:
    outcome = run_cli("compress", "--resume", "small")
    assert outcome.code == 2
    assert outcome.err.startswith("Error: --resume small: there is no checkpoint in ")


def test_only_the_first_process_talks(
    run_cli, job: list[str], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")

    assert run_cli(*job, "--macs", "50%", "--verbose") == (0, "", "")
    assert run_cli(*job, "--macs", "0%").err.startswith("Error in process 1: --macs 0%: ")


@pytest.mark.usefixtures("asked")
def test_a_person_gets_a_table_and_the_path(run_cli, job: list[str], sample_report: dict[str, object]) -> None:
    report = Report.model_validate(sample_report)

    outcome = run_cli(*job, "--latency", "60%")

    lines = outcome.out.splitlines()
    rows = [tuple(cell.strip() for cell in line.strip("│").split("│")) for line in lines if line.startswith("│")]
    assert (outcome.code, outcome.err) == (0, "")
    assert rows == [tuple(row) for row in summary_rows(report)]
    assert lines[-2:] == [*headlines(report), "Report: small/report.md"]


@pytest.mark.usefixtures("asked")
def test_a_program_gets_the_report_alone(run_cli, job: list[str], sample_report: dict[str, object]) -> None:
    outcome = run_cli(*job, "--latency", "60%", "--json")

    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out) == sample_report


def test_a_budget_that_is_not_met_is_code_3(run_cli, job: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any, **given: Any) -> Report:
        raise BudgetError("--latency 1us is below what tiny.pt can reach. Give 2us or more.")

    monkeypatch.setattr(dtp_deploy.job, "compress", fail)

    assert run_cli(*job, "--latency", "1us") == (
        3,
        "",
        "Error: --latency 1us is below what tiny.pt can reach. Give 2us or more.\n",
    )
