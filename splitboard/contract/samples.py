"""Images with labels, from an ``.npz`` or a folder: the same loader for calibration, evaluation and the board."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

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
        targets: by task, what is true and no class: numbers, ``[n]`` or ``[n, k]``, float64, or a map of classes per
            image, ``[n, h, w]``, int64.
    """

    images: NDArray[np.uint8]
    labels: Dict[str, NDArray[np.int64]]
    hashes: Tuple[str, ...]
    targets: Dict[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sha256(self) -> str:
        """The set's identity, whatever its order: the hash of the sorted image hashes."""
        return hashlib.sha256("\n".join(sorted(self.hashes)).encode()).hexdigest()

    def rows(self, rows: Sequence[int]) -> Samples:
        """Some of the samples, in this order."""
        chosen = list(rows)
        return Samples(
            self.images[chosen],
            {task: values[chosen] for task, values in self.labels.items()},
            tuple(self.hashes[row] for row in chosen),
            {task: values[chosen] for task, values in self.targets.items()},
        )


def image_hashes(images: NDArray[np.uint8]) -> Tuple[str, ...]:
    """sha256 of each image's bytes."""
    return tuple(hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images)


def save_samples(path: Path, images: NDArray[np.uint8], labels: Mapping[str, NDArray[Any]]) -> None:
    """Writes an ``.npz`` that `load_samples` reads: ``images`` and one ``labels.<task>`` per task."""
    named = {LABEL_PREFIX + task: np.asarray(values) for task, values in labels.items()}
    with open(path, "wb") as file:
        # numpy types all keyword arguments as its own option allow_pickle.
        np.savez(file, **{IMAGES: images}, **named)  # type: ignore[arg-type]


def load_samples(path: Path, channels: int) -> Samples:
    """Reads source images.

    Args:
        path: an ``.npz`` with ``images`` (``[n, h, w]`` or ``[n, h, w, c]``, uint8) and optional ``labels.<task>``
            (whole numbers ``[n]`` are classes, real numbers ``[n]`` or ``[n, k]`` and whole numbers ``[n, h, w]`` are
            targets), or a folder of image files of one size (needs Pillow).
        channels: that the model's source images have, 1 or 3.

    Raises:
        UserError: nothing there, no image, or images that do not fit.
    """
    if path.is_dir():
        stored: Dict[str, NDArray[Any]] = {}
        images = _read_folder(path, channels)
    elif path.is_file():
        images, stored = _read_npz(path)
    else:
        raise UserError(f'no images at "{path}"', ["give a folder of images or an .npz with an array named images"])
    if images.ndim == 3:
        images = images[..., None]
    _check_images(path, images, channels)
    labels = {task: values for task, values in stored.items() if values.ndim == 1 and values.dtype == np.int64}
    targets = {task: values for task, values in stored.items() if task not in labels}
    return Samples(images, labels, image_hashes(images), targets)


def _check_images(path: Path, images: NDArray[Any], channels: int) -> None:
    tries = [f"store uint8 images as [n, height, width, {channels}], at least one"]
    if images.ndim != 4 or images.size == 0:
        raise UserError(f'"{path}" holds images of shape "{list(images.shape)}": there is no image in it', tries)
    if images.dtype != np.uint8:
        raise UserError(f'"{path}" holds images as "{images.dtype}", source images are uint8, from 0 to 255', tries)
    if images.shape[-1] != channels:
        raise UserError(f'"{path}" holds images of "{images.shape[-1]}" channels, the model takes {channels}', tries)


def folder_labels(path: Path) -> Tuple[str, ...]:
    """The name of the subfolder that each image of a folder lies in, in the order of `load_samples`; empty for none."""
    return tuple(file.relative_to(path).parts[0] if file.parent != path else "" for file in image_files(path))


def _read_npz(path: Path) -> Tuple[NDArray[np.uint8], Dict[str, NDArray[Any]]]:
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
    return images, {task: _checked(path, task, values, len(images)) for task, values in labels.items()}


def _checked(path: Path, task: str, values: NDArray[Any], n: int) -> NDArray[Any]:
    """Labels as int64 or float64."""
    whole, real = values.dtype.kind in "iu", values.dtype.kind == "f"
    if values.shape[:1] != (n,) or not ((whole and values.ndim in (1, 3)) or (real and values.ndim in (1, 2))):
        raise UserError(
            f'"{path}" has labels for task "{task}" that are not one whole number per image: '
            f"{values.dtype} {list(values.shape)}",
            [
                f"store {LABEL_PREFIX}{task} as {n} whole numbers",
                f"what is no class: real numbers [{n}] or [{n}, k], or a map of whole numbers [{n}, height, width]",
            ],
        )
    return values.astype(np.int64 if whole else np.float64)


def _read_folder(path: Path, channels: int) -> NDArray[np.uint8]:
    files = image_files(path)
    images: List[NDArray[np.uint8]] = []
    for file in files:
        images.append(read_image(file, channels))
        if images[-1].shape != images[0].shape:
            raise UserError(
                f'"{file}" has another size than "{files[0]}": "{images[-1].shape[:2]}"',
                ["bring all images to one size first"],
            )
    return np.stack(images)


def image_files(path: Path) -> List[Path]:
    """The image files of a folder and its subfolders, sorted.

    Raises:
        UserError: there is none.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f'"{path}" holds no images', [f"supported: {', '.join(_SUFFIXES)}"])
    return files


def read_image(file: Path, channels: int) -> NDArray[np.uint8]:
    """Decodes an image file (needs Pillow).

    Args:
        file: PNG, JPEG, BMP or TIFF.
        channels: wanted, 1 (grey) or 3 (RGB).

    Returns:
        ``[h, w, channels]``, uint8.

    Raises:
        UserError: it cannot be decoded.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise UserError(
            f'"{file}" is an image file and Pillow is not installed',
            ["pip install pillow", "give the images as an .npz"],
        ) from error
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except OSError as error:
        raise UserError(f'"{file}" is not a readable image: {error}') from error
    return pixels[..., None] if channels == 1 else pixels
