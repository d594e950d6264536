"""Run records: raw samples of one (bundle, split, board, run), one JSON object per line of ``runs/*.jsonl``.

Percentiles are functions over the raw samples and are never stored alone. What was not measured is ``None`` with a
reason beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Tuple

from splitboard.contract.decode import decode, to_json
from splitboard.contract.errors import UserError
from splitboard.contract.folder import write_whole

SCHEMA_VERSION = 3

BEGINNING = '{"schema_version":'
"""Every file of run records begins so."""

SPANS = ("read", "pre", "edge", "encode", "serialise", "link", "queue", "decode", "server", "post")
"""The parts of the end-to-end time, in order: image file or camera to pixels; pixels to model input; edge graph; zstd
or JPEG on the board; request header and checksum; everything between the two machines' own times (kernel, wire, HTTP);
waiting at the server; reading the request there, zstd and JPEG undone; server graph; reply to class scores."""

_BENCH = ["splitboard bench BUNDLE --data DATA -o RUNS.jsonl"]

FLOAT_REFERENCE = "float"
"""Split id of the record that holds the float model's outputs, computed on the host in one piece."""


@dataclass(frozen=True)
class Window:
    """One energy window.

    Attributes:
        start_ns: of the monotonic clock.
        end_ns: of the same clock.
        energy_j: joules in between, ``None`` where they are not known.
        source: the meter, with its rails; contains ``estimate`` where it is one, else the reason for ``None``.
        n_samples: inferences that ended in the window.
        error_j: bound of what ``energy_j`` may be wrong by for the meter's resolution, its sampling and the two ends of
            the window; it holds where no peak of power is shorter than the time between two samples. ``None`` where
            there is no energy.
        n_power_samples: readings of a power sensor in the window, 0 where a counter was read at its two ends.
        n_failed: readings that failed, which the samples around them were joined over.
        rails_j: joules by rail, those that are part of another included.
    """

    start_ns: int
    end_ns: int
    energy_j: Optional[float]
    source: str
    n_samples: int
    error_j: Optional[float] = None
    n_power_samples: int = 0
    n_failed: int = 0
    rails_j: Dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MeterFacts:
    """What a meter measures and how.

    Attributes:
        source: meter and rails; contains ``estimate`` where the figure is one and ``simulated`` where no board drew it.
        method: a counter of joules, or samples of power.
        rails: all that it tells.
        total: those that the energy is the sum of, none of them part of another; empty where no total is known.
        leaves_out: what draws power beside the total.
        interval_s: shortest time between two values that differ.
        resolution_w: how far power may be off for the sensor's steps alone, the most that was seen; ``None`` for a
            counter.
        resolution_j: one step of a counter, ``None`` for a power sensor.
    """

    source: str
    method: str
    rails: Tuple[str, ...]
    total: Tuple[str, ...]
    leaves_out: str
    interval_s: float
    resolution_w: Optional[float]
    resolution_j: Optional[float]


@dataclass(frozen=True)
class Environment:
    """What may have changed the timings. ``missing`` gives the reason for every ``None``.

    Attributes:
        unix_ns: when it was read.
        machine: architecture, e.g. ``x86_64``.
        cpu_model: as the kernel names it.
        cpu_count: processors that the process may use.
        kernel: release.
        python: version.
        runtime: the interpreter and its version.
        governor: of the first processor.
        clock_hz: current clock of the first processor.
        temperature_c: of the first thermal zone.
        throttled: the board's own flags, as it prints them.
        load_1min: the kernel's load average.
        missing: reason by attribute.
    """

    unix_ns: int
    machine: str
    cpu_model: Optional[str]
    cpu_count: int
    kernel: str
    python: str
    runtime: str
    governor: Optional[str]
    clock_hz: Optional[float]
    temperature_c: Optional[float]
    throttled: Optional[str]
    load_1min: Optional[float]
    missing: Dict[str, str]


@dataclass(frozen=True)
class RunRecord:
    """Raw samples of one split in one run.

    Attributes:
        schema_version: of this record.
        run_id: the same for all splits that were interleaved.
        bundle_name: the model's name.
        bundle_sha256: the bundle's identity.
        split: id, or `FLOAT_REFERENCE`.
        scope: the module that the split follows.
        board: kind of board, ``host`` for the float reference.
        emulated: the board's processor was emulated, so no time in here means anything.
        engine: what ran the edge half, ``none`` where nothing did.
        threads: of the edge engine.
        n_warmup: inferences before the first sample, discarded.
        payload_bytes: tensor bytes per request, before any codec.
        sample_ids: sha256 of each image, in the order of the samples.
        spans_ns: by span of `SPANS`, one duration per sample; 0 where the path has no such phase.
        total_ns: end to end, measured on its own, one per sample.
        outputs: class scores (logits) by task, ``[sample][class]``.
        labels: true class by task, one per sample; empty where the data has none.
        windows: energy windows.
        idle_windows: energy windows without inference.
        energy_reason: why there is no energy, ``None`` where there is.
        before: environment before the first sample.
        after: environment after the last.
        meter: of the windows, ``None`` where there is none.
        check_windows: the same windows by a second meter, in the same order; empty where there is none.
        check_meter: the second meter.
        device_ns: part of the span ``edge`` that a GPU was busy for, between two of its own events, one per sample;
            empty where no GPU took part.
    """

    schema_version: int
    run_id: str
    bundle_name: str
    bundle_sha256: str
    split: str
    scope: str
    board: str
    emulated: bool
    engine: str
    threads: int
    n_warmup: int
    payload_bytes: int
    sample_ids: Tuple[str, ...]
    spans_ns: Dict[str, Tuple[int, ...]]
    total_ns: Tuple[int, ...]
    outputs: Dict[str, Tuple[Tuple[float, ...], ...]]
    labels: Dict[str, Tuple[int, ...]]
    windows: Tuple[Window, ...]
    idle_windows: Tuple[Window, ...]
    energy_reason: Optional[str]
    before: Environment
    after: Environment
    meter: Optional[MeterFacts] = None
    check_windows: Tuple[Window, ...] = ()
    check_meter: Optional[MeterFacts] = None
    device_ns: Tuple[int, ...] = ()


def write_records(path: Path, records: Iterable[RunRecord]) -> None:
    """Writes records, whole or not at all.

    Raises:
        UserError: they cannot be written there.
    """
    write_whole(path, "".join(to_json(record) + "\n" for record in records))


def read_records(path: Path) -> List[RunRecord]:
    """Reads the records of one ``.jsonl`` file or of all such files in a folder.

    Raises:
        UserError: nothing there, or a line that is not a record.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f'no run records at "{path}"', _BENCH)
    records = []
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            where = f"{file}:{number}"
            try:
                records.append(decode(RunRecord, json.loads(line.decode("utf-8")), where))
            except ValueError as error:
                raise UserError(f'"{where}" is not a run record: {error}', ["run the benchmark again"]) from error
    if not records:
        raise UserError(f'no run records in "{path}"', _BENCH)
    return records
