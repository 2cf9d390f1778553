"""Tensors in tuples, lists and dicts: what models return, and what loaders give as targets."""

import copy
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dtp_deploy.errors import GraphError


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:  # noqa: ANN401
    """A value with every tensor in its tuples, lists and dicts changed; their classes, and anything else, stay.

    >>> map_tensors(torch.neg, {"boxes": [torch.ones(2)], "scale": 2})
    {'boxes': [tensor([-1., -1.])], 'scale': 2}
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        # Of other mappings nobody knows whether their copy has items of its own.
        changed = copy.copy(value) if isinstance(value, dict | UserDict) else dict(value)
        for key, item in value.items():
            changed[key] = map_tensors(change, item)
        return changed
    if isinstance(value, list):
        items = copy.copy(value)
        items[:] = [map_tensors(change, item) for item in value]
        return items
    if isinstance(value, tuple):
        parts = [map_tensors(change, item) for item in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)  # a named tuple, or another
    return value


def rows_of(value: Any, rows: slice) -> Any:  # noqa: ANN401 - inputs, or the targets of a user's own loader
    """Some samples of a batch: the rows of every tensor in it.

    >>> rows_of({"boxes": torch.arange(4), "scale": 2}, slice(1, 3))
    {'boxes': tensor([1, 2]), 'scale': 2}
    """
    return map_tensors(lambda tensor: tensor[rows] if tensor.ndim else tensor, value)


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


def like_outputs(nesting: object, tensors: Sequence[torch.Tensor]) -> Any:  # noqa: ANN401 - whatever the model returns
    """Tensors in the order of `flatten_outputs`, nested as a model's outputs are: its inverse.

    >>> like_outputs({"a": [torch.zeros(1), None]}, [torch.ones(1)])
    {'a': [tensor([1.]), None]}
    """
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), nesting)
