"""The board itself: what it is, its system, clock, disk and memory."""

from __future__ import annotations

from boards.doctor.finding import Finding, in_the_way, ok, warning
from boards.doctor.readings import Board
from boards.kinds import runs_bundles_of
from boards.stations import Station
from splitboard.contract.board import BoardKind
from splitboard.contract.bundle import Bundle

_MEBIBYTE = 1 << 20
_RUNTIME_DISK_BYTES = 96 * _MEBIBYTE
"""numpy, tflite-runtime and ai-edge-litert unpacked; measured of their aarch64 wheels."""

_RUNTIME_MEMORY_BYTES = 45 * _MEBIBYTE
"""Python with numpy, ai-edge-litert and the edge runtime loaded, no model; resident size, measured on x86-64."""

_SKEW_WARNING_S = 5.0
_SKEW_LIMIT_S = 86_400.0
"""A board without a battery that has not found a time server is off by weeks; certificates are then not valid yet."""


def identity(board: Board, kind: BoardKind, station: Station, bundle: Bundle | None) -> list[Finding]:
    """Whether it is the board that the station names, and the bundle's."""
    detected = board.detected
    what = f"{kind.title}: {detected.model or detected.machine}"
    found = [ok("board", what)]
    generic = kind.cores == 0
    mute = not detected.model and detected.machine == kind.machine  # no device tree: the station's word stands
    if detected.kind != kind.name and not generic and not mute:
        found = [
            in_the_way(
                "board",
                f'station "{station.name}" is said to be {kind.name}, the board says it is {detected.kind}'
                + (f" ({detected.model})" if detected.model else ""),
                f'splitboard: kind = "{detected.kind}" in stations.toml',
            )
        ]
    found += [warning("board", note) for note in detected.notes]
    if bundle is not None and not runs_bundles_of(kind, bundle.board):
        found.append(
            in_the_way(
                "bundle",
                f'it is built for {bundle.board}, station "{station.name}" is {kind.name}',
                f"splitboard build MODEL --board {kind.name}",
            )
        )
    missing = sorted(set(kind.isa) - board.features)
    if board.features and missing:
        found.append(warning("processor", f"a {kind.cpu} has {', '.join(missing)}; this one does not"))
    return found


def system(board: Board, kind: BoardKind) -> list[Finding]:
    """The operating system: 64-bit, and one that is known on this kind."""
    named = board.system or "its system does not say what it is"
    bits = board.bits or (board.python.bits if board.python is not None else None)
    wide = bits == 64 and board.detected.machine == kind.machine
    if not wide:
        says = f"{named}: a {bits or '?'}-bit system, {board.detected.machine}"
        fix = (f"splitboard flash {kind.name}: with a 64-bit image",) if kind.flash.method == "sd-image" else ()
        if "tflite-runtime" in kind.runtime and board.detected.machine in (kind.machine, "armv7l"):
            return [warning("system", f"{says}; only tflite-runtime has wheels for it", *fix)]
        return [in_the_way("system", f"{says}; {kind.runtime[0]} needs a 64-bit one", *fix)]
    return [ok("system", f"{named}, 64-bit, glibc {board.glibc or 'unknown'}")]


def clock(board: Board) -> list[Finding]:
    """Whether the board's clock is the host's."""
    if board.skew_s is None:
        return [warning("clock", "the board does not tell its time")]
    off = abs(board.skew_s)
    if off < _SKEW_WARNING_S:
        return [ok("clock", f"within {_SKEW_WARNING_S:.0f} s of this machine's")]
    what = f"{off:.0f} s {'ahead of' if board.skew_s > 0 else 'behind'} this machine's"
    if off < _SKEW_LIMIT_S:
        return [warning("clock", what, "sudo timedatectl set-ntp true")]
    return [in_the_way("clock", f"{what}: certificates seem not valid yet or no more", "sudo timedatectl set-ntp true")]


def disk(board: Board, bundle: Bundle | None) -> list[Finding]:
    """Whether a bundle, the one before it and the runtime find space."""
    if board.disk_bytes is None:
        return [warning("disk", "the board does not tell how much is free")]
    bundle_bytes = 0 if bundle is None else sum(one.size_bytes for one in bundle.artifacts)
    needed = bundle_bytes + _RUNTIME_DISK_BYTES
    holds = "the runtime needs" if bundle is None else "the bundle and the runtime need"
    what = f"{_mib(board.disk_bytes)} free; {holds} {_mib(needed)}"
    if board.disk_bytes < needed:
        return [in_the_way("disk", what, "sudo apt clean", "du -xh --max-depth=2 ~ | sort -h | tail")]
    return [ok("disk", what)]


def memory(board: Board, bundle: Bundle | None) -> list[Finding]:
    """Whether the runtime and the bundle's edge half find memory."""
    if board.memory_bytes is None:
        return [warning("memory", "the board does not tell how much is free")]
    needed, holds = _RUNTIME_MEMORY_BYTES, "the runtime alone needs about"
    if bundle is not None:
        # Weights are there twice: as in the file, and as the kernels order them.
        needed += 2 * sum(one.size_bytes for one in bundle.artifacts if one.path.startswith("edge/"))
        holds = "the runtime and the bundle's weights need at least"
    what = f"{_mib(board.memory_bytes)} available; {holds} {_mib(needed)}"
    if board.memory_bytes < needed:
        return [in_the_way("memory", what, "sudo systemctl isolate multi-user.target", "ps aux --sort=-rss | head")]
    return [ok("memory", what)]


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / _MEBIBYTE:,.0f} MiB"
