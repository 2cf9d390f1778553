import pytest
import torch

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.data import load_data
from dtp_deploy.loading.preprocessing import Preprocessing
from dtp_deploy.loading.synthetic import SyntheticData


def test_it_says_what_it_is() -> None:
    for spec in (None, "synthetic"):
        data = load_data(spec, input_shapes=[(1, 3, 8, 8)])
        assert data.name == "synthetic"
        assert not data.labelled
        assert (data.num_classes, data.class_names) == (None, None)
        assert data.preprocessing == {}
        assert data.notes == ("No data were given: the inputs are random.",)
        assert data.validation_size == 256


def test_standard_normal_without_preprocessing() -> None:
    x = torch.cat([x for (x,), _ in SyntheticData([(1, 3, 16, 16)]).validation(64)])
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02


def test_several_inputs_of_any_rank() -> None:
    data = SyntheticData([(1, 3, 8, 8), (1, 5)])
    inputs, targets = next(iter(data.train(4, 0, "shift-flip")))
    assert [tuple(x.shape) for x in inputs] == [(4, 3, 8, 8), (4, 5)]
    assert targets is None
    assert data.sample_shapes == ((3, 8, 8), (5,))


def test_with_preprocessing_they_are_pictures_in_its_units() -> None:
    preprocessing = Preprocessing(range="0-255", mean=(127.5,), std=(2.0,))
    data = load_data(None, input_shapes=[(1, 3, 16, 16)], preprocessing=preprocessing)
    x = torch.cat([x for (x,), _ in data.validation(64)])
    pixels = x * 2 + 127.5
    assert torch.equal(pixels, pixels.round())
    assert (float(pixels.min()), float(pixels.max())) == (0, 255)
    assert abs(float(pixels.mean()) - 127.5) < 1
    assert data.preprocessing == Preprocessing(range="0-255", mean=(127.5,), std=(2.0,), crop=(16, 16)).to_json()


def test_every_training_batch_is_new_and_validation_depends_on_its_own_seed() -> None:
    data = SyntheticData([(1, 2)], seed=1)
    stream = data.train(512, 0)
    drawn = [x for _ in range(2) for (x,), _ in stream]
    assert len({x.numpy().tobytes() for x in drawn}) == 8
    (first,), _ = next(data.validation(4))
    (other,), _ = next(SyntheticData([(1, 2)], seed=2).validation(4))
    assert not torch.equal(first, other)


def test_a_batch_is_never_larger_than_an_epoch() -> None:
    stream = SyntheticData([(1, 1)]).train(5000, 0)
    assert [len(x) for (x,), _ in stream] == [2048]


@pytest.mark.parametrize("shapes", [None, []])
def test_no_shape(shapes: list[tuple[int, ...]] | None) -> None:
    with pytest.raises(UsageError) as caught:
        load_data(None, input_shapes=shapes)
    assert str(caught.value) == (
        "Synthetic data have no shape of their own. Give --input, the batch first: 1x3x224x224."
    )


@pytest.mark.parametrize(
    ("shapes", "preprocessing", "message"),
    [
        (
            [(1, 3, 8, 8)],
            Preprocessing(crop=(4, 4)),
            "The preprocessing makes 3x4x4, and --input is 1x3x8x8. Give a preprocessing for that input, or none.",
        ),
        (
            [(1, 3, 8, 8), (1, 5)],
            Preprocessing(),
            "The preprocessing makes rgb pictures, and --input is 1x3x8x8 and 1x5. "
            "Give a preprocessing for that input, or none.",
        ),
        (
            [(1, 1, 8, 8)],
            Preprocessing(),
            "The preprocessing makes rgb pictures, and --input is 1x1x8x8. "
            "Give a preprocessing for that input, or none.",
        ),
    ],
)
def test_a_preprocessing_for_other_inputs(
    shapes: list[tuple[int, ...]], preprocessing: Preprocessing, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        SyntheticData(shapes, preprocessing)
    assert str(caught.value) == message
