from collections.abc import Callable

import pytest
from torch import nn

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.factory import import_object, make_model

Write = Callable[[str, str], None]


def assert_error(spec: str, kind: type[DtpError], message: str) -> None:
    with pytest.raises(kind) as caught:
        make_model(spec)
    assert type(caught.value) is kind
    assert str(caught.value) == message


def test_calls_a_factory_in_the_working_directory(write: Write) -> None:
    write("wd_nets/small.py", "from torch import nn\ndef linear(): return nn.Linear(3, 2)\n")
    model = make_model("wd_nets.small:linear")
    assert isinstance(model, nn.Linear)
    assert make_model("wd_nets.small:linear") is not model


def test_takes_a_class_and_an_attribute_of_a_class(write: Write) -> None:
    write(
        "wd_classes.py",
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(2, 2)\n"
        "    @classmethod\n"
        "    def wide(cls): return nn.Linear(8, 8)\n",
    )
    assert type(make_model("wd_classes:Net")).__name__ == "Net"
    model = make_model("wd_classes:Net.wide")
    assert isinstance(model, nn.Linear)
    assert model.out_features == 8


def test_a_factory_may_import_its_neighbours_when_it_is_called(write: Write) -> None:
    write("wd_late.py", "def net():\n    import wd_neighbour\n    return wd_neighbour.net()\n")
    write("wd_neighbour.py", "from torch import nn\nnet = nn.Identity\n")
    assert isinstance(make_model("wd_late:net"), nn.Identity)


def test_names_the_option_that_it_was_given_with() -> None:
    with pytest.raises(UsageError, match=r"^--loss 'nothing' is not of the form"):
        import_object("nothing", "--loss")


@pytest.mark.parametrize("spec", ["", "nets", "nets.resnet18", ":net", "nets:", "nets/a.py:net", "..nets:net", "a:b:c"])
def test_refuses_another_form(spec: str) -> None:
    assert_error(
        spec,
        UsageError,
        f"--model {spec!r} is not of the form pkg.module:name. "
        "Give a module and a name in it, such as mynets.resnet:resnet18.",
    )


def test_module_not_found(write: Write) -> None:
    write("wd_package/__init__.py", "")
    for spec, missing in (
        ("wd_none:net", "wd_none"),
        ("wd_none.inner:net", "wd_none"),
        ("wd_package.inner:net", "wd_package.inner"),
    ):
        assert_error(
            spec,
            UsageError,
            f"--model {spec}: there is no module {missing}. "
            "Give one that is installed or lies under the working directory.",
        )


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import wd_not_installed\n", "ModuleNotFoundError: No module named 'wd_not_installed'"),
        ("from torch import wd_nothing\n", "ImportError: cannot import name 'wd_nothing' from 'torch' "),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def f(:\n", "SyntaxError: invalid syntax (wd_broken.py, line 1)"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
    ],
)
def test_a_module_that_fails_while_it_is_imported(write: Write, code: str, cause: str) -> None:
    write("wd_broken.py", code)
    with pytest.raises(InputError) as caught:
        make_model("wd_broken:net")
    message = str(caught.value)
    assert message.startswith(f"--model wd_broken:net: importing wd_broken failed with {cause}")
    assert message.endswith('. Correct the module until `python -c "import wd_broken"` works.')
    assert "\n" not in message
    assert caught.value.__cause__ is not None


def test_name_not_found(write: Write) -> None:
    write("wd_names.py", "def resnet18(): ...\ndef resnet34(): ...\n")
    assert_error(
        "wd_names:resnet81",
        UsageError,
        "--model wd_names:resnet81: module wd_names has no 'resnet81'. "
        "Give a name that is defined in it (near: resnet18, resnet34).",
    )
    assert_error(
        "wd_names:x",
        UsageError,
        "--model wd_names:x: module wd_names has no 'x'. Give a name that is defined in it.",
    )


def test_what_is_no_factory(write: Write) -> None:
    write("wd_values.py", "from torch import nn\nlayers = [1]\nnet = nn.Linear(2, 2)\n")
    assert_error(
        "wd_values:layers",
        UsageError,
        "--model wd_values:layers is a list, which cannot be called. "
        "Give a class or function that returns a torch.nn.Module.",
    )
    assert_error(
        "wd_values:net",
        UsageError,
        "--model wd_values:net is a Linear, built already. "
        "Give a class or function that builds it, so that it can be built again.",
    )


def test_a_factory_that_raises_keeps_the_cause(write: Write) -> None:
    write("wd_raises.py", "def net(width): ...\ndef fail(): raise ValueError('first\\nsecond')\n")
    assert_error(
        "wd_raises:net",
        InputError,
        "--model wd_raises:net raised TypeError: net() missing 1 required positional argument: 'width'. "
        "Correct it; it is called without arguments: if it needs some, give a function that fills them in.",
    )
    with pytest.raises(InputError, match=r"raised ValueError: first, at wd_raises\.py:2\. Correct it") as caught:
        make_model("wd_raises:fail")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_factory_that_returns_no_model(write: Write) -> None:
    write("wd_returns.py", "from torch import nn\ndef none(): ...\ndef klass(): return nn.Linear\n")
    assert_error(
        "wd_returns:none",
        InputError,
        "--model wd_returns:none returned a value of type NoneType. Let it return a torch.nn.Module.",
    )
    assert_error(
        "wd_returns:klass",
        InputError,
        "--model wd_returns:klass returned a class. Let it return a torch.nn.Module.",
    )


def test_a_model_without_values(write: Write) -> None:
    write(
        "wd_unset.py",
        "from torch import nn\n"
        "def lazy(): return nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))\n"
        "def meta(): return nn.BatchNorm1d(2, device='meta')\n",
    )
    rest = "Let it run the model once on an example, or build it on the CPU."
    for name, tensors in (("lazy", "1.weight, 1.bias"), ("meta", "weight, bias, running_mean and 2 more")):
        assert_error(
            f"wd_unset:{name}",
            InputError,
            f"--model wd_unset:{name} returned a model whose tensors have no values yet (lazy or on the meta device): "
            f"{tensors}. {rest}",
        )
