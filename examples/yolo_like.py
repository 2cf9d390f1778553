"""A detector built like a small YOLO, for 3x64x64 images, with the hooks that prune it (see docs/models.md).

Like the networks that people bring, it has two states besides the one that it is trained in: *fused*, with BatchNorm
folded into the convolutions, and *export*, in which the three heads' maps become one tensor of boxes. A pickled
detector usually comes in both. `prepare` takes it back to where it can be pruned and trained; `finish` returns it to
what is deployed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDES = (8, 16, 32)
"""Pixels from one cell to the next in the map of each head."""


class ConvBlock(nn.Module):
    """Convolution, BatchNorm and SiLU; `fuse` folds the BatchNorm into the convolution, `unfuse` undoes it.

    (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the BatchNorm's running statistics into weight and bias; the same output in evaluation mode."""
        if not isinstance(self.norm, nn.BatchNorm2d):
            return
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.conv.weight.mul_(scale[:, None, None, None])
        self.conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
        self.norm = nn.Identity()

    @torch.no_grad()
    def unfuse(self) -> None:
        """Give the convolution a BatchNorm again, one that changes nothing until it is trained."""
        if isinstance(self.norm, nn.BatchNorm2d):
            return
        assert self.conv.bias is not None
        norm = nn.BatchNorm2d(self.conv.out_channels)
        norm.weight.fill_((1 + norm.eps) ** 0.5)  # its running variance is 1, to which it adds eps
        norm.bias.copy_(self.conv.bias)
        self.norm, self.conv.bias = norm.train(self.training), None


class Bottleneck(nn.Module):
    """Two 3x3 convolutions beside a skip connection, (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvBlock(channels, channels, 3), ConvBlock(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(self.conv1(x))
        return out


class C2f(nn.Module):
    """One convolution split in two, bottlenecks on the second half, every stage concatenated."""

    def __init__(self, inputs: int, outputs: int, depth: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.entry = ConvBlock(inputs, outputs)
        self.stages = nn.ModuleList(Bottleneck(half) for _ in range(depth))
        self.exit = ConvBlock((2 + depth) * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.entry(x).chunk(2, dim=1))
        for stage in self.stages:
            parts.append(stage(parts[-1]))
        out: Tensor = self.exit(torch.cat(parts, dim=1))
        return out


class SPPF(nn.Module):
    """The same max pooling three times in a row, every stage concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.entry, self.exit = ConvBlock(channels, channels // 2), ConvBlock(2 * channels, channels)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        stages = [self.entry(x)]
        for _ in range(3):
            stages.append(self.pool(stages[-1]))
        out: Tensor = self.exit(torch.cat(stages, dim=1))
        return out


class Head(nn.Module):
    """Boxes and classes for each cell of one map, (N, C, H, W) -> (N, 4 + classes, H, W)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.boxes = nn.Sequential(ConvBlock(channels, channels, 3), nn.Conv2d(channels, 4, 1))
        self.classes = nn.Sequential(ConvBlock(channels, channels, 3), nn.Conv2d(channels, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.boxes(x), self.classes(x)], dim=1)


class YoloLike(nn.Module):
    """Backbone, a neck that goes up and down again, and a head for each of three strides.

    Args:
        classes: kinds of objects.
        width: channels of the first convolution; the others are multiples of it.

    Attributes:
        export: False gives the three maps, (N, 4 + classes, H / stride, W / stride) each; True one tensor of boxes,
            (N, 4 + classes, cells): centre, width and height in pixels, then a probability for each class.
    """

    def __init__(self, classes: int = 3, width: int = 16) -> None:
        super().__init__()
        w = width
        self.export = False
        self.stem = nn.Sequential(ConvBlock(3, w, 3, 2), ConvBlock(w, 2 * w, 3, 2), C2f(2 * w, 2 * w))  # stride 4
        self.down3 = nn.Sequential(ConvBlock(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w))  # 8
        self.down4 = nn.Sequential(ConvBlock(4 * w, 6 * w, 3, 2), C2f(6 * w, 6 * w))  # 16
        self.down5 = nn.Sequential(ConvBlock(6 * w, 8 * w, 3, 2), SPPF(8 * w))  # 32
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.up4, self.up3 = C2f(8 * w + 6 * w, 4 * w), C2f(4 * w + 4 * w, 4 * w)
        self.shrink4, self.shrink5 = ConvBlock(4 * w, 4 * w, 3, 2), ConvBlock(4 * w, 4 * w, 3, 2)
        self.out4, self.out5 = C2f(4 * w + 4 * w, 4 * w), C2f(4 * w + 8 * w, 4 * w)
        self.heads = nn.ModuleList(Head(4 * w, classes) for _ in STRIDES)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """(N, 3, H, W), H and W multiples of 32; see `export` for what comes out."""
        map3 = self.down3(self.stem(x))
        map4 = self.down4(map3)
        map5 = self.down5(map4)
        neck4 = self.up4(torch.cat([self.upsample(map5), map4], dim=1))
        out3 = self.up3(torch.cat([self.upsample(neck4), map3], dim=1))
        out4 = self.out4(torch.cat([self.shrink4(out3), neck4], dim=1))
        out5 = self.out5(torch.cat([self.shrink5(out4), map5], dim=1))
        maps = [head(out) for head, out in zip(self.heads, (out3, out4, out5), strict=True)]
        if not self.export:
            return maps
        return torch.cat([_decode(each, stride) for each, stride in zip(maps, STRIDES, strict=True)], dim=2)

    def set_fused(self, fused: bool) -> None:
        """Fold every BatchNorm into its convolution, or give every convolution one again."""
        for module in self.modules():
            if isinstance(module, ConvBlock):
                module.fuse() if fused else module.unfuse()


def _decode(values: Tensor, stride: int) -> Tensor:
    """The map of one head as boxes in pixels, (N, 4 + classes, H, W) -> (N, 4 + classes, H W)."""
    height, width = values.shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=values.dtype, device=values.device),
        torch.arange(width, dtype=values.dtype, device=values.device),
        indexing="ij",
    )
    cells = torch.stack([columns, rows])
    centres = (cells + values[:, :2].sigmoid()) * stride
    sizes = (2 * values[:, 2:4].sigmoid()).square() * (2 * stride)
    return torch.cat([centres, sizes, values[:, 4:].sigmoid()], dim=1).flatten(2)


def make_model() -> YoloLike:
    """The detector as it is trained: not fused, three maps out. Three classes, 0.7 million parameters.

    >>> [tuple(each.shape) for each in make_model().eval()(torch.zeros(1, 3, 64, 64))]
    [(1, 7, 8, 8), (1, 7, 4, 4), (1, 7, 2, 2)]
    """
    return YoloLike()


def prepare(model: YoloLike) -> YoloLike:
    """For ``--prepare``: out of the export and fused states, in which a detector is often pickled."""
    model.export = False
    model.set_fused(False)
    return model


def finish(model: YoloLike) -> YoloLike:
    """For ``--finish``: into the states in which it is deployed, one tensor of boxes out.

    >>> finish(make_model().eval())(torch.zeros(1, 3, 64, 64)).shape  # 8 x 8 + 4 x 4 + 2 x 2 cells
    torch.Size([1, 7, 84])
    """
    model.set_fused(True)
    model.export = True
    return model
