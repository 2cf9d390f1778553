"""From what the user named to a run that is ready, and the runs that only the pieces together make."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dtp_deploy.artefact import MODULE, PLAN, WEIGHTS, load_pruned, read_plan
from dtp_deploy.config import CompressConfig, ConfigFile
from dtp_deploy.errors import BudgetError, InputError, UsageError
from dtp_deploy.job import Job, ask_for_trust, resolve
from dtp_deploy.loading import CheckpointInfo
from dtp_deploy.loading.preprocessing import Preprocessing
from dtp_deploy.order import make_order
from dtp_deploy.profile.measure import MeasureSettings
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.report import Report, read_report
from dtp_deploy.task import CLASSIFICATION, UNLABELLED

QUICKLY = MeasureSettings(min_samples=20, min_seconds=0.05, blocks=5, warm_up_seconds=0.01, repeats=0)

CODE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(width, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.c = nn.Linear(8, 10)

    def forward(self, x):
        return self.c(self.b(self.a(x)).flatten(1))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, scale, tokens):
        return self.fc(self.table(tokens).mean(1)) * scale


def net():
    torch.manual_seed(0)
    return Net()

def other():
    return Net(width=9)

def prepared(model):
    model.was_prepared = True
    return model

def boxes():
    data = TensorDataset(torch.randn(32, 1, 8, 8), torch.randn(32, 4))
    return DataLoader(data, 8), DataLoader(data, 8)

def squares(outputs, targets):
    return outputs.square().mean()

def whole(outputs, targets):
    return outputs

def crash(outputs, targets):
    raise ValueError("no such layer")

def half(outputs, targets):
    return 0.5

def percent(outputs, targets):
    return 87.5

number = 3

def indices():
    data = TensorDataset(torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,)))
    return DataLoader(data, 8), DataLoader(data, 8)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the user's code and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "job_nets", raising=False)
    Path("job_nets.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import job_nets

    torch.save(job_nets.net().state_dict(), "net.pt")
    return tmp_path


def job(**given: object) -> Job:
    config = {"checkpoint": "net.pt", "model": "job_nets:net", "data": "digits", "macs": "60%", **given}
    return resolve(make_order(CompressConfig.model_validate(config), ConfigFile()))


def refused(**given: object) -> str:
    with pytest.raises((UsageError, InputError)) as caught:
        job(**given)
    return str(caught.value)


# ---- inputs ---------------------------------------------------------------------------------------------------------


def test_the_shape_may_come_from_data_that_have_one() -> None:
    assert [str(spec) for spec in job().specs] == ["1x1x8x8"]


def test_a_shape_that_nobody_names_is_asked_for() -> None:
    assert refused(data=None) == (
        "No --input is given, and the model's configuration names none. Give --input 1x3x224x224, say."
    )


def test_inputs_are_put_into_the_models_order() -> None:
    import job_nets

    torch.save(job_nets.Pair().state_dict(), "pair.pt")

    assert refused(checkpoint="pair.pt", model="job_nets:Pair", data=None, input=("tokens:1x6:int64", "scale:1x1")) == (
        "--input tokens:1x6:int64 is no float32, and random inputs are. Give --data pkg.module:factory, whose loaders "
        "make such inputs."
    )


def test_a_missing_shape_is_said_before_any_data_are_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtp_deploy.job.load_data", lambda *words, **given: pytest.fail("data were read"))

    assert refused(data="synthetic").startswith("No --input is given, ")


def test_an_input_that_the_model_does_not_take_is_refused() -> None:
    assert refused(data=None, input="1x3x8x8").startswith("Net does not take --input 1x3x8x8 (RuntimeError: ")


# ---- task -----------------------------------------------------------------------------------------------------------


def test_labels_make_a_classification_and_none_a_distillation() -> None:
    assert job().task is CLASSIFICATION
    assert job(data=None, input="1x1x8x8").task is UNLABELLED


def test_scores_and_patterns_of_layers_are_settings() -> None:
    settings = job(scores="taylor", keep="a*", only=["b", "a"]).settings
    assert (settings.masks.scores, settings.keep, settings.only) == ("taylor", ("a*",), ("b", "a"))
    assert (job().settings.masks.scores, job().settings.keep, job().settings.only) == ("l2", (), ())


def test_taylor_scores_without_labels_are_refused_before_anything_runs() -> None:
    assert refused(scores="taylor", data=None, input="1x1x8x8") == (
        "--scores taylor needs labels, and --data synthetic has none. Leave it out, for l2, which needs none; or give "
        "data with labels."
    )


def test_loaders_with_whole_numbers_as_targets_make_a_classification() -> None:
    assert job(data="job_nets:indices").task is CLASSIFICATION


def test_a_loss_and_a_metric_of_ones_own() -> None:
    task = job(data="job_nets:boxes", loss="job_nets:squares", metric="job_nets:half").task

    assert task.name == "loss job_nets:squares, metric job_nets:half"
    assert task.loss is not None
    assert float(task.loss(torch.full((2, 2), 2.0), None)) == 4
    assert task.metric is not None
    assert task.metric(None, None) == 0.5


def test_a_metric_alone_leaves_the_classes() -> None:
    task = job(metric="job_nets:half").task

    assert (task.name, task.classes, task.loss) == (
        "classification, metric job_nets:half",
        True,
        CLASSIFICATION.loss,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"data": "job_nets:boxes"},
            "--data job_nets:boxes has targets that are no class indices, so cross-entropy does not apply. Give --loss "
            "pkg.module:function (and --metric), or loaders without targets to learn from the dense model alone.",
        ),
        (
            {"data": None, "input": "1x1x8x8", "metric": "job_nets:half"},
            "--metric job_nets:half needs labels, and --data synthetic has none. Leave it out: then the pruned model "
            "learns from the dense one; or give data with labels.",
        ),
        (
            {"loss": "job_nets:number"},
            "--loss job_nets:number is an int, which cannot be called. Give a function (outputs, targets).",
        ),
    ],
)
def test_a_task_that_does_not_fit_is_refused(given: dict[str, object], message: str) -> None:
    assert refused(**given) == message


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        (
            "loss",
            "crash",
            "--loss job_nets:crash raised ValueError: no such layer, at job_nets.py:49. Correct it; it is called with "
            "what the model returns and with what the data give as targets.",
        ),
        (
            "loss",
            "whole",
            "--loss job_nets:whole returned a tensor of shape (2, 10). Let it return a scalar tensor: the mean of the "
            "batch.",
        ),
        (
            "loss",
            "half",
            "--loss job_nets:half returned a float. Let it return a scalar tensor: the mean of the batch.",
        ),
        (
            "metric",
            "percent",
            "--metric job_nets:percent returned 87.5. Let it return a number from 0 to 1, the mean over the batch, "
            "higher is better.",
        ),
    ],
)
def test_a_function_that_fails_is_told_in_one_line(option: str, name: str, message: str) -> None:
    function = getattr(job(**{option: f"job_nets:{name}"}).task, option)

    with pytest.raises(InputError) as caught:
        function(torch.zeros(2, 10), torch.zeros(2))
    assert str(caught.value) == message


# ---- preprocessing --------------------------------------------------------------------------------------------------


def pictures(root: Path, count: int = 10) -> str:
    from PIL import Image

    root.mkdir()
    for number in range(count):
        Image.new("RGB", (40, 30), (number, 20, 30)).save(root / f"{number}.png")
    return str(root)


def test_flags_make_the_preprocessing(folder: Path) -> None:
    data = job(
        data=pictures(folder / "photos"), letterbox="8", channels="grey", mean="0.5", std=0.25, range="0-255"
    ).data

    assert (
        data.preprocessing
        == Preprocessing(letterbox=(8, 8), channels="grey", mean=(0.5,), std=(0.25,), range="0-255").to_json()
    )
    assert data.sample_shapes == ((1, 8, 8),)


def test_flags_for_a_model_of_grey_pictures_are_for_grey(folder: Path) -> None:
    photos = pictures(folder / "photos")
    data = job(data=photos, input="1x1x8x8", mean="0.5").data
    assert data.preprocessing == Preprocessing(crop=(8, 8), channels="grey", mean=(0.5,)).to_json()
    assert refused(data=photos, input="1x1x8x8", channels="rgb") == (
        "--input 1x1x8x8 does not fit --data photos, whose pictures --channels rgb makes 3x8x8. Give --input 1x3x8x8, "
        "or --channels grey."
    )


def test_a_crop_that_does_not_fit_the_input_is_named(folder: Path) -> None:
    assert refused(data=pictures(folder / "photos"), input="1x1x8x8", crop="6") == (
        "--input 1x1x8x8 does not fit --data photos, whose pictures --crop 6x6 makes 1x6x6. Give --input 1x1x6x6, or "
        "--crop 8x8."
    )


def test_flags_that_have_nothing_to_do_are_refused() -> None:
    assert refused(mean="0.5") == (
        "--mean does not apply to --data digits, which come as they are. Leave it out; it is for folders of pictures."
    )


def test_flags_come_on_top_of_what_the_model_suggests() -> None:
    from dtp_deploy.job import _preprocessing
    from dtp_deploy.loading import InputSpec

    suggested = Preprocessing(resize=256, crop=(224, 224), mean=(0.5,), interpolation="bicubic")
    specs = [InputSpec(None, (1, 3, 112, 112))]

    assert _preprocessing(CompressConfig(), None, specs) is None
    assert _preprocessing(CompressConfig(), suggested, ()) == suggested
    assert _preprocessing(CompressConfig(channels="bgr"), suggested, specs) == Preprocessing(
        resize=128, crop=(112, 112), mean=(0.5,), interpolation="bicubic", channels="bgr"
    )
    assert _preprocessing(CompressConfig(letterbox="112"), suggested, specs) == Preprocessing(
        letterbox=(112, 112), mean=(0.5,), interpolation="bicubic"
    )
    assert _preprocessing(CompressConfig(resize="64x48"), None, ()) == Preprocessing(resize=(64, 48))


# ---- trust ----------------------------------------------------------------------------------------------------------


def test_trust_is_asked_for_only_where_it_is_needed() -> None:
    import job_nets

    asked: list[CheckpointInfo] = []
    torch.save(job_nets.net(), "pickled.pt")

    def yes(info: CheckpointInfo) -> bool:
        asked.append(info)
        return True

    for checkpoint in ("net.pt", "missing.pt", "timm:resnet18"):
        assert ask_for_trust(CompressConfig(checkpoint=checkpoint), yes).trust is False
    assert ask_for_trust(CompressConfig(checkpoint="pickled.pt", trust=True), yes).trust is True
    assert ask_for_trust(CompressConfig(checkpoint="pickled.pt"), None).trust is False
    assert asked == []
    assert ask_for_trust(CompressConfig(checkpoint="pickled.pt"), yes).trust is True
    assert asked[0].imports[0] == "job_nets.Net"


# ---- the budget that nobody typed ------------------------------------------------------------------------------------


def test_the_default_budget_is_named_in_a_note() -> None:
    assert job(macs=None, target="ssh").notes == ("No budget was given: --macs 50% was taken.",)
    assert job(macs=None).notes == ("No budget was given: --latency 50% was taken.",)
    assert job().notes == ()


def test_half_of_a_predicted_latency_is_the_default_where_it_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtp_deploy.job.why_not_predicted", lambda *given: None)

    chosen = job(macs=None, target="jetson")

    assert [(one.kind, str(one)) for one in chosen.budgets] == [("latency", "50%")]
    assert chosen.notes == ("No budget was given: --latency 50% was taken.",)


def test_macs_are_the_default_where_half_of_the_predicted_latency_is_out_of_reach() -> None:
    chosen = job(macs=None, target="jetson")  # so small a model is all launches of kernels

    assert [(one.kind, str(one)) for one in chosen.budgets] == [("macs", "50%")]
    assert chosen.notes[0].startswith(
        "No budget was given: --macs 50% was taken. --latency 50% would have come first: On jetson the narrowest "
        "network that pruning may leave is predicted to take "
    )


def test_a_default_that_cannot_be_met_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **given: object) -> Report:
        raise BudgetError("--latency 50% is below what can be reached on cpu. Give 63% or more.")

    monkeypatch.setattr("dtp_deploy.job.compress", fail)

    with pytest.raises(BudgetError) as caught:
        job(macs=None).run()
    assert str(caught.value) == (
        "--latency 50% is below what can be reached on cpu. Give 63% or more. --latency 50% is the default, because no "
        "budget was typed: type --latency with what can be reached, or --macs 50%."
    )
    with pytest.raises(BudgetError, match=r"Give 63% or more\.$"):
        job(latency="50%").run()


# ---- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def first(folder: Path) -> tuple[Report, Path]:
    """A model pruned once."""
    report = job(out="once", epochs=1, save_module=True, prepare="job_nets:prepared").run(measuring=QUICKLY)
    return report, folder / "once"


def test_the_pruned_module_may_be_pickled(first: tuple[Report, Path]) -> None:
    x = torch.randn(2, 1, 8, 8)
    pickled = torch.load(first[1] / MODULE, weights_only=False).eval()

    assert pickled.was_prepared
    assert torch.equal(pickled(x), load_pruned("job_nets:net", first[1])(x))


def test_an_artefact_is_pruned_again_and_the_plans_compose(first: tuple[Report, Path]) -> None:
    import job_nets

    _, once = first
    report = job(checkpoint="once", out="twice", epochs=1).run(measuring=QUICKLY)

    plan, dense = read_plan("twice"), job_nets.net()
    small = load_pruned("job_nets:net", once)
    assert report.dense.params == read_report(once / "report.json").pruned.params
    assert report.budget.met
    assert plan.fingerprint == fingerprint_of(dense)
    assert plan.chain == (fingerprint_of(small),)
    assert {group.name: group.width_before for group in plan.groups} == {"a.0": 8, "b.0": 8, "c": 10}
    again = load_pruned("job_nets:net", "twice")
    assert sum(value.numel() for value in again.parameters()) == report.pruned.params < report.dense.params
    assert set(read_plan("twice").tensors["a.0.weight"][0]) <= set(read_plan(once).tensors["a.0.weight"][0])
    assert "The model was pruned before: it was made by job_nets:net with the plan in once" in report.notes[0]
    assert fingerprint_of(dense)[:12] in report.notes[0]

    third = job(checkpoint="twice", out="thrice", epochs=1, macs="95%")
    assert third.pruned_by is not None
    assert third.pruned_by.chain == plan.chain


def test_an_artefact_needs_its_factory(first: tuple[Report, Path]) -> None:
    assert refused(checkpoint="once", model=None) == (
        "once is a folder that dtp-deploy wrote: it holds weights and a plan, and no model. Give --model with the "
        "factory of the dense model that was pruned."
    )
    assert refused(checkpoint="once", model="job_nets:other") == (
        "The pruning plan was made for another model: the tensor names or shapes of Net differ. Give the factory, "
        "unchanged, that the dense model came from."
    )


def test_a_damaged_artefact_is_refused(first: tuple[Report, Path]) -> None:
    _, once = first
    plan = json.loads((once / PLAN).read_text())
    (once / PLAN).write_text(json.dumps(plan | {"schema_version": 99}))
    assert refused(checkpoint="once").startswith("once/pruning_plan.json: The pruning plan has schema version 99; ")
    (once / PLAN).write_text("{}")
    assert refused(checkpoint="once").startswith("once/pruning_plan.json: This is not a pruning plan (KeyError: ")
    (once / PLAN).write_text(json.dumps(plan))
    (once / PLAN).write_text(json.dumps(plan | {"schema_version": "x"}))
    assert refused(checkpoint="once").startswith(
        "once/pruning_plan.json: This is not a pruning plan (ValueError: schema_version is 'x', and no whole number). "
    )
    (once / PLAN).write_text(json.dumps(plan))
    content = (once / WEIGHTS).read_bytes()
    (once / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert refused(checkpoint="once") == (
        "once/model.safetensors is not as it was written: its SHA-256 is not the one in pruning_plan.json. Give a "
        "folder that dtp-deploy compress --out wrote, as it was written."
    )
    (once / WEIGHTS).write_bytes(content[:-8])
    assert refused(checkpoint="once").startswith("once/model.safetensors is damaged (SafetensorError: ")


def test_a_model_that_cannot_be_pickled_is_told(folder: Path) -> None:
    from dtp_deploy.artefact import save_module

    model = nn.Linear(2, 2)
    model.hook = lambda: None  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"^--save-module: Linear cannot be pickled"):
        save_module(model, folder / MODULE)
