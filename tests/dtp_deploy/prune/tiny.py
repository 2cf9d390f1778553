"""A network of three groups and 60 units, and a loop that is not ours, for the tests of the masks."""

import torch
from torch import Tensor, nn

from dtp_deploy.budget import Budget
from dtp_deploy.graph import Groups, find_groups
from dtp_deploy.prune import ChannelMasks, MaskSettings, prove
from dtp_deploy.testing.zoo import randomise

UNITS = (16, 24, 20)
CLASSES = 5


def network(seed: int = 0) -> nn.Sequential:
    """Convolutions of 16, 24 and 20 channels and a head, for (N, 1, 6, 6)."""
    first, second, third = UNITS
    model = nn.Sequential(
        nn.Conv2d(1, first, 3, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.Conv2d(second, third, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * third, CLASSES),
    )
    randomise(model, seed)
    return model


def batch(seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 1, 6, 6, generator=generator)
    return images, torch.randint(CLASSES, (size,), generator=generator)


def groups_of(model: nn.Module) -> Groups:
    """The proven groups."""
    return prove(model, find_groups(model, batch(size=1)[0]))


def put_on(model: nn.Module, budget: Budget, steps: int, **settings: object) -> ChannelMasks:
    """Masks on the model."""
    return ChannelMasks(model, groups_of(model), budget, steps=steps, settings=MaskSettings(**settings))


def train(model: nn.Module, masks: ChannelMasks, steps: int, after_step=lambda: None) -> torch.optim.Optimizer:
    """A loop by hand, a new random batch each step; leaves the model in training mode."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    model.train()
    for step in range(steps):
        images, labels = batch(step)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.step()
        after_step()
    return optimizer
