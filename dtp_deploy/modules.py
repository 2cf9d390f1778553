"""What every part of the library needs of a PyTorch module: evaluation mode for a while, and its outputs in order."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from dtp_deploy.errors import GraphError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation mode; give back each module's own mode at the end, whatever happens.

    A single `model.train()` afterwards would also wake the modules that their owner had frozen in evaluation mode.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def flatten_outputs(outputs: object) -> list[torch.Tensor]:
    """The tensors in what a model returned, in the order in which an exported model has them as outputs.

    Tuples and lists in order, mappings in order of insertion, to any depth; None is left out.

    Raises:
        GraphError: something else is in there.

    >>> a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    >>> [tensor.shape[0] for tensor in flatten_outputs({"z": (b, None), "a": [a, {"k": c}]})]
    [2, 1, 3]
    """
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if outputs is None:
        return []
    if isinstance(outputs, tuple | list):
        return [tensor for item in outputs for tensor in flatten_outputs(item)]
    if isinstance(outputs, Mapping):
        return [tensor for item in outputs.values() for tensor in flatten_outputs(item)]
    raise GraphError(
        f"The model returns a value of type {type(outputs).__name__}; tensors, and tuples, lists and dicts of them, "
        "can be exported. Wrap the model in a module that returns only these."
    )
