"""Digests of prepared images: every interpreter on every machine must come to the same ones.

Runs wherever the board's half runs: Python 3.8, numpy, nothing else. ``python digests.py SOURCES`` prints them as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np

_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# name: rows and columns of the source image, the spec
CASES: dict[str, Any] = {
    "grey stretched": ((300, 300), {"height": 224, "width": 224, "source_channels": 1, **_IMAGENET}),
    "grey on one channel": (
        (97, 61),
        {"height": 32, "width": 48, "source_channels": 1, "mean": (0.1307,), "std": (0.3081,), "resize_shorter": 51},
    ),
    "evaluation transform": (
        (375, 500),
        {"height": 224, "width": 224, "source_channels": 3, "resize_shorter": 256, **_IMAGENET},
    ),
    "upright, BGR": (
        (640, 427),
        {
            "height": 227,
            "width": 200,
            "source_channels": 3,
            "mean": (0.40760392, 0.45795686, 0.48501961),
            "std": (1 / 255, 1 / 255, 1 / 255),
            "resize_shorter": 240,
            "channel_order": "BGR",
        },
    ),
    # Sizes between which some filter weights are equally near to two steps.
    "ties": ((392, 503), {"height": 178, "width": 178, "source_channels": 3, "resize_shorter": 280, **_IMAGENET}),
    "enlarged": ((20, 30), {"height": 64, "width": 90, "source_channels": 3, "resize_shorter": 90, **_IMAGENET}),
}


def picture(height: int, width: int, channels: int) -> Any:
    """``[1, height, width, channels]``, uint8, by whole-number arithmetic alone: curves, edges and fine texture."""
    row = np.arange(height, dtype=np.int64)[:, None, None]
    column = np.arange(width, dtype=np.int64)[None, :, None]
    channel = np.arange(channels, dtype=np.int64)[None, None, :]
    values = (row * row + 3 * column * column) // 97 + (row * column) % (11 + channel) * 7 + 85 * channel
    return (values % 256).astype(np.uint8)[None]


def digests() -> dict[str, dict[str, str]]:
    """By case, the sha256 of the prepared pixels, of the float32 input and of the INT8 input."""
    from splitboard.contract.preprocess import Preprocessing, edge_image, normalise, prepare, quantised_table

    found = {}
    for name, (size, fields) in CASES.items():
        spec = Preprocessing(**fields)
        pixels = prepare(picture(size[0], size[1], spec.source_channels), spec)
        results = {
            "uint8": pixels,
            "float32": normalise(pixels, spec).astype("<f4"),
            "int8": edge_image(pixels, quantised_table(spec, 0.0187, -11)),
        }
        found[name] = {kind: hashlib.sha256(array.tobytes()).hexdigest() for kind, array in results.items()}
    return found


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    sys.stdout.write(json.dumps(digests(), indent=1) + "\n")
