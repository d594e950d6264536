"""Preprocessing against Pillow, torch and exact whole-number arithmetic."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import Preprocessing, _filter, normalise, quantise, quantised_table, resize


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


def test_resize_gives_the_bytes_of_exact_arithmetic() -> None:
    pixels = image(300, 300)
    rows, columns = (_filter(300, size).astype(np.int64) for size in (224, 160))
    exact = rows @ pixels[0, :, :, 0].astype(np.int64) @ columns.T
    expected = (exact + 2**15) // 2**16
    np.testing.assert_array_equal(resize(pixels, 224, 160)[0, :, :, 0], expected)


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
    stored = quantise(pixels, quantised_table(spec, scale, zero_point))
    real = normalise(pixels, spec).transpose(0, 2, 3, 1)
    node = onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["y"])
    evaluator = onnx.reference.ReferenceEvaluator(node)
    (expected,) = evaluator.run(None, {"x": real, "scale": np.float32(scale), "zero_point": np.int8(zero_point)})
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"source_channels": 2}, '"2"'),
        ({"mean": (0.5,), "std": (0.5, 0.5)}, "(0.5,)"),
        ({"source_channels": 3, "mean": (0.5,), "std": (0.5,)}, '"3"'),
        ({"std": (0.5, 0.0, 0.5)}, "0.0"),
    ],
)
def test_impossible_preprocessing_is_refused(changes: dict[str, object], value: str) -> None:
    fields: dict[str, object] = {"height": 8, "width": 8, "source_channels": 1, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(UserError) as error:
        Preprocessing(**{**fields, **changes})  # type: ignore[arg-type]
    assert value in error.value.message
