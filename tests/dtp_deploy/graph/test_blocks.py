"""Residual blocks on the zoo, and what only looks like one."""

import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.errors import GraphError, UsageError
from dtp_deploy.graph import find_blocks
from dtp_deploy.testing.blocks import BasicBlock, conv_bn
from dtp_deploy.testing.zoo import ZOO

IMAGE = torch.zeros(1, 8, 6, 6)


def found(model: nn.Module, **patterns: list[str]) -> dict[str, tuple[tuple[str, ...], str | None]]:
    return {block.name: (block.modules, block.kept_because) for block in find_blocks(model, IMAGE, **patterns)}


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("residual", {"features.1": ["conv1", "conv2"], "features.3": ["conv1", "conv2"]}),
        ("bottleneck", {"features.2": ["reduce", "conv", "expand"]}),
        ("depthwise", {block: ["expand", "depthwise", "project"] for block in ("features.1", "features.3")}),
        ("squeeze_excite", {"features.1": ["expand", "depthwise", "project"]}),
        ("plain", {}),
        ("concat", {}),
        ("shared", {}),
        ("unet", {}),
    ],
)
def test_the_zoo(name: str, modules: dict[str, list[str]]) -> None:
    blocks = find_blocks(ZOO[name].model(), ZOO[name].inputs())

    assert {block.name: block.modules for block in blocks} == {
        block: tuple(f"{block}.{part}" for part in parts) for block, parts in modules.items()
    }
    assert [block.kept_because for block in blocks] == [None] * len(modules)


def test_two_blocks_of_one_module_are_called_after_their_ends() -> None:
    blocks = find_blocks(ZOO["attention"].model(), ZOO["attention"].inputs())

    assert {block.name: block.modules for block in blocks if block.name.startswith("blocks.0")} == {
        "blocks.0.project": ("blocks.0.norm1", "blocks.0.qkv", "blocks.0.project"),
        "blocks.0.fc2": ("blocks.0.norm2", "blocks.0.fc1", "blocks.0.fc2"),
    }


@pytest.mark.parametrize(("name", "operation"), [("convnext", "permute_1"), ("split", "silu_3")])
def test_a_branch_that_ends_in_an_operation_stays(name: str, operation: str) -> None:
    first, *_ = find_blocks(ZOO[name].model(), ZOO[name].inputs())

    assert first.kept_because == f"its branch ends in an operation ({operation}) that is no module's output"


class Wrapped(nn.Module):
    """x + f(x), in place, with a ReLU that is used inside of the branch and after it, as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), None
        self.bn2, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


def test_additions_in_place_and_a_module_that_is_used_outside_too() -> None:
    assert found(nn.Sequential(Wrapped())) == {"0": (("0.conv1", "0.bn1", "0.conv2", "0.bn2"), None)}


class Body(nn.Module):
    """x + f(x) with f as one module."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def test_a_module_that_is_the_whole_branch_is_taken_as_one() -> None:
    model = Body(nn.Sequential(Body(conv_bn(8, 8)), nn.ReLU(), conv_bn(8, 8)))

    assert found(model) == {"body.0": (("body.0.body",), None), "body": (("body",), None)}


def test_a_branch_without_weights_is_no_block() -> None:
    assert found(Body(nn.ReLU())) == {}


class Twice(Body):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return x + y, y


class Inside(Body):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body[0](x)
        return x + self.body[1](y) + y.mean()


class Looped(Body):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.body(x)
        return x


class OwnScale(Body):
    def __init__(self, body: nn.Module) -> None:
        super().__init__(body)
        self.scale, self.last = nn.Parameter(torch.ones(1)), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.body(x) * self.scale)


class Tied(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.body.weight.mean()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Twice(nn.Conv2d(8, 8, 1)), "the output of its branch is used elsewhere too"),
        (Inside(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))), "a part of its branch is used elsewhere too"),
        (Looped(nn.Conv2d(8, 8, 1)), "'body' is called more than once"),
        (OwnScale(nn.Conv2d(8, 8, 1)), "its branch has the tensor 'scale', which is in no layer of its own"),
        (Tied(nn.Conv2d(8, 8, 1)), "its tensor 'body.weight' is used elsewhere too"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_go_says_why(model: nn.Module, reason: str) -> None:
    blocks = find_blocks(model, IMAGE)

    assert blocks
    assert {block.kept_because for block in blocks} == {reason}


def test_patterns_keep_blocks() -> None:
    model = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))

    assert {name: why for name, (_, why) in found(model, keep=["0.conv1.0"]).items()} == {
        "0": "kept by --keep '0.conv1.0'",
        "1": None,
    }
    assert {name: why for name, (_, why) in found(model, only=["1"]).items()} == {
        "0": "not named by --only '1'",
        "1": None,
    }
    with pytest.raises(UsageError, match="--keep 'stem' matches no layer"):
        find_blocks(model, IMAGE, keep=["stem"])


def test_a_model_that_cannot_be_captured() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(GraphError, match=r"The residual blocks of Branching could not be found, .*Leave --allow-depth"):
        find_blocks(Branching(), IMAGE)
