"""``dtp-deploy calibrate``: learn a target's latency ahead of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from dtp_deploy_cli.options import (
    Host,
    LockClocks,
    Precision,
    TargetName,
    TargetOptions,
    Threads,
    Verbose,
    checked_spec,
)


def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", show_default=False, help="The model, as `compress` takes it.")
    ],
    factory: Annotated[
        str | None, typer.Option("--model", metavar="PKG.MODULE:NAME", help="What makes the model of the weights.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="INPUT", help="An input, batch first: [name:]1x3x224x224[:type]. Once for each."
        ),
    ] = None,
    target: TargetName = "cpu",
    host: Host = None,
    threads: Threads = None,
    precision: Precision = None,
    lock_clocks: LockClocks = False,
    target_option: TargetOptions = None,
    time_cap: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Measure no further layer after this time.")
    ] = 120.0,
    trust: Annotated[bool, typer.Option("--trust", help="Let the model file import and run code.")] = False,
    verbose: Verbose = False,
) -> None:
    """Learn a model's latency on a target, layer by layer, ahead of `compress --latency`.

    What is measured is kept in $DTP_DEPLOY_CACHE (or ~/.cache/dtp-deploy), by device, runtime, options and layer; a
    calibration that was cut off goes on where it was.
    """
    from dtp_deploy_cli.console import print_line
    from dtp_deploy_cli.progress import show_progress

    named = {"host": host, "threads": threads, "precision": precision, "lock_clocks": lock_clocks}
    spec = checked_spec(target, named, target_option)
    with show_progress(verbose) as progress:
        with progress.task("load"):  # PyTorch too, which takes seconds
            from dtp_deploy.latency import calibrate as learn
            from dtp_deploy.loading import InputSpec, example_inputs, load_model, parse_input

            loaded = load_model(model, factory=factory, trust=trust)
            given = [parse_input(text) for text in inputs or []]
            if not given and loaded.suggested_input_shapes is not None:
                given = [InputSpec(None, shape) for shape in loaded.suggested_input_shapes]
            examples = example_inputs(loaded.model, given)
        table = learn(loaded.model, examples, spec, time_cap_s=time_cap, progress=progress)
    print_line(table.summary())
    if table.problem:
        print_line(table.problem)
