"""What turns a picture into the input of a model: explicit, written into the report and the ONNX, and used again there.

This file needs NumPy and Pillow only, so that it also serves where the delivered model runs (see docs/data.md).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from dtp_deploy.errors import InputError, UsageError

METADATA_KEY = "dtp_deploy.preprocessing"
"""Under which the metadata of a delivered ONNX file hold `preprocessing_json`."""

Channels = Literal["rgb", "bgr", "grey"]
Range = Literal["0-1", "0-255"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Size = tuple[int, int]
"""(height, width) in pixels."""

_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input, in this order: upright, 8 bits, channels, size, range, mean and std.

    The size comes from one of three: `letterbox`; `resize` to a pair, which stretches; or `resize` to a number, the
    shorter side, and `crop` of the centre. `crop` alone scales the picture until it just covers the crop; `resize`
    to a number alone crops a square. Sizes are rounded as torchvision does.

    Attributes:
        resize: length of the shorter side, the aspect kept; or (height, width), stretched; None for no resizing.
        crop: (height, width) of the centre that is kept; what lies outside of the picture is black.
        letterbox: (height, width) that the whole picture is fitted into, the rest filled with `fill`.
        mean: subtracted from each channel, after `range` and in the order of `channels`; one number serves all.
        std: each channel is divided by it, after `mean`.
        channels: "rgb", "bgr" or "grey".
        range: "0-1" divides pixels by 255, "0-255" keeps them.
        interpolation: Pillow's filter of that name, which smoothes when it makes pictures smaller.
        fill: grey of the bars of a letterbox, 0 to 255.

    Raises:
        UsageError: a value is not allowed, or values contradict each other.

    >>> Preprocessing(resize=256, crop=(224, 224), mean=(0.5,), std=(0.5,)).output_shape
    (3, 224, 224)
    >>> Preprocessing(crop=(2, 2)).apply(Image.new("RGB", (8, 4), (255, 0, 51)))[:, 0, 0].tolist()
    [1.0, 0.0, 0.20000000298023224]
    """

    resize: int | Size | None = None
    crop: Size | None = None
    letterbox: Size | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: Channels = "rgb"
    range: Range = "0-1"
    interpolation: Interpolation = "bilinear"
    fill: int = 114

    def __post_init__(self) -> None:
        for name, allowed in (("channels", Channels), ("range", Range), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(allowed):
                raise UsageError(
                    f"Preprocessing: {name} is {getattr(self, name)!r}. Give one of {', '.join(get_args(allowed))}."
                )
        for name in ("resize", "crop", "letterbox"):
            self._check_size(name)
        if self.letterbox is not None and (self.resize is not None or self.crop is not None):
            raise UsageError(
                "Preprocessing: letterbox fits the whole picture in, so resize and crop have nothing to do. "
                "Give letterbox alone, or resize and crop."
            )
        for name in ("mean", "std"):
            self._check_numbers(name)
        if 0 in self.std:
            raise UsageError("Preprocessing: std holds 0, and it is divided by. Give numbers other than 0.")
        if not 0 <= self.fill <= 255:
            raise UsageError(f"Preprocessing: fill is {self.fill}. Give a grey from 0 to 255.")

    @property
    def num_channels(self) -> int:
        """1 for grey, else 3."""
        return 1 if self.channels == "grey" else 3

    @property
    def output_size(self) -> Size | None:
        """(height, width) of every input; None where nothing sets it."""
        square = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        return self.letterbox or self.crop or square

    @property
    def output_shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of every input; None where nothing sets the size."""
        size = self.output_size
        return None if size is None else (self.num_channels, *size)

    def sized(self, height: int, width: int) -> "Preprocessing":
        """This, with a centre crop to the given size unless something sets the size already."""
        if self.letterbox is not None or self.crop is not None or isinstance(self.resize, tuple):
            return self
        return replace(self, crop=(height, width))

    def apply(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """The input that a picture of any mode and size becomes, float32 [channels, height, width].

        A picture turned by its EXIF data is set upright first. Transparency is dropped, 16 bits become 8, and CMYK,
        palettes and grey are converted.

        Raises:
            InputError: the picture holds floating-point pixels, which have no agreed range.
        """
        image = _eight_bits(ImageOps.exif_transpose(image))
        image = image.convert("L" if self.channels == "grey" else "RGB")
        pixels = np.atleast_3d(np.asarray(self._fit(image)))
        return self.scale(np.moveaxis(pixels, -1, 0))

    def scale(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What comes after the geometry: order of channels, range, mean and std.

        Args:
            pixels: grey or RGB, uint8 [..., channels, height, width].

        Returns:
            float32 of the same shape.
        """
        if self.channels == "bgr":
            pixels = pixels[..., ::-1, :, :]
        result = np.ascontiguousarray(pixels, np.float32)
        if self.range == "0-1":
            result /= 255
        for target, operation in ((self.mean, np.subtract), (self.std, np.divide)):
            operation(result, np.array(target, np.float32)[:, None, None], out=result)
        return result

    def to_json(self) -> dict[str, Any]:
        """A dict of what a JSON file can hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """What `to_json` made, again; what is left out takes its default.

        Raises:
            UsageError: a name is unknown, or a value is not allowed.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UsageError(f"Preprocessing has no {name!r}. Give {', '.join(known)}.")
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**given)

    def _fit(self, image: Image.Image) -> Image.Image:
        """The picture at its final size."""
        filtering = Image.Resampling[self.interpolation.upper()]
        if self.letterbox is not None:
            return _letterboxed(image, self.letterbox, filtering, self.fill)
        width, height = image.size
        if isinstance(self.resize, tuple):
            image = image.resize(self.resize[::-1], filtering)
        elif self.resize is not None:
            shorter = min(width, height)
            # As torchvision: the longer side is cut, not rounded.
            image = image.resize((self.resize * width // shorter, self.resize * height // shorter), filtering)
        elif self.crop is not None:
            scale = max(self.crop[0] / height, self.crop[1] / width)
            covering = (max(round(width * scale), self.crop[1]), max(round(height * scale), self.crop[0]))
            image = image.resize(covering, filtering)
        size = self.output_size
        return image if size is None else _cropped(image, size)

    def _check_size(self, name: str) -> None:
        value = getattr(self, name)
        sides = (value,) if isinstance(value, int) and name == "resize" else value
        if value is None:
            return
        if not isinstance(sides, tuple) or (isinstance(value, tuple) and len(value) != 2) or not _whole(sides):
            number = "a number (the shorter side) or " if name == "resize" else ""
            raise UsageError(f"Preprocessing: {name} is {value!r}. Give {number}(height, width) in pixels above 0.")

    def _check_numbers(self, name: str) -> None:
        numbers = getattr(self, name)
        if not isinstance(numbers, tuple) or len(numbers) not in (1, self.num_channels) or not _finite(numbers):
            allowed = "1 number" if self.num_channels == 1 else f"1 or {self.num_channels} numbers"
            raise UsageError(f"Preprocessing: {name} is {numbers!r}. Give {allowed} for {self.channels} pictures.")


def preprocessing_json(preprocessing: Preprocessing) -> str:
    """What the ONNX metadata hold under `METADATA_KEY`.

    >>> Preprocessing.from_json(json.loads(preprocessing_json(Preprocessing(crop=(8, 8))))).crop
    (8, 8)
    """
    return json.dumps(preprocessing.to_json(), sort_keys=True)


def from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that a timm model was validated with.

    Args:
        config: `model.pretrained_cfg`, or what `timm.data.resolve_data_config` returns.

    Raises:
        InputError: it lacks the input size, or asks for a cropping or interpolation that is not known here.

    >>> from_timm({"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}).resize
    256
    """
    if "input_size" not in config:
        raise InputError("The timm configuration names no input_size. Give --input, and the preprocessing by hand.")
    channels, height, width = config["input_size"]
    mode, share = config.get("crop_mode") or "center", config.get("crop_pct") or 0.875
    interpolation: Any = config.get("interpolation") or "bilinear"
    # timm resizes to the size over crop_pct, rounded down (timm.data.transforms_factory.transforms_imagenet_eval).
    scaled_height, scaled_width = math.floor(height / share), math.floor(width / share)
    if channels not in (1, 3) or interpolation not in get_args(Interpolation):
        raise InputError(
            f"The timm configuration asks for {channels} channels and {interpolation} interpolation. Only 1 or 3 "
            f"channels and {', '.join(get_args(Interpolation))} are known. Give the preprocessing by hand."
        )
    if mode == "squash":
        resize: int | Size = (scaled_height, scaled_width)
    elif mode == "center" and height == width:
        resize = scaled_height
    else:
        raise InputError(
            f"The timm configuration asks for crop_mode {mode} at {height}x{width}. Only squash, and center of a "
            "square, are known. Give --resize and --crop, or --letterbox."
        )
    return Preprocessing(
        resize=resize,
        crop=(height, width),
        mean=tuple(float(value) for value in config.get("mean") or (0.0,)),
        std=tuple(float(value) for value in config.get("std") or (1.0,)),
        channels="grey" if channels == 1 else "rgb",
        interpolation=interpolation,
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel and without transparency that a conversion would warn of."""
    if image.mode in _SIXTEEN_BIT:
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise InputError("The picture holds floating-point pixels. Save it with 8 or 16 bits.")
    return image.convert("RGBA") if image.mode in ("P", "PA") else image


def _letterboxed(image: Image.Image, size: Size, filtering: Image.Resampling, fill: int) -> Image.Image:
    height, width = size
    scale = min(height / image.height, width / image.width)
    fitted = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), filtering)
    result = Image.new(image.mode, (width, height), fill if image.mode == "L" else (fill,) * 3)
    result.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return result


def _cropped(image: Image.Image, size: Size) -> Image.Image:
    height, width = size
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _whole(sides: tuple[Any, ...]) -> bool:
    return all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)


def _finite(numbers: tuple[Any, ...]) -> bool:
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
