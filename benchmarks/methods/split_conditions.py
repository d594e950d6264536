"""One condition of the dynamic split: a board, a server, a batch, a link; and what every player took under it.

Players: every static split, the product's own policy (`runtime_edge.policy.dynamic_split`, which starts from what a
board knows: its own measured times, and the server's only in proportion to multiply-accumulates), and an oracle that
knows the link and every request's own disturbances. Time is simulated by `benchmarks/split_simulation.py`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # the link emulator is the tests'

import numpy as np
from network.traces import Conditions, Trace
from split_simulation import PERIOD_S, Run, World, dynamic, fixed, oracle

from runtime_edge.policy.dynamic_split import SplitCost

ROOT = Path(__file__).parents[2]
RAW, JPEG = "s00", "jpeg90"
ORACLE, DYNAMIC, BEST, SINGLE = "oracle", "dynamic", "best static", "one static"
REMOTE_ONLY, LOCAL_ONLY = "remote only", "local only"
QUANTILES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99)

_MACS_PER_S = 1e10
"""What a board takes a server for that it knows nothing of (`runtime_edge.policy.costs`)."""

GIVE_UP_S = 1.0
"""Per image of a batch, after which the board answers itself."""

Rows = Sequence[Mapping[str, Any]]
"""Of a latency table."""


@dataclass(frozen=True)
class Setting:
    """Who computes.

    Attributes:
        edge: the board's times are the measured ones times this.
        batch: images per request.
        load: the server's times are the measured ones times this.
    """

    edge: float
    batch: int
    load: float


@dataclass(frozen=True)
class Player:
    """What one way to choose took.

    Attributes:
        mean_ms: of all requests.
        quantiles_ms: at `QUANTILES`.
        split: the one that it took most in the second half.
        switches: how often two requests in a row took different splits.
    """

    mean_ms: float
    quantiles_ms: tuple[float, ...]
    split: str
    switches: int


@dataclass(frozen=True)
class Compared:
    """All players under one condition.

    Attributes:
        setting: who computes.
        link: a trace's name, or a rate in Mbit/s.
        oracle: knows everything.
        dynamic: the policy.
        static: by split.
    """

    setting: Setting
    link: str
    oracle: Player
    dynamic: Player
    static: Mapping[str, Player]

    @property
    def best_static(self) -> str:
        """The split with the least mean, known only afterwards."""
        return min(self.static, key=lambda split: self.static[split].mean_ms)

    def regret(self, player: Player) -> float:
        """The share by which its mean is above the oracle's."""
        return player.mean_ms / self.oracle.mean_ms - 1


@dataclass(frozen=True)
class Cell:
    """One condition with the players that are worth telling.

    Attributes:
        setting: who computes.
        link: a trace's name, or a rate in Mbit/s.
        players: by name: `ORACLE`, `DYNAMIC`, `BEST` (known only afterwards), `SINGLE` (one for all conditions),
            `REMOTE_ONLY`, `LOCAL_ONLY`.
    """

    setting: Setting
    link: str
    players: Mapping[str, Player]

    def regret(self, name: str) -> float:
        """The share by which a player's mean is above the oracle's."""
        return self.players[name].mean_ms / self.players[ORACLE].mean_ms - 1

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Cell:
        """From its fields as JSON has them."""
        players = {name: _player(one) for name, one in fields["players"].items()}
        return cls(Setting(**fields["setting"]), fields["link"], players)


def steady(rate_mbps: float, rtt_ms: float) -> Trace:
    """A link that stays as it is; of a finite length, since a player's probes begin before time 0."""
    return Trace((0.0,), (Conditions(rate_mbps * 1e6, rtt_ms / 2e3),), 3600.0)


def candidates(rows: Rows, remote: str) -> list[Mapping[str, Any]]:
    """The rows of a table that can be chosen: one form of remote only, the splits, local only.

    Args:
        rows: of the table.
        remote: `RAW` or `JPEG`.
    """
    other = JPEG if remote == RAW else RAW
    return [row for row in rows if row["split"] != other]


def true_costs(rows: Rows, setting: Setting) -> list[SplitCost]:
    """What the splits take under a setting; the board runs a batch image by image, the server at once."""
    key = str(setting.batch)
    return [
        SplitCost(
            row["split"],
            setting.batch * setting.edge * row["edge_ms"] * 1e6,
            setting.batch * row["payload_bytes"],
            setting.load * row["server_ms"][key] * 1e6 if row["server_ms"] else 0.0,
        )
        for row in rows
    ]


def told_costs(rows: Rows, setting: Setting) -> list[SplitCost]:
    """What the policy is told at first: the board's own times, the server's in proportion to its work."""
    return [
        SplitCost(
            true.split,
            true.edge_ns,
            true.payload_bytes,
            0.0 if true.is_local else max(setting.batch * 1e9 * row["server_macs"] / _MACS_PER_S, 1.0),
        )
        for true, row in zip(true_costs(rows, setting), rows, strict=True)
    ]


def compare(rows: Rows, setting: Setting, link: str, trace: Trace, n_requests: int, seed: int) -> Compared:
    """Every player under one condition. A batch is ready when its last frame has come, ten frames a second."""
    costs = true_costs(rows, setting)
    world = World(trace, costs, n_requests, seed, PERIOD_S * setting.batch, GIVE_UP_S * setting.batch)
    return Compared(
        setting,
        link,
        player(oracle(world)),
        player(dynamic(world, told_costs(rows, setting))),
        {cost.split: player(fixed(world, cost.split)) for cost in costs},
    )


def player(run: Run) -> Player:
    """A run in figures."""
    ms = 1e3 * np.asarray(run.latencies_s)
    late = run.splits[len(run.splits) // 2 :]
    return Player(
        round(float(ms.mean()), 3),
        tuple(round(float(value), 2) for value in np.percentile(ms, QUANTILES)),
        Counter(late).most_common(1)[0][0],
        run.n_switches,
    )


def to_json(compared: Compared) -> dict[str, Any]:
    """Its fields."""
    return asdict(compared)


def _player(fields: Mapping[str, Any]) -> Player:
    return Player(**{**fields, "quantiles_ms": tuple(fields["quantiles_ms"])})


def from_json(read: Mapping[str, Any]) -> Compared:
    """What `to_json` wrote."""
    static = {split: _player(fields) for split, fields in read["static"].items()}
    return Compared(Setting(**read["setting"]), read["link"], _player(read["oracle"]), _player(read["dynamic"]), static)


def best_single(conditions: Sequence[Compared]) -> str:
    """The static split whose mean regret over all conditions is least: what a careful person would deploy."""
    return min(
        conditions[0].static,
        key=lambda split: float(np.mean([one.regret(one.static[split]) for one in conditions])),
    )


def cells(conditions: Sequence[Compared], remote: str) -> list[Cell]:
    """The players that the page is about.

    Args:
        conditions: of one network on one board, between which the single static split is chosen.
        remote: the form of remote only.
    """
    single = best_single(conditions)
    return [
        Cell(
            one.setting,
            one.link,
            {
                ORACLE: one.oracle,
                DYNAMIC: one.dynamic,
                BEST: one.static[one.best_static],
                SINGLE: one.static[single],
                REMOTE_ONLY: one.static[remote],
                LOCAL_ONLY: list(one.static.values())[-1],  # bundles have it last
            },
        )
        for one in conditions
    ]
