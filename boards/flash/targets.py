"""What flashing must know of a kind beside its own table ``[flash]``: which images are for it."""

from __future__ import annotations

from dataclasses import dataclass

from splitboard.contract.board import BoardKind
from splitboard.contract.errors import UserError

_PI_TREES = {
    "rpi-zero2w": "bcm2710-rpi-zero-2",
    "rpi3": "bcm2710-rpi-3-b",
    "rpi4": "bcm2711-rpi-4-b",
    "rpi5": "bcm2712-rpi-5-b",
    "cm4": "bcm2711-rpi-cm4",
    "cm5": "bcm2712-rpi-cm5",
}
"""Beginning of the device tree's name: arch/arm64/boot/dts/broadcom in the kernel of Raspberry Pi OS."""

_JETSON_CHIPS = {
    "jetson-nano": "tegra210",
    "jetson-xavier-nx": "tegra194",
    "jetson-orin-nano": "tegra234",
}
"""Of the developer kits that boot from an SD card; their device trees are called after the chip."""


@dataclass(frozen=True)
class Target:
    """Which images a kind boots.

    Attributes:
        device_tree: what the name of one of the image's device trees must have in it.
        l4t: beginnings of the releases of Jetson Linux for it; empty for what is no Jetson.
    """

    device_tree: str
    l4t: tuple[str, ...]


def card_target(kind: BoardKind) -> Target:
    """What a card for this kind must hold.

    Raises:
        UserError: it boots from no card that this writes.
    """
    releases = tuple(dict.fromkeys(release for system in kind.systems for release in system.l4t))
    if kind.flash.method == "sd-image" and kind.name in _PI_TREES:
        return Target(_PI_TREES[kind.name], ())
    if kind.flash.method == "sd-image" and kind.name in _JETSON_CHIPS:
        return Target(_JETSON_CHIPS[kind.name], releases)
    ways = ["splitboard deploy, once it has a system"]
    if kind.name.startswith("jetson"):
        ways = [f"splitboard flash {kind.name} --l4t Linux_for_Tegra ..., over USB"]
    if kind.flash.note:
        ways.append(kind.flash.note)
    raise UserError(f'"{kind.name}" does not boot from a card that is written here', ways)
