"""``docs/cli.md`` and ``docs/errors.md``, made from the help texts and from the error classes.

python -m dtp_deploy_cli.reference > docs/cli.md
python -m dtp_deploy_cli.reference errors > docs/errors.md
"""

import inspect
import sys

import typer

from dtp_deploy import errors
from dtp_deploy_cli.main import EXIT_CODES, app

_INTRODUCTION = """# The command line

Results go to standard output; progress and errors go to standard error. Progress bars appear on a terminal only; with
`--verbose` anything else gets a line for each stage. An error is one line that begins with `Error: `; only a bug of
ours shows a traceback.

A budget is a share of the dense model (`50%`) or an amount: `30M` MACs or parameters (also `k`, `G`), `512` channels,
`2MB` (10^6 bytes; also `B`, `kB`, `GB`, `KiB`, `MiB`, `GiB`), `5ms` (also `us`, `s`). Several may be given, one of a
kind; all of them are kept.

Every option of `compress` is also a key of `dtp-deploy.toml`, which is read where the command is started; options win.
`dtp-deploy init` writes an example with all keys. A table `[targets.NAME]` with a `kind` and its options makes
`--target NAME`.

Several processes: `torchrun --nproc-per-node 2 -m dtp_deploy_cli compress ...`. The first one talks. `--batch-size` is
that of all together, and a multiple of their number; each decodes its share alone, but loaders of your own are gone
through by every process. BatchNorm normalises by the whole batch on CUDA devices, and by each process's share on CPUs.
If the first batch is too large for the memory of one process, all go on in smaller parts; if memory runs out later, the
run ends, and `--resume` goes on, with another number of processes if you like.

This page is made from the help texts: `python -m dtp_deploy_cli.reference > docs/cli.md`."""


_ERRORS_INTRODUCTION = """# Errors

Every error that is meant for you is one line: what was given, what is allowed, what to do. It ends the command with an
exit code; in Python it is an exception, a child of `dtp_deploy.errors.DtpError`. Any other exception is a bug of ours
and keeps its traceback (exit code 1).

This page is made from the code: `python -m dtp_deploy_cli.reference errors > docs/errors.md`.

| error | exit code | meaning |
|---|---|---|"""


def render_errors() -> str:
    """The table of all errors, as Markdown."""
    return "\n".join([_ERRORS_INTRODUCTION, *map(_error_row, error_classes())]) + "\n"


def error_classes() -> list[type[errors.DtpError]]:
    """All errors that are raised, in the order of their exit codes."""
    found = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.DtpError)]
    return sorted((one for one in found if one is not errors.DtpError), key=lambda one: one.exit_code)


def _error_row(error: type[errors.DtpError]) -> str:
    code = "130 or 143" if error is errors.StoppedError else str(error.exit_code)
    return f"| `{error.__name__}` | {code} | {' '.join((error.__doc__ or '').split())} |"


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
    sys.stdout.write(render_errors() if sys.argv[1:] == ["errors"] else render_reference())
