"""The methods that the benchmark of accuracy compares: each does what its name says, in as many steps as the others."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks import pruners
from benchmarks.pruners import METHODS, STRENGTHS, Job, prune
from dtp_deploy import ChannelMasks, find_groups, prove
from dtp_deploy.loading import Dataset
from dtp_deploy.task import CLASSIFICATION
from dtp_deploy.train import Settings, Trainer

STEPS = 12
CONVOLUTIONS = ("0.weight", "3.weight")


@pytest.fixture(scope="module")
def job(data: Dataset) -> Job:
    """Twelve steps for a network of two convolutions."""
    torch.manual_seed(0)
    few = replace(
        data, x_train=data.x_train[:96], y_train=data.y_train[:96], x_val=data.x_val[:50], y_val=data.y_val[:50]
    )
    base = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    ).eval()
    groups = prove(base, find_groups(base, torch.zeros(1, 1, 8, 8)))
    return Job(base, groups, few, 0.3, Settings(epochs=4, batch_size=32))


@pytest.fixture
def steps() -> Iterator[list[torch.optim.Optimizer]]:
    """The optimiser of every step that is made."""
    made: list[torch.optim.Optimizer] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: made.append(optimizer))
    yield made
    hook.remove()


def trainer_of(job: Job) -> Trainer:
    teacher = copy.deepcopy(job.base).requires_grad_(False)
    return Trainer(job.data.train(32, 0, "none"), CLASSIFICATION, job.settings, teacher)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("method", ["dtp", "random", "l2-uniform", "l2-global", "bn-scale", *STRENGTHS])
def test_every_method_makes_the_same_number_of_steps(method: str, job: Job, steps: list[Any]) -> None:
    prune(method, job)
    assert len(steps) == STEPS


@pytest.mark.parametrize("method", ["random", "l2-uniform", "l2-global", "bn-scale"])
def test_what_is_removed_by_norms_is_fine_tuned_after(method: str, job: Job) -> None:
    removed = weights(METHODS[method](job, trainer_of(job)))
    tuned = weights(prune(method, job).model)
    assert {name: weight.shape for name, weight in tuned.items()} == {
        name: weight.shape for name, weight in removed.items()
    }
    assert not any(torch.equal(weight, removed[name]) for name, weight in tuned.items())


@pytest.mark.parametrize("method", STRENGTHS)
def test_a_regulariser_shrinks_the_weights_the_more_the_stronger_it_is(method: str, job: Job) -> None:
    """Of a budget of everything, so that nothing is removed and weights can be compared."""

    def learned(strength: float | None) -> dict[str, Tensor]:
        return weights(METHODS[method](replace(job, share=1.0, strength=strength), trainer_of(job)))

    plain = copy.deepcopy(job.base).requires_grad_(True)
    trainer_of(job).run(plain, round(0.4 * STEPS))
    without = learned(0.0)
    for name, weight in weights(plain).items():
        torch.testing.assert_close(without[name], weight, rtol=0, atol=1e-5)
    usual, strong = learned(None), learned(1.0)
    for name in CONVOLUTIONS:
        assert float(strong[name].norm()) < 0.9 * float(usual[name].norm())
        assert float(usual[name].norm()) < (1 - 1e-4) * float(without[name].norm())


def test_the_masks_of_dtp_learn_in_every_step_and_are_hard_when_channels_go(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Watched(ChannelMasks):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.at_first = self.scores.detach().clone()
            made.append(self)

    monkeypatch.setattr(pruners, "ChannelMasks", Watched)
    prune("dtp", job)
    (masks,) = made
    assert masks.progress == 1
    assert masks.undecided < 0.1
    assert not torch.equal(masks.scores.detach(), masks.at_first)
