"""What every split costs on this board before the first image: measured at start, or taken from run records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from runtime_edge.link.sender import jpeg_file
from runtime_edge.pipeline import Pipeline
from runtime_edge.policy.dynamic_split import SplitCost
from splitboard.contract.bundle import Split
from splitboard.contract.errors import UserError
from splitboard.contract.record import RunRecord, read_records

N_ROUNDS = 5
_MACS_PER_S = 1e10
"""Of a server that nothing is known of. Only the proportions between the splits count, replies set the scale."""


def measured_costs(pipeline: Pipeline, splits: Sequence[Split]) -> Tuple[SplitCost, ...]:
    """Runs every edge half a few times, interleaved, on a grey image of the model's size; nothing is sent.

    Args:
        pipeline: made for these splits.
        splits: to measure.
    """
    spec = pipeline.bundle.preprocessing
    image: NDArray[np.uint8] = np.full((spec.height, spec.width, spec.source_channels), 128, np.uint8)
    times: List[List[int]] = [[] for _ in splits]
    for _ in range(N_ROUNDS + 1):
        for split, taken in zip(splits, times):
            half = pipeline.edge(split, image)
            taken.append(half.pre_ns + half.edge_ns)
    return tuple(
        SplitCost(split.id, median(taken[1:]), split.payload_bytes, _server_ns(split))
        for split, taken in zip(splits, times)
    )


def as_jpeg(cost: SplitCost, images: NDArray[np.uint8], quality: int) -> SplitCost:
    """Remote only where images are sent as JPEG files: the policy must know their size before it has sent one.

    Args:
        cost: of remote only.
        images: like those that will be sent, ``[n, height, width, channels]``; those of a bundle's golden file.
        quality: of JPEG.

    Returns:
        The cost with the median size of the files, and the median time to write one on top of the edge's.
    """
    sizes, times = [], []
    for image in images:
        start_ns = perf_counter_ns()
        sizes.append(len(jpeg_file(image[None], quality)))
        times.append(perf_counter_ns() - start_ns)
    return replace(cost, payload_bytes=round(median(sizes)), edge_ns=cost.edge_ns + median(times))


def recorded_costs(path: Path, bundle_sha256: str, splits: Sequence[Split]) -> Tuple[SplitCost, ...]:
    """The medians of an earlier benchmark on this board.

    Args:
        path: run records.
        bundle_sha256: of the bundle that is run.
        splits: to look up.

    Raises:
        UserError: a split is not there.
    """
    records = {one.split: one for one in read_records(path) if one.bundle_sha256 == bundle_sha256}
    costs = []
    for split in splits:
        if split.id not in records:
            raise UserError(
                f'"{path}" has no record of split "{split.id}" of this bundle',
                ["splitboard-edge bench --splits all", "without --costs the board is measured at start"],
            )
        one = records[split.id]
        edge_ns = median(map(sum, zip(*(one.spans_ns[span] for span in ("pre", "edge", "encode", "serialise")))))
        server_ns = median(map(sum, zip(one.spans_ns["decode"], one.spans_ns["server"])))
        costs.append(SplitCost(split.id, edge_ns, split.payload_bytes, server_ns, _joules(one)))
    return tuple(costs)


def _server_ns(split: Split) -> float:
    return 0.0 if split.is_local else max(1e9 * split.server_macs / _MACS_PER_S, 1.0)


def _joules(record: RunRecord) -> Optional[float]:
    """Energy of one inference, whole, waiting for the server included; ``None`` where it was not measured."""
    found = [
        window.energy_j / window.n_samples
        for window in record.windows
        if window.energy_j is not None and window.n_samples > 0
    ]
    return median(found) if found else None
