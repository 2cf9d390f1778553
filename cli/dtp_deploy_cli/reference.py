"""``docs/cli.md``, made from the help texts: ``python -m dtp_deploy_cli.reference > docs/cli.md``."""

import sys

import typer

from dtp_deploy_cli.main import EXIT_CODES, app

_INTRODUCTION = """# The command line

Results go to standard output; progress and errors go to standard error. Progress bars appear on a terminal only; with
`--verbose` anything else gets a line for each stage. An error is one line that begins with `Error: `; only a bug of
ours shows a traceback.

A budget is a share of the dense model (`50%`) or an amount: `30M` MACs or parameters (also `k`, `G`), `512` channels,
`2MB` (10^6 bytes; also `B`, `kB`, `GB`, `KiB`, `MiB`, `GiB`), `5ms` (also `us`, `s`).

This page is made from the help texts: `python -m dtp_deploy_cli.reference > docs/cli.md`."""


def render_reference() -> str:
    """The page, as Markdown."""
    names = [command.name for command in typer.main.get_group(app).commands.values()]
    helps = [f"## dtp-deploy {name}\n\n```\n{help_text(name or '')}\n```" for name in names]
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    return "\n\n".join([_INTRODUCTION, *helps, f"## Exit codes\n\n| code | meaning |\n|---|---|\n{codes}\n"])


def help_text(command: str) -> str:
    """What ``dtp-deploy COMMAND --help`` prints on a terminal of 100 columns."""
    group = typer.main.get_group(app)
    parent = group.make_context("dtp-deploy", [command, "--help"], resilient_parsing=True)
    inner = group.commands[command]
    context = inner.make_context(command, [], parent=parent, resilient_parsing=True, max_content_width=100)
    context.terminal_width = 100
    return inner.get_help(context).strip()


if __name__ == "__main__":
    sys.stdout.write(render_reference())
