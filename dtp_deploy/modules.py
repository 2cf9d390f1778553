"""What every part of the library needs of a PyTorch module: evaluation mode for a while, and its outputs in order."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dtp_deploy.errors import GraphError, InputError

Inputs = tuple[torch.Tensor, ...]
"""What a model is called with, by position; each tensor has the batch first."""


def as_inputs(inputs: torch.Tensor | Inputs) -> Inputs:
    """One tensor, or several, as a tuple."""
    return (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)


def shapes_of(inputs: Inputs) -> str:
    """The shapes of inputs, for messages.

    >>> shapes_of((torch.zeros(1, 3), torch.zeros(2)))
    '(1, 3) and (2,)'
    """
    return " and ".join(str(tuple(tensor.shape)) for tensor in inputs)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's tensors are; the CPU for a model without any."""
    return next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def trainable_names(model: nn.Module) -> frozenset[str]:
    """Parameters that training may change: those that require a gradient; where none does, all of floating point."""
    parameters = dict(model.named_parameters())
    chosen = {name for name, parameter in parameters.items() if parameter.requires_grad}
    return frozenset(chosen or {name for name, parameter in parameters.items() if parameter.is_floating_point()})


def train_only(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Let these parameters require a gradient and no others; the model."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model


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


def require_finite(model: nn.Module) -> None:
    """Raise unless all weights are numbers: nothing can be compared with the outputs of others, or learned from them.

    Raises:
        InputError: a parameter holds NaN or infinity.
    """
    for name, parameter in model.named_parameters():
        known = parameter.is_floating_point() and parameter.layout == torch.strided
        if known and not bool(torch.isfinite(parameter.detach()).all()):
            raise InputError(
                f"The weights of {type(model).__name__} hold NaN or infinity, in '{name}'. Give a model whose training "
                "did not diverge."
            )


@contextmanager
def fused_apart() -> Iterator[None]:
    """Within the context, attention and recurrent layers of GPUs are computed by the products that they consist of.

    Their fused kernels, which are chosen by device and mode, call none of the modules inside, and counters know nothing
    of them.
    """
    fast, cudnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cudnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.cudnn.enabled = cudnn


def capture(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The model as a graph, in evaluation mode. Traced with zeros, because the program keeps what it was traced with.

    What PyTorch cannot trace raises errors of its many classes.
    """
    with evaluating(model), torch.no_grad():
        return torch.export.export(model, tuple(torch.zeros_like(tensor) for tensor in inputs), strict=False)


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:  # noqa: ANN401
    """A value with every tensor in its tuples, lists and mappings changed; their classes, and anything else, stay.

    >>> map_tensors(torch.neg, {"boxes": [torch.ones(2)], "scale": 2})
    {'boxes': [tensor([-1., -1.])], 'scale': 2}
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, MutableMapping):
        changed = copy.copy(value)
        for key, item in value.items():
            changed[key] = map_tensors(change, item)
        return changed
    if isinstance(value, list):
        items = copy.copy(value)
        items[:] = [map_tensors(change, item) for item in value]
        return items
    if isinstance(value, tuple):
        parts = [map_tensors(change, item) for item in value]
        make: Callable[[list[Any]], Any] = getattr(
            value, "_make", type(value)
        )  # a named tuple takes its fields one by one
        return make(parts)
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
