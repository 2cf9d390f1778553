from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dtp_deploy.loading.batches import TrainBatches, rebatch
from dtp_deploy.loading.source import Batch


def images(count: int, height: int = 16, width: int = 24) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Random images above zero; y is the index of the image, so that each can be found again."""
    x = np.random.default_rng(0).uniform(0.1, 1, (count, 2, height, width)).astype(np.float32)
    return x, np.arange(count)


def epoch(batches: TrainBatches) -> tuple[Tensor, Tensor]:
    inputs, ys = zip(*batches, strict=True)
    return torch.cat([x for (x,) in inputs]), torch.cat(ys)


def batches(count: int = 20, **options: Any) -> TrainBatches:
    return TrainBatches(*images(count), **({"batch_size": 4, "seed": 0} | options))


@pytest.mark.parametrize(("count", "batch_size", "expected"), [(20, 4, 5), (23, 4, 5), (4, 4, 1), (3, 4, 1), (1, 1, 1)])
def test_an_epoch_has_as_many_batches_as_it_says(count: int, batch_size: int, expected: int) -> None:
    found = batches(count, batch_size=batch_size)
    assert len(found) == expected
    assert [len(x) for (x,), _ in found] == [min(count, batch_size)] * expected


def test_an_epoch_holds_each_sample_once_with_its_label() -> None:
    x, y = epoch(batches())
    assert sorted(y.tolist()) == list(range(20))
    assert torch.equal(x, torch.from_numpy(images(20)[0])[y])
    assert y.tolist() != list(range(20))


def test_epochs_differ_and_the_leftover_changes() -> None:
    found = batches(23)
    first, second = epoch(found)[1], epoch(found)[1]
    assert first.tolist() != second.tolist()
    assert set(first.tolist()) != set(second.tolist())


@pytest.mark.parametrize("augment", ["none", "shift-flip"])
def test_one_seed_gives_the_same_epochs_whatever_else_draws(augment: str) -> None:
    first, second, other = (batches(augment=augment, seed=seed) for seed in (1, 1, 2))
    for _ in range(2):
        expected = epoch(first)
        torch.rand(3)
        assert all(torch.equal(a, b) for a, b in zip(expected, epoch(second), strict=True))
        assert not torch.equal(expected[1], epoch(other)[1])


def test_it_leaves_the_global_generator_and_the_data_alone() -> None:
    x, y = images(20)
    before, state = x.copy(), torch.get_rng_state()
    epoch(TrainBatches(x, y, 4, 0, "shift-flip"))
    assert np.array_equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_shifts_by_up_to_an_eighth_and_fills_with_zeros() -> None:
    source = torch.from_numpy(images(200)[0])
    x, y = epoch(batches(200, augment="shift"))
    found = set()
    for image, index in zip(x, y.tolist(), strict=True):
        kept_rows, kept_columns = (image[0] > 0).any(1).nonzero()[:, 0], (image[0] > 0).any(0).nonzero()[:, 0]
        down = int(kept_rows[0]) or int(kept_rows[-1]) - 15
        right = int(kept_columns[0]) or int(kept_columns[-1]) - 23
        expected = torch.zeros_like(image)
        expected[:, max(down, 0) : 16 + min(down, 0), max(right, 0) : 24 + min(right, 0)] = source[index][
            :, max(-down, 0) : 16 - max(down, 0), max(-right, 0) : 24 - max(right, 0)
        ]
        assert torch.equal(image, expected)
        found.add((down, right))
    assert {down for down, _ in found} == set(range(-2, 3))
    assert {right for _, right in found} == set(range(-3, 4))


def test_images_below_eight_pixels_are_not_shifted() -> None:
    x, y = images(8, 7, 5)
    shifted, order = epoch(TrainBatches(x, y, 4, 0, "shift"))
    assert torch.equal(shifted, torch.from_numpy(x)[order])


def test_flip_mirrors_about_half_and_nothing_else() -> None:
    small, labels = images(200, 7, 5)  # too small to be shifted too
    source = torch.from_numpy(small)
    x, y = epoch(TrainBatches(small, labels, 4, 0, "shift-flip"))
    same = (x == source[y]).flatten(1).all(1)
    mirrored = (x == source[y].flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 60 < int(mirrored.sum()) < 140


def labelled(*sizes: int) -> list[Batch]:
    """Batches of these sizes, in which the samples are numbered through."""
    numbers = torch.arange(sum(sizes)).split(list(sizes))
    return [((part[:, None].float(), part), part) for part in numbers]


@given(st.lists(st.integers(1, 7), max_size=6), st.integers(1, 9))
def test_rebatch_keeps_every_sample_in_order(sizes: list[int], size: int) -> None:
    found = list(rebatch(labelled(*sizes), size))
    assert [n for _, targets in found for n in targets.tolist()] == list(range(sum(sizes)))
    assert all(len(targets) == size for _, targets in found[:-1])
    for (first, second), targets in found:
        assert torch.equal(first[:, 0], targets.float())
        assert torch.equal(second, targets)


def test_rebatch_leaves_targets_of_the_users_own_together() -> None:
    boxes: list[Batch] = [((torch.zeros(2, 1),), [["a"], ["b", "c"]]), ((torch.zeros(3, 1),), [[], [], []])]
    assert list(rebatch(boxes, 1)) == boxes


def test_rebatch_without_targets() -> None:
    unlabelled: list[Batch] = [((torch.arange(count)[:, None],), None) for count in (2, 1)]
    assert [(x[:, 0].tolist(), targets) for (x,), targets in rebatch(unlabelled, 2)] == [([0, 1], None), ([0], None)]
