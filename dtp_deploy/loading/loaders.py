"""The user's own loaders, from a function of theirs."""

import random
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.batches import CountedStream, check_batching, check_finite, mixed_seed, rebatch
from dtp_deploy.loading.factory import import_object
from dtp_deploy.loading.source import Batch
from dtp_deploy.loading.wording import cause, kind_text, shape_text
from dtp_deploy.modules import Inputs
from dtp_deploy.nested import map_tensors, rows_of

_T = TypeVar("_T")
_BATCHES = "A batch is (inputs, targets) or inputs alone, where inputs is a tensor or a tuple of tensors, batch first."


def open_loaders(spec: str) -> "LoaderData":
    """Call the factory that ``pkg.module:name`` names, without arguments, and check the two loaders that come back.

    Raises:
        UsageError: there is no such factory, or it is not callable.
        InputError: its module cannot be imported, it raises, or what it returns cannot be used.
    """
    factory = import_object(spec, "--data")
    if not callable(factory):
        raise UsageError(
            f"--data {spec} is {kind_text(factory)}, which cannot be called. "
            "Give a function that returns two loaders: (train, validation)."
        )
    try:
        loaders = factory()
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--data {spec} raised {cause(error)}. Correct it; it is called without arguments: "
            "if it needs some, give a function that fills them in."
        ) from error
    if not isinstance(loaders, tuple | list) or len(loaders) != 2:
        given = f"{len(loaders)} values" if isinstance(loaders, tuple | list) else kind_text(loaders)
        raise InputError(f"--data {spec} returned {given}. Let it return two loaders: (train, validation).")
    for part, loader in zip(("train", "validation"), loaders, strict=True):
        _check_loader(spec, part, loader)
    return LoaderData(spec, *loaders)


class LoaderData:
    """Two iterables of batches that the user made. It is a `DataSource`.

    In training the batch size, the order and the augmentation are the loader's own. Its randomness, as far as it is
    drawn from the global generators of PyTorch, NumPy and Python, follows from the seed, and from nothing that is drawn
    elsewhere. To take a stream up again, the batches before are gone through anew.

    Targets are class indices where those of the first validation batch are a tensor of whole numbers, one a sample.
    `class_names` are then those of ``loader.dataset.classes``, which torchvision's data sets have.

    Args:
        spec: what the user named.
        train, validation: loaders that were checked.

    Raises:
        InputError: the first validation batch has no known form, or inputs that are not finite or not float32.
    """

    notes = ("Batch size, order, augmentation and preprocessing of the training data are those of the loader given.",)

    def __init__(self, spec: str, train: Iterable[object], validation: Iterable[object]) -> None:
        self.name = spec
        self.preprocessing: dict[str, Any] = {}
        self._train, self._validation = train, validation
        with_generators = _GlobalRandomness(mixed_seed(0))
        first = with_generators.call(lambda: next(iter(validation), None), spec)
        if first is None:
            raise InputError(f"--data {spec}: the validation loader is empty. Let it give at least one batch.")
        inputs, targets = as_batch(spec, first)
        self.sample_shapes = tuple(tuple(x.shape[1:]) for x in inputs)
        _check_inputs(spec, inputs)
        self.labelled = targets is not None
        self._indexed = _are_indices(targets)
        classes = getattr(getattr(train, "dataset", None), "classes", None)
        named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
        self.class_names = tuple(classes) if self._indexed and isinstance(classes, list | tuple) and named else None
        self._counts: tuple[int, int] | None = None

    @property
    def validation_size(self) -> int:
        """Samples of the validation loader, which is gone through once to count them."""
        return self._counted()[0]

    @property
    def num_classes(self) -> int | None:
        """One more than the largest class index in validation, or the number of names if that is larger.

        None where targets are no class indices. The validation loader is gone through once to find it.
        """
        return max(self._counted()[1], len(self.class_names or ())) if self._indexed else None

    def train(self, batch_size: int, seed: int, augment: str = "none") -> CountedStream:
        """The training loader's own batches; see `DataSource.train`.

        Raises:
            UsageError: an augmentation is asked for.
        """
        check_batching(batch_size, augment)
        if augment != "none":
            raise UsageError(
                f"--augment {augment} does not apply to --data {self.name}, whose loader makes its own batches. "
                "Augment there, and leave the option out."
            )
        return _LoaderStream(self, seed)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """See `DataSource.validation`. Where targets are no tensor, the batches are the loader's own."""
        check_batching(batch_size)
        return rebatch(self._batches(self._validation, mixed_seed(0)), batch_size)

    def training_batches(self, seed: int) -> Iterator[Batch]:
        """One epoch of the training loader."""
        return self._batches(self._train, seed)

    @property
    def train_length(self) -> int:
        """Batches an epoch of the training loader."""
        assert isinstance(self._train, Sized)
        return len(self._train)

    def _counted(self) -> tuple[int, int]:
        """Samples of the validation loader, and one more than the largest class index in it."""
        if self._counts is None:
            size = classes = 0
            for inputs, targets in self._batches(self._validation, mixed_seed(0)):
                size += len(inputs[0])
                if self._indexed:
                    classes = max(classes, int(targets.max()) + 1)
            self._counts = size, classes
        return self._counts

    def _batches(self, loader: Iterable[object], seed: int) -> Iterator[Batch]:
        randomness = _GlobalRandomness(seed)
        batches = randomness.call(lambda: iter(loader), self.name)
        end = object()
        while (batch := randomness.call(lambda: next(batches, end), self.name)) is not end:
            inputs, targets = as_batch(self.name, batch)
            shapes = tuple(tuple(x.shape[1:]) for x in inputs)
            if shapes != self.sample_shapes or (targets is not None) != self.labelled:
                raise InputError(
                    f"--data {self.name}: a batch has inputs of {_form(shapes, targets is not None)}, and the first "
                    f"validation batch {_form(self.sample_shapes, self.labelled)}. Give all in one form."
                )
            if self._indexed and not _are_indices(targets):
                raise InputError(
                    f"--data {self.name}: a batch has targets that are no class indices, and those of the first "
                    "validation batch are. Give all in one form."
                )
            yield inputs, targets.long() if self._indexed else targets


class _LoaderStream(CountedStream):
    def __init__(self, data: LoaderData, seed: int) -> None:
        super().__init__()
        self._data, self._seed = data, seed

    @property
    def batch_size(self) -> None:
        return None

    def __len__(self) -> int:
        return self._data.train_length

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        count = 0
        for batch in self._data.training_batches(mixed_seed(self._seed, epoch)):
            if count == len(self):
                break  # a loader may give more than its length says; the schedule counts on the length
            if count >= start:
                yield self._shared(batch)
            count += 1
        if count < len(self):
            raise InputError(
                f"--data {self._data.name}: the training loader gave {count} batches, and its length is {len(self)}. "
                "Let __len__ tell the number of batches."
            )

    def _shared(self, batch: Batch) -> Batch:
        inputs, targets = batch
        count, world = len(inputs[0]), self._rows.step or 1
        if count % world:
            raise InputError(
                f"--data {self._data.name}: a training batch has {count} samples, which {world} processes cannot share "
                f"evenly. Let the loader give multiples of {world}, with drop_last=True."
            )
        return rows_of(inputs, self._rows), rows_of(targets, self._rows)


class _GlobalRandomness:
    """Lets the user's code draw from the global generators as if nobody else did.

    Args:
        seed: of what the user's code draws.
    """

    def __init__(self, seed: int) -> None:
        self._inside = (
            torch.Generator().manual_seed(seed).get_state(),
            np.random.RandomState(seed % 2**32).get_state(),  # the user's code may draw from it
            random.Random(seed).getstate(),  # noqa: S311  # no secret
        )

    def call(self, code: Callable[[], _T], spec: str) -> _T:
        """Run the user's code with its own state of the generators."""
        outside = _get_generators()
        _set_generators(self._inside)
        try:
            return code()
        except Exception as error:
            raise InputError(f"--data {spec}: a loader raised {cause(error)}. Correct it.") from error
        finally:
            self._inside = _get_generators()
            _set_generators(outside)


def as_batch(spec: str, batch: object) -> Batch:
    """A batch of the user's in the form that all batches have.

    Args:
        spec: where it came from, for messages.
        batch: (inputs, targets), or inputs alone: a tensor, an array, or a tuple of one.

    Raises:
        InputError: it is something else, or its inputs are no tensors of one batch size.
    """
    inputs, targets = batch, None
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        inputs, targets = batch if len(batch) == 2 else (batch[0], None)
    given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    tensors = tuple(_tensor(x) for x in given)
    if not tensors or any(x is None or x.ndim < 2 for x in tensors):
        kinds = ", ".join(_kind(x) for x in given)
        raise InputError(f"--data {spec}: a batch is {kind_text(batch)} with inputs of ({kinds}). {_BATCHES}")
    result = tuple(x.cpu() for x in tensors if x is not None)
    sizes = {len(x) for x in result} | ({len(targets)} if isinstance(targets, Tensor) and targets.ndim else set())
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(f"--data {spec}: the parts of a batch have {sorted(sizes)} samples. {_BATCHES}")
    converted = _tensor(targets)
    return result, map_tensors(Tensor.cpu, targets if converted is None else converted)


def _tensor(value: object) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value)
    return value if isinstance(value, Tensor) else None


def _are_indices(targets: object) -> bool:
    """Whether targets are a tensor of one whole number a sample."""
    if not isinstance(targets, Tensor) or targets.ndim != 1:
        return False
    return not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)


def _check_inputs(spec: str, inputs: Inputs) -> None:
    types = [x.dtype for x in inputs if x.is_floating_point() and x.dtype != torch.float32]
    if types:
        raise InputError(
            f"--data {spec}: its inputs are {str(types[0]).removeprefix('torch.')}, and float32 is needed, as the "
            "model's weights are. Convert them in the data set: x.float() for a tensor, x.astype('float32') for an "
            "array."
        )
    check_finite(spec, inputs)


def _kind(value: object) -> str:
    return f"tensor of {value.ndim} dimensions" if isinstance(value, Tensor) else type(value).__name__


def _form(shapes: tuple[tuple[int, ...], ...], targets: bool) -> str:
    return f"{' and '.join(map(shape_text, shapes))} {'with' if targets else 'without'} targets"


def _check_loader(spec: str, part: str, loader: object) -> None:
    if not isinstance(loader, Iterable):
        raise InputError(
            f"--data {spec}: its {part} loader is {kind_text(loader)}, which cannot be iterated. "
            "Give a DataLoader, or a list of batches."
        )
    if isinstance(loader, Iterator):
        raise InputError(
            f"--data {spec}: its {part} loader is {kind_text(loader)}, which can be gone through only once. "
            "Give a DataLoader, a list of batches, or an object with __iter__."
        )
    if part == "validation":
        return
    try:
        length = len(loader) if isinstance(loader, Sized) else 0
    except TypeError:  # a DataLoader of an iterable data set has __len__, which raises
        length = 0
    if length < 1:
        raise InputError(
            f"--data {spec}: its train loader has no batches or no length, and training counts on it. "
            "Let it have a __len__ that tells the number of batches."
        )


def _get_generators() -> tuple[Tensor, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _set_generators(states: tuple[Tensor, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
