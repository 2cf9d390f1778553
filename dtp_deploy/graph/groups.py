"""The data types of coupled channels: a group is a set of units, a unit is what is removed as one.

A unit is usually one channel, followed through every tensor that knows it: the filter that writes it, the BatchNorm
entries that scale it, the residual branches that are added to it, and the input slices of the layers that read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dtp_deploy.modules import Inputs

Role = Literal["writer", "through", "reader"]


@dataclass(frozen=True)
class TensorSlice:
    """One dimension of one parameter or buffer that a group runs through.

    Attributes:
        tensor: dotted name in the model's state, for example "layer1.0.conv1.weight".
        dim: the dimension.
        unit_of_index: for every index of that dimension the unit it belongs to, or -1 for "not of this group".
        role: "writer" produces the channels, "through" passes them on one by one (BatchNorm, depthwise convolution),
            "reader" sums over them. Masks lie on readers.
    """

    tensor: str
    dim: int
    unit_of_index: tuple[int, ...]
    role: Role


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together, unit by unit.

    Attributes:
        name: the layer that writes the channels first.
        units: how many units there are.
        channels_per_unit: channels of that layer a unit stands for: 1, or more where a grouped convolution or a split
            into equal parts couples them.
        slices: every tensor dimension that the units run through.
        frozen_because: why no unit may be removed; None for a group that may be pruned.
    """

    name: str
    units: int
    channels_per_unit: int
    slices: tuple[TensorSlice, ...]
    frozen_because: str | None = None

    @property
    def width(self) -> int:
        """Number of channels."""
        return self.units * self.channels_per_unit

    def lies_in(self, modules: Iterable[str]) -> bool:
        """Whether all of its layers are in these modules; of a group without tensors nobody can say so."""
        names = list(modules)
        return bool(self.slices) and all(is_inside(piece.tensor, names) for piece in self.slices)

    @property
    def readers(self) -> tuple[TensorSlice, ...]:
        """The slices on which masks lie."""
        return tuple(piece for piece in self.slices if piece.role == "reader")


@dataclass(frozen=True)
class ResidualBlock:
    """A branch f of y = x + f(x), which can be removed as a whole: y = x is left.

    Attributes:
        name: of the module around it.
        modules: those that the branch consists of, as far as they hold tensors, in the order of the graph; the output
            of the last one is f(x).
        kept_because: why it may not be removed; None for a block that may.
    """

    name: str
    modules: tuple[str, ...]
    kept_because: str | None = None

    def holds(self, name: str) -> bool:
        """Whether a tensor or a module of that name is in the branch.

        >>> ResidualBlock("layer1.0", ("layer1.0.conv1", "layer1.0.bn1")).holds("layer1.0.conv1.weight")
        True
        """
        return is_inside(name, self.modules)

    def has_inside(self, group: ChannelGroup) -> bool:
        """Whether all layers of a group are in the branch, so that the group goes with it."""
        return group.lies_in(self.modules)


def is_inside(name: str, modules: Iterable[str]) -> bool:
    """Whether a dotted name is one of these modules, or something in one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def modules_of(blocks: Iterable[ResidualBlock]) -> list[str]:
    """The modules of several blocks."""
    return [module for block in blocks for module in block.modules]


@dataclass(frozen=True)
class Groups:
    """All channel groups of a model, prunable and frozen, in the order of the layers.

    Attributes:
        all: the groups.
        inputs: the example inputs that they were found with, each batch first. MACs are counted for their shapes.
        blocks: residual blocks, where removing them was asked for (`find_blocks`).
    """

    all: tuple[ChannelGroup, ...]
    inputs: Inputs
    blocks: tuple[ResidualBlock, ...] = ()

    @property
    def removable(self) -> tuple[ResidualBlock, ...]:
        """The residual blocks that may be removed as a whole."""
        return tuple(block for block in self.blocks if block.kept_because is None)

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups that may be pruned."""
        return tuple(group for group in self.all if group.frozen_because is None)

    @property
    def frozen(self) -> tuple[ChannelGroup, ...]:
        """The groups that may not, each with its reason."""
        return tuple(group for group in self.all if group.frozen_because is not None)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)


def tensor_by_name(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its dotted name."""
    path, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), leaf)
    assert isinstance(tensor, Tensor), name
    return tensor


def set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer, keeping which of the two it is."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    if isinstance(old, nn.Parameter):
        setattr(module, leaf, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        setattr(module, leaf, value)


def index_tensor(piece: TensorSlice, device: torch.device | None = None) -> Tensor:
    """`unit_of_index` as an int64 tensor, shape [size of the dimension,]."""
    return torch.tensor(piece.unit_of_index, dtype=torch.int64, device=device)
