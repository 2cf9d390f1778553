import random
import sys
from collections.abc import Callable, Iterator
from itertools import count
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.data import load_data
from dtp_deploy.loading.loaders import LoaderData

BATCHES = "A batch is (inputs, targets) or inputs alone, where inputs is a tensor or a tuple of tensors, batch first."
X, Y = torch.arange(24.0).view(8, 3), torch.arange(8)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], LoaderData]:
    """Data from a factory that is called mine.data:make."""

    def load(factory: Any) -> LoaderData:
        module = ModuleType("mine")
        module.make = factory  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mine", module)
        data = load_data("mine:make")
        assert isinstance(data, LoaderData)
        return data

    return load


def pair(train: object, validation: object | None = None) -> Callable[[], tuple[object, object]]:
    return lambda: (train, train if validation is None else validation)


def test_data_loaders(load: Callable[[Any], LoaderData]) -> None:
    data = load(pair(DataLoader(TensorDataset(X, Y), 3)))
    assert data.name == "mine:make"
    assert data.labelled
    assert (data.class_names, data.num_classes) == (None, 8)
    assert data.sample_shapes == ((3,),)
    assert data.validation_size == 8
    assert len(data.train(64, 0)) == 3
    assert [targets.tolist() for _, targets in data.train(64, 0)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [targets.tolist() for _, targets in data.validation(5)] == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert data.notes == (
        "Batch size, order, augmentation and preprocessing of the training data are those of the loader given.",
    )


def test_class_names_of_a_data_set(load: Callable[[Any], LoaderData]) -> None:
    dataset = TensorDataset(X, Y % 2)
    dataset.classes = ["cat", "dog"]  # type: ignore[attr-defined]
    data = load(pair(DataLoader(dataset, 3)))
    assert data.class_names == ("cat", "dog")
    assert data.num_classes == 2


@pytest.mark.parametrize("batch", [X, X.numpy(), [X], (X,)])
def test_inputs_alone(load: Callable[[Any], LoaderData], batch: object) -> None:
    data = load(pair([batch]))
    assert not data.labelled
    ((inputs, targets),) = data.validation(8)
    assert torch.equal(inputs[0], X)
    assert targets is None


def test_several_inputs(load: Callable[[Any], LoaderData]) -> None:
    data = load(pair([((X, X[:, :2]), Y)]))
    assert data.sample_shapes == ((3,), (2,))
    inputs, targets = next(iter(data.train(1, 0)))
    assert [tuple(x.shape) for x in inputs] == [(8, 3), (8, 2)]
    assert torch.equal(targets, Y)


def test_arrays_become_tensors(load: Callable[[Any], LoaderData]) -> None:
    data = load(pair([(X.numpy(), Y.numpy())]))
    ((inputs, targets),) = data.validation(8)
    assert torch.equal(inputs[0], X)
    assert torch.equal(targets, Y)


def test_targets_of_any_kind_come_as_they_are(load: Callable[[Any], LoaderData]) -> None:
    boxes = [{"boxes": [1, 2]}, {"boxes": []}]
    data = load(pair([(X[:2], boxes)]))
    assert data.labelled
    ((_, targets),) = data.validation(1)
    assert targets == boxes


class Drawing:
    """Batches drawn from every global generator that users draw from."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(3):
            drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002
            yield torch.tensor([drawn]), torch.zeros(1)


def test_randomness_follows_the_seed_alone(load: Callable[[Any], LoaderData]) -> None:
    data = load(pair(Drawing()))

    def draw(seed: int, disturb: bool) -> list[list[float]]:
        found = []
        for inputs, _ in data.train(1, seed):
            found += inputs[0].tolist()
            if disturb:
                torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        return found

    assert draw(0, disturb=False) == draw(0, disturb=True)
    for first, second in zip(draw(0, disturb=False), draw(1, disturb=False), strict=True):
        assert all(a != b for a, b in zip(first, second, strict=True)), "of PyTorch, of NumPy and of Python"
    outside = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    draw(0, disturb=False)
    assert torch.equal(torch.get_rng_state(), outside[0])
    assert random.getstate() == outside[1]
    assert np.random.get_state()[1].tolist() == outside[2]  # noqa: NPY002


def assert_refused(
    load: Callable[[Any], LoaderData], factory: object, message: str, kind: type[DtpError] = InputError
) -> None:
    with pytest.raises(kind) as caught:
        load(factory)
    assert str(caught.value) == f"--data mine:make{message}"


def raising() -> None:
    raise KeyError("photos")


class Unsized:
    def __iter__(self) -> Iterator[Tensor]:
        return iter([X])


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return count()


TWO = "Let it return two loaders: (train, validation)."
NO_LENGTH = (
    ": its train loader has no batches or no length, and training counts on it. "
    "Let it have a __len__ that tells the number of batches."
)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            raising,
            f" raised KeyError: 'photos', at test_loaders.py:{raising.__code__.co_firstlineno + 1}. "
            "Correct it; it is called without arguments: "
            "if it needs some, give a function that fills them in.",
        ),
        (lambda: None, f" returned a NoneType. {TWO}"),
        (lambda: [X], f" returned 1 values. {TWO}"),
        (lambda: (X, X, X), f" returned 3 values. {TWO}"),
        (
            pair(7),
            ": its train loader is an int, which cannot be iterated. Give a DataLoader, or a list of batches.",
        ),
        (
            pair([X], iter([X])),
            ": its validation loader is a list_iterator, which can be gone through only once. "
            "Give a DataLoader, a list of batches, or an object with __iter__.",
        ),
        (pair(Unsized()), NO_LENGTH),
        (pair([]), NO_LENGTH),
        (pair(DataLoader(Endless())), NO_LENGTH),
        (lambda: ([X], []), ": the validation loader is empty. Let it give at least one batch."),
        (pair([{"image": X}]), f": a batch is a dict with inputs of (dict). {BATCHES}"),
        (
            pair([(X, X, Y)]),
            ": a batch is a tuple with inputs of (tensor of 2 dimensions, tensor of 2 dimensions, tensor of 1 "
            f"dimensions). {BATCHES}",
        ),
        (pair([(Y, Y)]), f": a batch is a tuple with inputs of (tensor of 1 dimensions). {BATCHES}"),
        (pair([(X, Y[:3])]), f": the parts of a batch have [3, 8] samples. {BATCHES}"),
        (pair([(X[:0], Y[:0])]), f": the parts of a batch have [0] samples. {BATCHES}"),
    ],
)
def test_factories_that_cannot_be_used(load: Callable[[Any], LoaderData], factory: object, message: str) -> None:
    assert_refused(load, factory, message)


def test_a_factory_that_is_not_callable(load: Callable[[Any], LoaderData]) -> None:
    assert_refused(
        load,
        [X],
        " is a list, which cannot be called. Give a function that returns two loaders: (train, validation).",
        UsageError,
    )


def test_a_factory_that_is_not_there() -> None:
    with pytest.raises(UsageError) as caught:
        load_data("no_such_module:make")
    assert str(caught.value) == (
        "--data no_such_module:make: there is no module no_such_module. "
        "Give one that is installed or lies under the working directory."
    )


class Breaking:
    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Tensor]:
        yield X
        raise OSError("disk gone")


def test_a_loader_that_raises_on_the_way(load: Callable[[Any], LoaderData]) -> None:
    data = load(pair(Breaking()))
    with pytest.raises(InputError) as caught:
        list(data.train(1, 0))
    assert str(caught.value) == (
        "--data mine:make: a loader raised OSError: disk gone, at "
        f"test_loaders.py:{Breaking.__iter__.__code__.co_firstlineno + 2}. Correct it."
    )


def test_batches_of_different_forms(load: Callable[[Any], LoaderData]) -> None:
    data = load(pair([X], [(X[:, :2], Y)]))
    with pytest.raises(InputError) as caught:
        list(data.train(1, 0))
    assert str(caught.value) == (
        "--data mine:make: a batch has inputs of 3 without targets, and the first validation batch 2 with targets. "
        "Give all in one form."
    )


class Short:
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Tensor]:
        return iter([X, X])


def test_a_loader_that_is_shorter_than_it_says(load: Callable[[Any], LoaderData]) -> None:
    data = load(pair(Short()))
    with pytest.raises(InputError) as caught:
        list(data.train(1, 0))
    assert str(caught.value) == (
        "--data mine:make: the training loader gave 2 batches, and its length is 3. "
        "Let __len__ tell the number of batches."
    )


class Long:
    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Tensor]:
        return iter([X, X])


def test_a_loader_that_is_longer_than_it_says_is_cut(load: Callable[[Any], LoaderData]) -> None:
    data = load(pair(Long()))
    assert len(list(data.train(1, 0))) == 1
    assert data.validation_size == 16


def test_augmentation_is_the_loaders_own(load: Callable[[Any], LoaderData]) -> None:
    data = load(pair([X]))
    with pytest.raises(UsageError) as caught:
        data.train(1, 0, "shift")
    assert str(caught.value) == (
        "--augment shift does not apply to --data mine:make, whose loader makes its own batches. "
        "Augment there, and leave the option out."
    )


# ---- class indices ---------------------------------------------------------------------------------------------------


def with_classes(x: Tensor, y: Tensor, *names: str) -> DataLoader[tuple[Tensor, ...]]:
    dataset = TensorDataset(x, y)
    dataset.classes = list(names)  # type: ignore[attr-defined]
    return DataLoader(dataset, 3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_whole_numbers_one_a_sample_are_class_indices(load: Callable[[Any], LoaderData], dtype: torch.dtype) -> None:
    data = load(pair(DataLoader(TensorDataset(X, Y.to(dtype) % 5), 3)))
    assert (data.num_classes, data.class_names) == (5, None)
    for _, targets in (*data.train(1, 0), *data.validation(3)):
        assert targets.dtype == torch.int64, "as cross-entropy needs them"


@pytest.mark.parametrize(
    "targets", [torch.rand(8), torch.rand(8, 4), torch.ones(8, 1, dtype=torch.int64), torch.ones(8, dtype=torch.bool)]
)
def test_other_targets_are_no_class_indices_whatever_their_data_set_says(
    load: Callable[[Any], LoaderData], targets: Tensor
) -> None:
    data = load(pair(with_classes(X, targets, "cat", "dog")))
    assert data.labelled
    assert (data.num_classes, data.class_names) == (None, None)


def test_the_larger_of_names_and_indices_counts(load: Callable[[Any], LoaderData]) -> None:
    assert load(pair(with_classes(X, Y % 2, "cat", "dog", "cow"))).num_classes == 3
    assert load(pair(with_classes(X, Y, "cat", "dog", "cow"))).num_classes == 8


def test_counting_samples_and_classes_is_one_pass(load: Callable[[Any], LoaderData]) -> None:
    class Counting(list[Any]):
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return super().__iter__()

    batches = Counting([(X, Y)])
    data = load(pair(batches))
    looked_at = batches.passes
    assert (data.validation_size, data.num_classes, data.validation_size) == (8, 8, 8)
    assert batches.passes == looked_at + 1


def test_targets_that_change_their_kind(load: Callable[[Any], LoaderData]) -> None:
    data = load(pair([(X, Y.float())], [(X, Y)]))
    with pytest.raises(InputError) as caught:
        list(data.train(1, 0))
    assert str(caught.value) == (
        "--data mine:make: a batch has targets that are no class indices, and those of the first validation batch "
        "are. Give all in one form."
    )


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite(load: Callable[[Any], LoaderData], value: float) -> None:
    assert_refused(
        load,
        pair([X], [X.index_fill(0, torch.tensor([1]), value)]),
        ": the first validation batch holds NaN or infinite inputs. Replace or drop those samples, or correct the "
        "preprocessing (a division by zero, say).",
    )


@pytest.mark.parametrize(
    ("inputs", "dtype"), [(X.double().numpy(), "float64"), (X.double(), "float64"), (X.half(), "float16")]
)
def test_inputs_of_another_precision(load: Callable[[Any], LoaderData], inputs: object, dtype: str) -> None:
    assert_refused(
        load,
        pair([(inputs, Y)]),
        f": its inputs are {dtype}, and float32 is needed, as the model's weights are. Convert them in the data set: "
        "x.float() for a tensor, x.astype('float32') for an array.",
    )


def test_whole_numbers_are_inputs_too(load: Callable[[Any], LoaderData]) -> None:
    assert load(pair([(Y.view(8, 1), Y)])).sample_shapes == ((1,),)
