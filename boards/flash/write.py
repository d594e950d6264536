"""Writes an image onto a card and reads it back past the system's memory of it.

The first MiB, with the partition table, is zeroed first and written last, when all the rest was read back: a card on
which the work was broken off, or that does not hold it, has no partitions and does not boot. Nothing half-written goes
unnoticed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from boards.flash.source import MIB, Step
from splitboard.contract.errors import UserError

_CHUNK_BYTES = 4 * MIB
_HEAD_BYTES = MIB
_BLKFLSBUF = 0x1261
"""``linux/fs.h``: forget the buffers of a block device."""


@dataclass(frozen=True)
class Written:
    """A card that holds what it should.

    Attributes:
        n_bytes: written and read back.
        sha256: of these, as the card gave them.
        read_past: how the system's memory was passed by: ``O_DIRECT``, or ``flushed`` where it has no such reads.
    """

    n_bytes: int
    sha256: str
    read_past: str


class CardUnusable(UserError):
    """The card does not hold the image; it has no partition table, or must not be trusted."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ["the card is not usable as it is: flash it again", "another card or another reader"])


def write_card(image: Path, device: Path, step: Step) -> Written:
    """Writes and compares.

    Args:
        image: unpacked; all of it is written, holes as zeros.
        device: a block device that nothing uses (it is opened for this alone).
        step: told about every chunk.

    Raises:
        CardUnusable: a part could not be written or read, or differs.
        UserError: the device is in use, or needs root.
        KeyboardInterrupt: as it came; the card has no partition table then.
    """
    size = image.stat().st_size
    head = min(_HEAD_BYTES, size)
    try:
        with _open_alone(device) as card, open(image, "rb") as file:
            source = file.fileno()
            _write(source, card, head, size, step)
            digest = hashlib.sha256(os.pread(source, head, 0))
            _compare(source, card, device, (head, size), digest, step)
            _put(card, os.pread(source, head, 0), 0)
            os.fsync(card)
            read_past = _compare(source, card, device, (0, head), None, step)
    except OSError as error:
        raise CardUnusable(f'"{device}" failed: {error.strerror}') from error
    return Written(size, digest.hexdigest(), read_past)


@contextlib.contextmanager
def _open_alone(device: Path) -> Iterator[int]:
    """Opens a block device; the kernel refuses O_EXCL for one that is mounted or otherwise held."""
    is_block = stat.S_ISBLK(device.stat().st_mode)
    try:
        card = os.open(device, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if is_block else 0))
    except PermissionError as error:
        raise UserError(f'"{device}" may not be written by you', ["the same command with sudo in front"]) from error
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise UserError(f'"{device}" is in use', [f"lsblk {device}, then sudo umount what is mounted"]) from error
    try:
        yield card
    finally:
        os.close(card)


def _write(source: int, card: int, head: int, size: int, step: Step) -> None:
    """Zeros in place of the head, then all the rest."""
    _put(card, bytes(head), 0)
    os.fsync(card)
    done = head
    while done < size:
        chunk = os.pread(source, min(_CHUNK_BYTES, size - done), done)
        _put(card, chunk, done)
        done += len(chunk)
        if done % (16 * _CHUNK_BYTES) < _CHUNK_BYTES:
            os.fdatasync(card)  # or the bar would run ahead of the card by the whole memory
        step("write", done // MIB, size // MIB)
    os.fsync(card)


def _put(card: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        done = os.pwrite(card, view, offset)
        view, offset = view[done:], offset + done


def _compare(
    source: int, card: int, device: Path, span: tuple[int, int], digest: hashlib._Hash | None, step: Step
) -> str:
    """Reads a span from the card itself, compares it with the image, and says how the memory was passed by."""
    done, end = span
    os.posix_fadvise(card, 0, 0, os.POSIX_FADV_DONTNEED)
    read_past, reading = _open_direct(device)
    try:
        if read_past == "flushed" and stat.S_ISBLK(os.fstat(card).st_mode):
            fcntl.ioctl(card, _BLKFLSBUF)
        with mmap.mmap(-1, _CHUNK_BYTES) as buffer:  # of whole pages, which O_DIRECT asks for
            while done < end:
                got = os.preadv(reading, [buffer], done)
                chunk = buffer[: min(got, end - done)]
                if not chunk or chunk != os.pread(source, len(chunk), done):
                    raise CardUnusable(f'"{device}" does not hold what was written: it differs after byte {done}')
                done += len(chunk)
                if digest is not None:
                    digest.update(chunk)
                    step("compare", done // MIB, end // MIB)
    finally:
        os.close(reading)
    return read_past


def _open_direct(device: Path) -> tuple[str, int]:
    try:
        return "O_DIRECT", os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return "flushed", os.open(device, os.O_RDONLY | os.O_CLOEXEC)
