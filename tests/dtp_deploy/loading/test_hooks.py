from collections.abc import Callable

import pytest
import torch
from torch import nn

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.hooks import apply_hook

Write = Callable[[str, str], None]

HOOKS = """
import sys
from torch import nn
NUMBER = 3
BUILT = nn.ReLU()
def head(model): return model[0]
def in_place(model): model[0].bias = None
def to_list(model): return [model]
def to_class(model): return nn.Linear
def failing(model): raise ValueError("no such head\\nin it")
def leaving(model): sys.exit(3)
def two(model, classes): return model
def lazy(model): return nn.LazyLinear(2)
"""


@pytest.fixture
def hook(write: Write) -> Callable[[str], nn.Module]:
    write("user_hooks.py", HOOKS)
    return lambda name: apply_hook(f"user_hooks:{name}", nn.Sequential(nn.Linear(2, 3)), "--prepare")


def test_gives_what_the_function_returns(hook: Callable[[str], nn.Module]) -> None:
    result = hook("head")
    assert isinstance(result, nn.Linear)
    assert result(torch.zeros(1, 2)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("missing", UsageError, ": module user_hooks has no 'missing'. Give a name that is defined in it."),
        (
            "NUMBER",
            UsageError,
            " is an int, not a function. Give a function that takes a torch.nn.Module and returns one.",
        ),
        (
            "BUILT",
            UsageError,
            " is a ReLU, not a function. Give a function that takes a torch.nn.Module and returns one.",
        ),
        (
            "in_place",
            InputError,
            " returned nothing. Let it return the model, also where it changes it in place.",
        ),
        ("to_list", InputError, " returned a value of type list. Let it return a torch.nn.Module."),
        ("to_class", InputError, " returned a class. Let it return a torch.nn.Module."),
        (
            "failing",
            InputError,
            " raised ValueError: no such head, at user_hooks.py:10. Correct it; "
            "it is called with the model as its only argument.",
        ),
        (
            "leaving",
            InputError,
            " raised SystemExit: 3, at user_hooks.py:11. Correct it; it is called with the model as its only argument.",
        ),
        (
            "two",
            InputError,
            " raised TypeError: two() missing 1 required positional argument: 'classes'. "
            "Correct it; it is called with the model as its only argument.",
        ),
        (
            "lazy",
            InputError,
            " returned a model whose tensors have no values yet (lazy or on the meta device): weight, bias. "
            "Let it run the model once on an example, or build it on the CPU.",
        ),
    ],
)
def test_says_what_is_wrong(hook: Callable[[str], nn.Module], name: str, kind: type[DtpError], message: str) -> None:
    with pytest.raises(kind) as caught:
        hook(name)
    assert type(caught.value) is kind
    assert str(caught.value) == f"--prepare user_hooks:{name}{message}"


def test_the_option_is_the_one_that_was_given(write: Write) -> None:
    with pytest.raises(UsageError) as caught:
        apply_hook("user_hooks", nn.ReLU(), "--finish")
    assert str(caught.value) == (
        "--finish 'user_hooks' is not of the form pkg.module:name. "
        "Give a module and a name in it, such as mynets.resnet:resnet18."
    )
