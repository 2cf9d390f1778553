"""The user's own functions around the pruning: one prepares a model for it, one finishes it for the export."""

import inspect

from torch import nn

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.factory import check_materialised, import_object
from dtp_deploy.loading.wording import cause, kind_text


def apply_hook(spec: str, model: nn.Module, option: str) -> nn.Module:
    """Call the function that ``pkg.module:name`` names with a model, and check that a model comes back.

    Args:
        spec: the function; it may change the model in place, and must return it, or another one.
        model: what it is given.
        option: the option that the user gave it with ("--prepare"), for messages.

    Raises:
        UsageError: there is no such function, or it is not callable.
        InputError: its module cannot be imported, it raises, or it returns no usable `nn.Module`.
    """
    hook = import_object(spec, option)
    if isinstance(hook, nn.Module) or not callable(hook):
        raise UsageError(
            f"{option} {spec} is {kind_text(hook)}, not a function. "
            "Give a function that takes a torch.nn.Module and returns one."
        )
    try:
        result = hook(model)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{option} {spec} raised {cause(error)}. Correct it; it is called with the model as its only argument."
        ) from error
    if result is None:
        raise InputError(
            f"{option} {spec} returned nothing. Let it return the model, also where it changes it in place."
        )
    if not isinstance(result, nn.Module):
        kind = "a class" if inspect.isclass(result) else f"a value of type {type(result).__name__}"
        raise InputError(f"{option} {spec} returned {kind}. Let it return a torch.nn.Module.")
    check_materialised(f"{option} {spec}", result)
    return result
