"""What every `DataSource` promises, whatever it is made of."""

import io
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from dtp_deploy.errors import DtpError, UsageError
from dtp_deploy.loading.data import load_data
from dtp_deploy.loading.source import Batch, DataSource, TrainStream
from dtp_deploy.nested import rows_of

KINDS = ["npz", "folder", "flat folder", "synthetic", "loaders"]
BATCH = 3


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    x = torch.rand(11, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, torch.arange(11))
    return DataLoader(data, BATCH, shuffle=True, drop_last=True), DataLoader(data, 4)


@pytest.fixture
def make(
    tmp_path: Path, two_classes: Path, write_patches: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], DataSource]:
    """kind -> data of that kind, with inputs of 3x16x16."""

    def make(kind: str) -> DataSource:
        if kind == "npz":
            rng = np.random.default_rng(0)
            x = rng.integers(0, 256, (11, 3, 16, 16), np.uint8)
            np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(11), x_val=x[:7], y_val=np.arange(7))
            return load_data(str(tmp_path / "a.npz"))
        if kind == "flat folder":
            write_patches(tmp_path / "flat", "china", 11)
        module = ModuleType("user_loaders")
        module.loaders = loaders  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "user_loaders", module)
        spec = {
            "folder": str(two_classes),
            "flat folder": str(tmp_path / "flat"),
            "synthetic": "synthetic",
            "loaders": "user_loaders:loaders",
        }[kind]
        return load_data(spec, input_shapes=[(1, 3, 16, 16)])

    return make


@pytest.fixture(params=KINDS)
def data(request: pytest.FixtureRequest, make: Callable[[str], DataSource]) -> DataSource:
    return make(request.param)


def same(first: Batch, second: Batch) -> bool:
    pairs = [*zip(first[0], second[0], strict=True)]
    if first[1] is not None:
        pairs.append((first[1], second[1]))
    return all(torch.equal(a, b) for a, b in pairs) and (first[1] is None) == (second[1] is None)


def all_same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


def endless(stream: TrainStream) -> Iterator[Batch]:
    while True:
        yield from stream


def augmentation(data: DataSource) -> str:
    return "none" if data.name == "user_loaders:loaders" else "shift-flip"


def test_batches_have_the_shape_and_labels_that_are_told(data: DataSource) -> None:
    stream = data.train(BATCH, seed=0)
    epoch = list(stream)
    assert len(epoch) == len(stream)
    assert data.sample_shapes == ((3, 16, 16),)
    for (x,), targets in epoch:
        assert x.shape == (BATCH, 3, 16, 16)
        assert x.dtype == torch.float32
        assert (targets is not None) == data.labelled
        if targets is not None:
            assert targets.dtype == torch.int64
            assert targets.shape == (BATCH,)
            assert data.num_classes is None or int(targets.max()) < data.num_classes


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_validation_gives_every_sample_once_in_batches_as_asked(data: DataSource, batch_size: int) -> None:
    batches = list(data.validation(batch_size))
    sizes = [len(inputs[0]) for inputs, _ in batches]
    assert sum(sizes) == data.validation_size
    assert all(size == batch_size for size in sizes[:-1])
    assert all_same(batches, list(data.validation(batch_size))), "the same in every pass"
    singles = torch.cat([inputs[0] for inputs, _ in data.validation(1)])
    assert torch.equal(singles, torch.cat([inputs[0] for inputs, _ in batches]))


def test_the_same_seed_gives_the_same_epochs_whatever_else_draws(data: DataSource) -> None:
    first, second, other = (endless(data.train(BATCH, seed, augmentation(data))) for seed in (1, 1, 2))
    length = len(data.train(BATCH, 0))
    count = 2 * length if length < 100 else 5
    expected = list(islice(first, count))
    torch.rand(3)
    assert all_same(expected, list(islice(second, count)))
    assert not all_same(expected, list(islice(other, count)))
    if length < 100:
        assert not all_same(expected[:length], expected[length:]), "epochs differ"


def test_the_global_generator_is_left_alone(data: DataSource) -> None:
    state = torch.get_rng_state()
    next(iter(data.train(BATCH, 0, augmentation(data))))
    next(iter(data.validation(2)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("given", [0, 1, 2, 3, 4])
def test_a_stream_taken_up_again_continues_as_if_it_had_never_stopped(data: DataSource, given: int) -> None:
    whole = data.train(BATCH, 5, augmentation(data))
    reference = endless(whole)
    count = given if len(whole) < 100 else given + 2
    list(islice(reference, count))
    file = io.BytesIO()
    torch.save(whole.state(), file)
    file.seek(0)
    again = data.train(BATCH, 5, augmentation(data))
    next(iter(again))  # it may have been elsewhere
    again.load_state(torch.load(file, weights_only=True))
    assert all_same(list(islice(reference, 8)), list(islice(endless(again), 8)))


def test_after_load_state_the_rest_of_the_epoch_comes_first(make: Callable[[str], DataSource]) -> None:
    for kind in KINDS:
        data = make(kind)
        whole = data.train(BATCH, 5)
        epoch = list(whole)
        first = data.train(BATCH, 5)
        list(islice(first, 1))
        again = data.train(BATCH, 5)
        again.load_state(first.state())
        assert all_same(list(again), epoch[1:])
        assert len(list(again)) == len(epoch), "and then whole epochs"
        again.load_state(whole.state())
        assert len(list(again)) == len(epoch), "an epoch that was complete has no rest"


def test_another_state_gives_other_batches(data: DataSource) -> None:
    first, second = data.train(BATCH, 5), data.train(BATCH, 5)
    list(islice(first, 1))
    state = first.state()
    list(islice(endless(first), 2))
    second.load_state(state)
    assert not all_same(list(islice(endless(first), 2)), list(islice(endless(second), 2)))


def test_the_shares_of_processes_together_are_the_batches(data: DataSource) -> None:
    whole = list(islice(endless(data.train(BATCH, 5, augmentation(data))), 7))
    for rank in range(3):
        stream = data.train(BATCH, 5, augmentation(data))
        stream.share(rank, 3)
        parts = [next(endless(stream))]
        again = data.train(BATCH, 5, augmentation(data))
        again.share(rank, 3)
        again.load_state(stream.state())
        parts += islice(endless(again), 6)
        rows = slice(rank, None, 3)
        assert all_same(parts, [(rows_of(inputs, rows), rows_of(targets, rows)) for inputs, targets in whole])


def test_batches_that_cannot_be_shared_evenly(make: Callable[[str], DataSource]) -> None:
    for kind in KINDS:
        data = make(kind)
        stream = data.train(BATCH, 0)
        expected = (
            "Batches of 3 samples cannot be shared evenly by 2 processes. Give a --batch-size that is a multiple of 2, "
            "and no more than there are training samples."
        )
        if kind == "loaders":
            expected = (
                f"--data {data.name}: a training batch has 3 samples, which 2 processes cannot share evenly. Let the "
                "loader give multiples of 2, with drop_last=True."
            )

        def use(stream: TrainStream = stream) -> None:
            stream.share(0, 2)
            next(iter(stream))

        with pytest.raises(DtpError) as caught:
            use()
        assert str(caught.value) == expected


@pytest.mark.parametrize("batch_size", [0, -4])
def test_a_batch_size_below_one(data: DataSource, batch_size: int) -> None:
    for use in (lambda: data.train(batch_size, 0), lambda: next(iter(data.validation(batch_size)))):
        with pytest.raises(UsageError) as caught:
            use()
        assert str(caught.value) == f"The batch size {batch_size} is not allowed. Give at least 1."


def test_an_unknown_augmentation(data: DataSource) -> None:
    with pytest.raises(UsageError) as caught:
        data.train(BATCH, 0, "rotate")
    assert str(caught.value) == "The augmentation 'rotate' is unknown. Give one of none, shift, shift-flip."
