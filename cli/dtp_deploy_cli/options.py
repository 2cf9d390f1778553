"""Options that several commands share, and those of ``compress``, which are made from its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from annotated_types import Ge
from pydantic.fields import FieldInfo

from dtp_deploy.config import CompressConfig, extra_of, flag_of

if TYPE_CHECKING:
    from dtp_deploy.target import TargetSpec

_Command = TypeVar("_Command", bound=Callable[..., None])
_PLAIN: tuple[type, ...] = (bool, int, float, str)

TargetName = Annotated[
    str, typer.Option("--target", metavar="NAME", help="What to run on; see `dtp-deploy targets`, or [targets.NAME].")
]
Host = Annotated[str | None, typer.Option(metavar="USER@HOST", help="The board, for targets over ssh.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Threads of the target's runtime; cpu: 1 unless given."),
]
Precision = Annotated[
    Literal["fp32", "fp16", "int8"] | None,
    typer.Option(help="What the engine computes in, where a target can choose; int8: of a model quantized elsewhere."),
]
LockClocks = Annotated[
    bool, typer.Option("--lock-clocks", help="Lock a Jetson's clocks while measuring; they are always put back.")
]
TargetOptions = Annotated[
    list[str] | None,
    typer.Option("--target-option", metavar="KEY=VALUE", help="A further option of the target. Once for each."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Without a terminal too, print a line for each stage.")]


def checked_spec(target: str, named: Mapping[str, str | int | None], further: list[str] | None = None) -> TargetSpec:
    """The target that the options name, or that a configuration file knows by that name.

    Args:
        target: its name.
        named: options that have a flag of their own; None or False for one that is not given.
        further: texts of the form KEY=VALUE.

    Raises:
        UsageError: it is unknown, or does not take these options.
    """
    from dtp_deploy.config import named_target, with_options
    from dtp_deploy.target import find_target

    spec = with_options(named_target(target), named, further or ())
    find_target(spec)
    return spec


def with_config_options(command: _Command) -> _Command:
    """Give a command one option for every key of `CompressConfig`; each is None where it is not given.

    The command takes them as keywords; its own parameters come after MODEL and before them.
    """
    named = inspect.signature(command, eval_str=True).parameters.values()
    own = [one.replace(kind=one.KEYWORD_ONLY) for one in named if one.kind != one.VAR_KEYWORD]
    made = [_parameter(name, info) for name, info in CompressConfig.model_fields.items()]
    signature = inspect.Signature([made[0], *own, *made[1:]])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    return command


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    if name == "checkpoint":
        text, metavar = info.description, extra_of(info)["metavar"]
        argument = typer.Argument(metavar=metavar, show_default=False, help=text)
        return inspect.Parameter(name, kind, default=None, annotation=Annotated[str | None, argument])
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[_typed(info), _option(name, info)])


def _option(name: str, info: FieldInfo) -> Any:  # noqa: ANN401 - typer's own type
    flag = flag_of(name)
    least = next((limit.ge for limit in info.metadata if isinstance(limit, Ge)), None)
    default = info.default
    shown = (
        ""
        if default is None or default is False or default == ()
        else f" [default: {'on' if default is True else default}]"
    )
    return typer.Option(
        f"{flag}/--no-{flag.removeprefix('--')}" if isinstance(default, bool) else flag,
        metavar=extra_of(info)["metavar"] or None,
        help=f"{info.description}{shown}",
        show_default=False,
        min=least,  # type: ignore[arg-type]
    )


def _typed(info: FieldInfo) -> Any:  # noqa: ANN401 - a type
    """The type of an option for a field: what a person types, or nothing."""
    (kind,) = [one for one in _members(info.annotation) if one is not type(None)]
    if get_origin(kind) is tuple:
        several = get_args(kind)[0] is str  # numbers are typed as one text
        return (list[str] if several else str) | None
    assert kind in _PLAIN or get_origin(kind) is Literal, info
    return Union[kind, None]  # noqa: UP007 - Literal | None is no type for typer's eyes


def _members(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Read this file; ./dtp-deploy.toml is read unless given."),
]
ResumePath = Annotated[
    Path | None,
    typer.Option("--resume", metavar="DIR", help="Go on with the run that was to write DIR; nothing else is needed."),
]
