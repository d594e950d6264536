"""What the commands print with ``--json``, beside the demo's result."""

from __future__ import annotations

from dataclasses import dataclass

from export.reference import Parity
from export.splits import SplitPoint
from splitboard.contract.board import BoardKind
from splitboard.report.results import SplitResult


@dataclass(frozen=True)
class ExportOutput:
    """``splitboard export --json``.

    Attributes:
        model: the model folder.
        model_sha256: of ``model.onnx``.
        tasks: class names by task, in the order of the outputs.
        parity: by task, how near the graph is to what it was exported from.
        changes: what the simplification did, one line each.
    """

    model: str
    model_sha256: str
    tasks: dict[str, tuple[str, ...]]
    parity: dict[str, Parity]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class SplitsOutput:
    """``splitboard splits --json``.

    Attributes:
        model_sha256: of ``model.onnx``.
        splits: remote only, single-tensor cuts, local only, then multi-tensor cuts; what the filters let through.
    """

    model_sha256: str
    splits: tuple[SplitPoint, ...]


@dataclass(frozen=True)
class BuildOutput:
    """``splitboard build --json``.

    Attributes:
        bundle: the bundle folder.
        bundle_sha256: its identity.
        board: kind of board.
        precision: of the edge half.
        splits: ids of all splits in it.
        edge_bytes: size of the edge file.
        operators: by signature, the number of each operator in the edge file.
        accelerated_partitions: by signature, the parts that this machine's accelerator takes over; 1 is all at once,
            null says that something lies outside.
        float_error: by split and output, how far server(edge(x)) is from the whole.
        reasons: by split, why it was picked where that was done automatically.
        warnings: what the user should know.
    """

    bundle: str
    bundle_sha256: str
    board: str
    precision: str
    splits: tuple[str, ...]
    edge_bytes: int
    operators: dict[str, dict[str, int]]
    accelerated_partitions: dict[str, int | None]
    float_error: dict[str, dict[str, float]]
    reasons: dict[str, str]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ServeOutput:
    """The one line that ``splitboard serve --json`` prints when it accepts connections.

    Attributes:
        url: of the server.
    """

    url: str


@dataclass(frozen=True)
class BenchOutput:
    """``splitboard bench --json``.

    Attributes:
        runs: the run records.
        splits: measured, remote first, local last.
    """

    runs: str
    splits: tuple[SplitResult, ...]


@dataclass(frozen=True)
class BoardsOutput:
    """``splitboard boards --json``.

    Attributes:
        kinds: all kinds of board.
    """

    kinds: tuple[BoardKind, ...]


@dataclass(frozen=True)
class ReportOutput:
    """``splitboard report --json``.

    Attributes:
        report: path of the HTML page.
        splits: what it shows.
    """

    report: str
    splits: tuple[SplitResult, ...]


@dataclass(frozen=True)
class TrainedTask:
    """How well one task was learnt, on one part of the data.

    Attributes:
        accuracy: share of images that are right.
        balanced_accuracy: mean of the classes' recalls.
        recall: by class name.
        n: images by class name.
    """

    accuracy: float
    balanced_accuracy: float
    recall: dict[str, float]
    n: dict[str, int]


@dataclass(frozen=True)
class TrainOutput:
    """``splitboard train --json``.

    Attributes:
        checkpoint: the file.
        checkpoint_sha256: of it.
        checkpoint_bytes: size of it.
        seconds: that the training took.
        parts: sha256 of the train, calibration and test part.
        tasks: by task, on the test part, with the float16 weights as shipped.
    """

    checkpoint: str
    checkpoint_sha256: str
    checkpoint_bytes: int
    seconds: float
    parts: dict[str, str]
    tasks: dict[str, TrainedTask]
