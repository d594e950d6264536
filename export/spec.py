"""What a checkpoint cannot tell: preprocessing and class names, declared in a small TOML file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from splitboard.contract.decode import decode
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import Preprocessing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TRIES = [
    "[preprocessing] has height, width, source_channels (3 for RGB images, 1 for grey ones), mean and std",
    "it may also have resize_shorter and channel_order; [labels] may have the class names of each task",
]


@dataclass(frozen=True)
class ModelSpec:
    """The declared part of a model.

    Attributes:
        preprocessing: from a source image to the model's input.
        labels: class names by task; tasks that are not named here get numbered classes.
    """

    preprocessing: Preprocessing
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_spec(path: Path) -> ModelSpec:
    """Reads a model spec.

    Raises:
        UserError: the file is missing, is not TOML, or has keys that do not belong.
    """
    try:
        return decode(ModelSpec, tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except UserError as error:
        raise UserError(error.message, [*error.tries, *_TRIES]) from error
    except OSError as error:
        raise UserError(f'cannot read the model spec "{path}": {error.strerror}', _TRIES) from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise UserError(f'"{path}" is not valid TOML: {error}', _TRIES) from error
