"""Noise on images that depends on nothing but the image and a seed, not on when or with which others it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError

_LOW, _HIGH = 5, 250
"""0.02 and 0.98 of the range, as MTL-Split's code has it."""


@dataclass(frozen=True)
class SaltAndPepper:
    """Replaces channel values by almost black or almost white, each with half of the probability.

    Attributes:
        probability: that a channel value is replaced, 0 to 1.
    """

    probability: float

    def __post_init__(self) -> None:
        """Raises UserError where the probability is none."""
        if not 0 <= self.probability <= 1:
            raise UserError(f'"{self.probability}" is not a probability', ["give a number from 0 to 1"])

    def shares(self) -> tuple[float, float]:
        """Shares of the values that become low, and high."""
        return self.probability / 2, self.probability / 2


@dataclass(frozen=True)
class SaltAndPepperByNormal:
    """What MTL-Split's code does: it compares a normal random number where a uniform one was surely meant.

    A value becomes low where the number is at least ``1 - threshold``, and high where it is at most ``threshold``. With
    0.08 that is 17.9 % and 53.2 %: of the picture 29 % remain, not 84 %.

    Attributes:
        threshold: 0.08 in the published experiments.
    """

    threshold: float = 0.08

    def __post_init__(self) -> None:
        """Raises UserError where the two ranges would meet."""
        if not self.threshold < 0.5:
            raise UserError(f'"{self.threshold}" is not a threshold below 0.5', ["0.08 is the published one"])

    def shares(self) -> tuple[float, float]:
        """Shares of the values that become low, and high."""
        return math.erfc((1 - self.threshold) / math.sqrt(2)) / 2, math.erfc(-self.threshold / math.sqrt(2)) / 2


Noise = SaltAndPepper | SaltAndPepperByNormal


def add(image: NDArray[np.uint8], noise: Noise, seed: int, index: int) -> None:
    """Puts noise on an image, in place.

    Args:
        image: contiguous, any shape.
        noise: which.
        seed: of the data set, 0 to 2^64 - 1.
        index: of the image; every image has noise of its own.
    """
    values = image.reshape(-1)
    # 16 random bits for each value: shares are met to 1/65536. Raw bits are the same in every version of numpy.
    bits = np.random.Philox(key=[seed, index]).random_raw(-(-len(values) // 4))
    drawn = bits.astype("<u8").view("<u2")[: len(values)]
    low, high = (round(share * 2**16) for share in noise.shares())
    values[drawn < low] = _LOW
    values[drawn >= 2**16 - high] = _HIGH
