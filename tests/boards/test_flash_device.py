"""Which devices may be overwritten: listings as lsblk prints them, and real loop devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boards.flash.device import check_device, parse_device, read_device
from splitboard.contract.errors import UserError

GB = 10**9


def listing(**changes: Any) -> str:
    """A card of 32 GB in a USB reader, as lsblk 2.38 prints it with -J -b."""
    disk: dict[str, Any] = {
        "path": "/dev/sdb",
        "type": "disk",
        "rm": True,
        "hotplug": True,
        "ro": False,
        "size": 31_914_983_424,
        "mountpoint": None,
        "tran": "usb",
        "model": "STORAGE DEVICE  ",
        "serial": "000000001206",
        "children": [
            {"path": "/dev/sdb1", "type": "part", "rm": True, "ro": False, "size": 536870912, "mountpoint": None},
            {"path": "/dev/sdb2", "type": "part", "rm": True, "ro": False, "size": 31_000_000_000, "mountpoint": None},
        ],
    }
    return json.dumps({"blockdevices": [{**disk, **changes}]})


def test_a_card_in_a_reader_passes() -> None:
    device = parse_device(listing())
    check_device(device, 3 * GB)
    assert (device.path, device.size_bytes, device.removable) == ("/dev/sdb", 31_914_983_424, True)
    assert device.name == "usb STORAGE DEVICE 000000001206"


def test_the_texts_of_older_versions_are_read_too() -> None:
    device = parse_device(listing(rm="1", hotplug="1", ro="0", size="31914983424"))
    assert device == parse_device(listing())
    assert not parse_device(listing(rm="0", hotplug="0", tran=None)).removable


def test_a_built_in_reader_counts_as_removable() -> None:
    check_device(parse_device(listing(path="/dev/mmcblk0", rm=False, hotplug=True, tran="mmc")), 3 * GB)


def child(mountpoint: str) -> list[dict[str, Any]]:
    return [{"path": "/dev/sdb1", "type": "part", "mountpoint": mountpoint}]


@pytest.mark.parametrize(
    ("changes", "said", "advice"),
    [
        ({"children": child("/media/me/bootfs")}, "mounted on /media/me/bootfs", "sudo umount /media/me/bootfs"),
        ({"mountpoint": "/mnt"}, "mounted on /mnt", "sudo umount /mnt"),
        ({"children": child("/")}, "is the disk of this machine", ""),
        ({"children": child("[SWAP]")}, "is the disk of this machine", ""),
        (
            {"children": [{"path": "/dev/dm-0", "type": "crypt", "children": child("/home")}]},
            "is the disk of this machine",
            "",
        ),
        ({"rm": False, "hotplug": False, "tran": "sata"}, "cannot be pulled out", ""),
        ({"rm": False, "hotplug": False, "tran": "nvme"}, "cannot be pulled out", ""),
        ({"path": "/dev/sdb1", "type": "part"}, 'not a whole disk but a "part"', "not /dev/sdb1"),
        ({"size": 0}, "there is no card in the reader", "put the card in"),
        ({"ro": True}, "write-protected", "switch"),
        ({"size": 2 * GB}, "too small: 2.0 GB, the image has 3.0 GB", "larger card"),
    ],
)
def test_what_must_not_be_overwritten_is_refused(changes: dict[str, Any], said: str, advice: str) -> None:
    with pytest.raises(UserError) as refused:
        check_device(parse_device(listing(**changes)), 3 * GB)
    assert said in refused.value.message
    assert '"/dev/sdb' in refused.value.message
    assert any(advice in line for line in refused.value.tries)


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='there is no "/dev/nope"'):
        read_device(Path("/dev/nope"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a disk"):
        read_device(tmp_path / "file")
