"""Where in the user's own code something went wrong, and where nothing of it was involved."""

import json
from collections.abc import Callable

import pytest
import torch

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.factory import make_model
from dtp_deploy.loading.inputs import parse_input
from dtp_deploy.loading.wording import cause

Write = Callable[[str, str], None]

CODE = """
import torch

def helper(size):
    return torch.nn.Linear(3, size)

def outer():
    return helper("wide")
"""


def test_the_last_line_of_the_users_own_code(write: Write) -> None:
    """Not the line in PyTorch that raised, and not the one that called the helper."""
    write("user_parts.py", CODE)
    with pytest.raises(InputError, match=r", at user_parts\.py:5\. Correct it"):
        make_model("user_parts:outer")


def test_a_module_that_fails_to_import(write: Write) -> None:
    write("user_import.py", "\n\n1 / 0\n")
    with pytest.raises(InputError, match=r"with ZeroDivisionError: division by zero, at user_import\.py:3\. Correct"):
        make_model("user_import:net")


@pytest.mark.parametrize(
    ("function", "argument"), [(json.loads, "{"), (torch.nn.Linear(2, 2), torch.ones(3)), (parse_input, "x")]
)
def test_code_that_is_not_the_users_is_not_named(function: Callable[[object], object], argument: object) -> None:
    """Python's own, an installed package's, and this project's."""
    with pytest.raises((ValueError, RuntimeError, UsageError)) as caught:
        function(argument)
    error = caught.value
    assert ", at test_wording.py:" in cause(error), "this test's own line"
    assert error.__traceback__ is not None
    assert ", at " not in cause(error.with_traceback(error.__traceback__.tb_next))
