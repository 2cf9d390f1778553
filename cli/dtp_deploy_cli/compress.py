"""``dtp-deploy compress``: the main job."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dtp_deploy.config import ConfigFile, configure, flag_of, read_config
from dtp_deploy.errors import BudgetError, UsageError
from dtp_deploy_cli.options import ConfigPath, ResumePath, with_config_options
from dtp_deploy_cli.progress import is_first_process, show_progress

if TYPE_CHECKING:
    from dtp_deploy.config import CompressConfig
    from dtp_deploy.loading import CheckpointInfo
    from dtp_deploy.order import Order
    from dtp_deploy.rehearsal import DryRun
    from dtp_deploy.report import Report

_MAY_CHANGE = {"json", "verbose", "workers", "checkpoint-every", "trust", "device", "log-dir"}
"""Keys that a run which goes on may be given otherwise: they change nothing in what it computes."""


@with_config_options
def compress(config: ConfigPath = None, resume: ResumePath = None, **flags: Any) -> None:  # noqa: ANN401
    """Prune a trained model to a budget.

    Learns which channels to remove, removes them, fine-tunes, exports to ONNX, measures, and writes DIR with a report.
    The least is a model, and --input where neither its configuration nor the data tell it; weights without a model also
    need --model. The budget is then half of the latency, measured or predicted, or half of the MACs where the target
    does neither or its prediction does not get there, and the data are random.
    Options may also stand in ./dtp-deploy.toml (`dtp-deploy init` writes an example). The working directory is
    importable: --model may name a function in a file beside you.
    """
    from dtp_deploy.order import make_order

    # What costs nothing to refuse is refused before anything that takes time.
    if resume is None:
        file = read_config(config)
        chosen = configure(file.values, flags)
    else:
        chosen, file = _as_it_was(resume, config, flags), ConfigFile()
    order = make_order(chosen, file, resume=resume is not None)
    if _can_ask():
        from dtp_deploy.job import ask_for_trust

        order = replace(order, config=ask_for_trust(chosen, _ask))
    with show_progress(chosen.verbose) as progress:
        plan = _untrusted(order) if chosen.dry_run else None
        if plan is None:
            with progress.task("load"):  # PyTorch too, which takes seconds
                from dtp_deploy.job import resolve

                job = resolve(order)
            if chosen.dry_run:
                from dtp_deploy.rehearsal import rehearse

                plan = rehearse(job, progress)
            else:
                report = job.run(progress)
    if not is_first_process():
        return
    if plan is not None:
        _show_dry_run(plan, chosen.as_json)
        for verdict in plan.verdicts:
            if verdict.can_be_met is False:
                raise BudgetError(f"{verdict} Give that or more.")
    else:
        _show(report, order.out, chosen.as_json)


def _untrusted(order: Order) -> DryRun | None:
    from dtp_deploy.rehearsal import untrusted

    return untrusted(order)


def _as_it_was(out: Path, config: Path | None, flags: dict[str, Any]) -> CompressConfig:
    """The configuration that a run which was cut off was started with.

    Raises:
        UsageError: there is nothing to go on with, or an option differs from then.
    """
    from dtp_deploy.checkpoints import read_origin
    from dtp_deploy.job import ORIGIN

    if config is not None:
        raise UsageError(
            f"--resume {out} takes all options from the run that it goes on with. Leave --config {config} out."
        )
    origin = read_origin(out).get(ORIGIN)
    if origin is None:
        raise UsageError(
            f"--resume {out}: that run was started from Python. Go on with dtp_deploy.compress(..., resume=True)."
        )
    before = configure({**origin, "out": str(out)})
    given = configure(before.values(), flags)
    old, new = before.values(), given.values()
    changed = [
        f"--{key} (was {old.get(key, 'not given')}, is {new.get(key, 'not given')})"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and key not in _MAY_CHANGE
    ]
    if changed:
        raise UsageError(
            f"--resume {out}: changed since the run was started: {', '.join(changed)}. Leave these out: all options "
            "come from the checkpoint; or start over with --force."
        )
    return given


def _can_ask() -> bool:
    """Whether a person sits at the terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty() and is_first_process()


def _ask(info: CheckpointInfo) -> bool:
    typer.echo(f"{info.path} needs code to load. It would import:", err=True)
    for name in info.imports:
        typer.echo(f"  {name}", err=True)
    return typer.confirm(f"Do you trust it? ({flag_of('trust')} answers yes)", default=False, err=True)


def _show(report: Report, out: Path, as_json: bool) -> None:
    from dtp_deploy.artefact import REPORT_MARKDOWN
    from dtp_deploy.report import headlines, summary_rows
    from dtp_deploy_cli.console import print_json, print_line, print_table

    if as_json:
        print_json(report.to_json())
        return
    print_table(("", "dense", "pruned", "pruned / dense"), summary_rows(report))
    for line in headlines(report):
        print_line(line)
    print_line(f"Report: {out / REPORT_MARKDOWN}")


def _show_dry_run(plan: DryRun, as_json: bool) -> None:
    from dtp_deploy.report.text import json_text
    from dtp_deploy_cli.console import print_json, print_line

    if as_json:
        print_json(json_text(plan.values()))
        return
    print_line(f"Model: {plan.model}")
    print_line(f"Imports: {', '.join(plan.imports) or 'nothing'}")
    print_line(f"Reads: {', '.join(plan.files) or 'no file'}")
    print_line(f"Budget: {', '.join(plan.budgets) or plan.granularity}; target: {plan.target}; would write: {plan.out}")
    for verdict in plan.verdicts:
        print_line(str(verdict))
    if plan.groups:
        _show_groups(plan)
    if plan.blocks:
        _show_blocks(plan)
    for note in plan.notes:
        print_line(note)
    print_line("Nothing was trained and nothing was written.")


def _show_blocks(plan: DryRun) -> None:
    from dtp_deploy_cli.console import print_table

    rows = [(name, "yes" if reason is None else f"no: {reason}") for name, reason in plan.blocks]
    print_table(("residual block", "may be removed as a whole"), rows)


def _show_groups(plan: DryRun) -> None:
    from dtp_deploy.report import quantity
    from dtp_deploy_cli.console import print_table

    print_table(
        ("budget", "dense", "smallest possible", "share", "how known"),
        [
            (
                one.kind,
                quantity(one.dense, one.unit),
                quantity(one.smallest, one.unit),
                f"{100 * one.smallest / one.dense:.3g}%",
                one.basis,
            )
            for one in plan.reach
        ],
    )
    print_table(
        ("channel group", "width", "may be pruned")
        if plan.granularity == "channels"
        else ("layer", "weights", "may be pruned"),
        [(name, str(width), "yes" if reason is None else f"no: {reason}") for name, width, reason in plan.groups],
    )
