"""Images that lie in a folder as files of any size, brought to one size when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError

SIZES = range(16, 1025)


@dataclass(frozen=True)
class Photographs:
    """Image files. The shorter side becomes ``size`` and the middle of the longer one is kept.

    Attributes:
        folder: where they are.
        paths: of the files, relative to it.
        size: rows and columns.
    """

    folder: Path
    paths: tuple[str, ...]
    size: int

    def __post_init__(self) -> None:
        """Raises UserError for a size that is none, and where Pillow is missing."""
        if self.size not in SIZES:
            raise UserError(
                f'"{self.size}" is not a size of images', [f"ask for {SIZES.start} to {SIZES.stop - 1} pixels"]
            )
        try:
            import PIL.Image  # noqa: F401 - only whether it is there
        except ModuleNotFoundError as error:
            raise UserError(
                'image files are read with "pillow", which is not installed', ["pip install pillow"]
            ) from error

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """``[len(indices), size, size, 3]``.

        Raises:
            UserError: a file is no image, or a damaged one.
        """
        made = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for image, index in zip(made, indices, strict=True):
            image[:] = self._read_one(self.folder / self.paths[index])
        return made

    def _read_one(self, path: Path) -> NDArray[np.uint8]:
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as file:
                # A far larger JPEG is decoded at a half, a quarter or an eighth of its size, not below the one wanted.
                file.draft("RGB", (self.size, self.size))
                fitted = ImageOps.fit(file.convert("RGB"), (self.size, self.size), Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error) or type(error).__name__
            raise UserError(
                f'cannot read the image "{path}": {reason}', ["copy the file again", "leave it out"]
            ) from error
        return np.asarray(fitted)


def file_facts(folder: Path, paths: Sequence[str]) -> bytes:
    """Names and lengths in bytes of files: what tells two copies of a folder apart without reading all of it."""
    return "\n".join(f"{path}\t{(folder / path).stat().st_size}" for path in paths).encode()
