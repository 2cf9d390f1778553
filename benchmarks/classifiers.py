"""The classifiers that `benchmarks.accuracy` prunes, and their training: base models, cached in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dtp_deploy.loading import Dataset
from dtp_deploy.testing.blocks import InvertedResidual, conv_bn
from examples.resnet import ResNet

_CHUNK = 1000


def resnet20(channels: int, classes: int, stem_stride: int) -> nn.Module:
    """Three stages of three basic blocks, 16, 32 and 64 wide (He et al., 2016, section 4.2)."""
    return ResNet((16, 32, 64), 3, stem_stride, channels, classes)


def resnet56(channels: int, classes: int, stem_stride: int) -> nn.Module:
    """The same with nine blocks a stage."""
    return ResNet((16, 32, 64), 9, stem_stride, channels, classes)


class _Plain(nn.Module):
    """Features, the mean over all positions, a linear head."""

    def __init__(self, features: list[nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(*features), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def mobilenetv2(channels: int, classes: int, stem_stride: int) -> nn.Module:
    """Inverted residuals of MobileNetV2 (Sandler et al., 2018) at width 0.5, with the strides of small images.

    The table's last rows (160 and 320 wide) are left out, since nothing of an image of 28 pixels is left for them.
    """
    blocks: list[nn.Module] = [conv_bn(channels, 16, 3, stem_stride), nn.ReLU6()]
    width = 16
    for expansion, out, count, stride in ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1)):
        for number in range(count):
            blocks.append(InvertedResidual(width, out, 1 if number else stride, expansion))
            width = out
    return _Plain([*blocks, conv_bn(width, 320, 1), nn.ReLU6()], 320, classes)


def vgg(channels: int, classes: int, stem_stride: int) -> nn.Module:
    """VGG-11 (Simonyan and Zisserman, 2015) with BatchNorm, at half of its widths, and one linear layer."""
    layers: list[nn.Module] = []
    width, stride = channels, stem_stride
    for item in (32, "M", 64, "M", 128, 128, "M", 256, 256, "M", 256, 256):
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        else:
            layers += [conv_bn(width, item, 3, stride), nn.ReLU()]
            width, stride = item, 1
    return _Plain(layers, width, classes)


CLASSIFIERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "resnet20": resnet20,
    "resnet56": resnet56,
    "mobilenetv2": mobilenetv2,
    "vgg": vgg,
}


def make(name: str, data: Dataset, stem_stride: int) -> nn.Module:
    """A classifier for the data, with fresh weights."""
    return CLASSIFIERS[name](data.sample_shape[0], data.num_classes, stem_stride)


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset) -> float:
    """Top-1 on the validation part, a fraction."""
    model.eval()
    right = 0
    for start in range(0, len(data.x_val), _CHUNK):
        x, y = data.x_val[start : start + _CHUNK], data.y_val[start : start + _CHUNK]
        right += int((model(torch.from_numpy(x)).argmax(1) == torch.from_numpy(y)).sum())
    return right / len(data.y_val)


def train(model: nn.Module, data: Dataset, epochs: int, seed: int, augment: str, rate: float = 0.1) -> nn.Module:
    """From scratch: SGD with Nesterov momentum, a linear warm-up of a tenth, then a cosine to zero."""
    torch.manual_seed(seed)
    model = model.to(memory_format=torch.channels_last).train()
    stream = data.train(128, seed, augment)
    total = epochs * len(stream)
    optimizer = torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=total, pct_start=0.1, cycle_momentum=False, div_factor=100, final_div_factor=1e4
    )
    for _ in range(epochs):
        for (x,), y in stream:
            loss = cross_entropy(model(x.to(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()


def base_model(
    name: str, data: Dataset, stem_stride: int, epochs: int, augment: str, cache: Path, seed: int = 0
) -> nn.Module:
    """The trained model that all methods start from; trained now unless it is in the cache."""
    torch.manual_seed(seed)
    model = make(name, data, stem_stride)
    which = f"{name}-stride{stem_stride}-{augment}-{epochs}-{len(data.y_train)}" + (f"-seed{seed}" if seed else "")
    path = cache / f"{Path(data.name).stem}-{which}.pt"
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    model = train(model, data, epochs, seed, augment)
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(model.state_dict(), partial)
    partial.replace(path)
    return model
