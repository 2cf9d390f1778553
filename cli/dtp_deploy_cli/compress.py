"""``dtp-deploy compress``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dtp_deploy.budget import Budget, BudgetKind, parse_budget
from dtp_deploy.errors import UsageError
from dtp_deploy_cli.options import AsJson, TargetName, Threads, Verbose, checked_spec

if TYPE_CHECKING:
    from dtp_deploy.report import Report


def compress(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", show_default=False, help="The weights: a state_dict or a checkpoint of one."),
    ],
    factory: Annotated[
        str,
        typer.Option("--model", metavar="PKG.MODULE:NAME", show_default=False, help="Function that makes the model."),
    ],
    data: Annotated[
        str, typer.Option(metavar="DATA", show_default=False, help="'digits', or the path of an .npz file.")
    ],
    input_shape: Annotated[
        str, typer.Option("--input", metavar="SHAPE", show_default=False, help="Input shape, batch first: 1x3x32x32.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", show_default=False, help="Folder to write; must not exist yet.")],
    target: TargetName = "cpu",
    macs: Annotated[str | None, typer.Option(metavar="LIMIT", help="Limit of operations (MACs): 50% or 30M.")] = None,
    params: Annotated[str | None, typer.Option(metavar="LIMIT", help="Limit of parameters: 50% or 1.5M.")] = None,
    size: Annotated[str | None, typer.Option(metavar="LIMIT", help="Limit of bytes delivered: 50% or 2MB.")] = None,
    channels: Annotated[
        str | None, typer.Option(metavar="LIMIT", help="Limit of prunable channels: 50% or 512.")
    ] = None,
    latency: Annotated[str | None, typer.Option(metavar="LIMIT", help="Limit of the measured p50: 50% or 5ms.")] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Keep the same ratio of channels in every layer.")
    ] = False,
    epochs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Epochs in total, masks and fine-tuning together.")
    ] = 20,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of everything random.")] = 0,
    learning_rate: Annotated[
        float, typer.Option("--lr", metavar="RATE", help="Highest learning rate: a fifth of what trained the model.")
    ] = 0.02,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Samples a training step.")] = 64,
    augment: Annotated[
        Literal["none", "shift", "shift-flip"], typer.Option(help="What training images go through.")
    ] = "none",
    distill: Annotated[
        bool, typer.Option("--distill/--no-distill", help="Learn from the dense model's outputs too.")
    ] = True,
    solver: Annotated[Literal["exact", "sinkhorn-1"], typer.Option(help="Transport solver of the masks.")] = "exact",
    round_to: Annotated[int, typer.Option(min=1, metavar="N", help="Make widths multiples of this.")] = 1,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DIR if it is an artefact of dtp-deploy.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Prune a trained model to a budget.

    Learns which channels to remove, removes them, fine-tunes, exports to ONNX, measures, and writes DIR with a report.
    Give exactly one budget: --macs, --params, --size, --channels or --latency. The working directory is importable, so
    that --model may name a function in a file beside you.
    """
    from dtp_deploy.artefact import check_output
    from dtp_deploy_cli.progress import show_progress

    # What costs nothing to refuse is refused before anything that takes time.
    limits: dict[BudgetKind, str | None] = {
        "macs": macs,
        "params": params,
        "size": size,
        "channels": channels,
        "latency": latency,
    }
    budget = _one_budget(limits, per_layer)
    check_output(out, force)
    spec = checked_spec(target, threads)

    with show_progress(verbose) as progress:
        with progress.task("load"):  # PyTorch too, which takes seconds
            from dtp_deploy.loading import (
                check_shapes,
                load_data,
                load_weights,
                make_model,
                parse_input_shape,
                read_checkpoint,
            )
            from dtp_deploy.pipeline import compress as run
            from dtp_deploy.prune import MaskSettings
            from dtp_deploy.train import Settings

            shape = parse_input_shape(input_shape)
            settings = Settings(
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                distill=distill,
                augment=augment,
                seed=seed,
                masks=MaskSettings(solver=solver, round_to=round_to),
            )
            checkpoint = read_checkpoint(model)
            dense = make_model(factory)
            load_weights(dense, checkpoint)
            dataset = load_data(data)
            check_shapes(dataset, shape)
        report = run(
            dense,
            data=dataset,
            budget=budget,
            target=spec,
            out=out,
            input_shape=shape,
            settings=settings,
            force=force,
            progress=progress,
            model_name=model.name,
        )
    _show(report, out, as_json)


def _one_budget(limits: dict[BudgetKind, str | None], per_layer: bool) -> Budget:
    """The one budget among the options.

    Raises:
        UsageError: none, several, or no budget that can be read.
    """
    given = {kind: text for kind, text in limits.items() if text is not None}
    if len(given) != 1:
        count = "none" if not given else " and ".join(f"--{kind} {text}" for kind, text in given.items())
        allowed = ", ".join(f"--{kind}" for kind in limits)
        raise UsageError(
            f"Give exactly one budget of {allowed}; given: {count}. For half of the operations: --macs 50%."
        )
    ((kind, text),) = given.items()
    return parse_budget(kind, text, "per-layer" if per_layer else "global")


def _show(report: Report, out: Path, as_json: bool) -> None:
    from dtp_deploy.artefact import REPORT_MARKDOWN
    from dtp_deploy.report import headline, summary_rows
    from dtp_deploy_cli.console import print_json, print_line, print_table

    if as_json:
        print_json(report.to_json())
        return
    print_table(("", "dense", "pruned", "pruned / dense"), summary_rows(report))
    print_line(headline(report))
    print_line(f"Report: {out / REPORT_MARKDOWN}")
