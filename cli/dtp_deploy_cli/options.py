"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dtp_deploy.target import TargetSpec

TargetName = Annotated[str, typer.Option("--target", metavar="NAME", help="What to run on; see `dtp-deploy targets`.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Threads of the target's runtime; cpu: 1 unless given."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Without a terminal too, print a line for each stage.")]


def checked_spec(target: str, threads: int | None) -> TargetSpec:
    """The target that the options name.

    Raises:
        UsageError: it is unknown, or does not take these options.
    """
    from dtp_deploy.target import TargetSpec, find_target

    spec = TargetSpec(target, {} if threads is None else {"threads": threads})
    find_target(spec)
    return spec
