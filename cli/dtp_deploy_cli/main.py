"""``dtp-deploy``: finds the command and turns errors meant for users into one line and an exit code.

Nothing heavy is imported here: each command imports what it needs when it runs, so that ``--help`` is quick.
"""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn, get_args

import typer

from dtp_deploy.budget import BudgetKind, flag_of
from dtp_deploy.errors import DtpError, StoppedError, UsageError
from dtp_deploy_cli.calibrate import calibrate
from dtp_deploy_cli.compress import compress
from dtp_deploy_cli.import_measurement import import_measurement
from dtp_deploy_cli.init import init
from dtp_deploy_cli.profile import profile
from dtp_deploy_cli.targets import targets

EXIT_INTERRUPTED = 130
EXIT_CODES = {
    0: "done",
    1: "a bug of ours (with its traceback)",
    2: "wrong use, or an input that cannot be used",
    3: "budget not met",
    4: "gate failed (reserved, not used yet)",
    5: "target not available",
    6: "parity failed",
    EXIT_INTERRUPTED: "interrupted",
    143: "terminated",
}

app = typer.Typer(
    name="dtp-deploy",
    help="Prune a trained PyTorch model to a budget that is measured on the target, and prove it.",
    epilog="Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(calibrate)
app.command()(compress)
app.command()(import_measurement)
app.command()(init)
app.command()(profile)
app.command()(targets)


def _print_version(wanted: bool) -> None:
    if wanted:
        from dtp_deploy import __version__

        typer.echo(f"dtp-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of dtp-deploy itself."""


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _refuse_repeated_budgets(sys.argv[1:])
        code = app(prog_name="dtp-deploy", standalone_mode=False)
    except StoppedError as error:
        code = 128 + error.signum
        _fail(str(error), code)
        sys.exit(code)
    except DtpError as error:
        code = _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        message = error.format_message().replace(": Value error, ", ": ", 1)  # pydantic's words before typer's own
        stop = "" if message.endswith((".", "?")) else "."
        code = _fail(f"{message}{stop} {_help_hint()}", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:  # typer turns most interrupts into this code itself
        _fail("interrupted.", code)
    sys.exit(code or 0)


def _refuse_repeated_budgets(arguments: list[str]) -> None:
    """A limit given twice would silently be the last one.

    Raises:
        UsageError: a budget's flag stands twice.
    """
    for kind in get_args(BudgetKind):
        flag = flag_of(kind)
        if sum(argument == flag or argument.startswith(f"{flag}=") for argument in arguments) > 1:
            raise UsageError(f"{flag} is given twice. Give each budget once.")


def _fail(message: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")  # of several processes the first talks; the others say who they are
    print(f"Error{'' if rank == '0' else f' in process {rank}'}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _help_hint() -> str:
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    known = command in {name.name or (name.callback and name.callback.__name__) for name in app.registered_commands}
    return f"See `dtp-deploy {command + ' ' if known else ''}--help`."


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that half-written output is removed."""
    sys.exit(128 + signum)
