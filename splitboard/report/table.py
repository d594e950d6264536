"""The results as a table: for the terminal (Rich) and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from splitboard.report.energy import EnergyDetail
from splitboard.report.percentiles import MIN_SAMPLES
from splitboard.report.results import SplitResult, Summary

NOT_MEASURED = "not measured"
EMULATED = "emulated: times not shown"
UNSUPPORTED = "-"
"""In place of a percentile that the number of samples does not support."""

_UNLIMITED = 10_000
"""Console columns that no table fills: to ask how wide a table would like to be."""

_MARKDOWN_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#"})


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: what is in it.
        unit: of its numbers; empty where they have none.
        cells: one per split.
        numeric: numbers go right.
    """

    name: str
    unit: str
    cells: tuple[str, ...]
    numeric: bool = True


def print_results(console: Console, summary: Summary) -> None:
    """Prints one table where the console is wide enough for it, else one for the times and one for the rest."""
    names, times, quality = _name_columns(summary), _time_columns(summary), _quality_columns(summary)
    whole = _rich_table([*names, *times, *quality])
    unlimited = console.options.update(width=_UNLIMITED)
    if Measurement.get(console, unlimited, whole).maximum <= console.width:
        console.print(whole)
    else:
        console.print(_rich_table([*names, *times]))
        console.print(_rich_table([*names, *quality]))
    for note in footnotes(summary):
        console.print(Text(note, style="dim"))


def markdown_table(summary: Summary) -> str:
    """The same table in Markdown, its footnotes below it."""
    columns = [*_name_columns(summary), *_time_columns(summary), *_quality_columns(summary)]
    rows = [
        [_markdown(f"{column.name}, {column.unit}" if column.unit else column.name) for column in columns],
        ["---:" if column.numeric else ":---" for column in columns],
        *([_markdown(cell) for cell in cells] for cells in zip(*(column.cells for column in columns), strict=True)),
    ]
    notes = [f"- {_markdown(note)}" for note in footnotes(summary)]
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), *([""] if notes else []), *notes]) + "\n"


def footnotes(summary: Summary) -> list[str]:
    """What the table's dashes, stars and gaps mean; a reason that several splits share is given once."""
    notes = ["edge to server: medians; accuracy: as deployed, in brackets the float model's on the same images"]
    for why, ids in _shared(summary, lambda split: EMULATED if split.emulated else None).items():
        notes.append(f"{ids}{why}")
    notes += [f"* {ids}inconclusive: {why}" for why, ids in _shared(summary, lambda split: split.inconclusive).items()]
    for why, ids in _shared(summary, lambda split: split.energy_reason).items():
        notes.append(f"{ids}energy {NOT_MEASURED}: {why}")
    for source, ids in _shared(summary, lambda split: split.energy_source).items():
        notes.append(f"{ids}energy: median per inference, in brackets above idle; {source}")
    for how, ids in _shared(summary, _how).items():
        notes.append(f"{ids}energy: {how}")
    for split in summary.splits:
        if split.energy_detail is not None:
            notes.append(f"{split.id}: energy: {measured_well(split.energy_detail)}")
    if any(split.total_ms_p95 is None and not split.emulated for split in summary.splits):
        needs = ", ".join(f"p{percent}: {n}" for percent, n in MIN_SAMPLES.items())
        notes.append(f'"{UNSUPPORTED}" too few samples for this percentile ({needs})')
    return notes


def _how(split: SplitResult) -> str | None:
    return None if split.energy_detail is None else measured_how(split.energy_detail)


def measured_how(detail: EnergyDetail) -> str:
    """Method, resolution and what the figure leaves out, the same for all splits of a run."""
    parts = [f"{detail.n_windows} windows of at least {detail.window_s:.0f} s"]
    if detail.method is not None:
        parts.append(detail.method)
    if detail.resolution_w is not None:
        parts.append(f"resolution {1e3 * detail.resolution_w:.3g} mW")
    if detail.resolution_j is not None:
        parts.append(f"resolution {1e3 * detail.resolution_j:.3g} mJ")
    if detail.leaves_out is not None:
        parts.append(f"leaves out {detail.leaves_out}")
    return "; ".join(parts)


def measured_well(detail: EnergyDetail) -> str:
    """Spread, error, power, sampling and cross-check of one split."""
    parts = [f"windows {1e3 * detail.low_j:.1f} to {1e3 * detail.high_j:.1f} mJ"]
    if detail.error_j is not None:
        parts.append(f"at most {1e3 * detail.error_j:.1f} mJ off")
    parts.append(f"mean power {detail.power_w:.2f} W")
    if detail.idle_power_w is not None:
        parts.append(f"idle {detail.idle_power_w:.2f} W")
    if detail.sampling_hz is not None:
        parts.append(f"{detail.sampling_hz:.1f} samples a second")
    if detail.n_failed:
        parts.append(f"{detail.n_failed} readings failed")
    if detail.check_j is not None and detail.check_difference is not None:
        parts.append(
            f"cross-check {1e3 * detail.check_j:.1f} mJ ({100 * detail.check_difference:+.1f} %, {detail.check_source})"
        )
    return ", ".join(parts)


def _shared(summary: Summary, reason: Callable[[SplitResult], str | None]) -> dict[str, str]:
    """Every reason with the splits that it is true of, as a prefix that is empty where it is true of all."""
    ids: dict[str, list[str]] = {}
    for split in summary.splits:
        if (why := reason(split)) is not None:
            ids.setdefault(why, []).append(split.id)
    every = len(summary.splits)
    return {why: "" if len(some) == every else f"{', '.join(some)}: " for why, some in ids.items()}


def _name_columns(summary: Summary) -> list[Column]:
    marks = ["*" if split.inconclusive else "" for split in summary.splits]
    return [
        Column("split", "", tuple(split.id + mark for split, mark in zip(summary.splits, marks, strict=True)), False),
        Column("scope", "", tuple(summary.places[split.id] for split in summary.splits), False),
    ]


def _time_columns(summary: Summary) -> list[Column]:
    def column(name: str, value: Callable[[SplitResult], float | None], unit: str = "ms") -> Column:
        return Column(name, unit, tuple("" if s.emulated else _ms(value(s)) for s in summary.splits))

    return [
        Column("payload", "bytes", tuple(f"{split.payload_bytes:,}" for split in summary.splits)),
        column("edge", lambda split: split.edge_ms_p50),
        *(
            [column("encode", lambda split: split.encode_ms_p50)]
            if any(s.encode_ms_p50 for s in summary.splits)
            else []
        ),
        column("serialise", lambda split: split.serialise_ms_p50),
        column("link", lambda split: split.link_ms_p50),
        column("server", lambda split: split.server_ms_p50),
        column("total", lambda split: split.total_ms_p50, "p50 ms"),
        column("total", lambda split: split.total_ms_p95, "p95 ms"),
        Column("n", "", tuple(f"{split.n:,}" for split in summary.splits)),
    ]


def _quality_columns(summary: Summary) -> list[Column]:
    tasks = dict.fromkeys(task for split in summary.splits for task in split.accuracy)
    columns = [Column(task, "% (float)", tuple(_accuracy(split, task) for split in summary.splits)) for task in tasks]
    return [*columns, Column("energy", "mJ", tuple(_energy(split) for split in summary.splits))]


def _ms(value: float | None) -> str:
    return UNSUPPORTED if value is None else f"{value:.2f}"


def _accuracy(split: SplitResult, task: str) -> str:
    accuracy = split.accuracy.get(task)
    if accuracy is None:
        return NOT_MEASURED
    return f"{100 * accuracy.int8:.2f} ({'-' if accuracy.float_ is None else f'{100 * accuracy.float_:.2f}'})"


def _energy(split: SplitResult) -> str:
    if split.energy_j is None:
        return NOT_MEASURED
    idle = "" if split.energy_above_idle_j is None else f" ({1e3 * split.energy_above_idle_j:.1f})"
    return f"{1e3 * split.energy_j:.1f}{idle}"


def _rich_table(columns: Sequence[Column]) -> Table:
    """A table whose cells are never read as markup, since scopes come from the user's model."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        header = Text(f"{column.name}\n{column.unit}")
        # Only the scope may wrap: a number cut in two is worse than a long line.
        table.add_column(
            header, justify="right" if column.numeric else "left", no_wrap=column.name != "scope", overflow="fold"
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _markdown(text: str) -> str:
    return " ".join(text.translate(_MARKDOWN_SPECIAL).split())
