"""Results that appear whole or not at all, and never in the place of something that is not ours."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

from splitboard.contract.errors import UserError


def check_folder(target: Path, marker: str) -> None:
    """Refuses a target that holds something else than an earlier result.

    Args:
        target: a folder to be written; missing and empty ones are fine.
        marker: path in the folder of a file that every such result has.

    Raises:
        UserError: it is a file, or a folder of someone else.
    """
    blocking = next((parent for parent in target.parents if parent.exists()), target)
    if not blocking.is_dir():
        raise UserError(f'cannot write to "{target}": "{blocking}" is a file', ["name another folder with -o"])
    ours = not target.exists() or (target.is_dir() and ((target / marker).is_file() or not any(target.iterdir())))
    if not ours:
        raise UserError(
            f'"{target}" exists and was not made by this command (it has no {marker})',
            ["name another folder with -o", "move what is there away first"],
        )


def check_file(target: Path, beginning: str) -> None:
    """Refuses a target that is something else than an earlier result.

    Args:
        target: a file to be written; a missing one is fine.
        beginning: what every such result begins with.

    Raises:
        UserError: it is a folder, or a file that begins in another way.
    """
    if not target.exists():
        blocking = next((parent for parent in target.parents if parent.exists()), target)
        if not blocking.is_dir():
            raise UserError(f'cannot write "{target}": "{blocking}" is a file', ["name another file with -o"])
        try:
            tempfile.TemporaryFile(dir=blocking).close()  # permissions do not tell: not of root's, nor of /proc
        except OSError as error:
            raise UserError(
                f'cannot write "{target}": nothing can be written to "{blocking}" ({error.strerror})',
                ["name another file with -o"],
            ) from error
        return
    if target.is_file():
        with open(target, "rb") as file:
            if file.read(len(beginning)) == beginning.encode():
                return
    raise UserError(
        f'"{target}" exists and was not made by this command',
        ["name another file", "move what is there away first"],
    )


@contextlib.contextmanager
def new_folder(target: Path, marker: str) -> Iterator[Path]:
    """Yields a folder beside ``target`` that takes its place when the block ends well.

    Args:
        target: where the result belongs. One from before is replaced if it holds ``marker``.
        marker: the file that every such result has, e.g. ``manifest.json``.

    Raises:
        UserError: ``target`` is something else, which is never overwritten, or cannot be written.
    """
    check_folder(target, marker)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(
            f'cannot write to "{target.parent}": {error.strerror}', ["name another folder with -o"]
        ) from error
    try:
        beside.chmod(0o755)  # mkdtemp makes it private, a result is not
        yield beside
        if target.exists():
            shutil.rmtree(target)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_whole(target: Path, text: str) -> None:
    """Writes a file beside its place and moves it there; folders are made.

    Raises:
        UserError: it cannot be written.
    """
    beside = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise UserError(f'cannot write "{target}": {error.strerror}', ["name another file"]) from error
