"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

from splitboard.contract.errors import UserError


@contextlib.contextmanager
def new_folder(target: Path, marker: str) -> Iterator[Path]:
    """Yields a folder beside ``target`` that takes its place when the block ends well.

    Args:
        target: where the result belongs. One from before is replaced if it holds ``marker``.
        marker: the file that every such result has, e.g. ``manifest.json``.

    Raises:
        UserError: ``target`` is something else, which is never overwritten, or cannot be written.
    """
    if target.exists() and not (target / marker).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(
            f'"{target}" exists and was not made by this command (it has no {marker})',
            ["name another folder with -o", "move what is there away first"],
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f'cannot write to "{target.parent}": {error.strerror}') from error
    try:
        beside.chmod(0o755)  # mkdtemp makes it private, a result is not
        yield beside
        if target.exists():
            shutil.rmtree(target)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
