"""Whole runs of the main job, on real data, with nothing replaced."""

import copy
import dataclasses
import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import dtp_deploy
from dtp_deploy import pipeline
from dtp_deploy.budget import Budget, parse_budget
from dtp_deploy.checkpoints import CheckpointFolder
from dtp_deploy.errors import BudgetError, InputError, TargetError, TrainingError, UsageError
from dtp_deploy.latency import structures, verdict
from dtp_deploy.loading import Dataset
from dtp_deploy.loading.loaders import LoaderData
from dtp_deploy.profile.measure import MeasureSettings
from dtp_deploy.prune import PruningPlan, remove_channels
from dtp_deploy.prune.schedule import Solver
from dtp_deploy.report import Report, read_report
from dtp_deploy.task import CLASSIFICATION, Task
from dtp_deploy.train import Settings, Trainer
from examples.digits_cnn import make_model
from tests.test_resume import CutOff, StopsAt, cut

QUICKLY = MeasureSettings(min_samples=20, min_seconds=0.05, blocks=5, warm_up_seconds=0.01, repeats=0)
compress = partial(dtp_deploy.compress, measuring=QUICKLY)


@pytest.fixture(scope="module")
def dense(data: Dataset) -> nn.Module:
    """A network that has learned its task."""
    torch.manual_seed(0)
    model = make_model()
    trainer = Trainer(data.train(64, seed=0), CLASSIFICATION, Settings(epochs=4, learning_rate=0.1), None)
    trainer.run(model, trainer.total_steps)
    return model


@dataclasses.dataclass(frozen=True)
class Finished:
    report: Report
    out: Path


@pytest.fixture(scope="module")
def macs_run(dense: nn.Module, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("runs") / "macs"
    budget = parse_budget("macs", "30%")
    return Finished(compress(dense, data=data, budget=budget, out=out, settings=Settings(epochs=4)), out)


def test_report_on_disk_is_the_report_returned(macs_run: Finished) -> None:
    assert read_report(macs_run.out / "report.json") == macs_run.report
    assert sorted(path.name for path in macs_run.out.iterdir()) == [
        "mask_phase.svg",
        "model.onnx",
        "model.pt2",
        "model.safetensors",
        "pruning_plan.json",
        "report.json",
        "report.md",
    ]


def test_the_mask_phase_is_told_epoch_by_epoch(macs_run: Finished) -> None:
    entries = macs_run.report.mask_phase
    assert [entry.epoch for entry in entries] == pytest.approx([0, 1, 2], abs=0.03)  # r = 0.546: 50 % of four epochs
    assert entries[0].accuracy_soft == pytest.approx(macs_run.report.dense.accuracy, abs=0.05)
    assert entries[-1].cost_share == pytest.approx(0.3, abs=0.01)
    assert entries[-1].undecided < 0.02
    assert all(entry.price is not None for entry in entries[1:])
    pruned = [group for group in macs_run.report.groups if group.frozen_because is None]
    assert entries[0].widths == tuple(group.width_before for group in pruned)
    assert "](mask_phase.svg)" in (macs_run.out / "report.md").read_text(encoding="utf-8")


def test_the_report_says_what_was_decided_of_the_masks(macs_run: Finished) -> None:
    masks = macs_run.report.settings["masks"]
    assert isinstance(masks, dict)
    assert (masks["learn_split"], masks["score_rate"]) == (False, 0.03)


def test_budget_is_kept_and_used(macs_run: Finished) -> None:
    budget = macs_run.report.budget
    assert budget.met is True
    assert budget.basis == "computed"
    assert budget.limit == 0.3 * macs_run.report.dense.macs
    assert budget.achieved == macs_run.report.pruned.macs
    assert 0.97 * budget.limit <= budget.achieved <= budget.limit


def test_the_report_holds_the_time_of_every_layer(macs_run: Finished) -> None:
    for model in (macs_run.report.dense, macs_run.report.pruned):
        assert model.latency is not None
        assert model.latency.layer_times
        assert any(layer.precision == "fp32" and layer.mean_ms > 0 for layer in model.latency.layer_times)
    assert "## Times of the pruned model's layers" in (macs_run.out / "report.md").read_text()


def test_delivered_onnx_has_the_widths_and_the_size_of_the_report(macs_run: Finished) -> None:
    content = (macs_run.out / "model.onnx").read_bytes()
    assert macs_run.report.pruned.size_bytes == len(content)
    assert macs_run.report.onnx_sha256 == hashlib.sha256(content).hexdigest()
    shapes = [tuple(value.dims) for value in onnx.load_model_from_string(content).graph.initializer]
    for group in macs_run.report.groups:
        assert any(shape and shape[0] == group.width_after for shape in shapes), group


def test_accuracy_of_the_report_is_that_of_the_file(macs_run: Finished, data: Dataset) -> None:
    session = onnxruntime.InferenceSession(macs_run.out / "model.onnx", providers=["CPUExecutionProvider"])
    right = [
        session.run(None, {"input": x[None]})[0].argmax() == y for x, y in zip(data.x_val, data.y_val, strict=True)
    ]
    assert macs_run.report.pruned.accuracy == np.mean(right)
    assert macs_run.report.pruned.accuracy > 0.9


def test_every_form_of_the_model_was_compared(macs_run: Finished) -> None:
    assert [entry.stage for entry in macs_run.report.parity] == [
        "dense: PyTorch to ONNX",
        "dense: ONNX to simplified",
        "dense: PyTorch to engine",
        "masked to removed",
        "pruned: PyTorch to ONNX",
        "pruned: ONNX to simplified",
        "pruned: PyTorch to engine",
    ]
    assert all(entry.passed for entry in macs_run.report.parity)


def test_the_network_that_is_left_has_batchnorm_statistics_of_its_own(data: Dataset, tmp_path: Path) -> None:
    """As PyTorch's `update_bn` finds them, over the same images in another order."""
    dense = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    ).eval()
    settings = Settings(epochs=1, batch_size=128)
    half, stop = parse_budget("macs", "50%"), StopsAt("fine-tuning", 1, cut)
    with pytest.raises(CutOff):
        compress(dense, data=data, budget=half, out=tmp_path / "out", settings=settings, progress=stop)
    saved = CheckpointFolder(tmp_path / "out.partial" / "checkpoints").newest()
    assert saved is not None
    small = remove_channels(dense, PruningPlan.from_json(saved["plan"]))
    small.load_state_dict(saved["model"])
    update_bn([images for (images,), _ in data.train(settings.batch_size, seed=5)], small)
    for norm in (1, 4):
        for name in (f"{norm}.running_mean", f"{norm}.running_var"):
            wanted = small.state_dict()[name]
            assert float((saved["model"][name] - wanted).norm()) < 0.02 * float(wanted.norm()), name


def test_pruned_model_reloads_onto_the_factory_and_agrees_with_the_onnx(macs_run: Finished, data: Dataset) -> None:
    model = dtp_deploy.load_pruned(make_model, macs_run.out)
    session = onnxruntime.InferenceSession(macs_run.out / "model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(macs_run.out / "model.pt2").module()
    for x in data.x_val[:5, None]:
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
            exported = program(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(session.run(None, {"input": x})[0], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(exported, expected, rtol=1e-5, atol=1e-5)


def test_one_seed_gives_one_plan_and_the_model_given_is_not_changed(
    macs_run: Finished, dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    before = copy.deepcopy(dense.state_dict())
    torch.manual_seed(12345)  # what the caller did with the global generator must not matter
    budget = parse_budget("macs", "30%")
    compress(dense, data=data, budget=budget, out=tmp_path / "again", settings=Settings(epochs=4))
    for name in ("pruning_plan.json", "model.onnx"):
        assert (tmp_path / "again" / name).read_bytes() == (macs_run.out / name).read_bytes(), name
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


@pytest.mark.parametrize(
    ("budget", "least_used", "solver"),
    [
        (parse_budget("params", "40%"), 0.97, "exact"),
        (parse_budget("size", "300kB"), 0.97, "sinkhorn-1"),
        (parse_budget("channels", "50%"), 0.97, "sinkhorn-1"),
        (parse_budget("macs", "50%", scope="per-layer"), 0.9, "exact"),
    ],
    ids=["params", "size", "channels", "per-layer"],
)
def test_every_counted_budget_is_kept_and_used(
    budget: Budget, least_used: float, solver: Solver, dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    settings = Settings(epochs=1, masks=dtp_deploy.MaskSettings(solver=solver))
    report = compress(dense, data=data, budget=budget, out=tmp_path / "out", settings=settings)
    assert report.budget.met is True
    assert report.budget.achieved is not None
    assert report.budget.achieved >= least_used * report.budget.limit
    if budget.kind == "size":
        assert report.budget.achieved == (tmp_path / "out" / "model.onnx").stat().st_size
    if budget.scope == "per-layer":
        ratios = [group.width_after / group.width_before for group in report.groups if group.frozen_because is None]
        assert max(ratios) - min(ratios) <= 1 / 32 + 1e-9


def test_latency_budget_is_measured_on_the_target(
    dense: nn.Module, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (pipeline, verdict):
        monkeypatch.setattr(place, "PROCESSES", 3)
    monkeypatch.setattr(structures, "_PROCESSES", 1)
    budget = parse_budget("latency", "75%")
    out = tmp_path / "out"
    try:
        dtp_deploy.compress(dense, data=data, budget=budget, out=out, settings=Settings(epochs=1))
        met = True
    except BudgetError:  # other work may make the last measurement slower than those of the search
        met = False
    report = read_report(out / "report.json")
    dense_latency, pruned_latency = report.dense.latency, report.pruned.latency
    assert dense_latency is not None
    assert pruned_latency is not None
    assert report.budget.basis == "measured"
    assert report.latency_ratio is not None
    assert report.budget.achieved == pruned_latency.p50_ms
    assert report.budget.achieved / report.budget.limit == pytest.approx(report.latency_ratio.ratio / 0.75)
    assert any("in 3 fresh processes: " in note for note in report.notes)
    assert report.budget.met is met is (report.budget.achieved <= report.budget.limit)
    assert report.pruned.macs < report.dense.macs
    assert np.percentile(pruned_latency.samples_ms, 50) == pytest.approx(pruned_latency.p50_ms)


@pytest.mark.parametrize(("kind", "limit"), [("macs", "0.01%"), ("size", "1kB"), ("latency", "1%")])
def test_impossible_budget_is_refused_before_training_with_what_can_be_reached(
    kind: str, limit: str, dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    budget = parse_budget(kind, limit)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"one channel in every layer .* Give \d.* or more\."):
        compress(dense, data=data, budget=budget, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_training_that_breaks_down_is_an_error_and_leaves_nothing(
    dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    settings = Settings(epochs=1, learning_rate=1e30, distill=False)
    with pytest.raises(TrainingError, match=r"Lower --lr"):
        compress(dense, data=data, budget=Budget("macs", 0.5, True), out=tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


def test_labels_beyond_the_model_are_refused(dense: nn.Module, data: Dataset, tmp_path: Path) -> None:
    wrong = dataclasses.replace(data, y_val=data.y_val + 1)
    with pytest.raises(InputError, match=r"gives 10 class scores, but the labels go up to 10\."):
        compress(dense, data=wrong, budget=Budget("macs", 0.5, True), out=tmp_path / "out")


def test_a_wrong_removal_stops_the_run(
    dense: nn.Module, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard after the masks, not only the proof before them: here the surgery turns wrong in the middle."""
    import dtp_deploy.pipeline as pipeline

    right = pipeline.remove_channels

    def wrong(model: nn.Module, plan: dtp_deploy.PruningPlan) -> nn.Module:
        small = right(model, plan)
        with torch.no_grad():
            small.get_parameter("stem.1.bias").add_(0.5)
        return small

    monkeypatch.setattr(pipeline, "remove_channels", wrong)
    settings = Settings(epochs=1)
    with pytest.raises(dtp_deploy.errors.ParityError, match="Parity failed at 'masked to removed'"):
        compress(dense, data=data, budget=Budget("macs", 0.5, True), out=tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


def test_a_limit_above_the_dense_model_is_met_with_a_note(dense: nn.Module, data: Dataset, tmp_path: Path) -> None:
    budget = parse_budget("macs", "1000G")
    report = compress(dense, data=data, budget=budget, out=tmp_path / "out", settings=Settings(epochs=1))
    assert report.budget.met is True
    assert report.budget.requested == "1000G"
    assert any(note.startswith("The dense model meets --macs 1000G already") for note in report.notes)


def test_macs_are_those_of_one_sample(macs_run: Finished, dense: nn.Module, data: Dataset, tmp_path: Path) -> None:
    budget = parse_budget("macs", "30%")
    out = tmp_path / "out"
    report = compress(dense, data=data, budget=budget, out=out, input_shape=(4, 1, 8, 8), settings=Settings(epochs=1))
    assert report.dense.macs == macs_run.report.dense.macs
    assert report.budget.met is True
    shape = onnx.load(out / "model.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [4, 1, 8, 8]


@pytest.mark.parametrize("kind", ["params", "macs", "size"])
@pytest.mark.parametrize("adds", [True, False], ids=["adds", "removes"])
def test_what_finishing_adds_or_takes_counts(
    kind: str, adds: bool, dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    class Headed(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside
            self.extra = nn.Linear(10, 3000)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = self.inside(x)
            return scores + 0.0 * self.extra(scores).sum(1, keepdim=True)

    torch.manual_seed(0)
    given = dense if adds else Headed(dense)
    finish = (lambda model: Headed(model)) if adds else (lambda model: model.inside)
    budget = parse_budget(kind, "60%")  # type: ignore[arg-type]
    report = compress(given, data=data, budget=budget, out=tmp_path / "out", settings=Settings(epochs=1), finish=finish)
    assert report.budget.met is True
    assert report.budget.achieved is not None
    assert 0.97 * report.budget.limit <= report.budget.achieved <= report.budget.limit


def test_a_budget_that_rounding_forbids_is_refused_before_training(
    dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    settings = Settings(epochs=1, masks=dtp_deploy.MaskSettings(round_to=64))
    with pytest.raises(
        BudgetError, match=r"the narrowest widths that --round-to allows still cost .* or a smaller --round"
    ):
        compress(dense, data=data, budget=parse_budget("macs", "5%"), out=tmp_path / "out", settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_training_that_runs_away_is_named_as_such(dense: nn.Module, data: Dataset, tmp_path: Path) -> None:
    """By its loss or by the masks' gradients, whichever is the first to overflow."""
    settings = Settings(epochs=1, learning_rate=1e10)
    message = r"training broke down\. Lower --lr \(now 1e\+10\)\.|hold NaN or infinity at step \d+\. Lower --lr"
    with pytest.raises(TrainingError, match=message):
        compress(dense, data=data, budget=Budget("macs", 0.5, True), out=tmp_path / "out", settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_of_float32_is_refused(dense: nn.Module, data: Dataset, tmp_path: Path) -> None:
    half = parse_budget("macs", "50%")
    with pytest.raises(UsageError, match=r"compress\(\) got a str for its model\. Give the torch\.nn\.Module itself"):
        compress("model.pt", data=data, budget=half, out=tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"it has weights of float64 \('.*'\)\. Give model\.float"):
        compress(copy.deepcopy(dense).double(), data=data, budget=half, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_layers_that_share_a_weight_keep_their_channels(data: Dataset, tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 8, 3)
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.b.weight = self.a.weight
            self.wide = nn.Conv2d(8, 32, 3)
            self.head = nn.Linear(32 * 16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.b(self.a(self.first(x).relu()).relu()).relu()
            return self.head(self.wide(x).relu().flatten(1))

    torch.manual_seed(0)
    report = compress(
        Tied(), data=data, budget=parse_budget("macs", "60%"), out=tmp_path / "out", settings=Settings(epochs=1)
    )
    kept = {group.name: group.frozen_because for group in report.groups}
    assert kept["first"] == "Conv2d 'a' shares its weight with another layer"
    assert kept["wide"] is None
    assert report.budget.met is True


def test_a_target_that_is_missing_and_predicts_nothing_is_refused_before_training(
    dense: nn.Module, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtp_deploy.pipeline.find_prunable", None)  # not even the groups are looked for
    with pytest.raises(TargetError, match=r"^Target 'ssh' needs the name of a board: give --host user@board\.$"):
        compress(dense, data=data, budget=parse_budget("macs", "50%"), out=tmp_path / "out", target="ssh")
    assert list(tmp_path.iterdir()) == []


def test_parameters_that_are_frozen_stay_as_they_are(dense: nn.Module, data: Dataset, tmp_path: Path) -> None:
    model = copy.deepcopy(dense)
    model.register_parameter("version", nn.Parameter(torch.tensor([3]), requires_grad=False))
    model.head.bias.requires_grad_(False)
    report = compress(
        model, data=data, budget=parse_budget("macs", "50%"), out=tmp_path / "out", settings=Settings(epochs=1)
    )
    assert any(note.startswith("1 of ") and "require no gradient ('head.bias')" in note for note in report.notes)

    def factory() -> nn.Module:
        made = make_model()
        made.register_parameter("version", nn.Parameter(torch.tensor([0]), requires_grad=False))
        return made

    small = dtp_deploy.load_pruned(factory, tmp_path / "out")
    assert torch.equal(small.head.bias, model.head.bias)
    assert int(small.version) == 3
    plan = PruningPlan.from_json((tmp_path / "out" / "pruning_plan.json").read_text(encoding="utf-8"))
    untrained = remove_channels(model, plan)
    assert untrained.head.weight.shape == small.head.weight.shape
    assert float((untrained.head.weight - small.head.weight).detach().abs().mean()) > 1e-3


def test_targets_that_are_no_tensor_come_in_the_loaders_own_batches(tmp_path: Path) -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
            self.one, self.other = nn.Linear(128, 3), nn.Linear(128, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = self.body(x)
            return self.one(features), self.other(features)

    def loss(outputs: tuple[torch.Tensor, ...], targets: list[torch.Tensor]) -> torch.Tensor:
        return sum(map(nn.functional.cross_entropy, outputs, targets), torch.zeros(()))

    seen: list[int] = []

    def metric(outputs: tuple[torch.Tensor, ...], targets: list[torch.Tensor]) -> float:
        seen.append(len(targets[0]))
        assert [len(output) for output in outputs] == [len(target) for target in targets]
        return float((outputs[0].argmax(1) == targets[0]).double().mean())

    torch.manual_seed(0)
    batches = [(torch.randn(size, 1, 8, 8), [torch.randint(3, (size,)), torch.randint(2, (size,))]) for size in (6, 5)]
    data = LoaderData("mine", batches, batches)
    report = compress(
        TwoHeads(),
        data=data,
        task=Task("two heads", loss, metric),
        budget=parse_budget("macs", "60%"),
        out=tmp_path / "out",
        settings=Settings(epochs=2),
    )
    assert report.budget.met
    assert report.pruned.accuracy is not None
    assert set(seen) == {6, 5}
