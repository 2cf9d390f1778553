"""A model from the user's own code, named as ``pkg.module:name``."""

import difflib
import importlib
import inspect
import sys
from functools import reduce
from pathlib import Path

from torch import nn
from torch.nn.parameter import is_lazy

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.compatibility import with_torchvision
from dtp_deploy.loading.hubs import build, is_hub_spec, parse_hub_spec
from dtp_deploy.loading.wording import cause, kind_text, listing


def import_object(spec: str, option: str) -> object:
    """The object that ``pkg.module:name`` names. The working directory is importable, as with ``python -m``.

    Args:
        spec: a dotted module, a colon, a name in it (dots lead to attributes).
        option: the option that the user gave it with ("--model"), for messages.

    Raises:
        UsageError: the spec has another form, or there is no such module or name.
        InputError: the module is there, but importing it fails.

    >>> import_object("collections:OrderedDict", "--model")
    <class 'collections.OrderedDict'>
    """
    module_name, _, name = spec.partition(":")
    if not (_is_dotted(module_name) and _is_dotted(name)):
        raise UsageError(
            f"{option} {spec!r} is not of the form pkg.module:name. "
            "Give a module and a name in it, such as mynets.resnet:resnet18."
        )
    module = _import_module(module_name, f"{option} {spec}")
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError:
        near = difflib.get_close_matches(name, [known for known in vars(module) if not known.startswith("_")], n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise UsageError(
            f"{option} {spec}: module {module_name} has no {name!r}. Give a name that is defined in it{hint}."
        ) from None


def make_model(spec: str) -> nn.Module:
    """Call the factory that ``pkg.module:name`` names, without arguments, and check that a model comes back.

    ``timm:NAME`` and ``torchvision:NAME`` make a model of these packages (see `hubs`), without trained weights.

    Raises:
        UsageError: there is no such factory, or it is not callable.
        InputError: its module cannot be imported, it raises, or it returns no usable `nn.Module`.
    """
    if is_hub_spec(spec):
        return build(parse_hub_spec(spec))
    factory = import_object(spec, "--model")
    if isinstance(factory, nn.Module):
        raise UsageError(
            f"--model {spec} is {kind_text(factory)}, built already. "
            "Give a class or function that builds it, so that it can be built again."
        )
    if not callable(factory):
        raise UsageError(
            f"--model {spec} is {kind_text(factory)}, which cannot be called. "
            "Give a class or function that returns a torch.nn.Module."
        )
    try:
        model = with_torchvision(factory)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--model {spec} raised {cause(error)}. Correct it; it is called without arguments: "
            "if it needs some, give a function that fills them in."
        ) from error
    if not isinstance(model, nn.Module):
        kind = "a class" if inspect.isclass(model) else f"a value of type {type(model).__name__}"
        raise InputError(f"--model {spec} returned {kind}. Let it return a torch.nn.Module.")
    check_materialised(f"--model {spec}", model)
    return model


def make_cwd_importable() -> None:
    """Let modules in the working directory be imported, for good: the user's code may import more when it is called."""
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    importlib.invalidate_caches()


def _import_module(module_name: str, given: str) -> object:
    make_cwd_importable()
    try:
        return with_torchvision(lambda: importlib.import_module(module_name))
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and _leads_to(error.name, module_name):
            raise UsageError(
                f"{given}: there is no module {error.name}. "
                "Give one that is installed or lies under the working directory."
            ) from error
        raise InputError(
            f"{given}: importing {module_name} failed with {cause(error)}. "
            f'Correct the module until `python -c "import {module_name}"` works.'
        ) from error


def _is_dotted(text: str) -> bool:
    """Whether `text` is one or more identifiers joined by dots."""
    return all(part.isidentifier() for part in text.split("."))


def _leads_to(missing: str | None, module_name: str) -> bool:
    """Whether the missing module is the named one or a package around it, and not something that it imports.

    >>> _leads_to("nets", "nets.small"), _leads_to("timm", "nets.small")
    (True, False)
    """
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def check_materialised(what: str, model: nn.Module) -> None:
    """Check that a model that the user's code made has values in its tensors.

    Args:
        what: what made it, as the message begins ("--model nets:small").

    Raises:
        InputError: a tensor is lazy or on the meta device.
    """
    unset = [
        name
        for named in (model.named_parameters(), model.named_buffers())
        for name, tensor in named
        if is_lazy(tensor) or tensor.is_meta
    ]
    if unset:
        raise InputError(
            f"{what} returned a model whose tensors have no values yet (lazy or on the meta device): "
            f"{listing(unset)}. Let it run the model once on an example, or build it on the CPU."
        )
