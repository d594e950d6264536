"""What will be done to which card, decided before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from boards.flash.contents import Contents, FirstBootForm
from boards.flash.device import Device, check_device
from boards.flash.identity import Identity
from boards.flash.payload import Libraries
from boards.flash.source import Checked
from boards.flash.targets import Target
from boards.kinds import load_kind
from splitboard.contract.board import BoardKind
from splitboard.contract.bundle import Bundle
from splitboard.contract.errors import UserError

_OLDEST_PYTHON = (3, 8)


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        kind: of board.
        image: as downloaded.
        device: path of the card.
        bundle: a bundle folder.
        identity: who the board shall be.
        sha256: that the image should have; ``None`` looks beside it.
        wheelhouse: folder of wheels for the board; ``None`` for none.
    """

    kind: BoardKind
    image: Path
    device: Path
    bundle: Path
    identity: Identity
    sha256: str | None
    wheelhouse: Path | None


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        kind: name of the kind of board.
        image: path of the file that was downloaded.
        image_sha256: of that file.
        checked_against: who said that this is its hash; ``None`` where nobody did.
        system: on the image, as it calls itself.
        first_boot: how it is told who it shall be.
        device: the card's path.
        device_name: its maker's name for it.
        device_bytes: its size.
        write_bytes: how much is written.
        user: of the board; empty where the image asks.
        hostname: of the board; empty where the image asks.
        wifi: the network's name; ``None`` for none.
        bundle: path of the bundle.
        wheels: names of the wheels that go along.
        warnings: what the user should know first.
    """

    kind: str
    image: str
    image_sha256: str
    checked_against: str | None
    system: str
    first_boot: str
    device: str
    device_name: str
    device_bytes: int
    write_bytes: int
    user: str
    hostname: str
    wifi: str | None
    bundle: str
    wheels: tuple[str, ...]
    warnings: tuple[str, ...]


def check_bundle(bundle: Bundle, folder: Path, kind: BoardKind) -> None:
    """Refuses a bundle for another kind; one for the generic kind of the same processor is fine.

    Raises:
        UserError: it is for another.
    """
    if bundle.board == kind.name:
        return
    made_for = load_kind(bundle.board)
    is_generic = made_for.cores == 0
    if not (is_generic and made_for.machine == kind.machine):
        raise UserError(
            f'"{folder}" is for "{bundle.board}", not for {kind.name}', [f"splitboard build MODEL --board {kind.name}"]
        )


def check_contents(contents: Contents, kind: BoardKind, target: Target, image: Path) -> None:
    """Refuses an image that this kind does not boot.

    Raises:
        UserError: it is for another processor, another family, or another board.
    """
    name = f'"{image.name}" ({contents.system})'
    if contents.machine != kind.machine:
        raise UserError(
            f'{name} is for the processor "{contents.machine or "unknown"}", {kind.name} is {kind.machine}',
            ["take the 64-bit image of the system"],
        )
    if bool(target.l4t) != (contents.l4t is not None):
        family = "a Jetson" if contents.l4t is not None else "a Raspberry Pi"
        raise UserError(f"{name} is for {family}, not for {kind.title}", [f"take an image for {kind.title}"])
    if not any(target.device_tree in tree for tree in contents.device_trees):
        boards = ", ".join(contents.device_trees[:8]) or "none"
        raise UserError(
            f'{name} is not for {kind.title}: it has no device tree "{target.device_tree}" (it has {boards})',
            [f"take an image for {kind.title}", "splitboard boards"],
        )
    if contents.l4t is not None:
        release = f"{contents.l4t[0]}.{contents.l4t[1]}"
        if not any(release == one or release.startswith(one + ".") for one in target.l4t):
            raise UserError(
                f'{name} is Jetson Linux "{release}", {kind.title} takes {", ".join(target.l4t)}',
                [f"take an image for {kind.title}"],
            )


def make_plan(
    request: Request, checked: Checked, contents: Contents, image_bytes: int, device: Device, libraries: Libraries
) -> Plan:
    """Puts together what was found out.

    Raises:
        UserError: the card must not or cannot be overwritten.
    """
    check_device(device, image_bytes)
    asks = contents.form is FirstBootForm.ASKS
    identity = request.identity
    return Plan(
        kind=request.kind.name,
        image=str(request.image),
        image_sha256=checked.sha256,
        checked_against=checked.against,
        system=contents.system,
        first_boot=contents.form.value,
        device=device.path,
        device_name=device.name,
        device_bytes=device.size_bytes,
        write_bytes=image_bytes,
        user="" if asks else identity.user,
        hostname="" if asks else identity.hostname,
        wifi=identity.wifi.ssid if identity.wifi is not None and not asks else None,
        bundle=str(request.bundle),
        wheels=tuple(wheel.name for wheel in libraries.wheels),
        warnings=tuple(_warnings(request, checked, contents, libraries)),
    )


def _warnings(request: Request, checked: Checked, contents: Contents, libraries: Libraries) -> list[str]:
    said = []
    if checked.against is None:
        said.append(f"the image is unchecked: no --sha256, and no {request.image.name}.sha256 beside it")
    if contents.form is FirstBootForm.ASKS:
        wifi = ", Wi-Fi" if request.identity.wifi is not None else ""
        said.append(
            f"this image asks for user, password, host name{wifi} at its first boot; the key and the bundle follow"
        )
    if contents.python is not None and tuple(map(int, contents.python.split("."))) < _OLDEST_PYTHON:
        said.append(f"its Python {contents.python} is too old for the runtime (3.8): splitboard doctor says what to do")
    elif not libraries.wheels and not contents.l4t:
        said.append(
            "no wheels go along (--wheelhouse): the self-check fails until splitboard deploy brings numpy and LiteRT"
        )
    if request.kind.flash.note:
        said.append(request.kind.flash.note)
    return said
