"""The calibration set: real images, no image twice, a fair share of every class, read one by one.

From a folder of images, an ``.npz``, or an iterable of the user's (``package.module:name``), which runs in a process of
its own. Images are told apart by the sha256 of their pixels, as everywhere.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import EXIT_USER_ERROR, SplitboardError, UserError
from splitboard.contract.preprocess import Preprocessing, normalise, prepare
from splitboard.contract.samples import folder_labels, image_files, image_hashes, load_samples, read_image

HELD_OUT_SHARE = 0.2
MOST_HELD_OUT = 64
"""Of the images that judge a choice of ranges; they take no part in it."""

MOST_IMAGES = 500
"""That a set holds unless more are asked for; with more, ranges hardly move and time goes on."""

_CHILD = Path(__file__).with_name("dataset_child.py")

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class CalibrationSet:
    """Source images, read when they are needed.

    Attributes:
        hashes: sha256 of each image's pixels.
        labels: of each image, all its tasks' in one; empty texts where there are none.
        n_duplicates: images that were left out because their pixels were there already.
        read: gives the image of a number, ``[h, w, channels]``, uint8.
    """

    hashes: tuple[str, ...]
    labels: tuple[str, ...]
    n_duplicates: int
    read: Callable[[int], Image]

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def strata(self) -> dict[str, int]:
        """Number of images by label."""
        return dict(sorted(Counter(self.labels).items()))

    def subset(self, numbers: Sequence[int]) -> CalibrationSet:
        """Some of the images."""
        return CalibrationSet(
            tuple(self.hashes[i] for i in numbers),
            tuple(self.labels[i] for i in numbers),
            self.n_duplicates,
            lambda i: self.read(numbers[i]),
        )

    def pixels(self, spec: Preprocessing) -> Iterator[Image]:
        """Prepared images, ``[1, height, width, source_channels]``, uint8, one by one."""
        return (prepare(self.read(i)[None], spec) for i in range(len(self)))

    def inputs(self, spec: Preprocessing) -> Iterator[NDArray[np.float32]]:
        """Normalised images, ``[1, channels, height, width]``, float32, one by one."""
        return (normalise(pixels, spec) for pixels in self.pixels(spec))


@contextlib.contextmanager
def calibration_set(source: str, channels: int, most: int, folder: Path) -> Iterator[CalibrationSet]:
    """Opens a calibration set.

    Args:
        source: folder (subfolders are labels), ``.npz``, or ``package.module:iterable`` of uint8 arrays, alone or with
            a label: ``(image, label)``.
        channels: of the model's source images.
        most: no more images than this, of every label its share; of an iterable the first ones.
        folder: that the iterable's package lies in.

    Raises:
        UserError: nothing there, or no images of this kind.
    """
    path = Path(source)
    if ":" in source and not path.exists():
        with tempfile.TemporaryDirectory() as work:
            labels = _collect(source, channels, most, folder, Path(work))
            files = [Path(work) / f"{i}.npy" for i in range(len(labels))]
            yield _distinct(labels, lambda i: np.load(files[i], allow_pickle=False), most)
    elif path.is_dir():
        found = image_files(path)
        yield _distinct(folder_labels(path), lambda i: read_image(found[i], channels), most)
    else:
        samples = load_samples(path, channels)
        columns = [samples.labels[task].tolist() for task in sorted(samples.labels)]
        rows = [" ".join(map(str, row)) for row in zip(*columns, strict=True)] or [""] * len(samples)
        yield _distinct(rows, lambda i: samples.images[i], most)


def hold_out(data: CalibrationSet) -> tuple[CalibrationSet, CalibrationSet]:
    """Divides a set into images that make the ranges and images that judge them, of every label a share.

    Raises:
        UserError: there is nothing left to judge with.
    """
    n_judging = min(MOST_HELD_OUT, int(len(data) * HELD_OUT_SHARE))
    if n_judging == 0:
        raise UserError(
            f'"{len(data)}" calibration images are too few to choose ranges by',
            ["give more images", "name the method: --ranges minmax"],
        )
    judging = set(_fair(data.hashes, data.labels, n_judging))
    return (
        data.subset([i for i in range(len(data)) if i not in judging]),
        data.subset([i for i in range(len(data)) if i in judging]),
    )


def _distinct(labels: Sequence[str], read: Callable[[int], Image], most: int) -> CalibrationSet:
    """Each image once, at most so many, in the order of their hashes (no order of the source's survives)."""
    hashes = [image_hashes(read(i)[None])[0] for i in range(len(labels))]
    first = {sha256: i for i, sha256 in reversed(list(enumerate(hashes)))}
    numbers = [first[sha256] for sha256 in sorted(first)]
    whole = CalibrationSet(tuple(hashes), tuple(labels), len(hashes) - len(first), read).subset(numbers)
    return whole.subset(sorted(_fair(whole.hashes, whole.labels, most)))


def _fair(hashes: Sequence[str], labels: Sequence[str], most: int) -> list[int]:
    """At most so many numbers: of every label in turn the next one, in the order of the hashes."""
    strata: dict[str, list[int]] = {}
    for i in sorted(range(len(hashes)), key=lambda i: hashes[i]):
        strata.setdefault(labels[i], []).append(i)
    # Ranked by how much of its stratum is taken with it, so every label gives the same share.
    share = {i: (rank + 0.5) / len(members) for members in strata.values() for rank, i in enumerate(members)}
    return sorted(share, key=lambda i: (share[i], hashes[i]))[:most]


def _collect(source: str, channels: int, most: int, folder: Path, work: Path) -> list[str]:
    """Lets a child process write the iterable's images to files; returns their labels."""
    request = {"source": source, "channels": channels, "most": most, "folder": str(folder.resolve()), "out": str(work)}
    argv = [sys.executable, "-I", str(_CHILD)]
    done = subprocess.run(argv, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode == EXIT_USER_ERROR:
        error = json.loads((work / "error.json").read_text(encoding="utf-8"))
        raise UserError(error["message"], error["tries"])
    if done.returncode != 0:
        raise SplitboardError(f'the calibration process ended with "{done.returncode}": {done.stderr.strip()[-2000:]}')
    labels: list[str] = json.loads((work / "labels.json").read_text(encoding="utf-8"))
    return labels
