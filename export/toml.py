"""TOML files of the user's, as dataclasses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from splitboard.contract.decode import decode
from splitboard.contract.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_Kind = TypeVar("_Kind")


def read_toml(kind: type[_Kind], path: Path, what: str, tries: Sequence[str]) -> _Kind:
    """Reads a file.

    Args:
        kind: dataclass whose fields are its keys.
        path: of the file.
        what: it is, in words, for errors.
        tries: advice on what belongs into it.

    Raises:
        UserError: the file is missing, is not TOML, or has keys that do not belong.
    """
    try:
        return decode(kind, tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except UserError as error:
        raise UserError(error.message, [*error.tries, *tries]) from error
    except OSError as error:
        raise UserError(f'cannot read the {what} "{path}": {error.strerror}', tries) from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise UserError(f'"{path}" is not valid TOML: {error}', tries) from error
