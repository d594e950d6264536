"""Tables of the commands that measure nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from export.splits import SplitPoint
from splitboard.contract.board import BoardKind
from splitboard.report.outputs import BuildOutput, TrainOutput

_FILE_COLUMNS = 150
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


_SHOWN_MULTI = 10
"""Multi-tensor cuts in the terminal's table; there can be many, and the smallest payloads come first."""


def print_splits(points: Sequence[SplitPoint], model: Path) -> None:
    """Prints split points, natural bottlenecks and whole blocks marked; multi-tensor cuts by payload."""
    single = [point for point in points if len(point.crossing) <= 1]
    multi = sorted((point for point in points if len(point.crossing) > 1), key=lambda point: point.int8_bytes)
    if single:
        _print_points(single)
    if multi:
        console().print(
            f"\nSeveral tensors, by payload: the first {min(_SHOWN_MULTI, len(multi))} of {len(multi)}", style="bold"
        )
        _print_points(multi[:_SHOWN_MULTI])
    if len(multi) > _SHOWN_MULTI:
        console().print(f"All of them: splitboard splits {model} --json")
    if not points:
        console().print("No split point passes these filters.")
    console().print(
        "\nmarks: N natural bottleneck, B output of a whole block; peak: estimate of the edge half's INT8 activations;"
        "\na head is all that its task alone needs"
    )


def _print_points(points: Sequence[SplitPoint]) -> None:
    verified = any(point.error is not None for point in points)
    numbers = (
        "fp32\nbytes",
        "int8\nbytes",
        "MMACs\nedge",
        "MMACs\nserver",
        "edge\n%",
        "kparams\nedge",
        "kparams\nserver",
        "peak\nkB",
    )
    extra = ("largest\nerror",) if verified else ()
    table = _table(
        "id",
        "after module",
        "shape",
        *numbers,
        *extra,
        "marks",
        "heads that may\nrun on the edge",
        right=(*numbers, *extra),
    )
    for point in points:
        error = () if not verified else ("" if point.error is None else f"{max(point.error.values()):.1e}",)
        table.add_row(
            point.id,
            point.scope,
            " + ".join("x".join(map(str, one.shape)) for one in point.crossing) or "-",
            f"{point.fp32_bytes:,}",
            f"{point.int8_bytes:,}",
            f"{point.edge_macs / 1e6:.1f}",
            f"{point.server_macs / 1e6:.1f}",
            f"{100 * point.edge_share:.1f}",
            f"{point.edge_parameters / 1e3:.1f}",
            f"{point.server_parameters / 1e3:.1f}",
            f"{point.edge_peak_bytes / 1e3:.0f}",
            *error,
            ("N" if point.natural else "") + ("B" if point.block else ""),
            ", ".join(point.local_tasks),
        )
    console().print(table)


def print_kinds(kinds: Sequence[BoardKind]) -> None:
    """Prints the kinds of board."""
    table = _table("kind", "board", "system on chip", "format", "precisions", "runtime")
    for kind in kinds:
        table.add_row(kind.name, kind.title, kind.soc, kind.format, ", ".join(kind.precisions), ", ".join(kind.runtime))
    console().print(table)


def print_trained(made: TrainOutput) -> None:
    """Prints what a training reached on the held-out part, for every output."""
    table = _table("output", "accuracy", "balanced", "recall per class", right=("accuracy", "balanced"))
    for task, result in made.tasks.items():
        recall = ", ".join(f"{name} {100 * value:.1f} % (n={result.n[name]})" for name, value in result.recall.items())
        table.add_row(task, f"{100 * result.accuracy:.2f} %", f"{100 * result.balanced_accuracy:.2f} %", recall)
    console().print(table)
    console().print(f"Checkpoint: {made.checkpoint} ({made.checkpoint_bytes / 1e6:.2f} MB, {made.seconds:.0f} s)")


def quantisation_lines(made: BuildOutput) -> list[str]:
    """What ``build`` says of the edge half and its ranges."""
    found, images = made.quantisation, made.calibration
    chosen = f"ranges: {found.ranges} over {images.n_samples} images"
    if found.errors:
        worst = {method: max(errors.values()) for method, errors in found.errors.items()}
        others = ", ".join(f"{method} {error:.3f}" for method, error in worst.items() if method != found.ranges)
        chosen += (
            f"; on {images.n_held_out} others the worst task's output is off by {worst[found.ranges]:.3f} of itself "
            f"({others})"
        )
    size = f"{made.edge_bytes / 1e6:.2f} MB"
    if made.weight_bytes is not None:
        each = (made.edge_bytes - made.weight_bytes) / max(1, len(made.operators))
        size += f": {made.weight_bytes / 1e6:.2f} MB of weights once, {each / 1e6:.2f} MB for each signature"
    lines = [chosen]
    if found.corrected:
        lines.append(f"biases: the mean error of rounded weights was taken out of {found.corrected} layers")
    if made.packed:
        split, most = max(made.packed.items(), key=lambda item: item[1].dense_bytes)
        lines.append(
            f"packed: {most.weights} sparse weights of server half {split} take {most.packed_bytes / 1e6:.2f} MB in "
            f"place of {most.dense_bytes / 1e6:.2f} MB; they run as dense ones, no faster"
        )
    return [*lines, f"{len(made.splits)} splits: {', '.join(made.splits)}; edge half {found.precision}, {size}"]
