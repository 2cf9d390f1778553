"""A mask in front of a parameter, and the parameter put back as it was, in its old place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class MaskedWeight(nn.Module):
    """What computes a weight from itself and a mask: a model that has one is masked already."""


@dataclass(frozen=True)
class Parametrised:
    """A parameter that a module computes from itself, until `take_off`.

    Attributes:
        module: the layer.
        leaf: the parameter's name in it.
        order: the names of its parameters as they were.
    """

    module: nn.Module
    leaf: str
    order: tuple[str, ...]

    @staticmethod
    def put_on(module: nn.Module, leaf: str, mask: nn.Module) -> Parametrised:
        """Let the parameter be what `mask` makes of it; its shape and type stay."""
        order = tuple(module._parameters)
        parametrize.register_parametrization(module, leaf, mask, unsafe=True)
        return Parametrised(module, leaf, order)

    def take_off(self) -> None:
        """Leave the parameter as the mask makes it now."""
        parametrize.remove_parametrizations(self.module, self.leaf, leave_parametrized=True)
        for name in self.order:  # the parameter came back as the last one: give them their old places
            self.module.register_parameter(name, self.module._parameters.pop(name))


@contextmanager
def rounded(masks: Sequence[Tensor]) -> Iterator[None]:
    """Within the context, masks of 0.5 or more are 1, and the others 0."""
    soft = [mask.detach().clone() for mask in masks]
    with torch.no_grad():
        for mask in masks:
            mask.copy_((mask >= 0.5).to(mask))
    try:
        yield
    finally:
        with torch.no_grad():
            for mask, before in zip(masks, soft, strict=True):
                mask.copy_(before)
