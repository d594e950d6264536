"""What a split costs before the first request."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from runtime_edge.policy.costs import as_jpeg
from runtime_edge.policy.dynamic_split import SplitCost


def test_remote_as_jpeg_costs_what_pillow_writes() -> None:
    """By then the policy has sent nothing: the raw size would keep it from ever trying."""
    rows, columns = np.mgrid[:160, :160]
    images = np.stack([(rows + k * columns) % 256 for k in (0, 1, 2)]).astype(np.uint8)[..., None]
    sizes = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).save(file, "JPEG", quality=80)
        sizes.append(file.tell())
    raw = SplitCost("s00", 1e6, 160 * 160, 5e6)
    cost = as_jpeg(raw, images, 80)
    assert cost.payload_bytes == sorted(sizes)[1] < raw.payload_bytes
    assert cost.edge_ns > raw.edge_ns
    assert (cost.split, cost.server_ns) == ("s00", 5e6)
