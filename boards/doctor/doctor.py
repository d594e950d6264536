"""All checks of one board."""

from __future__ import annotations

from pathlib import PurePosixPath

from boards.detect import ROOT
from boards.doctor import measuring, runtime, system
from boards.doctor.finding import Finding, Findings
from boards.doctor.readings import Board, read_board
from boards.kinds import load_kind
from boards.shell.shell import Shell
from boards.stations import Station
from splitboard.contract.board import BoardKind
from splitboard.contract.bundle import Bundle


def doctor(shell: Shell, station: Station, bundle: Bundle | None = None, root: PurePosixPath = ROOT) -> Findings:
    """Looks at a board, in one round trip, and changes nothing.

    Args:
        shell: to the board.
        station: what the user says about it; without a kind it is judged as what it says itself.
        bundle: that it is to run.
        root: of the board's files.

    Raises:
        UserError: it runs no scripts, or there is no kind for it.
    """
    board = read_board(shell, station, root)
    kind = load_kind(station.kind or board.detected.kind)
    return Findings(station.name, kind.name, board.detected, tuple(judge(board, kind, station, bundle)))


def judge(board: Board, kind: BoardKind, station: Station, bundle: Bundle | None) -> list[Finding]:
    """What the doctor says of what was read."""
    # A bundle for a generic kind brings that kind's interpreter.
    runtimes = kind.runtime if bundle is None else load_kind(bundle.board).runtime
    engine = runtime.tensorrt(board, kind) if "tensorrt" in runtimes else runtime.tflite(board)
    return [
        *system.identity(board, kind, station, bundle),
        *system.system(board, kind),
        *runtime.python(board),
        *engine,
        *measuring.clocks(board, kind),
        *measuring.throttling(board, kind),
        *measuring.sensors(board, kind, station),
        *system.clock(board),
        *system.disk(board, bundle),
        *system.memory(board, bundle),
    ]
