"""What ``splitboard-edge run`` writes: one line of JSON per image, between a line on the run and a line of sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from splitboard.contract.record import Environment

SCHEMA_VERSION = 1

BEGINNING = '{"schema_version":'
"""Every file of answers begins so."""


@dataclass(frozen=True)
class RunStart:
    """The first line of a file of answers.

    Attributes:
        schema_version: of the file.
        bundle_name: the model's name.
        bundle_sha256: the bundle's identity.
        arguments: of the command line.
        environment: before the first image.
    """

    schema_version: int
    bundle_name: str
    bundle_sha256: str
    arguments: Tuple[str, ...]
    environment: Environment


@dataclass(frozen=True)
class TaskOutput:
    """The answer to one task.

    Attributes:
        label: of the largest score; ``None`` where the task was not answered.
        scores: probabilities (softmax) in the order of the labels; ``None`` as well.
        by: ``edge`` (its head is on the edge), ``exit`` (an early exit), ``server``, ``local`` (the whole model ran on
            the board) or ``unavailable``.
        after_ns: since the image was there.
    """

    label: Optional[str]
    scores: Optional[Tuple[float, ...]]
    by: str
    after_ns: int


@dataclass(frozen=True)
class AnsweredTask:
    """One task of one image, told as soon as it is answered (``run --stream``).

    Attributes:
        number: of the image, from 0, in the order that the images came in.
        task: its name.
        output: the answer.
    """

    number: int
    task: str
    output: TaskOutput


@dataclass(frozen=True)
class AnsweredImage:
    """One image.

    Attributes:
        number: from 0, in the order that the images came in.
        sample: its file, or its sha256 where it has none.
        split: that was run.
        reason: why that one.
        outputs: by task.
        total_ns: from the image to the last answer.
        read_ns: from the file or the camera to pixels; not part of the total.
        edge_ns: preprocessing and edge half.
        encode_ns: zstd or JPEG; ``None`` here and below where the server gave no answer.
        round_trip_ns: of the request.
        queue_ns: the server's queue; ``None`` also where it does not tell.
        server_ns: the server's decoding and computing; ``None`` also where it does not tell.
        sent_bytes: the request's body.
        coding: ``none``, ``zstd`` or ``jpeg``.
        failure: why the server gave no answer to what it was, or should have been, asked; ``None`` where all went well.
        rate_bps: estimate of the link's rate afterwards; ``None`` where nothing is known.
        rtt_ns: of its delay.
    """

    number: int
    sample: str
    split: str
    reason: str
    outputs: Dict[str, TaskOutput]
    total_ns: int
    read_ns: int
    edge_ns: int
    encode_ns: Optional[int]
    round_trip_ns: Optional[int]
    queue_ns: Optional[int]
    server_ns: Optional[int]
    sent_bytes: Optional[int]
    coding: Optional[str]
    failure: Optional[str]
    rate_bps: Optional[float]
    rtt_ns: Optional[int]


@dataclass(frozen=True)
class TaskSum:
    """One task over a run.

    Attributes:
        answers: how many by whom, see `TaskOutput.by`.
        exit_rate: share that early exits answered.
        n_labelled: images whose true class is known and that were answered.
        accuracy: share of them that is right; ``None`` where there are none.
        accuracy_by: the same by whom.
        p50_ns: median time until the answer, from a histogram of buckets 1.1 % wide; ``None`` without answers.
        p95_ns: 95th percentile of it.
    """

    answers: Dict[str, int]
    exit_rate: float
    n_labelled: int
    accuracy: Optional[float]
    accuracy_by: Dict[str, float]
    p50_ns: Optional[int]
    p95_ns: Optional[int]


@dataclass(frozen=True)
class RunSums:
    """The last line of a file of answers.

    Attributes:
        n: images.
        seconds: from the first image to the last answer.
        images_per_s: throughput.
        p50_ns: median latency, from a histogram of buckets 1.1 % wide.
        p95_ns: 95th percentile of it.
        tasks: by task.
        splits: images by split.
        switches: how often an image took another split than the one before.
        failures: images that the server did not answer though it was, or should have been, asked, by reason.
        late: images whose last answer came after the deadline; 0 without one.
        interrupted: whether a signal ended the run.
    """

    n: int
    seconds: float
    images_per_s: Optional[float]
    p50_ns: Optional[int]
    p95_ns: Optional[int]
    tasks: Dict[str, TaskSum]
    splits: Dict[str, int]
    switches: int
    failures: Dict[str, int]
    late: int
    interrupted: bool
