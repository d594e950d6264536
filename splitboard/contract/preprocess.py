"""From a source image to what the model takes: one implementation for the board, the host and the training.

`prepare` resizes and crops, in the source's own channels: what remote only sends. `normalise` or `quantise` then bring
the pixels to the model's channels, as real numbers or as INT8.

All machines produce the same bytes, since nothing depends on the order of a sum or on how a machine rounds:

* Resize is separable linear interpolation with an antialiasing triangle filter (as Pillow's ``BILINEAR``). The filter's
  weights are ratios of whole numbers, rounded by whole-number division to multiples of 1/256 that sum to one.
* They are applied in float32, which holds every number that occurs exactly: a pixel is at most
  ``255 * 256 * 256 < 2**24`` in units of 2**-16, and every partial sum is a smaller whole number. So neither the order
  of summation nor a fused multiply-add can change a bit.
* Resizing to a shorter side and the centre crop round as torchvision's ``resize`` and ``center_crop`` do.
* Normalisation is a table of 256 entries per channel, every entry one subtraction and two divisions of float64, which
  IEEE 754 rounds correctly everywhere; quantisation is a table as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Optional, Tuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError

_STEPS = 256
"""Filter weights are multiples of one over this."""

CHANNEL_ORDERS = ("RGB", "BGR")

_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True)
class Preprocessing:
    """The declared way from a source image to the model's input.

    Attributes:
        height: rows of the model's input.
        width: columns of the model's input.
        source_channels: channels of the source image, 1 (grey, repeated on all channels of the model) or 3 (RGB). What
            ``s00`` sends.
        mean: per channel of the model's input, in its order, subtracted from ``pixel / 255``.
        std: per channel of the model's input, in its order, divided by.
        resize_shorter: pixels that the image's shorter side is resized to, its aspect kept, before ``height`` x
            ``width`` are cropped from the centre; ``None`` stretches the whole image to ``height`` x ``width``.
        channel_order: ``RGB`` or ``BGR``, the order in which the model takes the channels.
    """

    height: int
    width: int
    source_channels: int
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    resize_shorter: Optional[int] = None
    channel_order: str = "RGB"

    def __post_init__(self) -> None:
        self._check_size()
        self._check_channels()

    def _check_size(self) -> None:
        if min(self.height, self.width) < 1:
            raise UserError(f'preprocessing has height x width = "{self.height}x{self.width}"', ["give at least 1x1"])
        if self.resize_shorter is not None and self.resize_shorter < max(self.height, self.width):
            raise UserError(
                f"preprocessing crops {self.height}x{self.width} from an image with resize_shorter = "
                f'"{self.resize_shorter}"',
                [f"resize_shorter = {max(self.height, self.width)} or more", "leave it out: the image is stretched"],
            )

    def _check_channels(self) -> None:
        if self.source_channels not in (1, 3):
            raise UserError(
                f'preprocessing has source_channels = "{self.source_channels}"', ["use 1 for grey or 3 for RGB images"]
            )
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise UserError(
                f'preprocessing has {len(self.mean)} means and {len(self.std)} stds: "{self.mean}", "{self.std}"',
                ["give one mean and one std per channel of the model's input"],
            )
        if self.source_channels == 3 and len(self.mean) == 1:
            raise UserError(
                'preprocessing turns "3" source channels into "1"', ["convert the images to grey beforehand"]
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise UserError(f'preprocessing has mean = "{self.mean}"', ["every mean is a number"])
        if not all(0 < value < math.inf for value in self.std):
            raise UserError(f'preprocessing has std = "{self.std}"', ["every std is greater than 0"])
        if self.channel_order not in CHANNEL_ORDERS:
            raise UserError(
                f'preprocessing has channel_order = "{self.channel_order}"', [f"use {' or '.join(CHANNEL_ORDERS)}"]
            )

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return len(self.mean)

    @property
    def source_channel_of(self) -> Tuple[int, ...]:
        """For every channel of the model's input, the channel of the source image that it shows."""
        if self.source_channels == 1:
            return (0,) * self.channels
        return tuple("RGB".index(colour) for colour in self.channel_order)

    @property
    def pixel_values(self) -> int:
        """Values (= bytes) of one prepared image: the payload of remote only."""
        return self.height * self.width * self.source_channels

    def resized(self, height: int, width: int) -> Tuple[int, int]:
        """Rows and columns to which an image of ``height`` x ``width`` is resized, before the crop."""
        if self.resize_shorter is None:
            return self.height, self.width
        shorter = min(height, width)
        return self.resize_shorter * height // shorter, self.resize_shorter * width // shorter

    def normalisation(self) -> NDArray[np.float32]:
        """Returns the model's input value of every pixel value: ``[256, channels]``, float32."""
        pixels = np.arange(256, dtype=np.float64)[:, None] / 255.0
        values: NDArray[np.float64] = (pixels - np.asarray(self.mean)) / np.asarray(self.std)
        return values.astype(np.float32)


class _Filter(NamedTuple):
    """Interpolation of some target positions from some source positions.

    Attributes:
        span: the source positions that have a weight.
        taps: ``[taps, targets]``; positions within the span, the same number for every target.
        weights: ``[taps, targets]``; whole numbers that sum to 256 for every target.
    """

    span: slice
    taps: NDArray[np.intp]
    weights: NDArray[np.float32]


@lru_cache(maxsize=32)
def _filter(source: int, target: int, wanted: range) -> _Filter:
    """The filter from ``source`` to ``target`` positions, for those target positions that are wanted.

    The weight of source *j* for target *i* falls linearly with the distance of the two centres in source pixels,
    ``|j + 1/2 - (i + 1/2) * source / target|``, to 0 at ``max(source / target, 1)``. A common factor makes it whole.
    """
    i, j = np.asarray(wanted, np.int64)[:, None], np.arange(source, dtype=np.int64)[None, :]
    nearness = np.maximum(0, 2 * max(source, target) - np.abs((2 * j + 1) * target - (2 * i + 1) * source))
    weights, remainders = np.divmod(_STEPS * nearness, nearness.sum(axis=1, keepdims=True))
    # The largest remainders take what is missing; ties go to the left.
    largest_first = np.argsort(-remainders, axis=1, kind="stable")
    for row, order, missing in zip(weights, largest_first, _STEPS - weights.sum(axis=1)):
        row[order[:missing]] += 1
    used = np.flatnonzero(weights.any(axis=0))
    span = slice(int(used[0]), int(used[-1]) + 1)
    return _Filter(span, *_banded(weights[:, span]))


def _banded(weights: NDArray[np.int64]) -> Tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Positions and weights of as many neighbours as the widest row has; what a narrower one has too many weighs 0."""
    present = weights != 0
    first, last = present.argmax(axis=1), weights.shape[1] - 1 - present[:, ::-1].argmax(axis=1)
    n_taps = int((last - first).max()) + 1
    taps = np.minimum(first, weights.shape[1] - n_taps)[:, None] + np.arange(n_taps)
    found = np.ascontiguousarray(taps.T), np.ascontiguousarray(np.take_along_axis(weights, taps, 1).T, np.float32)
    for one in found:
        one.setflags(write=False)
    return found


def _filtered(rows: NDArray[Any], along: _Filter) -> NDArray[np.float32]:
    """Filters ``[n, rows, ...]`` along its rows.

    Tap by tap: a product with the matrix of the weights, which are mostly 0, is more work, and some BLAS wakes threads
    for it that then wait for one another busily (benchmarks/preprocess.py).

    Args:
        rows: uint8 pixels, or whole numbers below ``2**16`` in float32.
        along: whose span ``rows`` is.

    Returns:
        ``[n, targets, ...]``, 256 times what is interpolated.
    """
    shape = (-1, *(1 for _ in rows.shape[2:]))
    summed: NDArray[np.float32] = rows.take(along.taps[0], 1) * along.weights[0].reshape(shape)
    for positions, weights in zip(along.taps[1:], along.weights[1:]):
        summed += rows.take(positions, 1) * weights.reshape(shape)
    return summed


def _resize_part(images: NDArray[np.uint8], size: Tuple[int, int], rows: range, columns: range) -> NDArray[np.uint8]:
    """Some rows and columns of the images resized to ``size``; only what they need of the source is looked at."""
    if images.shape[1:3] == size:
        return np.ascontiguousarray(images[:, rows.start : rows.stop, columns.start : columns.stop])
    _, height, width, _ = images.shape
    vertical, horizontal = _filter(height, size[0], rows), _filter(width, size[1], columns)
    inside = np.ascontiguousarray(images[:, vertical.span, horizontal.span])
    # Whole numbers, in units of 2**-16.
    summed = _filtered(np.ascontiguousarray(_filtered(inside, vertical).swapaxes(1, 2)), horizontal)
    summed += _STEPS * _STEPS / 2
    summed *= 1 / (_STEPS * _STEPS)  # a power of two: exact
    return np.ascontiguousarray(summed.astype(np.uint8).swapaxes(1, 2))  # the cast rounds down


def resize(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resizes images to ``height`` x ``width``, whatever their aspect.

    Args:
        images: ``[n, h, w, c]``, uint8.
        height: rows wanted.
        width: columns wanted.

    Returns:
        ``[n, height, width, c]``, uint8, contiguous; the same bytes on every machine.
    """
    return _resize_part(images, (height, width), range(height), range(width))


def prepare(images: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.uint8]:
    """Resizes and crops images as declared; their channels stay as they are.

    Args:
        images: ``[n, h, w, source_channels]``, uint8.
        spec: the declared preprocessing.

    Returns:
        ``[n, height, width, source_channels]``, uint8, contiguous; the same bytes on every machine.
    """
    size = spec.resized(*images.shape[1:3])
    # As torchvision's center_crop: half of what is left over, halves to the even number.
    top, left = round((size[0] - spec.height) / 2), round((size[1] - spec.width) / 2)
    return _resize_part(images, size, range(top, top + spec.height), range(left, left + spec.width))


class InputTable(NamedTuple):
    """The edge graph's input value of every pixel value.

    Attributes:
        values: ``[256, channels]``, in the dtype of the edge graph's input.
        source_channel_of: see `Preprocessing.source_channel_of`.
        channel_axis: where the channels stand in the input, 1 (NCHW) or -1 (NHWC).
    """

    values: NDArray[Any]
    source_channel_of: Tuple[int, ...]
    channel_axis: int


def _look_up(
    pixels: NDArray[np.uint8], table: NDArray[_Value], source_channel_of: Tuple[int, ...], axis: int
) -> NDArray[_Value]:
    """``table[pixel, channel]`` for every channel of the model, its channels stacked along ``axis``."""
    columns = np.ascontiguousarray(table.T)
    channels = [np.take(column, pixels[..., source]) for column, source in zip(columns, source_channel_of)]
    return np.stack(channels, axis=axis)


def normalise(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """The model's float input of prepared images.

    Args:
        pixels: ``[n, height, width, source_channels]``, uint8.
        spec: the declared preprocessing.

    Returns:
        ``[n, channels, height, width]``, float32, contiguous.
    """
    return _look_up(pixels, spec.normalisation(), spec.source_channel_of, axis=1)


def float_table(spec: Preprocessing, channel_axis: int) -> InputTable:
    """The normalised value of every pixel value, float32."""
    return InputTable(spec.normalisation(), spec.source_channel_of, channel_axis)


def quantised_table(
    spec: Preprocessing, scale: float, zero_point: int, dtype: str = "int8", channel_axis: int = -1
) -> InputTable:
    """The quantised input of every pixel value: ``round(x / scale) + zero_point``, clamped to the dtype."""
    values = np.rint(spec.normalisation().astype(np.float64) / scale) + zero_point
    limits = np.iinfo(dtype)
    clamped: NDArray[np.float64] = np.clip(values, limits.min, limits.max)
    return InputTable(clamped.astype(dtype), spec.source_channel_of, channel_axis)


def edge_image(pixels: NDArray[np.uint8], table: InputTable) -> NDArray[Any]:
    """The edge graph's input of prepared images.

    Args:
        pixels: ``[n, height, width, source_channels]``, uint8.
        table: of the bundle's edge input.

    Returns:
        ``[n, height, width, channels]`` or ``[n, channels, height, width]`` as the table says, contiguous.
    """
    return _look_up(pixels, table.values, table.source_channel_of, axis=table.channel_axis)
