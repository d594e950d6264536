"""Tables of the commands that measure nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from export.splits import SplitPoint
from splitboard.contract.board import BoardKind
from splitboard.report.outputs import TrainOutput

_FILE_COLUMNS = 140
"""Width where the output is a file or a pipe."""


def console() -> Console:
    """Standard output, as wide as the terminal is."""
    found = Console()
    return found if found.is_terminal else Console(width=_FILE_COLUMNS)


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def print_splits(points: Sequence[SplitPoint]) -> None:
    """Prints split points, natural bottlenecks marked."""
    numbers = ("fp32\nbytes", "int8\nbytes", "MMACs\nedge", "MMACs\nserver", "kparams\nedge", "kparams\nserver")
    table = _table("id", "after module", "shape", *numbers, "natural", right=numbers)
    for point in points:
        table.add_row(
            point.id,
            point.scope,
            "x".join(map(str, point.shape)) or "-",
            f"{point.fp32_bytes:,}",
            f"{point.int8_bytes:,}",
            f"{point.edge_macs / 1e6:.1f}",
            f"{point.server_macs / 1e6:.1f}",
            f"{point.edge_parameters / 1e3:.1f}",
            f"{point.server_parameters / 1e3:.1f}",
            "yes" if point.natural else "",
        )
    console().print(table)


def print_kinds(kinds: Sequence[BoardKind]) -> None:
    """Prints the kinds of board."""
    table = _table("kind", "board", "system on chip", "format", "precisions", "runtime")
    for kind in kinds:
        table.add_row(kind.name, kind.title, kind.soc, kind.format, ", ".join(kind.precisions), ", ".join(kind.runtime))
    console().print(table)


def print_trained(made: TrainOutput) -> None:
    """Prints what a training reached on the held-out part."""
    table = _table("task", "accuracy", "balanced", "recall per class", right=("accuracy", "balanced"))
    for task, result in made.tasks.items():
        recall = ", ".join(f"{name} {100 * value:.1f} % (n={result.n[name]})" for name, value in result.recall.items())
        table.add_row(task, f"{100 * result.accuracy:.2f} %", f"{100 * result.balanced_accuracy:.2f} %", recall)
    console().print(table)
    console().print(f"Checkpoint: {made.checkpoint} ({made.checkpoint_bytes / 1e6:.2f} MB, {made.seconds:.0f} s)")
