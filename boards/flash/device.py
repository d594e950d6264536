"""The card: what ``lsblk`` says of it, and whether it may be overwritten."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boards.flash.tools import run_tool
from splitboard.contract.errors import UserError

_COLUMNS = "PATH,TYPE,RM,HOTPLUG,RO,SIZE,MOUNTPOINT,TRAN,MODEL,SERIAL"
"""MOUNTPOINT, not MOUNTPOINTS: util-linux before 2.37 (Ubuntu 20.04, on which Jetsons are flashed) has only that."""
_OF_THE_SYSTEM = ("/", "/boot", "/boot/efi", "/boot/firmware", "/usr", "/var", "/home", "[SWAP]")


@dataclass(frozen=True)
class Device:
    """A block device.

    Attributes:
        path: e.g. ``/dev/sdb``.
        kind: ``disk``, ``loop``, ``part``, ...
        removable: it can be pulled out: a card or a stick.
        read_only: the switch on the card's side, or the reader.
        size_bytes: 0 where the reader is empty.
        mounted: where it or a part of it is mounted or used.
        name: maker's model and serial number, for people.
    """

    path: str
    kind: str
    removable: bool
    read_only: bool
    size_bytes: int
    mounted: tuple[str, ...]
    name: str


def read_device(path: Path) -> Device:
    """Asks the system about a device.

    Raises:
        UserError: it is not there or not a block device.
    """
    real = path.resolve()
    if not real.exists() or not stat.S_ISBLK(real.stat().st_mode):
        raise UserError(f'"{path}" is not a disk' if real.exists() else f'there is no "{path}"', _candidates())
    listed = run_tool(["lsblk", "-J", "-b", "-o", _COLUMNS, str(real)])
    if listed.returncode != 0:
        raise UserError(f'"{path}" cannot be asked: {listed.stderr.decode(errors="replace").strip()}', _candidates())
    return parse_device(listed.stdout.decode())


def parse_device(listing: str) -> Device:
    """The first device of what ``lsblk -J -b`` printed.

    Older versions print numbers and truths as text (``"rm":"0"``), newer ones as such.
    """
    found: dict[str, Any] = json.loads(listing)["blockdevices"][0]
    words = [str(found[key]).strip() for key in ("tran", "model", "serial") if found.get(key)]
    return Device(
        path=str(found["path"]),
        kind=str(found["type"]),
        removable=_true(found["rm"]) or _true(found["hotplug"]) or found.get("tran") in ("usb", "mmc"),
        read_only=_true(found["ro"]),
        size_bytes=int(found["size"] or 0),
        mounted=tuple(dict.fromkeys(str(one["mountpoint"]) for one in _tree(found) if one.get("mountpoint"))),
        name=" ".join(words) or str(found["type"]),
    )


def check_device(device: Device, image_bytes: int) -> None:
    """Refuses a device that must not or cannot be overwritten.

    Loop devices are taken although nothing pulls them out: behind each is a file that somebody attached for this.

    Args:
        device: the card.
        image_bytes: what will be written.

    Raises:
        UserError: it is in use, a disk of this machine, write-protected, empty, a partition, or too small.
    """
    path = device.path
    system = [place for place in device.mounted if place in _OF_THE_SYSTEM]
    if system:
        raise UserError(f'"{path}" is the disk of this machine: it is mounted on {", ".join(system)}', _candidates())
    if device.mounted:
        unmount = [f"sudo umount {place}" for place in device.mounted]
        raise UserError(f'"{path}" is in use: it is mounted on {", ".join(device.mounted)}', unmount)
    if device.kind not in ("disk", "loop"):
        raise UserError(
            f'"{path}" is not a whole disk but a "{device.kind}"', ["name the disk: /dev/sdb, not /dev/sdb1"]
        )
    if device.kind == "disk" and not device.removable:
        raise UserError(f'"{path}" ({device.name}) cannot be pulled out: it is no card', _candidates())
    if device.size_bytes == 0:
        raise UserError(f'"{path}" is empty: there is no card in the reader', ["put the card in"])
    if device.read_only:
        raise UserError(f'"{path}" is write-protected', ["move the switch at the side of the card"])
    if device.size_bytes < image_bytes:
        raise UserError(
            f'"{path}" is too small: {_gb(device.size_bytes)}, the image has {_gb(image_bytes)}', ["use a larger card"]
        )


def check_rights(device: str) -> None:
    """Refuses a device that this user may not write, before long work is done for it.

    Raises:
        UserError: so it is.
    """
    if not os.access(device, os.R_OK | os.W_OK):
        raise UserError(f'"{device}" may not be written by you', ["the same command with sudo in front"])


def _candidates() -> list[str]:
    """What may be written to, as ``Try:`` lines."""
    listed = run_tool(["lsblk", "-J", "-b", "-d", "-o", _COLUMNS])
    devices = json.loads(listed.stdout)["blockdevices"] if listed.returncode == 0 else []
    found = [parse_device(json.dumps({"blockdevices": [one]})) for one in devices]
    cards = [one for one in found if one.kind == "disk" and one.removable and one.size_bytes]
    return [f"--device {one.path} ({one.name}, {_gb(one.size_bytes)})" for one in cards] or ["plug the card in; lsblk"]


def _tree(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield found
    for child in found.get("children", ()):
        yield from _tree(child)


def _true(value: object) -> bool:
    return value in (True, 1, "1")


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
