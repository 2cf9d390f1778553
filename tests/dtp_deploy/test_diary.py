"""How the masks stand after each epoch, and that looking changes nothing."""

import dataclasses

import pytest
import torch
from torch import nn

from dtp_deploy.budget import Budget
from dtp_deploy.diary import MaskDiary
from dtp_deploy.findings import Findings
from dtp_deploy.loading import Dataset
from dtp_deploy.prune import WeightMasks, find_weights
from dtp_deploy.task import CLASSIFICATION, UNLABELLED, Task
from tests.dtp_deploy.prune.tiny import CLASSES, batch, network, put_on

STEPS = 7


@pytest.fixture(scope="module")
def data() -> Dataset:
    images, labels = batch(seed=5, size=700)
    return Dataset("noise", images.numpy(), labels.numpy(), images.numpy(), labels.numpy())


def trained(data: Dataset, task: Task | None, scope: str = "global", dropout: float = 0.2, batch_size: int = 200):
    """Seven steps of a mask phase, with a diary of epochs of three steps unless the task is None."""
    torch.manual_seed(1)
    model = nn.Sequential(network(), nn.Dropout(dropout))
    findings = Findings()
    budget = Budget("macs", 0.4, relative=True, scope=scope)  # type: ignore[arg-type]
    inner = model[0]
    assert isinstance(inner, nn.Sequential)
    masks = put_on(inner, budget, STEPS)
    diary = None if task is None else MaskDiary(findings, model, masks, data, task, 3, batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    model.train()
    for step in range(1, STEPS + 1):
        images, labels = batch(step)
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        masks.step()
        if diary is not None:
            diary.after_step(step)
    return model, masks, findings


def test_an_entry_is_written_at_the_start_after_each_epoch_and_at_the_end(data: Dataset) -> None:
    _, masks, findings = trained(data, CLASSIFICATION)
    entries = findings.mask_phase
    assert [entry["step"] for entry in entries] == [0, 3, 6, 7]
    assert [entry["epoch"] for entry in entries] == [0, 1, 2, 7 / 3]
    assert [entry["price"] is None for entry in entries] == [True, False, False, False]
    assert entries[0]["cost_share"] > 0.99
    assert entries[-1]["cost_share"] == pytest.approx(0.4)
    assert entries[-1]["widths"] == list(masks.learned_widths().values())
    assert entries[0]["widths"] == [16, 24, 20]
    assert entries[1]["undecided"] > entries[-1]["undecided"]
    assert 0 <= entries[-1]["entropy_bits"] < 0.05
    assert all(0 <= entry[name] <= 1 for entry in entries for name in ("accuracy_soft", "accuracy_hard"))


def test_looking_changes_nothing_in_the_training(data: Dataset) -> None:
    states = []
    for task in (None, CLASSIFICATION):
        model, masks, _ = trained(data, task)
        states.append((model.state_dict(), masks.scores.detach(), torch.get_rng_state(), model.training))
    (weights, scores, generator, mode), (weights_seen, scores_seen, generator_seen, mode_seen) = states
    assert all(torch.equal(weights[name], weights_seen[name]) for name in weights)
    assert torch.equal(scores, scores_seen)
    assert torch.equal(generator, generator_seen)
    assert mode == mode_seen


def test_single_weights_are_told_of_by_layer(data: Dataset) -> None:
    model, findings = network(), Findings()
    layers = find_weights(model, batch(size=1)[0])
    masks = WeightMasks(model, layers, Budget("params", 0.3, relative=True), steps=2)
    diary = MaskDiary(findings, model, masks, data, CLASSIFICATION, 3, 64)
    for step in (1, 2):
        masks.step()
        diary.after_step(step)
    first, last = findings.mask_phase
    assert first["widths"] == [layer.weights for layer in layers.maskable]
    assert sum(last["widths"]) == pytest.approx(masks.kept, abs=2)
    assert last["cost_share"] == pytest.approx(masks.kept / layers.count, abs=1e-6)
    assert (last["price"], last["undecided"]) == (None, pytest.approx(0, abs=0.02))
    assert first["accuracy_soft"] == first["accuracy_hard"]


@pytest.mark.parametrize(("batch_size", "batches"), [(200, [128] * 4), (100, [100] * 6)])
def test_soft_and_hard_accuracies_are_of_the_same_first_samples(
    data: Dataset, batch_size: int, batches: list[int]
) -> None:
    seen: list[int] = []

    def metric(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        seen.append(len(targets))
        assert outputs.shape[1] == CLASSES
        torch.rand(1)  # a metric that draws disturbs nothing
        return float(outputs.std())

    task = dataclasses.replace(CLASSIFICATION, metric=lambda o, t: min(metric(o, t), 1.0))
    _, _, findings = trained(data, task, batch_size=batch_size)
    assert seen == batches * 2 * 4  # 512 of the 700 samples or a few more, soft and hard, at four times
    first = findings.mask_phase[1]
    assert first["accuracy_soft"] != first["accuracy_hard"]


def test_the_soft_accuracy_is_of_the_masks_as_they_are_and_the_hard_one_of_those_rounded(data: Dataset) -> None:
    def metric(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return float(outputs.square().mean())

    model, findings = network().eval(), Findings()
    masks = put_on(model, Budget("macs", 0.4, relative=True), STEPS)
    diary = MaskDiary(findings, model, masks, data, dataclasses.replace(CLASSIFICATION, metric=metric), 3, 64)
    for step in (1, 2, 3):
        masks.step()
        diary.after_step(step)
    images, labels = (torch.from_numpy(part[:512]) for part in (data.x_val, data.y_val))
    with torch.no_grad():
        soft = metric(model(images), labels)
        masks._padded[:-1] = (masks.result.masks >= 0.5).float()
        hard = metric(model(images), labels)
    assert soft != pytest.approx(hard, rel=0.01)
    entry = findings.mask_phase[-1]
    assert (entry["accuracy_soft"], entry["accuracy_hard"]) == (pytest.approx(soft), pytest.approx(hard))


def test_the_price_of_an_epoch_is_the_mean_over_its_own_steps(data: Dataset) -> None:
    model, findings, prices = network(), Findings(), []
    masks = put_on(model, Budget("macs", 0.4, relative=True), STEPS)
    diary = MaskDiary(findings, model, masks, data, CLASSIFICATION, 3, 64)
    for step in range(1, STEPS):
        images, labels = batch(step)
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        masks.step()
        prices.append(masks.price)
        diary.after_step(step)
    first, second = prices[:3], prices[3:]
    assert len({round(price, 9) for price in prices}) == STEPS - 1
    assert [entry["price"] for entry in findings.mask_phase[1:]] == pytest.approx([sum(first) / 3, sum(second) / 3])


def test_without_labels_and_with_a_budget_a_layer_some_things_are_not_known(data: Dataset) -> None:
    _, _, findings = trained(data, UNLABELLED, scope="per-layer")
    assert {entry["accuracy_soft"] for entry in findings.mask_phase} == {None}
    assert {entry["accuracy_hard"] for entry in findings.mask_phase} == {None}
    assert {entry["price"] for entry in findings.mask_phase} == {None}
