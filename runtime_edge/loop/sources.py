"""Where images come from: a folder, an ``.npz``, a camera or a video, or a Python callable."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError
from splitboard.contract.samples import image_files, load_samples, read_image

_CAMERA = re.compile(r"camera:([0-9]{1,3})", re.ASCII)
_STREAM = re.compile(r"(rtsp|rtp|udp|http|https)://.+")
_VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".mjpeg", ".mjpg")
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Frame(NamedTuple):
    """One image.

    Attributes:
        name: its file, its place in a video, or its sha256.
        image: source pixels, ``[h, w, channels]``, uint8.
        labels: true class by task, where known.
        read_ns: how long it took to get.
    """

    name: str
    image: NDArray[np.uint8]
    labels: Dict[str, int]
    read_ns: int


def open_source(text: str, channels: int, path: Optional[Path] = None) -> Iterator[Frame]:
    """The images of a source, one by one as they are asked for.

    Args:
        text: a folder, an ``.npz``, ``camera:0``, a video or the address of a stream, or ``package.module:callable``,
            which is called without arguments and gives ``[h, w, channels]`` uint8 arrays. Your code runs in this
            process.
        channels: of the source images, 1 (grey) or 3 (RGB).
        path: folder that the callable's package lies in; the current one by default.

    Raises:
        UserError: there is no such source, what it needs is not installed, or it gives something else than images.
    """
    found = _CAMERA.fullmatch(text)
    if found is not None:
        return _video(int(found.group(1)), text, channels)
    if _STREAM.fullmatch(text) or Path(text).suffix.lower() in _VIDEOS:
        if not _STREAM.fullmatch(text) and not Path(text).is_file():
            raise UserError(f'no video at "{text}"', ["name a video file, or camera:0"])
        return _video(text, text, channels)
    if Path(text).exists():
        return _folder(Path(text), channels) if Path(text).is_dir() else _npz(Path(text), channels)
    if _CALLABLE.fullmatch(text):
        return _callable(text, channels, Path() if path is None else path)
    raise UserError(f'no images at "{text}"', ["a folder, an .npz, a video, camera:0, or package.module:callable"])


def _npz(path: Path, channels: int) -> Iterator[Frame]:
    samples = load_samples(path, channels)
    for i, (image, sha256) in enumerate(zip(samples.images, samples.hashes)):
        yield Frame(sha256, image, {task: int(values[i]) for task, values in samples.labels.items()}, 0)


def _folder(path: Path, channels: int) -> Iterator[Frame]:
    for file in image_files(path):
        start_ns = perf_counter_ns()
        image = read_image(file, channels)
        yield Frame(file.relative_to(path).as_posix(), image, {}, perf_counter_ns() - start_ns)


def _video(source: Any, name: str, channels: int) -> Iterator[Frame]:
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(
            f'"{name}" needs OpenCV', ["python3 -m pip install opencv-python-headless", "give images as files or .npz"]
        ) from error
    return _frames(cv2, source, name, channels)


def _frames(cv2: Any, source: Any, name: str, channels: int) -> Iterator[Frame]:
    capture = cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            raise UserError(f'OpenCV cannot open "{name}"', ["look whether another program has the camera"])
        number = 0
        while True:
            start_ns = perf_counter_ns()
            there, image = capture.read()
            if not there:
                return
            wanted = cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2RGB
            pixels: NDArray[np.uint8] = cv2.cvtColor(image, wanted)
            pixels = pixels[..., None] if channels == 1 else pixels
            yield Frame(f"{name}#{number}", pixels, {}, perf_counter_ns() - start_ns)
            number += 1
    finally:
        capture.release()


def _callable(text: str, channels: int, path: Path) -> Iterator[Frame]:
    made = _imported(text, path)
    number = 0
    images: Optional[Iterator[Any]] = None
    while True:
        start_ns = perf_counter_ns()
        try:
            images = iter(made()) if images is None else images
            image = next(images)
        except StopIteration:
            return
        except Exception as error:  # the user's code, which may raise anything
            raise UserError(
                f'"{text}" failed with "{type(error).__name__}: {error}" at image {number}',
                ["give an iterable of numpy arrays"],
            ) from error
        _check(image, text, channels)
        yield Frame(f"{text}#{number}", image, {}, perf_counter_ns() - start_ns)
        number += 1


def _imported(text: str, path: Path) -> Callable[[], Any]:
    module_name, name = text.split(":")
    # Behind everything else: a file of the user's must not stand in for one of ours.
    sys.path.append(str(path.resolve()))
    try:
        made = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise UserError(f'"{text}" cannot be imported: {error}', ["--path FOLDER that its package lies in"]) from error
    if not callable(made):
        raise UserError(f'"{module_name}" has no callable "{name}"', ["package.module:callable"])
    found: Callable[[], Any] = made
    return found


def _check(image: Any, text: str, channels: int) -> None:
    shape: Tuple[int, ...] = getattr(image, "shape", ())
    if getattr(image, "dtype", None) != np.uint8 or len(shape) != 3 or shape[2] != channels or 0 in shape:
        raise UserError(
            f'"{text}" gave "{getattr(image, "dtype", type(image).__name__)} {list(shape)}"',
            [f"give numpy arrays [height, width, {channels}] of uint8"],
        )
