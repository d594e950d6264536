"""Partition tables of disk images: MBR and GPT, read without a device, a mount or root."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from splitboard.contract.errors import UserError

SECTOR_BYTES = 512
"""Of SD cards, and so of their images."""

_MBR_ENTRIES = 446
_MBR_SIGNATURE = b"\x55\xaa"
_PROTECTIVE = 0xEE
_GPT_SIGNATURE = b"EFI PART"
_MOST_GPT_ENTRIES = 1024


@dataclass(frozen=True)
class Partition:
    """One partition.

    Attributes:
        number: as the kernel counts, from 1.
        start_bytes: where it begins in the image.
        size_bytes: its length.
        kind: of an MBR two hexadecimal digits, e.g. ``0c``; of a GPT the type's UUID in capitals.
        name: of a GPT, e.g. ``APP``; else empty.
    """

    number: int
    start_bytes: int
    size_bytes: int
    kind: str
    name: str


def read_partitions(image: Path) -> tuple[Partition, ...]:
    """The partitions of an image, in the order of the table.

    Layouts: UEFI specification 2.10, section 5.2.1 (MBR) and 5.3 (GPT).

    Raises:
        UserError: there is no table, or the image ends before its last partition does.
    """
    with open(image, "rb") as file:
        head = file.read(SECTOR_BYTES)
        if len(head) < SECTOR_BYTES or head[510:512] != _MBR_SIGNATURE:
            raise UserError(
                f'"{image}" is not a disk image: it has no partition table', ["give the .img of the system"]
            )
        found = _read_mbr(head)
        if any(partition.kind == f"{_PROTECTIVE:02x}" for partition in found):
            found = _read_gpt(file, image)
    if not found:
        raise UserError(f'"{image}" has no partitions', ["give the .img of the system"])
    end, size = max(one.start_bytes + one.size_bytes for one in found), image.stat().st_size
    if end > size:
        raise UserError(
            f'"{image}" is cut short: its partitions end at byte {end}, the file at byte {size}', ["download it again"]
        )
    return found


def _read_mbr(sector: bytes) -> tuple[Partition, ...]:
    found = []
    for index in range(4):
        entry = sector[_MBR_ENTRIES + 16 * index : _MBR_ENTRIES + 16 * (index + 1)]
        kind, start, count = entry[4], *struct.unpack("<II", entry[8:16])
        if kind != 0 and count != 0:
            found.append(Partition(index + 1, start * SECTOR_BYTES, count * SECTOR_BYTES, f"{kind:02x}", ""))
    return tuple(found)


def _read_gpt(file: BinaryIO, image: Path) -> tuple[Partition, ...]:
    file.seek(SECTOR_BYTES)
    header = file.read(SECTOR_BYTES)
    table, count, size = struct.unpack("<QII", header[72:88]) if len(header) == SECTOR_BYTES else (0, 0, 0)
    if header[:8] != _GPT_SIGNATURE or count > _MOST_GPT_ENTRIES or size < 128:
        raise UserError(f'"{image}" has a damaged partition table (GPT)', ["download it again"])
    file.seek(table * SECTOR_BYTES)
    found = []
    for index in range(count):
        entry = file.read(size)
        if len(entry) < size or entry[:16] == bytes(16):
            continue
        first, last = struct.unpack("<QQ", entry[32:48])
        found.append(
            Partition(
                number=index + 1,
                start_bytes=first * SECTOR_BYTES,
                size_bytes=(last - first + 1) * SECTOR_BYTES,
                kind=str(uuid.UUID(bytes_le=entry[:16])).upper(),
                name=entry[56:128].decode("utf-16-le").rstrip("\0"),
            )
        )
    return tuple(found)
