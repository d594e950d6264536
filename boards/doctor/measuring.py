"""What would spoil a measurement: clocks, throttling, sensors that cannot be read."""

from __future__ import annotations

import re

from boards.doctor.finding import Finding, in_the_way, ok, warning
from boards.doctor.readings import Board
from boards.stations import Station
from runtime_edge.meters.find import HELP, is_meter
from splitboard.contract.board import BoardKind

_GOVERNOR_FILES = "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
_RAPL = "/sys/class/powercap/intel-rapl:0/energy_uj"
_VCIO = "/dev/vcio"

_BITS = ("under-voltage", "Arm frequency capped", "throttled", "soft temperature limit")
"""Of ``get_throttled``, from bit 0 on: now; from bit 16 on: at any time since it started."""
_SINCE_START = 16
_MEND = {
    "under-voltage": "a power supply and a cable made for this board; then: sudo reboot",
    "throttled": "a heat sink and a fan; then: sudo reboot",
}


def clocks(board: Board, kind: BoardKind) -> list[Finding]:
    """Governor and power mode."""
    wanted, found = kind.clocks.governor, []
    others = sorted({governor for governor in board.governors.values() if governor != wanted})
    if not board.governors:
        found.append(ok("governor", "the system sets no frequencies"))
    elif others:
        mend = f"echo {wanted} | sudo tee {_GOVERNOR_FILES}"
        found.append(warning("governor", f"{', '.join(others)}: clocks follow the load; measure with {wanted}", mend))
    else:
        found.append(ok("governor", wanted))
    if kind.clocks.power_modes:
        found.append(_power_mode(board, kind))
    return found


def _power_mode(board: Board, kind: BoardKind) -> Finding:
    largest = next((mode for mode in kind.clocks.power_modes if mode in board.power_modes), None)
    if board.power_mode is None:
        return warning("power mode", "the board does not tell it", "sudo nvpmodel -q")
    if largest is None or board.power_mode == largest:
        return ok("power mode", board.power_mode)
    number = board.power_modes[largest]  # numbers differ by board and release, so they are looked up
    return warning("power mode", f"{board.power_mode}; the largest is {largest}", f"sudo nvpmodel -m {number}")


def throttling(board: Board, kind: BoardKind) -> list[Finding]:
    """What slowed the board down, now or since it started."""
    found = []
    if kind.throttle.startswith("vcgencmd"):
        found.append(_firmware(board))
    fired = {name: count for name, count in board.over_current.items() if count}
    if fired:
        said = ", ".join(f"{name} {count}" for name, count in fired.items())
        found.append(warning("throttling", f"over-current or under-voltage events since it started: {said}"))
    elif board.over_current:
        found.append(ok("throttling", "no over-current or under-voltage event since it started"))
    return found


def _firmware(board: Board) -> Finding:
    match = re.search(r"throttled=0x([0-9a-fA-F]+)", board.throttled)
    if match is None:
        said = board.throttled.splitlines()[0] if board.throttled else "there is no vcgencmd"
        install = () if board.throttled else ("sudo apt install raspi-utils",)
        return warning("throttling", f"not known: {said}", *install)
    flags = int(match[1], 16)
    now = [name for bit, name in enumerate(_BITS) if flags >> bit & 1]
    past = [name for bit, name in enumerate(_BITS) if flags >> (bit + _SINCE_START) & 1]
    mend = [_MEND[name] for name in _MEND if name in (*now, *past)]
    if now:
        return in_the_way("throttling", f"now: {', '.join(now)} ({match[0]})", *mend)
    if past:
        return warning("throttling", f"since it started, not now: {', '.join(past)} ({match[0]})", *mend)
    return ok("throttling", "never since it started")


def sensors(board: Board, kind: BoardKind, station: Station) -> list[Finding]:
    """Whether we may read what measures the board's power, and its firmware."""
    found = []
    chips = {chip.sensor for chip in kind.meter.chips}
    if _VCIO in board.devices and (kind.throttle.startswith("vcgencmd") or "rpi-pmic" in chips):
        found.append(_group(board, _VCIO, "video", "throttling" if not chips else "energy and throttling"))
    if station.meter is not None and not is_meter(station.meter):
        found.append(warning("energy", f'"{station.meter}" names no meter', f"meter in stations.toml: {HELP}"))
    elif station.meter is not None:
        buses = sorted(path for path in board.devices if path.startswith("/dev/i2c-"))
        found += [_group(board, bus, "i2c", f'the meter "{station.meter}"') for bus in buses]
    if "rapl" in chips:
        found.append(_rapl(board))
    if chips & {"ina3221", "ina238"}:
        found.append(_rails(board, kind))
    if not chips and station.meter is None:
        found.append(
            warning("energy", f"not measured: {kind.meter.leaves_out}", "an external one: meter in stations.toml")
        )
    return found


def _group(board: Board, path: str, group: str, needed_for: str) -> Finding:
    if board.devices[path] == "rw":
        return ok("sensor", f"{path} can be read ({needed_for})")
    mend = f"sudo usermod -aG {group} {board.user}, then log in again"
    if group in board.groups:
        mend = f"ls -l {path}: its group should be {group}, and may read and write"
    return warning("sensor", f"{board.user} may not read {path}, which {needed_for} needs", mend)


def _rapl(board: Board) -> Finding:
    may = board.devices.get(_RAPL)
    if may is None:
        return warning("energy", "not measured: the processor has no RAPL counter that Linux shows")
    if "r" in may:
        return ok("energy", f"RAPL, {_RAPL}")
    return warning("energy", f"{board.user} may not read {_RAPL}", f"sudo chmod a+r {_RAPL}")


def _rails(board: Board, kind: BoardKind) -> Finding:
    missing = [rail for rail in kind.meter.total if rail not in board.rails]
    if missing:
        there = ", ".join(board.rails) or "none"
        return warning("energy", f"not measured: no rail {', '.join(missing)}; there are: {there}")
    closed = [rail for rail in kind.meter.total if not board.rails[rail]]
    if closed:
        return warning(
            "energy", f"{board.user} may not read {', '.join(closed)}", "run the bench as root, or chmod a+r"
        )
    return ok("energy", f"{' + '.join(kind.meter.total)}; {kind.meter.leaves_out}")
