"""The errors that a user can cause or meet, each with the exit code that the command line gives it.

The command line catches `DtpError` and nothing else: any other exception is a bug of ours and keeps its traceback.
A message has three parts: what was given, what is allowed, what to do.
"""

from typing import ClassVar


class DtpError(Exception):
    """The root of all errors meant for a user. Never raised itself."""

    exit_code: ClassVar[int] = 2


class UsageError(DtpError):
    """An option, an argument or a setting has a value that is not allowed."""

    exit_code = 2


class InputError(DtpError):
    """A file or an object that the user brought (checkpoint, factory, data, plan) cannot be used."""

    exit_code = 2


class GraphError(DtpError):
    """The model's graph could not be followed, or holds nothing that may be pruned."""

    exit_code = 2


class TransportError(DtpError):
    """A transport problem is not well posed: scores that are not finite, masses that cannot be met."""

    exit_code = 2


class TrainingError(DtpError):
    """Training broke down: the loss is no longer finite."""

    exit_code = 2


class StoppedError(DtpError):
    """The run was asked to stop, and has saved where it was. Its exit code is 128 and the signal's number."""

    exit_code = 130

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class BudgetError(DtpError):
    """The budget cannot be met, or was not met. The message says the best that was reached."""

    exit_code = 3


class GateError(DtpError):
    """Reserved: a gate will raise it for a model that is slower, bigger or worse than allowed."""

    exit_code = 4


class TargetError(DtpError):
    """A target is missing here, or its runtime failed, hung or died."""

    exit_code = 5


class ParityError(DtpError):
    """Two forms of one model that must agree do not agree within the stated tolerance."""

    exit_code = 6
