"""What the verbs about boards print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from boards.detect import Detected
from boards.doctor.finding import Findings
from boards.stations import SSH_PORT, Station
from splitboard.cli.tables import console
from splitboard.contract.board import BoardKind, BoardMeter, Flash, System

_STYLES = {"ok": "green", "warning": "yellow", "in the way": "bold red"}


def print_kind(kind: BoardKind) -> None:
    """Prints all that is known of a kind of board."""
    console().print(f"{kind.title} ({kind.name})\n", style="bold", highlight=False)
    rows: list[tuple[str, str]] = [
        ("system on chip", kind.soc),
        ("processor", f"{kind.cores} x {kind.cpu}, {kind.machine}" if kind.cores else f"{kind.cpu}, {kind.machine}"),
        ("instructions", " ".join(kind.isa) or "left open"),
        ("memory", ", ".join(_size(mib) for mib in kind.ram_mib) or "left open"),
        *(("systems" if i == 0 else "", _system(one)) for i, one in enumerate(kind.systems)),
        ("edge half", f"{kind.format}, run by {' or '.join(kind.runtime)}"),
        ("precisions", ", ".join(kind.precisions)),
        *((f"not {precision}", reason) for precision, reason in kind.refused.items()),
        *_meter(kind.meter),
        ("clocks", f"governor {kind.clocks.governor}; set with {', '.join(kind.clocks.tools)}"),
        ("power modes", ", ".join(kind.clocks.power_modes) or "none"),
        ("throttling", kind.throttle),
        *_flash(kind.flash),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console().print(f"{name:<{width}}  {escape(value)}", highlight=False, soft_wrap=True)


def print_stations(path: Path, stations: Sequence[Station]) -> None:
    """Prints the boards on the desk."""
    console().print(f"{escape(str(path))}: {len(stations) or 'no'} stations\n", style="bold", highlight=False)
    width = max((len(one.name) for one in stations), default=0)
    for one in stations:
        host = f"[{one.host}]" if ":" in one.host else one.host
        address = f"{one.user}@{host}" + ("" if one.port == SSH_PORT else f":{one.port}")
        line = f"{one.name:<{width}}  {address:<28} {one.kind or 'kind not said'}"
        console().print(escape(line), highlight=False, soft_wrap=True)


def print_detected(detected: Detected, kind: BoardKind) -> None:
    """Prints what a board is."""
    console().print(f"{detected.kind}: {escape(kind.title)}", style="bold", highlight=False)
    for name, value in (
        ("model", detected.model),
        ("compatible", ", ".join(detected.compatible)),
        ("machine", detected.machine),
        ("Jetson Linux", detected.l4t or ""),
    ):
        if value:
            console().print(f"{name:<13} {escape(value)}", highlight=False, soft_wrap=True)
    for note in detected.notes:
        console().print(f"note: {escape(note)}", style="yellow", highlight=False, soft_wrap=True)


def print_findings(findings: Findings) -> None:
    """Prints what the doctor found, and how to mend it."""
    console().print(f"{findings.station}: judged as {findings.kind}\n", style="bold", highlight=False)
    for one in findings.findings:
        line = f"[{_STYLES[one.level]}]{one.level:<10}[/] {one.check:<11} {escape(one.what)}"
        console().print(line, highlight=False, soft_wrap=True)
        for command in one.mend:
            console().print(f"{'':<23}{escape(command)}", highlight=False, soft_wrap=True)
    n_warnings = sum(one.level == "warning" for one in findings.findings)
    warnings = "1 warning" if n_warnings == 1 else f"{n_warnings} warnings"
    console().print(f"\n{len(findings.in_the_way)} in the way, {warnings}", highlight=False)


def _size(mib: int) -> str:
    return f"{mib} MiB" if mib < 1024 else f"{mib // 1024} GiB"


def _system(system: System) -> str:
    parts = [f"Python {system.python}" if system.python else "", f"glibc {system.glibc}" if system.glibc else ""]
    if system.l4t:
        parts.append(f"Jetson Linux {', '.join(system.l4t)}")
    if system.cuda is not None:
        parts.append(f"CUDA {system.cuda}")
    for name, version in system.runtimes.items():
        limit = f" (numpy {system.numpy[name]})" if name in system.numpy else ""
        parts.append(f"{name} {version}{limit}")
    return f"{system.name}: {', '.join(part for part in parts if part)}"


def _meter(meter: BoardMeter) -> list[tuple[str, str]]:
    if not meter.chips:
        return [("meter", f"none: {meter.leaves_out}")]
    chips = [
        (
            "meter" if i == 0 else "",
            f"{chip.sensor}{f' at {chip.address}' if chip.address else ''}: {', '.join(chip.rails)}",
        )
        for i, chip in enumerate(meter.chips)
    ]
    return [*chips, ("total", " + ".join(meter.total)), ("not in it", meter.leaves_out)]


def _flash(flash: Flash) -> list[tuple[str, str]]:
    rows = [("flash", f"{flash.method}{f': {flash.note}' if flash.note else ''}")]
    if flash.first_boot:
        rows.append(("first boot", ", ".join(flash.first_boot)))
    if flash.recovery_usb:
        rows.append(("recovery USB", ", ".join(flash.recovery_usb)))
    if flash.board_configs:
        rows.append(("flash config", ", ".join(f"{config} ({of})" for of, config in flash.board_configs.items())))
    return rows
