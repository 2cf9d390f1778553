"""What every part of the library needs of a PyTorch module: its device, its modes for a while, what of it trains."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dtp_deploy.errors import InputError

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
