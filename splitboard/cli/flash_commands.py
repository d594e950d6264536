"""``splitboard flash``: its options, its help, and what it prints."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitboard.cli.options import Json
from splitboard.contract.errors import UserError

if TYPE_CHECKING:
    from boards.flash.card import FlashOutput
    from boards.flash.identity import Identity
    from boards.flash.jetson import JetsonPlan
    from boards.flash.plan import Plan, Request
    from splitboard.contract.board import BoardKind


def flash(
    kind: Annotated[str, typer.Argument(help="Kind of board: splitboard boards.", show_default=False)],
    bundle: Annotated[Path, typer.Option(help="Bundle folder that the board shall have.")],
    ssh_key: Annotated[Path, typer.Option(help="Public key that may log in, e.g. ~/.ssh/id_ed25519.pub.")],
    image: Annotated[Path | None, typer.Option(help="The system as downloaded: .img, .img.xz, .zip.")] = None,
    device: Annotated[Path | None, typer.Option(help="The card: /dev/sdX. Everything on it is lost.")] = None,
    l4t: Annotated[
        Path | None, typer.Option(help="In place of image and device: NVIDIA's folder Linux_for_Tegra, over USB.")
    ] = None,
    user: Annotated[str, typer.Option(help="The board's user.")] = "splitboard",
    hostname: Annotated[str | None, typer.Option(help="The board's name; default: the kind and 4 digits.")] = None,
    wifi: Annotated[str | None, typer.Option(help="Name of a Wi-Fi network.")] = None,
    wifi_password_file: Annotated[Path | None, typer.Option(help="File with its password.")] = None,
    country: Annotated[str | None, typer.Option(help="Whose rules the radio keeps: GB, DE, ...")] = None,
    wheelhouse: Annotated[
        Path | None,
        typer.Option(help="Folder of wheels (numpy, ai-edge-litert) to take those from that fit the image."),
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="Of the image file; default: from IMAGE.sha256 beside it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the device's name.")] = False,
    json: Json = False,
) -> None:
    """Writes a card that boots into a board with the bundle on it, or prepares NVIDIA's own tool.

    The image is looked into, customised in a copy, written, and read back past the system's memory. Refused are: a disk
    of this machine, a device in use, one that cannot be pulled out, one too small, an image of another board.

    Examples:
      splitboard flash rpi5 --image pi.img.xz --device /dev/sdb --bundle mine.bundle --ssh-key ~/.ssh/id_ed25519.pub

      splitboard flash jetson-agx-orin --l4t Linux_for_Tegra --bundle mine.bundle --ssh-key ~/.ssh/id_ed25519.pub
    """
    import secrets

    from boards.flash.identity import Identity, check_names, read_keys, read_wifi
    from boards.kinds import load_kind

    board = load_kind(kind)
    name = hostname or f"{kind}-{secrets.token_hex(2)}"
    check_names(user, name)
    identity = Identity(user, name, read_keys(ssh_key.expanduser()), read_wifi(wifi, wifi_password_file, country))
    if l4t is not None:
        if image is not None or device is not None or wheelhouse is not None:
            said = f'--l4t "{l4t}" takes the place of --image, --device and --wheelhouse'
            raise UserError(said, ["leave one of them out"])
        _flash_over_usb(board, l4t, bundle, identity, dry_run=dry_run, yes=yes, json=json)
        return
    if image is None or device is None:
        raise UserError(
            f'"{kind}" needs --image and --device', ["--image FILE.img.xz --device /dev/sdX", "--l4t FOLDER"]
        )
    from boards.flash.plan import Request

    request = Request(board, image, device, bundle, identity, sha256, wheelhouse)
    _flash_card(request, ssh_key, dry_run=dry_run, yes=yes, json=json)


def _flash_card(request: Request, ssh_key: Path, *, dry_run: bool, yes: bool, json: bool) -> None:
    from boards.flash.card import customise, prepare, result
    from boards.flash.device import check_rights
    from boards.flash.write import write_card
    from splitboard.cli.console import steps
    from splitboard.report.results import result_json

    with contextlib.ExitStack() as stack:
        with steps("flash") as step:
            prepared = stack.enter_context(prepare(request, step))
        plan = prepared.plan
        if not json:
            _print_plan(plan)
        if dry_run:
            if json:
                typer.echo(result_json(plan))
            return
        check_rights(plan.device)
        if not yes:
            _confirm(plan.device, f"Everything on {plan.device} ({plan.device_name}) will be lost.")
        with steps("flash") as step:
            image = customise(prepared, step)
        try:
            with steps("flash") as step:
                written = write_card(image, Path(plan.device), step)
        except KeyboardInterrupt:
            typer.echo(f"interrupted: the card in {plan.device} is not usable until it is flashed again", err=True)
            raise
    made = result(plan, written, ssh_key)
    if json:
        typer.echo(result_json(made))
    else:
        _print_result(made)


def _flash_over_usb(
    kind: BoardKind,
    folder: Path,
    bundle: Path,
    identity: Identity,
    *,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> None:
    from boards.flash.jetson import plan_jetson, run_plan, write_overlay
    from boards.flash.plan import check_bundle
    from splitboard.contract.bundle import load_bundle
    from splitboard.report.results import result_json

    check_bundle(load_bundle(bundle), bundle, kind)
    plan = plan_jetson(kind, folder, identity)
    if json:
        typer.echo(result_json(plan))
    else:
        _print_jetson_plan(plan)
    if dry_run:
        return
    write_overlay(bundle, identity, folder)
    if not yes:
        _confirm(kind.name, f"Everything on the {kind.title} will be lost. (No: the commands can be run by hand.)")
    run_plan(plan, kind, lambda line: typer.echo(line, err=True))


def _confirm(name: str, warning: str) -> None:
    """Goes on only if the name is typed."""
    typed = typer.prompt(f"{warning}\nType {name} to go on", err=True, default="", show_default=False)
    if typed.strip() != name:
        raise UserError(
            f'"{typed}" is not "{name}": nothing was written', [f"type {name}", "--yes, to be asked nothing"]
        )


def _print_plan(plan: Plan) -> None:
    checked = f"as {plan.checked_against} says" if plan.checked_against else "unchecked"
    who = f"{plan.user}@{plan.hostname}.local" if plan.user else "asked at the first boot"
    rows = {
        "Image": f"{plan.image} ({plan.system})",
        "sha256": f"{plan.image_sha256} ({checked})",
        "Card": f"{plan.device} ({plan.device_name}, {plan.device_bytes / 1e9:.1f} GB)",
        "Written": f"{plan.write_bytes / 1e9:.1f} GB",
        "First boot": plan.first_boot,
        "Board": who + (f", Wi-Fi {plan.wifi}" if plan.wifi else ""),
        "Bundle": f"{plan.bundle}, {len(plan.wheels)} wheels",
    }
    for name, text in rows.items():
        typer.echo(f"{name + ':':<12}{text}")
    for warning in plan.warnings:
        typer.echo(f"{'Note:':<12}{warning}")


def _print_jetson_plan(plan: JetsonPlan) -> None:
    from boards.flash.jetson import shown

    typer.echo(f"Jetson Linux {plan.release} for {plan.kind}; in {plan.folder}:")
    for command in plan.commands:
        typer.echo(f"  # {command.does}\n  {shown(command)}")
    typer.echo(f"On USB in recovery mode: {' or '.join(plan.recovery)} (lsusb)")
    for warning in plan.warnings:
        typer.echo(f"Note: {warning}")


def _print_result(made: FlashOutput) -> None:
    typer.echo(f"\n{made.written.n_bytes / 1e9:.1f} GB written, read back ({made.written.read_past}) and equal.")
    for line in made.next_steps:
        typer.echo(line)
    if made.station:
        typer.echo(f"\nIn stations.toml:\n{made.station}")


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command()(flash)
