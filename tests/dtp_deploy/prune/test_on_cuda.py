"""Masks and training on a CUDA device: the same budget, the same kind of plan, a whole run."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import dtp_deploy
from dtp_deploy.budget import Budget, parse_budget
from dtp_deploy.cost import count_macs, count_parameters
from dtp_deploy.loading import Dataset
from dtp_deploy.prune import ChannelMasks, WeightMasks, find_weights, remove_channels
from dtp_deploy.prune.proof import outputs_of, relative_difference
from dtp_deploy.task import Task
from dtp_deploy.train import Settings, Trainer
from tests.dtp_deploy.prune.tiny import CLASSES, batch, groups_of, network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
STEPS = 20


def learn(model: nn.Module, masks: ChannelMasks | WeightMasks) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    model.train()
    for step in range(STEPS):
        images, labels = (tensor.cuda() for tensor in batch(step))
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        masks.step()
    model.eval()


@pytest.mark.parametrize("scope", ["global", "per-layer"])
@pytest.mark.parametrize("kind", ["macs", "channels"])
def test_channels(kind: str, scope: str) -> None:
    model = network()
    groups = groups_of(model)
    budget = Budget(kind, 0.4, relative=True, scope=scope)  # type: ignore[arg-type]
    model.cuda()
    images = batch()[0].cuda()
    before = count_macs(model, images[:1])
    masks = ChannelMasks(model, groups, budget, steps=STEPS)
    learn(model, masks)
    small = remove_channels(model, masks.harden())
    assert {parameter.device.type for parameter in small.parameters()} == {"cuda"}
    assert relative_difference(outputs_of(model, (images,)), outputs_of(small, (images,))) < 1e-4
    assert kind != "macs" or count_macs(small, images[:1]) <= 0.4 * before


@pytest.mark.parametrize(
    ("granularity", "budget", "kept"),
    [
        ("weights", parse_budget("params", "30%"), 0.3),
        ("weights", parse_budget("params", "30%", "per-layer"), 0.3),
        ("2:4", None, None),
    ],
)
def test_weights(granularity: str, budget: Budget | None, kept: float | None) -> None:
    model = network()
    layers = find_weights(model, batch(size=1)[0], granularity)  # type: ignore[arg-type]
    model.cuda()
    masks = WeightMasks(model, layers, budget, steps=STEPS)
    learn(model, masks)
    masks.harden()
    zeros = sum(int((layer.weight_of(model) == 0).sum()) for layer in layers.maskable)
    if kept is None:
        assert zeros == sum(layer.weights for layer in layers.maskable) // 2
    else:
        assert count_parameters(model) - zeros <= kept * count_parameters(model)


def noise(size: int) -> Dataset:
    images, labels = (tensor.numpy() for tensor in batch(size=size))
    return Dataset("noise", images, labels, images, labels)


def test_a_loss_that_autocast_forbids() -> None:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        wanted = nn.functional.one_hot(targets, CLASSES).float()
        return nn.functional.binary_cross_entropy(outputs.sigmoid(), wanted)

    model = network().cuda()
    trainer = Trainer(noise(64).train(16, seed=0), Task("bce", loss, None), Settings(epochs=1, batch_size=16), None)
    trainer.run(model, trainer.total_steps)


def test_dropout_goes_on_where_it_was() -> None:
    first = nn.Sequential(network(), nn.Dropout(0.5)).cuda()
    stream, task = noise(64).train(16, seed=0), Task("ce", nn.functional.cross_entropy, None)
    torch.manual_seed(0)
    whole = Trainer(stream, task, Settings(epochs=2, batch_size=16), None)
    whole.run(first, 4)
    state, second = copy.deepcopy(whole.state()), copy.deepcopy(first)
    drawn = torch.rand(3, device="cuda")
    torch.rand(7, device="cuda")
    again = Trainer(noise(64).train(16, seed=0), task, Settings(epochs=2, batch_size=16), None)
    again.load_state(state)
    again.run(second, 4)  # nothing is left to do: only the generator is put back
    assert torch.equal(torch.rand(3, device="cuda"), drawn)


def test_a_whole_run_of_a_model_that_lies_on_the_device(tmp_path: Path) -> None:
    report = dtp_deploy.compress(
        network().cuda(),
        data=noise(64),
        budget=parse_budget("macs", "50%"),
        out=tmp_path / "out",
        settings=Settings(epochs=2, batch_size=16),
    )
    assert report.budget.met
