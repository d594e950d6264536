"""From an image to a card: the parts in their order, and what is told at the end."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from boards.flash.contents import Contents, FirstBootForm, look_inside
from boards.flash.device import read_device
from boards.flash.firstboot import first_boot
from boards.flash.payload import FIRST_UID, Libraries, build_payload, choose_wheels, payload_bytes
from boards.flash.plan import Plan, Request, check_bundle, check_contents, make_plan
from boards.flash.source import Step, check_source, is_packed, unpack
from boards.flash.targets import card_target
from boards.flash.write import Written
from splitboard.contract.bundle import load_bundle


@dataclass(frozen=True)
class Prepared:
    """A plan, and what it was made from; lives as long as the block of `prepare`.

    Attributes:
        plan: what will be done.
        request: what was asked for.
        contents: of the image.
        image: unpacked, in ``work``; a link to the user's own file where that is not packed.
        work: folder of this work.
        libraries: that go along.
    """

    plan: Plan
    request: Request
    contents: Contents
    image: Path
    work: Path
    libraries: Libraries


@dataclass(frozen=True)
class FlashOutput:
    """``splitboard flash --json``.

    Attributes:
        plan: what was to be done.
        written: what the card holds, read back.
        address: ``user@host``; ``None`` where the image asks for both.
        next_steps: one line each.
        station: a table for ``stations.toml``; empty where the address is not known.
    """

    plan: Plan
    written: Written
    address: str | None
    next_steps: tuple[str, ...]
    station: str


@contextlib.contextmanager
def prepare(request: Request, step: Step) -> Iterator[Prepared]:
    """Finds out everything that could be wrong; the card is not touched, nor the user's image.

    Raises:
        UserError: something is.
    """
    target = card_target(request.kind)
    check_bundle(load_bundle(request.bundle), request.bundle, request.kind)
    device = read_device(request.device)
    checked = check_source(request.image, request.sha256, step)
    with tempfile.TemporaryDirectory(prefix="splitboard-flash-") as folder:
        work = Path(folder)
        image = work / f"{request.image.name.split('.')[0].replace('?', '_')}.img"  # as messages shall name it
        if is_packed(request.image):
            unpack(request.image, image, step)
        else:
            image.symlink_to(request.image.resolve())
        contents = look_inside(image)
        check_contents(contents, request.kind, target, request.image)
        libraries = choose_wheels(request.wheelhouse, request.kind, contents.python)
        contents.root.check_writable(payload_bytes(request.bundle, libraries))
        plan = make_plan(request, checked, contents, image.stat().st_size, device, libraries)
        yield Prepared(plan, request, contents, image, work, libraries)


def customise(prepared: Prepared, step: Step) -> Path:
    """Puts everything onto a copy of the image.

    Returns:
        The image to be written. The user's own file is as it was.
    """
    image = prepared.image
    if image.is_symlink():
        image = prepared.work / f"copy-{image.name}"
        unpack(prepared.image, image, step)
    contents, identity = look_inside(image), prepared.request.identity
    asks = contents.form is FirstBootForm.ASKS
    step("customise", 0, 2)
    folder = prepared.work / "payload"
    folder.mkdir()
    account, keys = (FIRST_UID, identity.keys) if asks else (identity.user, ())
    payload = build_payload(prepared.request.bundle, prepared.libraries, account, keys, folder)
    contents.root.write(payload.files, payload.links)
    step("customise", 1, 2)
    boot = first_boot(contents, identity, f"splitboard-{uuid.uuid4().hex}")
    if contents.boot is not None:
        contents.boot.write({name: text.encode() for name, text in boot.files.items()})
    shutil.rmtree(folder)
    step("customise", 2, 2)
    return image


def result(plan: Plan, written: Written, ssh_key: Path) -> FlashOutput:
    """What was done, and how the board is found.

    Args:
        plan: of it.
        written: the card.
        ssh_key: the public key; the private one is taken to lie beside it.
    """
    if not plan.user:
        steps = ["Answer what the first boot asks, then: splitboard boards detect USER@ADDRESS"]
        return FlashOutput(plan, written, None, tuple(steps), "")
    private = ssh_key.with_suffix("") if ssh_key.suffix == ".pub" else ssh_key
    address = f"{plan.user}@{plan.hostname}.local"
    steps = [
        "Put the card into the board and power it; the first boot takes a few minutes.",
        f"ssh -i {private} {address}",
        f"Self-check: ssh -i {private} {address} cat splitboard/selfcheck.json",
        f"splitboard boards detect {address}",
    ]
    station = f'[{plan.hostname}]\naddress = "{address}"\nkind = "{plan.kind}"\nkey = "{private}"\n'
    return FlashOutput(plan, written, address, tuple(steps), station)
