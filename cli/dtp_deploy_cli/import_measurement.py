"""``dtp-deploy import-measurement``: complete a predicted report with what the board measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dtp_deploy_cli.options import AsJson


def import_measurement(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", show_default=False, help="What `compress` wrote for a board not at hand.")
    ],
    result: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT", show_default=False, help="The bundle's result.json, or trtexec's --exportTimes JSON."
        ),
    ],
    layers: Annotated[
        Path | None, typer.Option("--layers", metavar="FILE", help="trtexec's --exportProfile JSON, times of layers.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a latency that was measured already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Complete a report with a measurement made on the board.

    The report in DIR is written anew, with measured latencies in place of predicted ones. A budget that is not met by
    them ends with exit code 3.
    """
    from dtp_deploy.artefact import REPORT_MARKDOWN
    from dtp_deploy.imports import import_measurement as complete
    from dtp_deploy.report import headlines, summary_rows
    from dtp_deploy_cli.console import print_json, print_line, print_table

    report = complete(directory, result, force, layers)
    if as_json:
        print_json(report.to_json())
        return
    print_table(("", "dense", "pruned", "pruned / dense"), summary_rows(report))
    for line in headlines(report):
        print_line(line)
    print_line(f"Report: {directory / REPORT_MARKDOWN}")
