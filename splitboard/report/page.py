"""One self-contained HTML page: no script, no network, readable on paper and without colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

from splitboard import __version__
from splitboard.contract.bundle import Bundle
from splitboard.contract.record import FLOAT_REFERENCE, Environment, RunRecord
from splitboard.report.accuracy import TaskComparison
from splitboard.report.headline import headline, points
from splitboard.report.html import templates, write_page
from splitboard.report.percentiles import MIN_SAMPLES, wilson_interval
from splitboard.report.results import SplitResult, Summary, summarise
from splitboard.report.table import EMULATED, NOT_MEASURED, measured_how

LOOPBACK = (
    "Both halves ran on one machine and spoke over its loopback interface. The numbers say what the parts cost here; "
    "they do not say what a radio or a longer cable would add."
)
"""What to tell about a link that never left the machine."""

_LINK_UNKNOWN = (
    "The records do not say what the link was. Its times hold for that link only; on another one every split but the "
    "local one will differ."
)

SEGMENTS = {
    "read": "image file or camera to pixels",
    "pre": "image to model input",
    "edge": "edge graph, on the board",
    "encode": "zstd or JPEG on the board",
    "serialise": "request header and checksum",
    "link": "kernel, wire and HTTP between the two machines",
    "server": "waiting at the server, reading the request, server graph",
    "post": "reply to class scores",
}
"""The coloured parts of a latency bar, in the order of time, and what each is."""

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class Segment:
    """One coloured part of a bar.

    Attributes:
        name: of `SEGMENTS`.
        ms: median.
        ms_p95: ``None`` where the number of samples does not support it.
        width_percent: share of the scale; see `latency_bars`.
    """

    name: str
    ms: float
    ms_p95: float | None
    width_percent: float


@dataclass(frozen=True)
class Bar:
    """The latency of one split.

    Attributes:
        split: whose.
        segments: those that the path has.
        p95_percent: where the marker stands on the scale, ``None`` for no marker.
    """

    split: SplitResult
    segments: tuple[Segment, ...]
    p95_percent: float | None


@dataclass(frozen=True)
class Mark:
    """An accuracy with its 95 % Wilson interval, all from 0 to 100."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AccuracyRow:
    """One task on one split: what was deployed, and the float model."""

    detail: TaskComparison
    deployed: Mark
    exact: Mark | None


@dataclass(frozen=True)
class AccuracyChart:
    """One task on all splits.

    Attributes:
        task: name.
        axis_low: left end of the scale in percent; the right end is 100.
        rows: one per split.
    """

    task: str
    axis_low: float
    rows: tuple[AccuracyRow, ...]


@dataclass(frozen=True)
class Fact:
    """One line of the environment table."""

    name: str
    before: str
    after: str


BEGINNING = "<!DOCTYPE html><!-- splitboard report -->"
"""Every page begins so."""


def write_report(
    path: Path, records: Sequence[RunRecord], bundle: Bundle | None, command: str, link: str | None = None
) -> None:
    """Writes the page beside ``path`` and renames it into place.

    Args:
        path: the HTML file.
        records: of one bundle on one board.
        bundle: gives class names, operators, sizes and provenance.
        command: what to run to get these numbers again.
        link: one sentence or two on what connected the two halves, e.g. `LOOPBACK`.

    Raises:
        UserError: records that do not fit together or not this bundle.
    """
    page = render_page(records, bundle, command, link)
    write_page(path, page)


def render_page(records: Sequence[RunRecord], bundle: Bundle | None, command: str, link: str | None = None) -> str:
    """The page's HTML; the arguments are those of `write_report`."""
    summary = summarise(records, bundle)
    runs = [record for record in records if record.split != FLOAT_REFERENCE]
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            summary=summary,
            headline=headline(summary, runs[0].before.machine),
            bars=latency_bars(summary.splits),
            scale_ms=_scale_ms(summary.splits),
            segments=_used_segments(summary.splits),
            charts=accuracy_charts(summary),
            payload_max=max(split.payload_bytes for split in summary.splits),
            facts=environment_facts(runs),
            first=min(runs, key=lambda run: run.before.unix_ns),
            reference=next((record for record in records if record.split == FLOAT_REFERENCE), None),
            engines=sorted({run.engine for run in runs if run.engine != "none"}),
            started=_utc(min(run.before.unix_ns for run in runs)),
            bundle=bundle,
            operators=_operator_names(bundle),
            points=points,
            command=command,
            link=link or _LINK_UNKNOWN,
            min_samples=MIN_SAMPLES,
            measured_how=measured_how,
            emulated_text=EMULATED,
            not_measured=NOT_MEASURED,
            version=__version__,
        )
    )


def _scale_ms(splits: Sequence[SplitResult]) -> float:
    """The longest time that a bar or a marker has to show."""
    times = [time for split in splits for time in (split.total_ms_p50, split.total_ms_p95) if time is not None]
    return max(times, default=0.0)


def latency_bars(splits: Sequence[SplitResult]) -> tuple[Bar, ...]:
    """One stacked bar per split, on a common scale; no segments where there are no times to show.

    A bar is as long as the end-to-end median, so that bars rank as the numbers do; medians of parts do not add up to
    the median of the whole, so the parts share that length in proportion to their own medians.
    """
    scale = _scale_ms(splits)
    return tuple(
        Bar(
            split,
            _segments(split, scale),
            None if split.total_ms_p95 is None or not scale else 100 * split.total_ms_p95 / scale,
        )
        for split in splits
    )


def _used_segments(splits: Sequence[SplitResult]) -> dict[str, str]:
    """Those that took any time in any split, with what they mean; all where there are no times."""
    used = {name: why for name, why in SEGMENTS.items() if any(getattr(split, f"{name}_ms_p50") for split in splits)}
    return used or SEGMENTS


def _segments(split: SplitResult, scale_ms: float) -> tuple[Segment, ...]:
    medians: dict[str, float | None] = {name: getattr(split, f"{name}_ms_p50") for name in SEGMENTS}
    # A link's share can be a hair below zero: it is what remains of two clocks.
    shown = {name: ms for name, ms in medians.items() if ms is not None and ms > 0}
    if split.total_ms_p50 is None or not shown or not scale_ms:
        return ()
    percent_per_ms = 100 * split.total_ms_p50 / scale_ms / sum(shown.values())
    return tuple(Segment(name, ms, getattr(split, f"{name}_ms_p95"), percent_per_ms * ms) for name, ms in shown.items())


def accuracy_charts(summary: Summary) -> tuple[AccuracyChart, ...]:
    """One chart per task; the scale starts at the multiple of five below the lowest interval."""
    charts = []
    for task in dict.fromkeys(one.task for one in summary.comparisons):
        rows = tuple(
            AccuracyRow(
                one, _mark(one.n_right, one.n), None if one.float_right is None else _mark(one.float_right, one.n)
            )
            for one in summary.comparisons
            if one.task == task
        )
        lowest = min(mark.low for row in rows for mark in (row.deployed, row.exact) if mark is not None)
        charts.append(AccuracyChart(task, min(5.0 * (lowest // 5), 95.0), rows))
    return tuple(charts)


def _mark(hits: int, n: int) -> Mark:
    low, high = wilson_interval(hits, n)
    return Mark(100 * hits / n, 100 * low, 100 * high)


def environment_facts(runs: Sequence[RunRecord]) -> tuple[Fact, ...]:
    """The environment before the first and after the last of the runs; what is missing with its reason."""
    before = min((run.before for run in runs), key=lambda environment: environment.unix_ns)
    after = max((run.after for run in runs), key=lambda environment: environment.unix_ns)
    facts = [Fact("time", _utc(before.unix_ns), _utc(after.unix_ns))]
    for field in fields(Environment):
        if field.name in ("unix_ns", "missing", "runtime"):
            continue
        facts.append(Fact(_label(field.name), _fact(before, field.name), _fact(after, field.name)))
    # The only one that differs from split to split: remote only runs no interpreter.
    runtimes = ", ".join(sorted({run.before.runtime for run in runs}))
    return (*facts, Fact("runtime", runtimes, ", ".join(sorted({run.after.runtime for run in runs}))))


def _label(name: str) -> str:
    return {
        "cpu_model": "processor",
        "cpu_count": "processors usable",
        "clock_hz": "clock",
        "temperature_c": "temperature",
        "load_1min": "load, 1 min average",
        "throttled": "throttling flags",
    }.get(name, name)


def _fact(environment: Environment, name: str) -> str:
    value = getattr(environment, name)
    if value is None:
        return f"{NOT_MEASURED}: {environment.missing.get(name, 'no reason recorded')}"
    if name == "clock_hz":
        return f"{value / 1e9:.2f} GHz"
    return f"{value:.1f} °C" if name == "temperature_c" else str(value)


def _operator_names(bundle: Bundle | None) -> tuple[str, ...]:
    """Every operator of the edge file, the most frequent first."""
    totals: dict[str, int] = {}
    for counts in bundle.operators.values() if bundle else ():
        for operator, count in counts.items():
            totals[operator] = totals.get(operator, 0) + count
    return tuple(sorted(totals, key=lambda operator: (-totals[operator], operator)))


def _utc(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns / _NS_PER_S, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
