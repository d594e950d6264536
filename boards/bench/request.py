"""What to measure, and the arguments of the edge runtime's ``bench`` that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Energy:
    """How to measure energy.

    Attributes:
        required: without it the run is inconclusive.
        meter: which, as ``--meter`` names it; ``None`` for the board's best.
        cross_check: a second one over the same windows.
        n_windows: per split; ``None`` for the runtime's own number.
        window_s: length of one; ``None`` for the runtime's own.
    """

    required: bool = False
    meter: str | None = None
    cross_check: str | None = None
    n_windows: int | None = None
    window_s: float | None = None


@dataclass(frozen=True)
class Steady:
    """What is held still on the board while it is measured.

    Attributes:
        governor: of its processor, ``None`` to leave it.
        power_mode: of a Jetson, by name, ``None`` to leave it.
        sudo: both are set as root.
        start_temperature_c: that the board must have cooled down to, ``None`` to begin at once.
        cool_down_s: longest wait for that; ``None`` for the runtime's own.
    """

    governor: str | None = None
    power_mode: str | None = None
    sudo: bool = False
    start_temperature_c: float | None = None
    cool_down_s: float | None = None


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    Attributes:
        data: labelled images.
        server: URL; ``None`` where every split is local.
        splits: ids, or ``all``.
        out: the ``.jsonl`` to write.
        n_warmup: inferences per split that are discarded.
        threads: of the edge engine.
        limit: only the first images; ``None`` for all.
        energy: ``None`` measures none.
        coding: of requests: ``none``, ``zstd`` or ``jpeg``.
        token_file: holds the server's token.
        ca: certificates to trust for https.
        steady: what is held still.
    """

    data: Path
    server: str | None
    splits: Sequence[str]
    out: Path
    n_warmup: int = 20
    threads: int = 1
    limit: int | None = None
    energy: Energy | None = None
    coding: str = "none"
    token_file: Path | None = None
    ca: Path | None = None
    steady: Steady = Steady()


@dataclass(frozen=True)
class Places:
    """Where things are for the runtime that measures.

    Attributes:
        bundle: folder.
        data: images.
        out: of the records.
        server: URL as it is reached from there.
        token_file: of the server's token.
        ca: of certificates.
    """

    bundle: str
    data: str
    out: str
    server: str | None
    token_file: str | None
    ca: str | None


def here(request: BenchRequest, bundle: Path) -> Places:
    """The places on this machine."""
    token_file = None if request.token_file is None else str(request.token_file)
    ca = None if request.ca is None else str(request.ca)
    return Places(str(bundle), str(request.data), str(request.out), request.server, token_file, ca)


def bench_argv(request: BenchRequest, at: Places, board: str) -> list[str]:
    """Arguments of the edge runtime's ``bench``.

    Args:
        request: what to measure; its own paths are not looked at.
        at: where things are.
        board: kind, for the records.
    """
    argv = ["bench", "--bundle", at.bundle, "--data", at.data, "--out", at.out]
    argv += ["--splits", ",".join(request.splits), "--board", board]
    argv += ["--warmup", str(request.n_warmup), "--threads", str(request.threads), "--coding", request.coding]
    values = {
        "--server": at.server,
        "--limit": request.limit,
        "--token-file": at.token_file,
        "--ca": at.ca,
        **_energy(request.energy),
        "--governor": request.steady.governor,
        "--power-mode": request.steady.power_mode,
        "--start-temperature": request.steady.start_temperature_c,
        "--cool-down": request.steady.cool_down_s,
    }
    for option, value in values.items():
        argv += [option, str(value)] if value is not None else []
    flags = {
        "--energy": request.energy is not None,
        "--require-energy": request.energy is not None and request.energy.required,
        "--sudo": request.steady.sudo,
    }
    return argv + [option for option, given in flags.items() if given]


def _energy(energy: Energy | None) -> dict[str, str | int | float | None]:
    if energy is None:
        return {}
    return {
        "--meter": energy.meter,
        "--cross-check": energy.cross_check,
        "--windows": energy.n_windows,
        "--window-s": energy.window_s,
    }
