"""Images with labels, from an ``.npz`` or a folder: the same loader for calibration, evaluation and the board."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError

IMAGES = "images"
LABEL_PREFIX = "labels."
_STORE = "numpy.savez(path, images=..., **{'labels.TASK': ...})"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Samples:
    """Source images of one size.

    Attributes:
        images: ``[n, h, w, channels]``, uint8.
        labels: true class by task, ``[n]``, int64; empty where unknown.
        hashes: sha256 of each image's bytes.
    """

    images: NDArray[np.uint8]
    labels: Dict[str, NDArray[np.int64]]
    hashes: Tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sha256(self) -> str:
        """The set's identity, whatever its order: the hash of the sorted image hashes."""
        return hashlib.sha256("\n".join(sorted(self.hashes)).encode()).hexdigest()


def image_hashes(images: NDArray[np.uint8]) -> Tuple[str, ...]:
    """sha256 of each image's bytes."""
    return tuple(hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images)


def save_samples(path: Path, images: NDArray[np.uint8], labels: Dict[str, NDArray[np.int64]]) -> None:
    """Writes an ``.npz`` that `load_samples` reads: ``images`` and one ``labels.<task>`` per task."""
    named = {LABEL_PREFIX + task: np.asarray(values) for task, values in labels.items()}
    with open(path, "wb") as file:
        # numpy types all keyword arguments as its own option allow_pickle.
        np.savez(file, **{IMAGES: images}, **named)  # type: ignore[arg-type]


def load_samples(path: Path, channels: int) -> Samples:
    """Reads source images.

    Args:
        path: an ``.npz`` with ``images`` (``[n, h, w]`` or ``[n, h, w, c]``, uint8) and optional ``labels.<task>``, or
            a folder of image files of one size (needs Pillow).
        channels: that the model's source images have, 1 or 3.

    Raises:
        UserError: nothing there, no image, or images that do not fit.
    """
    if path.is_dir():
        labels: Dict[str, NDArray[np.int64]] = {}
        images = _read_folder(path, channels)
    elif path.is_file():
        images, labels = _read_npz(path)
    else:
        raise UserError(f'no images at "{path}"', ["give a folder of images or an .npz with an array named images"])
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] != channels or images.dtype != np.uint8 or len(images) == 0:
        raise UserError(
            f'"{path}" holds {images.dtype} images of shape "{list(images.shape)}", '
            f"the model takes {channels} channels",
            [f"store uint8 images as [n, height, width, {channels}], at least one"],
        )
    return Samples(images, labels, image_hashes(images))


def _read_npz(path: Path) -> Tuple[NDArray[np.uint8], Dict[str, NDArray[np.int64]]]:
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive of arrays")
        # Opened here: numpy leaves its own file open when the archive is broken.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if IMAGES not in archive:
                raise UserError(f'"{path}" has no array named "{IMAGES}"', [f"it has: {', '.join(archive)}"])
            images = archive[IMAGES]
            labels = {name[len(LABEL_PREFIX) :]: archive[name] for name in archive if name.startswith(LABEL_PREFIX)}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f'"{path}" is not a readable .npz: {error}', [_STORE]) from error
    for task, values in labels.items():
        if values.shape != (len(images),) or values.dtype.kind not in "iu":
            raise UserError(
                f'"{path}" has labels for task "{task}" that are not one whole number per image',
                [f"store {LABEL_PREFIX}{task} as {len(images)} whole numbers"],
            )
    return images, {task: values.astype(np.int64) for task, values in labels.items()}


def _read_folder(path: Path, channels: int) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise UserError(
            f'"{path}" is a folder of images and Pillow is not installed',
            ["pip install pillow", "give the images as an .npz"],
        ) from error
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f'"{path}" holds no images', [f"supported: {', '.join(_SUFFIXES)}"])
    images: List[NDArray[np.uint8]] = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(np.asarray(image.convert("L" if channels == 1 else "RGB")))
        except OSError as error:
            raise UserError(f'"{file}" is not a readable image: {error}') from error
        if images[-1].shape != images[0].shape:
            raise UserError(
                f'"{file}" has another size than "{files[0]}": "{images[-1].shape[:2]}"',
                ["bring all images to one size first"],
            )
    return np.stack(images)
