"""Images that arrive as JPEG files: checked before a pixel is decoded. Needs Pillow, which is optional."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.bundle import TensorSpec
from splitboard.contract.interface import Reason, WireError

_MODES = {1: "L", 3: "RGB"}


def available() -> bool:
    """Whether Pillow is there."""
    return importlib.util.find_spec("PIL") is not None


def decode_jpeg(file: memoryview, spec: TensorSpec) -> NDArray[Any]:
    """The image of a JPEG file.

    Args:
        file: untrusted.
        spec: uint8 ``[1, height, width, channels]``; the file must hold exactly this.

    Returns:
        An array of the spec's shape.

    Raises:
        WireError: no JPEG, another size or number of channels, cut short, or there is no Pillow.
    """
    if not available():
        raise WireError(Reason.UNSUPPORTED, "JPEG is not taken: the server has no Pillow")
    from PIL import Image

    _, height, width, channels = spec.shape
    expected = (width, height), _MODES.get(channels)
    try:
        with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:  # reads the file's head only
            if (image.size, image.mode) != expected:
                raise WireError(
                    Reason.MALFORMED,
                    f"the JPEG is {image.width}x{image.height} {image.mode}, expected {width}x{height} {expected[1]}",
                )
            return np.asarray(image).reshape(spec.shape)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise WireError(Reason.MALFORMED, f"the JPEG cannot be read: {str(error)[:80]}") from error
