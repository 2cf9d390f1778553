import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.preprocessing import Preprocessing, from_timm, preprocessing_json

sides = st.integers(1, 40)
sizes = st.tuples(sides, sides)
geometry = st.one_of(
    st.fixed_dictionaries({"letterbox": sizes, "fill": st.integers(0, 255)}),
    st.fixed_dictionaries({"resize": st.one_of(sides, sizes)}),
    st.fixed_dictionaries({"resize": st.none() | sides | sizes, "crop": sizes}),
)
pixels_range = st.sampled_from(["0-1", "0-255"])
scaling = st.one_of(
    st.fixed_dictionaries(
        {
            "channels": st.sampled_from(["rgb", "bgr"]),
            "mean": st.tuples(*[st.floats(-1, 1)] * 3),
            "std": st.tuples(*[st.floats(0.1, 1)] * 3),
            "range": pixels_range,
        }
    ),
    st.fixed_dictionaries({"channels": st.just("grey"), "mean": st.tuples(st.floats(-1, 1)), "range": pixels_range}),
)
FILTERS = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


def ramp(height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture whose pixels tell where they are: red is the row, green the column, blue 200."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 200)], -1).astype(np.uint8)


def apply(pixels: npt.NDArray[Any], **options: Any) -> npt.NDArray[np.float32]:
    return Preprocessing(**({"range": "0-255"} | options)).apply(Image.fromarray(pixels))


@given(geometry, scaling, st.sampled_from(FILTERS), sizes)
def test_every_preprocessing_gives_its_shape_and_survives_json(
    place: dict[str, Any], scale: dict[str, Any], interpolation: Any, size: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(**place, **scale, interpolation=interpolation)
    again = Preprocessing.from_json(json.loads(preprocessing_json(preprocessing)))
    assert again == preprocessing
    image = Image.fromarray(ramp(*size))
    result = preprocessing.apply(image)
    assert result.shape == preprocessing.output_shape
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert np.array_equal(again.apply(image), result)


def test_the_centre_is_cropped() -> None:
    result = apply(ramp(10, 20), resize=10, crop=(4, 6))
    assert result[0, :, 0].tolist() == [3, 4, 5, 6]
    assert result[1, 0].tolist() == [7, 8, 9, 10, 11, 12]


def test_a_crop_beyond_the_picture_is_black_there() -> None:
    result = apply(ramp(4, 4), resize=4, crop=(6, 4))
    assert result[2, :, 0].tolist() == [0, 200, 200, 200, 200, 0]


def test_resize_to_a_number_keeps_the_aspect_and_to_a_pair_does_not() -> None:
    halves = np.zeros((8, 16, 3), np.uint8)
    halves[:, 8:] = 255
    assert apply(halves, resize=4, interpolation="box")[0].tolist() == [[0, 0, 255, 255]] * 4
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 12:] = 255  # the last quarter, which the square crop loses and stretching keeps
    assert apply(wide, resize=4, interpolation="box")[0].max() == 0
    assert apply(wide, resize=(4, 4), interpolation="box")[0].tolist() == [[0, 0, 0, 255]] * 4


def test_a_crop_alone_covers_the_picture() -> None:
    tall = np.full((30, 10, 3), 9, np.uint8)
    tall[10:20] = 255
    result = apply(tall, crop=(10, 10), interpolation="box")
    assert result.min() == 255, "the middle third is what is left"
    assert apply(tall, crop=(5, 5), interpolation="box").min() == 255


def test_letterbox_keeps_the_whole_picture_and_fills_the_rest() -> None:
    white = np.full((10, 20, 3), 255, np.uint8)
    result = apply(white, letterbox=(8, 8))
    assert result[1, :, 3].tolist() == [114, 114, 255, 255, 255, 255, 114, 114]
    assert apply(white, letterbox=(8, 8), fill=0, channels="grey")[0, 0, 0] == 0


def test_range_mean_and_std_in_the_order_of_the_channels() -> None:
    pixel = np.array([[[51, 102, 255]]], np.uint8)
    rgb = apply(pixel, range="0-1", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 0.5), crop=(1, 1))
    np.testing.assert_allclose(rgb[:, 0, 0], [0.1, 0.1, 1.4], atol=1e-6)
    bgr = apply(pixel, channels="bgr", mean=(255.0, 2.0, 1.0), crop=(1, 1))
    assert bgr[:, 0, 0].tolist() == [0, 100, 50]


def test_a_grey_picture_in_a_set_of_colour_and_the_other_way_round() -> None:
    grey = np.array([[0, 77], [200, 255]], np.uint8)
    assert np.array_equal(apply(grey, crop=(2, 2)), np.stack([grey] * 3))
    colour = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    assert apply(colour, channels="grey", crop=(2, 2)).tolist() == [[[76, 76], [76, 76]]]


COLOUR = (200, 100, 50)


def stored(mode: str, picture: Image.Image) -> Image.Image:
    """The picture in another mode."""
    if mode == "palette with transparency":
        result = picture.convert("P")
        result.info["transparency"] = bytes([0, 128, 255])
        return result
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "palette with transparency", "CMYK", "YCbCr", "HSV"])
def test_pictures_of_any_colour_mode_come_out_alike(mode: str) -> None:
    result = Preprocessing(range="0-255", crop=(3, 3)).apply(stored(mode, Image.new("RGB", (3, 3), COLOUR)))
    assert np.abs(result[:, 1, 1] - COLOUR).max() <= 4, "palettes and colour spaces round"


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I", "I;16", "I;16B"])
def test_pictures_of_any_grey_mode_come_out_alike(mode: str) -> None:
    if mode.startswith("I"):
        values = np.array([[0, 65535], [65535, 0]], {"I": np.int32, "I;16": "<u2", "I;16B": ">u2"}[mode])
        image = Image.fromarray(values)
        assert image.mode == mode
    else:
        image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert(mode)
    result = Preprocessing(range="0-255", crop=(2, 2)).apply(image)
    assert result.tolist() == [[[0, 255], [255, 0]]] * 3


def test_sixteen_bits_keep_their_upper_eight() -> None:
    assert apply(np.full((1, 1), 0x9CFF, np.uint16), crop=(1, 1)).tolist() == [[[0x9C]]] * 3


def test_transparency_is_dropped() -> None:
    see_through = np.array([[[10, 20, 30, 0]]], np.uint8)
    assert apply(see_through, crop=(1, 1))[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = ramp(3, 5)
    stored_pixels = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored_pixels)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        result = Preprocessing(range="0-255", crop=(3, 5)).apply(image)
    assert np.array_equal(result, np.moveaxis(upright, -1, 0))


def test_floating_point_pixels_have_no_agreed_range() -> None:
    with pytest.raises(InputError) as caught:
        apply(np.zeros((2, 2), np.float32), crop=(2, 2))
    assert str(caught.value) == "The picture holds floating-point pixels. Save it with 8 or 16 bits."


def test_sized_fills_in_what_is_open_and_nothing_else() -> None:
    assert Preprocessing(resize=9).sized(4, 5).output_shape == (3, 4, 5)
    assert Preprocessing().sized(4, 5).output_shape == (3, 4, 5)
    assert Preprocessing().output_shape is None
    for set_already in (Preprocessing(crop=(2, 2)), Preprocessing(letterbox=(2, 2)), Preprocessing(resize=(2, 2))):
        assert set_already.sized(4, 5) is set_already


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": "RGB"}, "Preprocessing: channels is 'RGB'. Give one of rgb, bgr, grey."),
        ({"range": "0-2"}, "Preprocessing: range is '0-2'. Give one of 0-1, 0-255."),
        (
            {"interpolation": "random"},
            "Preprocessing: interpolation is 'random'. Give one of nearest, bilinear, bicubic, lanczos, box, hamming.",
        ),
        (
            {"resize": 0},
            "Preprocessing: resize is 0. Give a number (the shorter side) or (height, width) in pixels above 0.",
        ),
        ({"crop": (3,)}, "Preprocessing: crop is (3,). Give (height, width) in pixels above 0."),
        ({"crop": 224}, "Preprocessing: crop is 224. Give (height, width) in pixels above 0."),
        ({"letterbox": (640, 0.5)}, "Preprocessing: letterbox is (640, 0.5). Give (height, width) in pixels above 0."),
        (
            {"letterbox": (8, 8), "resize": 8},
            "Preprocessing: letterbox fits the whole picture in, so resize and crop have nothing to do. "
            "Give letterbox alone, or resize and crop.",
        ),
        ({"mean": (1.0, 2.0)}, "Preprocessing: mean is (1.0, 2.0). Give 1 or 3 numbers for rgb pictures."),
        (
            {"mean": (1.0,) * 3, "channels": "grey"},
            "Preprocessing: mean is (1.0, 1.0, 1.0). Give 1 number for grey pictures.",
        ),
        ({"std": (float("nan"),)}, "Preprocessing: std is (nan,). Give 1 or 3 numbers for rgb pictures."),
        (
            {"std": (1.0, 0.0, 1.0)},
            "Preprocessing: std holds 0, and it is divided by. Give numbers other than 0.",
        ),
        ({"fill": 256}, "Preprocessing: fill is 256. Give a grey from 0 to 255."),
    ],
)
def test_values_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Preprocessing(**options)
    assert str(caught.value) == message


def test_an_unknown_name_in_json() -> None:
    with pytest.raises(UsageError) as caught:
        Preprocessing.from_json({"crop": [8, 8], "gamma": 2})
    assert str(caught.value) == (
        "Preprocessing has no 'gamma'. Give resize, crop, letterbox, mean, std, channels, range, interpolation, fill."
    )


TIMM = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.95,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def test_from_timm() -> None:
    assert from_timm(TIMM) == Preprocessing(
        resize=235,
        crop=(224, 224),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bicubic",
    )
    squashed = from_timm(TIMM | {"crop_mode": "squash", "crop_pct": 1.0, "input_size": [3, 192, 256]})
    assert (squashed.resize, squashed.crop) == ((192, 256), (192, 256))
    assert from_timm({"input_size": (1, 28, 28), "crop_pct": 1}).channels == "grey"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "The timm configuration names no input_size. Give --input, and the preprocessing by hand."),
        (
            TIMM | {"crop_mode": "border"},
            "The timm configuration asks for crop_mode border at 224x224. Only squash, and center of a square, are "
            "known. Give --resize and --crop, or --letterbox.",
        ),
        (
            TIMM | {"input_size": (3, 192, 256)},
            "The timm configuration asks for crop_mode center at 192x256. Only squash, and center of a square, are "
            "known. Give --resize and --crop, or --letterbox.",
        ),
        (
            TIMM | {"input_size": (12, 224, 224)},
            "The timm configuration asks for 12 channels and bicubic interpolation. Only 1 or 3 channels and nearest, "
            "bilinear, bicubic, lanczos, box, hamming are known. Give the preprocessing by hand.",
        ),
    ],
)
def test_timm_configurations_that_cannot_be_followed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_timm(config)
    assert str(caught.value) == message


def test_a_photo_as_torchvision_would_prepare_it(photos: dict[str, npt.NDArray[Any]]) -> None:
    """Resize(256), CenterCrop(224), ToTensor, Normalize, written out with Pillow and NumPy."""
    photo = Image.fromarray(photos["china"])
    resized = np.asarray(photo.resize((383, 256), Image.Resampling.BILINEAR), np.float64)  # int(256 * 640 / 427)
    cropped = resized[16 : 16 + 224, 80 : 80 + 224] / 255  # round((256 - 224) / 2), round((383 - 224) / 2)
    expected = ((cropped - TIMM["mean"]) / TIMM["std"]).transpose(2, 0, 1)
    options: dict[str, Any] = {"mean": TIMM["mean"], "std": TIMM["std"]}
    result = Preprocessing(resize=256, crop=(224, 224), **options).apply(photo)
    np.testing.assert_allclose(result, expected, atol=1e-5)
