"""What the commands print as JSON, and how it is computed from run records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.errors import Inconclusive, UserError
from splitboard.contract.record import FLOAT_REFERENCE, RunRecord
from splitboard.report.accuracy import TaskComparison, compare
from splitboard.report.consistency import check_bundle, check_records
from splitboard.report.energy import EnergyDetail, energy_per_inference
from splitboard.report.percentiles import median_interval_ms, percentile_ms
from splitboard.report.throttling import throttled_reason

Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""From 0 to 1."""

_ROUNDING_POINTS = 1e-9
"""A drop of exactly the margin passes, whatever binary fractions make of it."""


@dataclass(frozen=True)
class TaskAccuracy:
    """Accuracy of one task, from 0 to 1, on the same images.

    Attributes:
        float_: of the float model; null where no float reference was recorded.
        int8: of the path as deployed.
        n: different images.
    """

    float_: Annotated[Share | None, Field(alias="float")]
    int8: Share
    n: int


@dataclass(frozen=True)
class SplitResult:
    """One way to divide the model, measured.

    Times are milliseconds per inference. A percentile is null where the number of samples does not support it (p50
    needs 5, p95 needs 20) and where the board was emulated. A phase that the path does not have is 0.0: nothing was
    done.

    Attributes:
        id: of the split.
        scope: the module that the split follows.
        kind: remote sends the image, local sends nothing.
        natural: carries strictly fewer values than the model's input; null where no bundle was given.
        board: kind of board.
        emulated: the board's processor was emulated, so there are no times.
        inconclusive: why the times prove nothing, null where nothing speaks against them.
        payload_bytes: tensor bytes per request, before any codec.
        n: timed inferences.
        read_ms_p50: image file or camera to pixels, median.
        read_ms_p95: image file or camera to pixels.
        pre_ms_p50: image to model input, median.
        pre_ms_p95: image to model input.
        edge_ms_p50: edge graph, median.
        edge_ms_p95: edge graph.
        encode_ms_p50: zstd or JPEG on the board, median.
        encode_ms_p95: zstd or JPEG on the board.
        serialise_ms_p50: request header and checksum, median.
        serialise_ms_p95: request header and checksum.
        link_ms_p50: everything between the two machines' own times, median.
        link_ms_p95: everything between the two machines' own times.
        queue_ms_p50: waiting at the server, median.
        queue_ms_p95: waiting at the server.
        decode_ms_p50: the request read at the server, zstd and JPEG undone, median.
        decode_ms_p95: the request read at the server, zstd and JPEG undone.
        server_ms_p50: all of the server: waiting, reading the request, server graph; median.
        server_ms_p95: all of the server.
        post_ms_p50: reply to class scores, median.
        post_ms_p95: reply to class scores.
        total_ms_p50: end to end, median, measured on its own.
        total_ms_p50_low: lower end of the median's 95 % interval.
        total_ms_p50_high: upper end of the median's 95 % interval.
        total_ms_p95: end to end.
        accuracy: by task; empty where the data has no labels.
        energy_j: joules per inference, median over windows; null where not measured.
        energy_above_idle_j: the same with the idle power subtracted; null where idle was not measured.
        energy_source: the meter with its rail; contains "estimate" where it is one.
        energy_reason: why there is no energy, null where there is.
        energy_detail: error, power, sampling and rails; null where there is no energy.
    """

    id: str
    scope: str
    kind: Literal["remote", "split", "local"]
    natural: bool | None
    board: str
    emulated: bool
    inconclusive: str | None
    payload_bytes: int
    n: int
    read_ms_p50: float | None
    read_ms_p95: float | None
    pre_ms_p50: float | None
    pre_ms_p95: float | None
    edge_ms_p50: float | None
    edge_ms_p95: float | None
    encode_ms_p50: float | None
    encode_ms_p95: float | None
    serialise_ms_p50: float | None
    serialise_ms_p95: float | None
    link_ms_p50: float | None
    link_ms_p95: float | None
    queue_ms_p50: float | None
    queue_ms_p95: float | None
    decode_ms_p50: float | None
    decode_ms_p95: float | None
    server_ms_p50: float | None
    server_ms_p95: float | None
    post_ms_p50: float | None
    post_ms_p95: float | None
    total_ms_p50: float | None
    total_ms_p50_low: float | None
    total_ms_p50_high: float | None
    total_ms_p95: float | None
    accuracy: dict[str, TaskAccuracy]
    energy_j: float | None
    energy_above_idle_j: float | None
    energy_source: str | None
    energy_reason: str | None
    energy_detail: EnergyDetail | None


@dataclass(frozen=True)
class DemoResult:
    """What ``splitboard demo --json`` prints.

    Attributes:
        splits: the cuts, in topological order.
        local: the whole model on the board.
        remote: the whole model on the server.
        report: path of the HTML page.
    """

    splits: tuple[SplitResult, ...]
    local: SplitResult
    remote: SplitResult
    report: str


@dataclass(frozen=True)
class Summary:
    """Everything that tables and pages show.

    Attributes:
        splits: remote first, then in the order of the ids, local last.
        comparisons: accuracy in detail, per split and task.
        places: by split, its scope, and the tasks that the board answers where both halves answer some.
    """

    splits: tuple[SplitResult, ...]
    comparisons: tuple[TaskComparison, ...]
    places: dict[str, str]


def result_json(result: object, indent: int | None = None) -> str:
    """JSON of a result, with the published keys (`TaskAccuracy.float_` is ``float``)."""
    adapter: TypeAdapter[Any] = TypeAdapter(type(result))
    return adapter.dump_json(result, by_alias=True, indent=indent).decode()


def summarise(records: Sequence[RunRecord], bundle: Bundle | None) -> Summary:
    """Percentiles, accuracy and energy of every split that was run.

    Args:
        records: of one bundle on one board; the one whose split is `FLOAT_REFERENCE` gives the float accuracy.
        bundle: names the classes and says which splits are natural.

    Raises:
        UserError: records that do not belong together, that contradict themselves, or that are not of this bundle.
    """
    check_records(records)
    if bundle is not None:
        check_bundle(records, bundle)
    reference = next((record for record in records if record.split == FLOAT_REFERENCE), None)
    runs = [record for record in records if record is not reference]
    names = {task.name: task.labels for task in bundle.tasks} if bundle else {}
    splits: list[SplitResult] = []
    comparisons: list[TaskComparison] = []
    for record in sorted(runs, key=lambda run: (run.payload_bytes == 0, run.engine != "none", run.split)):
        compared = compare(record, reference, names)
        splits.append(_split_result(record, compared, bundle.split(record.split).natural if bundle else None))
        comparisons.extend(compared)
    places = {record.split: _place(record.scope, bundle.split(record.split) if bundle else None) for record in runs}
    return Summary(tuple(splits), tuple(comparisons), places)


def _place(scope: str, split: Split | None) -> str:
    if split is None or split.is_local or not split.local_tasks:
        return scope
    return f"{scope} ({', '.join(split.local_tasks)} on the board)"


def demo_result(summary: Summary, report: str) -> DemoResult:
    """The demo's result.

    Args:
        summary: holds remote only and local only among its splits.
        report: path of the HTML page.

    Raises:
        UserError: one of the two ends was not measured.
    """
    ends = {split.kind: split for split in summary.splits}
    for kind in ("remote", "local"):
        if kind not in ends:
            raise UserError(f'the records hold no "{kind}" run', ["bench all splits: leave out --split"])
    cuts = tuple(split for split in summary.splits if split.kind == "split")
    return DemoResult(cuts, ends["local"], ends["remote"], report)


def check_accuracy(results: Sequence[SplitResult], margin_points: float) -> list[str]:
    """Lists every split and task whose deployed accuracy is more than the margin below the float model's.

    Args:
        results: of `summarise`.
        margin_points: allowed drop in percentage points.

    Returns:
        One line per failure; empty when all pass.

    Raises:
        Inconclusive: an accuracy to compare is missing.
    """
    failures = []
    for result in results:
        if not result.accuracy:
            raise Inconclusive(f'split "{result.id}" has no labelled images', ["give data with labels"])
        for task, accuracy in result.accuracy.items():
            if accuracy.float_ is None:
                raise Inconclusive(f'no float reference for task "{task}"', ["record the float model in the same run"])
            drop_points = 100.0 * (accuracy.float_ - accuracy.int8)
            if drop_points > margin_points + _ROUNDING_POINTS:
                failures.append(
                    f"{result.id} ({result.scope}), {task}: {100 * accuracy.int8:.2f} % deployed, "
                    f"{100 * accuracy.float_:.2f} % float: {drop_points:.2f} points lost, {margin_points:g} allowed "
                    f"({accuracy.n} images)"
                )
    return failures


def _split_result(record: RunRecord, compared: Sequence[TaskComparison], natural: bool | None) -> SplitResult:
    spans = dict(record.spans_ns, total=record.total_ns)
    spans["server"] = tuple(map(sum, zip(spans["queue"], spans["decode"], spans["server"], strict=True)))
    # An emulated processor's times mean nothing, so they do not even reach the JSON.
    times = {
        f"{name}_ms_p{percent}": None if record.emulated else percentile_ms(samples_ns, percent)
        for name, samples_ns in spans.items()
        for percent in (50, 95)
    }
    interval = None if record.emulated else median_interval_ms(record.total_ns)
    energy = energy_per_inference(record)
    return SplitResult(
        id=record.split,
        scope=record.scope,
        kind="local" if record.payload_bytes == 0 else "remote" if record.engine == "none" else "split",
        natural=natural,
        board=record.board,
        emulated=record.emulated,
        inconclusive=None if record.emulated else throttled_reason(record),
        payload_bytes=record.payload_bytes,
        n=len(record.total_ns),
        **times,
        total_ms_p50_low=interval[0] if interval else None,
        total_ms_p50_high=interval[1] if interval else None,
        accuracy={one.task: TaskAccuracy(one.float_, one.int8, one.n) for one in compared},
        energy_j=None if record.emulated else energy.whole_j,
        energy_above_idle_j=None if record.emulated else energy.above_idle_j,
        energy_source=None if record.emulated else energy.source,
        energy_reason="emulated: no board drew any power" if record.emulated else energy.reason,
        energy_detail=None if record.emulated else energy.detail,
    )
