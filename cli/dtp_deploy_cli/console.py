"""Where the command line writes: results on standard output, everything else on standard error."""

import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_OF_A_FILE = 160


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on standard output. Columns after the first are aligned right where they begin with a digit."""
    table = Table(title=title or None, title_justify="left")
    for index, name in enumerate(header):
        numbers = index > 0 and all(row[index][:1].isdigit() or row[index][:1] in "+-" for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_A_FILE)
    with console.capture() as capture:
        console.print(table)
    _write(capture.get())


def print_line(text: str) -> None:
    """One line on standard output, never wrapped: paths stay whole."""
    _write(f"{text}\n")


def print_json(text: str) -> None:
    """A JSON document on standard output, as it is."""
    _write(text)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads (`| head`) has seen enough, which is no error; nor shall the flush at exit complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
