"""From a source image to what the model takes: one implementation for the board, the host and the training.

Every step is exact integer arithmetic carried by float32, so that all machines produce the same bytes:

* Resize is separable linear interpolation with an antialiasing triangle filter (as Pillow's ``BILINEAR``). The filter
  weights are rounded to multiples of 1/256 that sum to one. A pixel is at most ``255 * 256 * 256 < 2**24`` in units of
  2**-16, every partial sum is a smaller whole number, and float32 holds all of those exactly. So neither the order of
  summation nor a fused multiply-add of some BLAS can change a bit.
* Normalisation is a table of 256 entries per channel; quantisation is a table as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Tuple

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError

_STEPS = 256
"""Filter weights are multiples of one over this."""


@dataclass(frozen=True)
class Preprocessing:
    """The declared way from a source image to the model's input.

    Attributes:
        height: rows of the model's input.
        width: columns of the model's input.
        source_channels: channels of the source image, 1 (grey) or 3 (RGB). What ``s00`` sends.
        mean: per channel of the model's input, subtracted from ``pixel / 255``.
        std: per channel of the model's input, divided by.
    """

    height: int
    width: int
    source_channels: int
    mean: Tuple[float, ...]
    std: Tuple[float, ...]

    def __post_init__(self) -> None:
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
        if not all(value > 0 for value in self.std):
            raise UserError(f'preprocessing has std = "{self.std}"', ["every std is greater than 0"])

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return len(self.mean)

    @property
    def pixel_values(self) -> int:
        """Values (= bytes) of one source image after resizing: the payload of remote only."""
        return self.height * self.width * self.source_channels

    def normalisation(self) -> NDArray[np.float32]:
        """Returns the model's input value of every pixel value: ``[256, channels]``, float32."""
        pixels = np.arange(256, dtype=np.float64)[:, None] / 255.0
        values: NDArray[np.float64] = (pixels - np.asarray(self.mean)) / np.asarray(self.std)
        return values.astype(np.float32)


@lru_cache(maxsize=32)
def _filter(source: int, target: int) -> NDArray[np.float32]:
    """Interpolation matrix ``[target, source]``; entries are whole numbers that sum to 256 in every row."""
    scale = source / target
    radius = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(source)[None, :] - centres[:, None]) / radius
    exact = np.maximum(0.0, 1.0 - distance)
    exact *= _STEPS / exact.sum(axis=1, keepdims=True)
    weights = np.floor(exact)
    # The largest remainders take what is missing; ties go to the left. All weights stay whole and non-negative.
    for row, remainder, missing in zip(weights, exact - weights, (_STEPS - weights.sum(axis=1)).astype(int)):
        row[np.argsort(-remainder, kind="stable")[:missing]] += 1
    result: NDArray[np.float32] = weights.astype(np.float32)
    result.setflags(write=False)
    return result


def resize(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resizes images to ``height`` x ``width``.

    Args:
        images: ``[n, h, w, c]``, uint8.
        height: rows wanted.
        width: columns wanted.

    Returns:
        ``[n, height, width, c]``, uint8, contiguous; the same bytes on every machine.
    """
    n, h, w, c = images.shape
    if (h, w) == (height, width):
        return np.ascontiguousarray(images)
    rows, columns = _filter(h, height), _filter(w, width)
    planes = images.transpose(0, 3, 1, 2).reshape(n * c, h, w).astype(np.float32)
    summed: NDArray[np.float32] = np.matmul(np.matmul(rows, planes), columns.T)  # whole numbers, in units of 2**-16
    rounded = np.floor((summed + _STEPS * _STEPS / 2) / (_STEPS * _STEPS)).astype(np.uint8)
    return np.ascontiguousarray(rounded.reshape(n, c, height, width).transpose(0, 2, 3, 1))


def _look_up(pixels: NDArray[np.uint8], table: NDArray[np.generic]) -> NDArray[np.generic]:
    """``table[pixel, channel]`` for every value of ``[n, h, w, source_channels]``; grey is repeated per channel."""
    if pixels.shape[-1] == table.shape[1]:
        columns = np.arange(table.shape[1])
        return table[pixels, columns]
    return np.take(table, pixels[..., 0], axis=0)  # half the time of table[pixels[..., 0]]


def normalise(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """The model's float input of resized images.

    Args:
        pixels: ``[n, height, width, source_channels]``, uint8.
        spec: the declared preprocessing.

    Returns:
        ``[n, channels, height, width]``, float32, contiguous.
    """
    values = _look_up(pixels, spec.normalisation())
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)).astype(np.float32, copy=False)


def quantised_table(spec: Preprocessing, scale: float, zero_point: int) -> NDArray[np.int8]:
    """The INT8 input value of every pixel value, ``[256, channels]``: ``round(x / scale) + zero_point``, clamped."""
    values = np.rint(spec.normalisation().astype(np.float64) / scale) + zero_point
    clamped: NDArray[np.float64] = np.clip(values, -128, 127)
    return clamped.astype(np.int8)


def quantise(pixels: NDArray[np.uint8], table: NDArray[np.int8]) -> NDArray[np.int8]:
    """The edge graph's INT8 input of resized images.

    Args:
        pixels: ``[n, height, width, source_channels]``, uint8.
        table: from `quantised_table`.

    Returns:
        ``[n, height, width, channels]``, int8, contiguous.
    """
    return np.ascontiguousarray(_look_up(pixels, table)).astype(np.int8, copy=False)
