"""The pictures of `docs/results/dynamic-split.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynamic_split_results import NAME, Names, Results, of, slow_jobs
from latency_tables import BATCHES
from pictures import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    SKY,
    Distributions,
    HeatMap,
    distributions,
    grouped_bars,
    heat_maps,
    timeline,
)
from split_conditions import BEST, DYNAMIC, LOCAL_ONLY, ORACLE, QUANTILES, REMOTE_ONLY, SINGLE, Cell, Player

COLOURS = {
    ORACLE: "black",
    DYNAMIC: ORANGE,
    BEST: SKY,
    SINGLE: BLUE,
    REMOTE_ONLY: RED,
    LOCAL_ONLY: GREY,
}
NOTICEABLE = 0.05
"""Regret from which on a cell of the heat map gets its dot."""

_CDF_TRACES = ("car", "steps", "wifi")


def draw(folder: Path, results: Results, names: Names) -> None:
    """All of them, as SVG."""
    panels = []
    for job in slow_jobs(results):
        cells, title = results.simulations[job]["constant"], names.table(job)["title"]
        rates = list(dict.fromkeys(cell.link for cell in cells))
        loads = sorted({cell.setting.load for cell in cells})
        panels.append(
            [
                _panel(names, job, f"{title}: server load", "server's times, x", rates, [
                    (f"{load:g}", of(cells, batch=1, load=load)) for load in loads
                ]),
                _panel(names, job, f"{title}: batch size", "images per request", rates, [
                    (str(batch), of(cells, batch=batch, load=1)) for batch in BATCHES
                ]),
            ]
        )  # fmt: skip
    heat_maps(folder / f"{NAME}-choice.svg", panels, "rate of the link, Mbit/s")
    job = slow_jobs(results)[0]
    cells = of(results.simulations[job]["varying"], batch=1, load=1)
    shown = (REMOTE_ONLY, LOCAL_ONLY, BEST, DYNAMIC)
    regrets = {name: [100 * cell.regret(name) for cell in cells] for name in shown}
    grouped_bars(
        folder / f"{NAME}-regret.svg", [cell.link for cell in cells], regrets, COLOURS,
        "mean latency above the oracle's, %", f"Regret on varying links ({names.job(job)})", 60.0,
    )  # fmt: skip
    chosen = [cell for cell in cells if cell.link in _CDF_TRACES]
    distributions(
        folder / f"{NAME}-latency.svg",
        [
            Distributions(
                f"trace {cell.link}",
                QUANTILES,
                {n: cell.players[n].quantiles_ms for n in (REMOTE_ONLY, LOCAL_ONLY, BEST, DYNAMIC, ORACLE)},
            )
            for cell in chosen
        ],
        COLOURS,
        "latency of an image, ms",
        "share of the images, %",
    )
    over = results.timeline
    timeline(
        folder / f"{NAME}-time.svg",
        over,
        f"The policy on the trace {over['trace']} ({names.job(job)})",
        {row["split"]: names.split(job, row["split"]) for row in names.table(job)["rows"]},
        f"best static: {names.split(job, over['best'])}",
    )


def _panel(
    names: Names, job: str, title: str, y_label: str, rates: Sequence[str], lines: Sequence[tuple[str, list[Cell]]]
) -> HeatMap:
    players: list[list[Player]] = [[cell.players[DYNAMIC] for cell in cells] for _, cells in lines]
    return HeatMap(
        title,
        y_label,
        [label for label, _ in lines],
        rates,
        [[names.split(job, one.split) for one in row] for row in players],
        names.order(job),
        [[cell.regret(DYNAMIC) > NOTICEABLE for cell in cells] for _, cells in lines],
    )
