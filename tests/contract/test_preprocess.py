"""Preprocessing against Pillow, torch and exact whole-number arithmetic."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from splitboard.contract.decode import decode
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import Preprocessing, edge_image, normalise, prepare, quantised_table, resize

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def image(height: int, width: int, channels: int = 1) -> NDArray[np.uint8]:
    """A ramp with noise: ``[1, height, width, channels]``."""
    random = np.random.default_rng(height * 1000 + width)
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))[None, :, :, None]
    noisy = ramp + random.normal(0, 20, (1, height, width, channels))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("source", "target"), [((300, 300), (224, 224)), ((97, 41), (32, 64)), ((20, 30), (50, 90))])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_pillows_bilinear(source: tuple[int, int], target: tuple[int, int], channels: int) -> None:
    pixels = image(*source, channels)
    ours = resize(pixels, *target)[0]
    theirs = Image.fromarray(pixels[0].squeeze()).resize(target[::-1], Image.Resampling.BILINEAR)
    difference = ours.squeeze().astype(int) - np.asarray(theirs).astype(int)
    assert ours.shape == (*target, channels)
    # Weights in steps of 1/256 and Pillow's own rounding between the passes.
    assert np.abs(difference).max() <= 2
    assert abs(difference.mean()) < 0.1


def weights(source: int, target: int) -> list[list[int]]:
    """The filter in exact fractions: a triangle, rounded to 256ths by largest remainder, ties to the left."""
    scale = Fraction(source, target)
    radius, rows = max(scale, Fraction(1)), []
    for i in range(target):
        centre = (i + Fraction(1, 2)) * scale
        exact = [max(Fraction(0), 1 - abs(j + Fraction(1, 2) - centre) / radius) for j in range(source)]
        exact = [256 * weight / sum(exact) for weight in exact]
        row = [math.floor(weight) for weight in exact]
        for j in sorted(range(source), key=lambda j: row[j] - exact[j])[: 256 - sum(row)]:
            row[j] += 1
        rows.append(row)
    return rows


# Of the last ones some remainders are equal, where the rounding of a float would decide.
@pytest.mark.parametrize(("source", "target"), [((57, 21), (32, 34)), ((20, 30), (50, 31)), ((27, 37), (10, 15))])
def test_resize_gives_the_bytes_of_exact_arithmetic(source: tuple[int, int], target: tuple[int, int]) -> None:
    pixels = image(*source)
    rows, columns = (np.asarray(weights(*sizes), np.int64) for sizes in zip(source, target, strict=True))
    exact = rows @ pixels[0, :, :, 0].astype(np.int64) @ columns.T
    expected = (exact + 2**15) // 2**16
    np.testing.assert_array_equal(resize(pixels, *target)[0, :, :, 0], expected)


def test_resize_gives_the_same_bytes_everywhere() -> None:
    counting = (np.arange(300 * 300 * 3, dtype=np.int64) * 7919 % 256).astype(np.uint8).reshape(1, 300, 300, 3)
    assert (
        hashlib.sha256(resize(counting, 224, 224).tobytes()).hexdigest()
        == "419b73f9e987f4d210999bbe8b819427c539e0b6f9b9dec3cd85547614721af7"
    )


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_resize_keeps_a_flat_image(value: int) -> None:
    flat = np.full((2, 33, 57, 1), value, np.uint8)
    assert (resize(flat, 224, 100) == value).all()
    assert (resize(flat, 8, 9) == value).all()


def torchvision_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """``torchvision.transforms.functional.resize`` with one size, as its documentation has it."""
    if height > width:
        return int(shorter * height / width), shorter
    return shorter, int(shorter * width / height)


def torchvision_offsets(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """Of ``torchvision.transforms.functional.center_crop``."""
    top, left = (round((whole - part) / 2.0) for whole, part in zip(size, crop, strict=True))
    return top, left


@pytest.mark.parametrize("shorter", [224, 232, 256])
def test_the_shorter_side_is_torchvisions(shorter: int) -> None:
    spec = Preprocessing(224, 224, 3, **IMAGENET, resize_shorter=shorter)
    for height in range(1, 700, 9):
        for width in range(1, 700, 7):
            assert spec.resized(height, width) == torchvision_size(height, width, shorter)


@pytest.mark.parametrize(
    ("source", "shorter", "crop"),
    [((375, 500), 256, (224, 224)), ((500, 333), 232, (224, 200)), ((90, 61), 61, (48, 61)), ((30, 41), 64, (64, 33))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_is_pillows_resize_and_torchvisions_crop(
    source: tuple[int, int], shorter: int, crop: tuple[int, int], channels: int
) -> None:
    pixels = image(*source, channels)
    size = torchvision_size(*source, shorter)
    whole = Image.fromarray(pixels[0].squeeze()).resize(size[::-1], Image.Resampling.BILINEAR)
    top, left = torchvision_offsets(size, crop)
    theirs = np.asarray(whole.crop((left, top, left + crop[1], top + crop[0])))
    ours = prepare(pixels, Preprocessing(*crop, channels, **IMAGENET, resize_shorter=shorter))
    assert ours.shape == (1, *crop, channels)
    difference = ours[0].squeeze().astype(int) - theirs.astype(int)
    # Weights in steps of 1/256 and Pillow's own rounding between the passes.
    assert np.abs(difference).max() <= 1
    assert abs(difference.mean()) < 0.1


@pytest.mark.parametrize(("size", "crop", "first"), [(10, 7, 2), (10, 9, 0), (10, 5, 2), (11, 6, 2), (10, 10, 0)])
def test_a_crop_is_at_the_centre_and_halves_go_to_the_even_number(size: int, crop: int, first: int) -> None:
    pixels = image(size, size, 3)
    found = prepare(pixels, Preprocessing(crop, crop, 3, **IMAGENET, resize_shorter=size))
    np.testing.assert_array_equal(found, pixels[:, first : first + crop, first : first + crop])
    assert torchvision_offsets((size, size), (crop, crop)) == (first, first)


@pytest.mark.parametrize("source", [(60, 90), (90, 60), (300, 31), (48, 48)])
def test_resizing_the_crop_alone_changes_no_byte(source: tuple[int, int]) -> None:
    pixels = np.concatenate([image(*source, 3), 255 - image(*source, 3)])
    spec = Preprocessing(40, 33, 3, **IMAGENET, resize_shorter=48)
    whole = resize(pixels, *spec.resized(*source))
    top, left = torchvision_offsets((whole.shape[1], whole.shape[2]), (40, 33))
    np.testing.assert_array_equal(prepare(pixels, spec), whole[:, top : top + 40, left : left + 33])


def test_a_very_long_image_is_not_resized_as_a_whole() -> None:
    """All of it would be 640,000 columns, with 5,000 weights each."""
    pixels = np.repeat(np.repeat(image(1, 501), 2, axis=1), 10, axis=2)
    found = prepare(pixels, Preprocessing(224, 224, 1, **IMAGENET, resize_shorter=256))
    assert (found == pixels[0, 0, 2505, 0]).all()


def test_without_a_crop_the_image_is_stretched() -> None:
    pixels = image(60, 90, 3)
    np.testing.assert_array_equal(prepare(pixels, Preprocessing(24, 32, 3, **IMAGENET)), resize(pixels, 24, 32))


def test_a_spec_from_before_the_crop_is_valid() -> None:
    table = {"height": 8, "width": 9, "source_channels": 1, "mean": [0.5], "std": [0.5]}
    spec = decode(Preprocessing, table, "spec")
    assert (spec.resize_shorter, spec.channel_order) == (None, "RGB")


@pytest.mark.parametrize("source_channels", [1, 3])
def test_normalise_is_torchs_formula(source_channels: int) -> None:
    spec = Preprocessing(24, 32, source_channels, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = image(24, 32, source_channels)
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).double().expand(1, 3, 24, 32) / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    expected = ((planes - mean) / std).float().numpy()
    np.testing.assert_array_equal(normalise(pixels, spec), expected)


def test_quantise_rounds_what_normalise_gives() -> None:
    spec = Preprocessing(24, 32, 1, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
    pixels = image(24, 32)
    scale, zero_point = 0.0123, -7
    stored = edge_image(pixels, quantised_table(spec, scale, zero_point))
    real = normalise(pixels, spec).transpose(0, 2, 3, 1)
    node = onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["y"])
    evaluator = onnx.reference.ReferenceEvaluator(node)
    (expected,) = evaluator.run(None, {"x": real, "scale": np.float32(scale), "zero_point": np.int8(zero_point)})
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize("source_channels", [1, 3])
def test_bgr_reverses_the_channels_before_mean_and_std(source_channels: int) -> None:
    spec = Preprocessing(24, 32, source_channels, **IMAGENET, channel_order="BGR")
    pixels = image(24, 32, source_channels)
    reversed_ = np.broadcast_to(pixels, (1, 24, 32, 3))[..., ::-1]
    real = (reversed_ / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_array_equal(normalise(pixels, spec), real.astype(np.float32).transpose(0, 3, 1, 2))
    stored = edge_image(pixels, quantised_table(spec, 0.0123, -7))
    expected = np.clip(np.rint(real.astype(np.float32).astype(np.float64) / 0.0123) - 7, -128, 127)
    np.testing.assert_array_equal(stored, expected.astype(np.int8), strict=True)
    if source_channels == 3:
        rgb = Preprocessing(24, 32, 3, **IMAGENET)
        assert (normalise(pixels, rgb) != normalise(pixels, spec)).any()


@pytest.mark.parametrize(
    ("source_channels", "means", "order", "expected"),
    [
        (1, 1, "RGB", (0,)),
        (1, 3, "RGB", (0, 0, 0)),
        (1, 3, "BGR", (0, 0, 0)),
        (3, 3, "RGB", (0, 1, 2)),
        (3, 3, "BGR", (2, 1, 0)),
    ],
)
def test_what_every_channel_of_the_model_shows(
    source_channels: int, means: int, order: str, expected: tuple[int, ...]
) -> None:
    spec = Preprocessing(8, 8, source_channels, (0.5,) * means, (0.5,) * means, channel_order=order)
    assert spec.source_channel_of == expected


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"source_channels": 2}, '"2"'),
        ({"mean": (0.5,), "std": (0.5, 0.5)}, "(0.5,)"),
        ({"source_channels": 3, "mean": (0.5,), "std": (0.5,)}, '"3"'),
        ({"std": (0.5, 0.0, 0.5)}, "0.0"),
        ({"std": (0.5, float("nan"), 0.5)}, "nan"),
        ({"mean": (0.5, float("inf"), 0.5)}, "inf"),
        ({"height": 0}, '"0x8"'),
        ({"resize_shorter": 7}, '"7"'),
        ({"width": 16, "resize_shorter": 15}, '"15"'),
        ({"channel_order": "rgb"}, '"rgb"'),
        ({"channel_order": "GBR"}, '"GBR"'),
    ],
)
def test_impossible_preprocessing_is_refused(changes: dict[str, object], value: str) -> None:
    fields: dict[str, object] = {"height": 8, "width": 8, "source_channels": 1, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(UserError) as error:
        Preprocessing(**{**fields, **changes})  # type: ignore[arg-type]
    assert value in error.value.message
    assert error.value.tries
