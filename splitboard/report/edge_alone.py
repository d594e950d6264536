"""What ``splitboard trtexec`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from boards.bench.edge_alone import EdgeTimes
from splitboard.report.percentiles import percentile_ms

_UNSUPPORTED = "-"
"""In place of a percentile that the number of samples does not support."""


@dataclass(frozen=True)
class EdgeAlone:
    """One split's edge graph; milliseconds per run, null where there are too few.

    Attributes:
        id: of the split.
        scope: the module that the split follows.
        n: timed runs.
        latency_ms_p50: input copied to the GPU, computed, outputs copied back; median.
        latency_ms_p95: the same.
        compute_ms_p50: computed; median.
        compute_ms_p95: the same.
    """

    id: str
    scope: str
    n: int
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    compute_ms_p50: float | None
    compute_ms_p95: float | None


@dataclass(frozen=True)
class EdgeAloneOutput:
    """``splitboard trtexec --json``.

    Attributes:
        times: the file of all times; no run records.
        measures: what these times are.
        not_measured: reason by what they are not.
        station: the board.
        board: its kind.
        tensorrt: release.
        precision: of the edge graphs.
        splits: measured, in the bundle's order.
    """

    times: str
    measures: str
    not_measured: dict[str, str]
    station: str
    board: str
    tensorrt: str
    precision: str
    splits: tuple[EdgeAlone, ...]


def summarise_alone(file: str, times: Sequence[EdgeTimes]) -> EdgeAloneOutput:
    """Percentiles of the times of one run, of which there are some."""
    first = times[0]
    splits = tuple(
        EdgeAlone(
            one.split,
            one.scope,
            len(one.latency_ns),
            percentile_ms(one.latency_ns, 50),
            percentile_ms(one.latency_ns, 95),
            percentile_ms(one.compute_ns, 50),
            percentile_ms(one.compute_ns, 95),
        )
        for one in times
    )
    return EdgeAloneOutput(
        file, first.measures, first.not_measured, first.station, first.board, first.tensorrt, first.precision, splits
    )


def print_alone(console: Console, output: EdgeAloneOutput) -> None:
    """Prints a table, and below it what it is not."""
    console.print(
        f"{output.station}, {output.board}, TensorRT {output.tensorrt}, {output.precision}: {output.measures}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("split", "after"):
        table.add_column(column)
    for column in ("runs", "latency\np50 ms", "latency\np95 ms", "GPU\np50 ms", "GPU\np95 ms"):
        table.add_column(column, justify="right")
    for one in output.splits:
        numbers = (one.latency_ms_p50, one.latency_ms_p95, one.compute_ms_p50, one.compute_ms_p95)
        cells = (_UNSUPPORTED if number is None else f"{number:.3f}" for number in numbers)
        table.add_row(one.id, one.scope, str(one.n), *cells)
    console.print(table)
    console.print(Text("latency: copied to the GPU, computed, copied back. Not measured:", style="dim"))
    for what, why in output.not_measured.items():
        console.print(Text(f"  {what}: {why}", style="dim"))
