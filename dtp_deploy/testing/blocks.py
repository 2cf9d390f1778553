"""The building blocks of the model zoo: each one coupling of channels that pruning must get right."""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and BatchNorm, (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two convolutions beside a skip connection, which has a convolution of its own where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(inputs, outputs, stride=stride), conv_bn(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.downsample = nn.Identity() if same else conv_bn(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped if groups > 1), 1x1, beside a skip connection."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.reduce = conv_bn(inputs, middle, kernel=1)
        self.conv = conv_bn(middle, middle, stride=stride, groups=groups)
        self.expand = conv_bn(middle, outputs, kernel=1)
        same = inputs == outputs and stride == 1
        self.downsample = nn.Identity() if same else conv_bn(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(F.relu(self.conv(F.relu(self.reduce(x))))) + self.downsample(x))


class InvertedResidual(nn.Module):
    """1x1 up, depthwise 3x3, 1x1 down without activation, beside a skip connection where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, expansion: int = 2) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = conv_bn(inputs, hidden, kernel=1)
        self.depthwise = conv_bn(hidden, hidden, stride=stride, groups=hidden)
        self.project = conv_bn(hidden, outputs, kernel=1)
        self.skip = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + y if self.skip else y


class DenseLayer(nn.Module):
    """BatchNorm before the convolution, and the input kept beside its output: (N, C, H, W) -> (N, C + growth, H, W)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], dim=1)


class C2f(nn.Module):
    """One convolution split in two, a residual branch on the second half, all of them concatenated (YOLOv8's block)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.entry, self.exit = conv_bn(inputs, outputs, kernel=1), conv_bn(3 * half, outputs, kernel=1)
        self.conv1, self.conv2 = conv_bn(half, half), conv_bn(half, half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.silu(self.entry(x)).chunk(2, dim=1)
        branch = right + F.silu(self.conv2(F.silu(self.conv1(right))))
        return F.silu(self.exit(torch.cat([left, right, branch], dim=1)))


class SPPF(nn.Module):
    """The same max pooling three times in a row, every stage concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.entry, self.exit = conv_bn(channels, channels // 2, kernel=1), conv_bn(2 * channels, channels, kernel=1)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        stages = [F.silu(self.entry(x))]
        for _ in range(3):
            stages.append(self.pool(stages[-1]))
        return F.silu(self.exit(torch.cat(stages, dim=1)))


class SqueezeExcite(nn.Module):
    """Each channel multiplied by a gate that is computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, each after a LayerNorm and beside a skip connection, (N, tokens, width)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        joined: Tensor = self.project(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return joined

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        y: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + y


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then LayerNorm and an MLP with the channels last, scaled per channel, beside a skip connection."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.layer_scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.fc2(F.gelu(self.fc1(y))) * self.layer_scale
        return x + y.permute(0, 3, 1, 2)
