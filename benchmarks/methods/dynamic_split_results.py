"""What the page on dynamic splits is made of: stored, read again, and what its jobs and splits are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from split_conditions import JPEG, RAW, Cell
from stamp import Stamp, from_json

NAME = "dynamic-split"
DATA = f"data/{NAME}.json"


@dataclass(frozen=True)
class Results:
    """All that the page is made of.

    Attributes:
        tables: latency tables by name.
        simulations: by job, ``constant`` and ``varying``.
        accuracies: by precision.
        timeline: one run, request by request.
        rtt_ms: of the constant links.
        stamp: of the simulation.
    """

    tables: Mapping[str, Any]
    simulations: Mapping[str, Mapping[str, Sequence[Cell]]]
    accuracies: Mapping[str, Any]
    timeline: Mapping[str, Any]
    rtt_ms: float
    stamp: Stamp


def write_results(folder: Path, results: Results) -> None:
    """Stores them as JSON without white space; of constant links only the means."""

    def short(cell: Cell, kind: str) -> dict[str, Any]:
        players = {name: asdict(one) for name, one in cell.players.items()}
        if kind == "constant":
            players = {name: {**one, "quantiles_ms": ()} for name, one in players.items()}
        return {**asdict(cell), "players": players}

    content = {
        **asdict(results),
        "simulations": {
            job: {kind: [short(cell, kind) for cell in cells] for kind, cells in kinds.items()}
            for job, kinds in results.simulations.items()
        },
    }
    (folder / DATA).parent.mkdir(parents=True, exist_ok=True)
    (folder / DATA).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def read_results(folder: Path) -> Results:
    """What `write_results` stored."""
    read = json.loads((folder / DATA).read_text(encoding="utf-8"))
    simulations = {
        job: {kind: [Cell.read(one) for one in cells] for kind, cells in kinds.items()}
        for job, kinds in read["simulations"].items()
    }
    return Results(**{**read, "simulations": simulations, "stamp": from_json(read["stamp"])})


class Names:
    """What jobs and splits are called on the page."""

    def __init__(self, results: Results) -> None:
        self._tables = results.tables
        self.jobs = list(results.simulations)

    def table(self, job: str) -> Mapping[str, Any]:
        """The latency table of a job."""
        return self._tables[job.rsplit("-", 2)[0]]

    def job(self, job: str) -> str:
        """Network, board and form of the upload."""
        remote = job.rsplit("-", 2)[1]
        upload = {RAW: "raw upload", JPEG: "JPEG 90 upload"}[remote]
        return f"{self.table(job)['title']}, {board(job)}, {upload}"

    def split(self, job: str, split: str) -> str:
        """Remote, local, or the block that it lies behind."""
        scope = {row["split"]: row["scope"] for row in self.table(job)["rows"]}[split]
        short = scope.replace("backbone.", "").replace("features.", "").replace("blocks.", "b")
        return {"remote": "remote", "local": "local", f"remote, JPEG {JPEG[4:]}": "JPEG"}.get(scope, short)

    def order(self, job: str) -> list[str]:
        """All splits, from remote to local, as they are called."""
        remote = job.rsplit("-", 2)[1]
        left_out = {RAW: JPEG, JPEG: RAW}[remote]
        return [self.split(job, row["split"]) for row in self.table(job)["rows"] if row["split"] != left_out]


def board(job: str) -> str:
    """What the board's times were multiplied by, in words."""
    edge = slowness(job)
    return "the measured thread as board" if edge == 1 else f"board {edge:g}x slower (assumed)"


def slowness(job: str) -> float:
    """What the board's times were multiplied by, as a number."""
    return float(job.rsplit("-x", 1)[1])


def of(cells: Sequence[Cell], **wanted: float) -> list[Cell]:
    """Those of a setting."""
    return [cell for cell in cells if all(getattr(cell.setting, key) == value for key, value in wanted.items())]


def slow_jobs(results: Results) -> list[str]:
    """With the upload as it is, on the slowest board: one per network."""
    slowest = max(map(slowness, results.simulations))
    return [job for job in results.simulations if f"-{RAW}-" in job and slowness(job) == slowest]
