"""The image file as it was downloaded: its hash, and its content unpacked."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from splitboard.contract.errors import UserError

Step = Callable[[str, int, int], None]
"""Called with (what is being done, MiB done, MiB in all)."""

MIB = 1 << 20
_CHUNK_BYTES = 4 * MIB
_XZ, _ZIP, _GZIP, _ZSTD = b"\xfd7zXZ\0", b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_HASH = re.compile(r"[0-9a-fA-F]{64}")


class BinaryReader(Protocol):
    """Whatever gives bytes in order."""

    def read(self, size: int, /) -> bytes:
        """Up to so many; empty at the end."""


@dataclass(frozen=True)
class Checked:
    """What is known of a downloaded file.

    Attributes:
        sha256: of the file as it is, hexadecimal.
        against: where the hash that it was compared with came from; ``None`` where there was none to compare with.
    """

    sha256: str
    against: str | None


def check_source(image: Path, wanted: str | None, step: Step) -> Checked:
    """Hashes the file and compares it with the hash that was given, or with the file ``IMAGE.sha256`` beside it.

    Raises:
        UserError: no such file, a hash that is none, or another hash than it should be.
    """
    if not image.is_file():
        raise UserError(f'no image at "{image}"', ["--image FILE.img or FILE.img.xz, from the system's download page"])
    expected, against = _expected(image, wanted)
    digest, size = hashlib.sha256(), image.stat().st_size
    with open(image, "rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
            step("hash", file.tell() // MIB, size // MIB)
    found = digest.hexdigest()
    if expected is not None and found != expected:
        raise UserError(
            f'"{image}" has sha256 "{found}", {against} says {expected}',
            ["download the image again", "check that the hash is that of this file, not of the unpacked one"],
        )
    return Checked(found, against)


def _expected(image: Path, wanted: str | None) -> tuple[str | None, str | None]:
    """The hash that the file should have, and who says so."""
    if wanted is not None:
        if not _HASH.fullmatch(wanted):
            raise UserError(f'"{wanted}" is not a sha256', ["--sha256 with 64 hexadecimal digits"])
        return wanted.lower(), "--sha256"
    beside = image.with_name(image.name + ".sha256")
    if not beside.is_file():
        return None, None
    lines = beside.read_text(encoding="utf-8", errors="replace").splitlines()
    words = [line.split() for line in lines if line.split() and _HASH.fullmatch(line.split()[0])]
    ours = [one for one in words if len(one) == 1 or one[-1].lstrip("*") == image.name]
    if not ours:
        raise UserError(f'"{beside}" has no sha256 of "{image.name}"', ["give it: --sha256 HASH", "remove that file"])
    return ours[0][0].lower(), str(beside)


def unpack(image: Path, target: Path, step: Step) -> None:
    """Writes the image's content to a new file; runs of zeros become holes.

    Args:
        image: plain, or packed as xz, gzip, or zip with one file in it. What it is is read from its first bytes.
        target: a file to be made.
        step: told about every chunk, counted in the source's bytes.

    Raises:
        UserError: it is packed in another way, damaged or cut short, or there is no space for it.
    """
    size = image.stat().st_size
    try:
        with open(image, "rb") as packed, _content(packed, image) as content, open(target, "wb") as out:
            for chunk in iter(lambda: content.read(_CHUNK_BYTES), b""):
                if chunk.count(0) == len(chunk):
                    out.seek(len(chunk), io.SEEK_CUR)
                else:
                    out.write(chunk)
                step("unpack", packed.tell() // MIB, size // MIB)
            out.truncate()
    except (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f'"{image}" is cut short or damaged: {error}', ["download it again"]) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f'no space in "{target.parent}" for the unpacked image',
            ["name another folder: TMPDIR=/folder splitboard ..."],
        ) from error


def is_packed(image: Path) -> bool:
    """Whether the file has to be unpacked first."""
    with open(image, "rb") as file:
        return file.read(8).startswith((_XZ, _ZIP, _GZIP, _ZSTD))


@contextlib.contextmanager
def _content(packed: IO[bytes], image: Path) -> Iterator[BinaryReader]:
    head = packed.read(8)
    packed.seek(0)
    if head.startswith(_XZ):
        with lzma.LZMAFile(packed) as content:
            yield content
    elif head.startswith(_GZIP):
        with gzip.open(packed) as content:
            yield content
    elif head.startswith(_ZIP):
        with zipfile.ZipFile(packed) as archive:
            names = [name for name in archive.namelist() if name.endswith((".img", ".raw"))]
            if len(names) != 1:
                raise UserError(f'"{image}" holds {len(names)} images, not one', ["unpack it and give the .img"])
            with archive.open(names[0]) as content:
                yield content
    elif head.startswith(_ZSTD):
        raise UserError(f'"{image}" is packed with zstd', [f"unpack it: zstd -d {image}", "then give the .img"])
    else:
        yield packed
