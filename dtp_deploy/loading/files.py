"""The checks that any file of the user must pass before a parser sees it."""

import stat
from pathlib import Path

from dtp_deploy.errors import InputError


def require_file(path: Path, what: str, remedy: str) -> None:
    """Check that `path` is a readable file that holds at least one byte.

    Args:
        path: the file.
        what: what the file is to the user; the message begins with it ("Checkpoint").
        remedy: what to give instead; the message ends with it.

    Raises:
        InputError: it is missing, a directory or another special file, empty, or may not be read.

    >>> require_file(Path("/no/such.pt"), "Checkpoint", "Give a file.")
    Traceback (most recent call last):
    ...
    dtp_deploy.errors.InputError: Checkpoint /no/such.pt does not exist. Give a file.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{what} {path} is a directory. {remedy}")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{what} {path} is not a regular file. {remedy}")
        if status.st_size == 0:
            raise InputError(f"{what} {path} is empty (0 bytes). Copy or save it again.")
        with path.open("rb"):
            pass
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{what} {path} does not exist. {remedy}") from None
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}. {remedy}") from error
