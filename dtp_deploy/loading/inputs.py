"""The inputs of a model as a user types them: ``[name:]1x3x224x224[:float32]``, one ``--input`` for each."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.wording import cause, listing
from dtp_deploy.modules import Inputs, evaluating

DTYPES = {
    "float32": torch.float32,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
"""The data types of inputs. No half precision: weights are float32 while a model is pruned."""

_SHAPE = r"[1-9][0-9]{0,8}(?:x[1-9][0-9]{0,8})+|[1-9][0-9]{0,8}"
_INPUT = re.compile(rf"(?:(?P<name>[^\W\d]\w*):)?(?P<shape>{_SHAPE})(?::(?P<dtype>[a-zA-Z]\w*))?")


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: of the parameter of the model's ``forward``; None if it goes by its place.
        shape: batch first.
        dtype: one of `DTYPES`.
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        """As it is typed, without what is usual."""
        name = "" if self.name is None else f"{self.name}:"
        dtype = "" if self.dtype == "float32" else f":{self.dtype}"
        return f"{name}{'x'.join(map(str, self.shape))}{dtype}"

    def example(self, seed: int = 0) -> Tensor:
        """Standard normal numbers; zeros, an index that any embedding has, for integers; True for bool."""
        if self.dtype == "float32":
            return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))
        if self.dtype == "bool":
            return torch.ones(self.shape, dtype=torch.bool)
        return torch.zeros(self.shape, dtype=DTYPES[self.dtype])


def parse_input(text: str) -> InputSpec:
    """Read one input, as a user types it.

    Raises:
        UsageError: the text is no such input.

    >>> parse_input("tokens:1x16:int64")
    InputSpec(name='tokens', shape=(1, 16), dtype='int64')
    >>> str(parse_input("1x3x224x224"))
    '1x3x224x224'
    """
    match = _INPUT.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--input {text!r} is not of the form [name:]shape[:type]. Give whole numbers above zero joined by x, the "
            "batch first, such as 1x3x224x224 or tokens:1x128:int64."
        )
    dtype = match["dtype"] if match["dtype"] is not None else "float32"
    if dtype not in DTYPES:
        raise UsageError(f"--input {text!r} has the type {dtype!r}. Give one of: {', '.join(DTYPES)}.")
    return InputSpec(match["name"], tuple(int(size) for size in match["shape"].split("x")), dtype)


def example_inputs(model: nn.Module, specs: Sequence[InputSpec], seed: int = 0) -> Inputs:
    """Example tensors in the order in which ``model`` takes them, tried on it once in evaluation mode.

    Args:
        model: on any device; not changed.
        specs: all named (in any order), or none (in the model's order).

    Raises:
        UsageError: none are given, only some are named, or two have one name.
        InputError: a name is not one of the model's, or the model does not take them.
    """
    inputs = tuple(spec.example(seed + place) for place, spec in enumerate(arrange_inputs(model, specs)))
    device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    inputs = tuple(tensor.to(device) for tensor in inputs)
    try:
        with evaluating(model), torch.no_grad():
            model(*(tensor.clone() for tensor in inputs))
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} does not take {_given(specs)} ({cause(error)}). "
            "Give the shape and type of each input that its forward() needs, the batch first."
        ) from error
    return inputs


def arrange_inputs(model: nn.Module, specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The inputs in the order of the parameters of ``forward``, which is how they are passed.

    Raises:
        UsageError, InputError: as `example_inputs`.
    """
    if not specs:
        raise UsageError(
            "No --input is given, and the model's configuration names none. Give the shape, the batch first: "
            "--input 1x3x224x224."
        )
    names = [spec.name for spec in specs if spec.name is not None]
    if not names:
        return tuple(specs)
    if len(names) < len(specs):
        raise UsageError(f"{_given(specs)}: some are named, some are not. Name all of them, or none.")
    if len(set(names)) < len(names):
        raise UsageError(f"{_given(specs)}: two have the same name. Give each input once.")
    parameters = list(inspect.signature(model.forward).parameters)
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise InputError(
            f"{_given(specs)}: {type(model).__name__} has no input {listing(unknown)}. "
            f"Its forward() takes: {', '.join(parameters)}."
        )
    ordered = sorted(specs, key=lambda spec: parameters.index(str(spec.name)))
    skipped = [name for name in parameters[: len(names)] if name not in names]
    if skipped:
        raise InputError(
            f"{_given(specs)}: inputs are passed by place, and {listing(skipped)} comes before "
            f"{ordered[-1].name} in forward(). Give it too."
        )
    return tuple(ordered)


def _given(specs: Sequence[InputSpec]) -> str:
    return " ".join(f"--input {spec}" for spec in specs)
