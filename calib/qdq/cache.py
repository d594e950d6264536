"""TensorRT's INT8 calibration cache: the same ranges for its implicit mode (TensorRT 8 and 10, and DLA of that time).

A text. The first line names the release and the calibrator, ``TRT-8502-EntropyCalibration2``; then one line per tensor,
its name and the float32 of its scale as eight hexadecimal digits, the most significant first: ``input: 3c009976`` is
0.00785. TensorRT reads it instead of calibrating, if the first line is its own, and leaves tensors without a line in
float (captures: NVIDIA/TensorRT issue 2036; NVDLA's and TensorRT 8.5's in ``tests/calib/test_trt_cache.py``).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.ranges import RangeTable
from splitboard.contract.board import BoardKind
from splitboard.contract.errors import UserError

NAME = "trt8.cache"
"""Of the file in a bundle's folder ``calibration/``."""

_FIRST = re.compile(r"TRT-(\d{4,6})-(\w+)")
_LINE = re.compile(r"(.+): ([0-9a-f]{8})")  # names hold spaces and colons of their own
_CALIBRATOR = "EntropyCalibration2"
"""The one that DLA asks for; with a cache nothing of it is computed."""


@dataclass(frozen=True)
class Cache:
    """A calibration cache.

    Attributes:
        release: of TensorRT, as in its first line: ``8502`` for 8.5.2.
        calibrator: that it stands for.
        scales: by tensor, the float32 that 1 in INT8 stands for.
    """

    release: str
    calibrator: str
    scales: Mapping[str, float]


def write_cache(folder: Path, table: RangeTable, kind: BoardKind) -> None:
    """Writes `NAME` into a folder, where a kind runs INT8 with a TensorRT 8; else nothing.

    Its first line is that of the kind's newest TensorRT 8; for another only that line differs.
    """
    releases = [one.runtimes["tensorrt"] for one in kind.systems if one.runtimes.get("tensorrt", "").startswith("8.")]
    if releases and "int8" in kind.precisions:
        (folder / NAME).write_text(cache_text(table, releases[0]), encoding="utf-8")


def cache_text(table: RangeTable, tensorrt: str) -> str:
    """The cache of a table of ranges. Tensors that were constantly 0 have no scale, and no line.

    Args:
        table: the one that Q/DQ come from.
        tensorrt: release that is to read it, e.g. ``8.5.2``.
    """
    major, minor, patch = [int(part) for part in f"{tensorrt}.0.0".split(".")[:3]]
    lines = [f"TRT-{1000 * major + 100 * minor + patch}-{_CALIBRATOR}"]
    for name, limits in table.ranges.items():
        scale = np.float32(limits.symmetric_scale)
        if 0 < scale < np.inf:
            lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
    return "\n".join(lines) + "\n"


def read_cache(text: str) -> Cache:
    """Reads a cache, ours or TensorRT's own.

    Raises:
        UserError: it is none; the line is named.
    """
    tries = ["a cache as TensorRT's calibrators write it: TRT-8502-EntropyCalibration2, then name: 3c009976"]
    first, *lines = text.splitlines() or [""]
    head = _FIRST.fullmatch(first)
    if head is None:
        raise UserError(f'the calibration cache begins with "{first[:80]}"', tries)
    scales = {}
    for number, line in enumerate(lines, 2):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f'line {number} of the calibration cache is "{line[:80]}"', tries)
        (scales[match[1]],) = struct.unpack(">f", bytes.fromhex(match[2]))
    return Cache(head[1], head[2], scales)
