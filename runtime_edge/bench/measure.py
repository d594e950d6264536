"""The measuring loop: every image through every split, interleaved, raw samples kept."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from runtime_edge.bench.energy import EnergyWindows
from runtime_edge.pipeline import Inference, Pipeline
from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.errors import Inconclusive, UserError
from splitboard.contract.record import SCHEMA_VERSION, SPANS, Environment, RunRecord
from splitboard.contract.samples import Samples

MAX_UNEXPLAINED = 0.05
"""Largest share of a sample's end-to-end time that the spans may miss, in the median."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Conditions:
    """What holds for all records of a run.

    Attributes:
        bundle: the manifest.
        bundle_sha256: its identity.
        board: kind of board.
        emulated: whether its processor is emulated.
        engine: name of the edge engine, ``none`` where nothing runs on the board.
        threads: of the edge engine.
        n_warmup: inferences per split before the first sample.
    """

    bundle: Bundle
    bundle_sha256: str
    board: str
    emulated: bool
    engine: str
    threads: int
    n_warmup: int


@dataclass(frozen=True)
class Timings:
    """Raw samples of one split, filled by the loop.

    Attributes:
        spans_ns: by span, one duration per sample.
        total_ns: one per sample.
        outputs: scores by task, ``[sample][class]``.
        device_ns: part of the edge span that a GPU was busy for, one per sample; empty where no GPU took part.
    """

    spans_ns: Dict[str, List[int]] = field(default_factory=lambda: {span: [] for span in SPANS})
    total_ns: List[int] = field(default_factory=list)
    outputs: Dict[str, List[Tuple[float, ...]]] = field(default_factory=dict)
    device_ns: List[int] = field(default_factory=list)

    def add(self, one: Inference, split: Split) -> None:
        """Appends one sample.

        Raises:
            UserError: the server did not tell its own time.
        """
        if one.spans_ns is None:
            raise UserError(
                f'the server of split "{split.id}" sends no Server-Timing, so its time cannot be told from the link\'s',
                ["splitboard serve BUNDLE"],
            )
        for span, duration_ns in zip(SPANS, one.spans_ns):
            self.spans_ns[span].append(duration_ns)
        self.total_ns.append(one.total_ns)
        if one.device_ns is not None:
            self.device_ns.append(one.device_ns)
        for task, scores in one.scores.items():
            self.outputs.setdefault(task, []).append(tuple(scores))


def measure(
    pipeline: Pipeline, splits: Sequence[Split], images: NDArray[np.uint8], n_warmup: int, progress: Progress
) -> Dict[str, Timings]:
    """One pass over the images, every split in turn on each.

    The order of the splits rotates from image to image, so that drift of clock or temperature and the caches that one
    split leaves to the next fall on all of them alike.

    Args:
        pipeline: made for ``splits``.
        splits: in the bundle's order.
        images: ``[n, h, w, source_channels]``, uint8.
        n_warmup: inferences per split that are discarded first.
        progress: called with the inferences done and their number.

    Returns:
        Raw samples by split id, in the order of the images.
    """
    total, done = len(splits) * (n_warmup + len(images)), 0
    timings = {split.id: Timings() for split in splits}
    for i in range(n_warmup):
        for split in splits:
            pipeline.infer(split, images[i % len(images)])
            done += 1
            progress(done, total)
    for i, image in enumerate(images):
        for split in rotated(splits, i):
            timings[split.id].add(pipeline.infer(split, image), split)
            done += 1
            progress(done, total)
    return timings


def rotated(splits: Sequence[Split], i: int) -> List[Split]:
    """The splits, beginning with number ``i`` modulo their number."""
    first = i % len(splits)
    return [*splits[first:], *splits[:first]]


def check_spans(split_id: str, timings: Timings) -> None:
    """Refuses a record whose spans do not explain its end-to-end time.

    The median sample decides: work that no span covers is missing from each of them. One that the system interrupted
    between two spans says nothing of the others, and among samples of a millisecond it would outweigh a hundred.

    Raises:
        Inconclusive: the median sample misses more than `MAX_UNEXPLAINED`.
    """
    total_ns = np.array(timings.total_ns, dtype=np.int64)
    explained_ns = np.sum([timings.spans_ns[span] for span in SPANS], axis=0, dtype=np.int64)
    share = float(np.median(np.abs(total_ns - explained_ns) / np.maximum(total_ns, 1)))
    if share > MAX_UNEXPLAINED:
        raise Inconclusive(
            f'the spans of split "{split_id}" miss "{share:.1%}" of the end-to-end time', ["measure again, undisturbed"]
        )


def records(
    conditions: Conditions,
    splits: Sequence[Split],
    samples: Samples,
    timings: Dict[str, Timings],
    energy: EnergyWindows,
    before: Environment,
    after: Environment,
) -> List[RunRecord]:
    """One record per split.

    Args:
        conditions: what holds for all.
        splits: that were measured.
        samples: the images that were measured, with labels.
        timings: by split id.
        energy: windows by split id, or the reason for none.
        before: environment before the first sample.
        after: environment after the last.
    """
    run_id = uuid.uuid4().hex
    tasks = [task.name for task in conditions.bundle.tasks]
    labels = {task: tuple(samples.labels[task].tolist()) for task in tasks if task in samples.labels}
    made = []
    for split in splits:
        timed = timings[split.id]
        check_spans(split.id, timed)
        made.append(
            RunRecord(
                schema_version=SCHEMA_VERSION,
                run_id=run_id,
                bundle_name=conditions.bundle.name,
                bundle_sha256=conditions.bundle_sha256,
                split=split.id,
                scope=split.scope,
                board=conditions.board,
                emulated=conditions.emulated,
                engine="none" if split.is_remote else conditions.engine,
                threads=conditions.threads,
                n_warmup=conditions.n_warmup,
                payload_bytes=split.payload_bytes,
                sample_ids=samples.hashes,
                spans_ns={span: tuple(values) for span, values in timed.spans_ns.items()},
                total_ns=tuple(timed.total_ns),
                outputs={task: tuple(rows) for task, rows in timed.outputs.items()},
                labels=labels,
                windows=energy.by_split.get(split.id, ()),
                idle_windows=energy.idle,
                energy_reason=energy.reason,
                before=before,
                after=after,
                meter=energy.meter,
                check_windows=(energy.check_by_split or {}).get(split.id, ()),
                check_meter=energy.check_meter,
                device_ns=tuple(timed.device_ns),
            )
        )
    return made
