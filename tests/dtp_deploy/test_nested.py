"""Tensors in tuples, lists and dicts, of classes of a user's own too."""

from collections import UserDict
from collections.abc import Iterator, MutableMapping
from typing import NamedTuple

import torch
from torch import Tensor

from dtp_deploy.nested import like_outputs, rows_of


class Labels(UserDict[str, Tensor]):
    def areas(self) -> Tensor:
        return self["boxes"].square()


class Lines(list[Tensor]):
    pass


def test_classes_of_a_users_own_stay():
    labels = Labels(boxes=torch.arange(4))
    found = rows_of((labels, Lines([torch.arange(4)])), slice(1, 3))
    assert found[0].areas().tolist() == [1, 4]
    assert type(found[1]) is Lines
    assert labels["boxes"].tolist() == [0, 1, 2, 3]


class Boxes(NamedTuple):
    corners: Tensor
    scale: object


def test_rows_keep_the_nesting_named_tuples_too():
    batch = {"boxes": Boxes(torch.arange(4), 2.0), "others": [torch.arange(4), (torch.tensor(7),)]}
    found = rows_of(batch, slice(1, 3))
    assert isinstance(found["boxes"], Boxes)
    assert found["boxes"].corners.tolist() == [1, 2]
    assert found["boxes"].scale == 2.0
    assert [found["others"][0].tolist(), int(found["others"][1][0])] == [[1, 2], 7]
    assert type(found["others"][1]) is tuple


def test_tensors_are_nested_like_outputs_again():
    found = like_outputs(Boxes(torch.zeros(1), {"a": torch.zeros(1), "none": None}), [torch.ones(1), torch.ones(2)])
    assert isinstance(found, Boxes)
    assert (len(found.corners), len(found.scale["a"]), found.scale["none"]) == (1, 2, None)


class Held(MutableMapping[str, Tensor]):
    """A mapping of which a shallow copy shares its items."""

    def __init__(self, **items: Tensor) -> None:
        self.items_held = items

    def __getitem__(self, key: str) -> Tensor:
        return self.items_held[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.items_held[key] = value

    def __delitem__(self, key: str) -> None:
        del self.items_held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_held)

    def __len__(self) -> int:
        return len(self.items_held)


def test_what_is_given_is_not_changed():
    held = Held(boxes=torch.arange(4))
    assert rows_of(held, slice(1, 3))["boxes"].tolist() == [1, 2]
    assert held["boxes"].tolist() == [0, 1, 2, 3]
