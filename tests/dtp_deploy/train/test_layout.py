"""Channels last in memory: the same training, the model as it was afterwards, and models that cannot take it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.loading import Dataset
from dtp_deploy.task import CLASSIFICATION
from dtp_deploy.train import Settings, Trainer
from dtp_deploy.train.layout import channels_last, gains_from_channels_last, laid_out

SETTINGS = Settings(epochs=2, batch_size=8)


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 3, 6, 6)).astype(np.float32)
    return Dataset("noise", x, rng.integers(0, 3, 32), x[:8], rng.integers(0, 3, 8))


def make(flatten: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Dropout(0.0),
        flatten if flatten is not None else nn.Flatten(),
        nn.Linear(16, 3),
    )


class Views(nn.Module):
    """Flattens as many networks do, which only contiguous tensors allow."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


class Watcher(nn.Module):
    """Remembers how its inputs lay in memory in the last pass."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.last = inside, False

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.is_contiguous(memory_format=torch.channels_last)
        return self.inside(x)


def trained(model: nn.Module, data: Dataset, after_step: Callable[[], None] = lambda: None) -> Trainer:
    trainer = Trainer(data.train(8, seed=0), CLASSIFICATION, SETTINGS, None)
    trainer.run(model, trainer.total_steps, after_step)
    return trainer


def test_training_is_the_same_and_leaves_the_model_contiguous(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, plain = Watcher(make()), make()
    lying: list[bool] = []
    filters = next(watched.parameters())
    trained(
        watched, data, lambda: lying.append(watched.last and filters.is_contiguous(memory_format=torch.channels_last))
    )
    assert lying == [True] * 8
    assert all(parameter.is_contiguous() for parameter in watched.parameters())
    assert next(watched.parameters()) is filters
    monkeypatch.setattr("dtp_deploy.train.loop.gains_from_channels_last", lambda model, inputs: False)
    trained(plain, data)
    for a, b in zip(watched.inside.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_model_that_needs_contiguous_tensors_trains_as_it_is(data: Dataset) -> None:
    expected, model = make(), Watcher(make(Views()))
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        make(Views())(torch.rand(2, 3, 6, 6).contiguous(memory_format=torch.channels_last))
    lying: list[bool] = []
    trained(model, data, lambda: lying.append(model.last))
    assert lying == [False] * 8
    trained(expected, data)
    for a, b in zip(expected.state_dict().values(), model.inside.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_trying_the_layout_leaves_no_trace(data: Dataset) -> None:
    """Not in the running statistics, the gradients, the data or the random numbers."""
    model, states = make(), []
    batches = iter(data.train(8, seed=0))
    (x,), _ = next(batches)
    expected = 0.9 * torch.zeros(4) + 0.1 * model[0](x).mean((0, 2, 3)).detach()
    generator = torch.get_rng_state()
    trainer = Trainer(data.train(8, seed=0), CLASSIFICATION, SETTINGS, None)
    trainer.run(model, 1, lambda: states.append(model[1].running_mean.clone()))
    torch.testing.assert_close(states[0], expected)
    assert torch.equal(torch.get_rng_state(), generator), "its dropout draws nothing, at 0"
    assert trainer.stream.state()["position"] == 1


def test_parameters_stay_the_same_objects_with_the_same_values() -> None:
    model = make()
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    with channels_last(model):
        assert model[0].weight.stride()[1] == 1
        assert all(torch.equal(parameter, before[name][1]) for name, parameter in model.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert parameter.is_contiguous()


def test_only_convolutions_over_images_gain() -> None:
    image, series = torch.zeros(1, 3, 6, 6), torch.zeros(1, 3, 6)
    assert gains_from_channels_last(make(), (image,))
    assert not gains_from_channels_last(nn.Linear(6, 2), (image,))
    assert not gains_from_channels_last(nn.Conv1d(3, 4, 3), (series,))


@pytest.mark.parametrize(
    ("read", "stride", "kernel", "gains"), [(5, 2, 1, False), (8, 2, 1, True), (5, 1, 1, True), (5, 2, 3, True)]
)
def test_strided_1x1_convolutions_of_few_channels_stay_channels_first(
    read: int, stride: int, kernel: int, gains: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(3, read, 3), nn.Conv2d(read, 10, kernel, stride))
    assert gains_from_channels_last(model, (torch.zeros(1, 3, 8, 8),)) is gains


def test_images_of_one_channel_are_laid_out_by_their_strides() -> None:
    """Augmented images have such strides: both orders call them contiguous, and a convolution takes them as last."""
    images = torch.zeros(2, 5, 5, 1).permute(0, 3, 1, 2)
    assert images.is_contiguous()
    (first,) = laid_out((images,), torch.contiguous_format)
    assert first.stride() == (25, 25, 5, 1)
    (last,) = laid_out((first,), torch.channels_last)
    assert last.stride() == (25, 1, 5, 1)
    assert laid_out((last,), torch.channels_last)[0] is last


def test_a_narrow_network_with_strided_shortcuts_survives_augmented_images(data: Dataset) -> None:
    """Channels last, its gradient overran oneDNN's buffers, and the process died sooner or later."""
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 10, 1, 2), nn.Flatten(), nn.Linear(90, 3))
    watcher = Watcher(model[2])
    model[2] = watcher
    trainer = Trainer(data.train(8, 0, "shift"), CLASSIFICATION, SETTINGS, None)
    trainer.run(model, trainer.total_steps)
    assert not watcher.last
