"""Images for many epochs: what is costly to decode or render is done once, where memory allows it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitboard.zoo.data.dataset import Images, StoredImages

_LIMIT_BYTES = 2 * 2**30
"""Of pixels that are kept in memory."""


class Remembered:
    """Keeps what was read once.

    Args:
        images: read at most once each.
        shape: of one image, ``(h, w, c)``.
    """

    def __init__(self, images: Images, shape: tuple[int, ...]) -> None:
        self._images = images
        self._pixels = np.empty((len(images), *shape), dtype=np.uint8)
        self._known = np.zeros(len(images), dtype=bool)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """``[len(indices), h, w, c]``."""
        missing = np.unique(indices[~self._known[indices]])
        if len(missing):
            self._pixels[missing] = self._images.read(missing)
            self._known[missing] = True
        return self._pixels[indices]


def remembered(images: Images) -> Images:
    """The same images, kept in memory once they were read if all of them fit into 2 GiB."""
    if isinstance(images, StoredImages) or not len(images):
        return images
    shape = images.read(np.zeros(1, dtype=np.int64)).shape[1:]
    if len(images) * int(np.prod(shape)) > _LIMIT_BYTES:
        return images
    return Remembered(images, shape)
