"""What the commands print with ``--json``, beside the demo's result."""

from __future__ import annotations

from dataclasses import dataclass

from boards.detect import Detected
from boards.doctor.finding import Findings
from boards.stations import Station
from calib.diagnose.finding import Exclusion, LayerLoss, LayerNoise, TaskLoss
from calib.gate.judgement import Reference, Verdict
from export.reference import Parity
from export.splits import SplitPoint
from splitboard.contract.board import BoardKind
from splitboard.contract.bundle import Calibration, Quantisation
from splitboard.contract.exits import ExitRule
from splitboard.report.results import SplitResult


@dataclass(frozen=True)
class ExportOutput:
    """``splitboard export --json``.

    Attributes:
        model: the model folder.
        model_sha256: of ``model.onnx``.
        tasks: class names by task, in the order of the outputs.
        parity: by task or exit, how near the graph is to what it was exported from.
        changes: what the simplification did, one line each.
        exits: by output that is an early exit, the task that it answers.
    """

    model: str
    model_sha256: str
    tasks: dict[str, tuple[str, ...]]
    parity: dict[str, Parity]
    changes: tuple[str, ...]
    exits: dict[str, str]


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
class PackedHalf:
    """Weights of a server half that are stored packed, since most of their values do not exist.

    Attributes:
        weights: how many.
        dense_bytes: what they would take as they are computed with.
        packed_bytes: what they take, with the places of their values.
    """

    weights: int
    dense_bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class BuildOutput:
    """``splitboard build --json``.

    Attributes:
        bundle: the bundle folder.
        bundle_sha256: its identity.
        board: kind of board.
        precision: of the edge half.
        splits: ids of all splits in it.
        exits: by split with some, the early exits that its edge half gives.
        edge_bytes: size of the edge files.
        weight_bytes: of these, constants, each stored once; null where every split has a file of its own.
        operators: by signature, the number of each operator in the edge file.
        accelerated_partitions: by signature, the parts that this machine's accelerator takes over; 1 is all at once,
            null says that something lies outside.
        packed: by split whose server half has some, its packed weights.
        float_error: by split and output, how far server(edge(x)) is from the whole.
        reasons: by split, why it was picked where that was done automatically.
        calibration: the images that the ranges come from.
        quantisation: how they were used.
        warnings: what the user should know.
    """

    bundle: str
    bundle_sha256: str
    board: str
    precision: str
    splits: tuple[str, ...]
    exits: dict[str, tuple[str, ...]]
    edge_bytes: int
    weight_bytes: int | None
    operators: dict[str, dict[str, int]]
    accelerated_partitions: dict[str, int | None]
    packed: dict[str, PackedHalf]
    float_error: dict[str, dict[str, float]]
    reasons: dict[str, str]
    calibration: Calibration
    quantisation: Quantisation
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ServeOutput:
    """The one line that ``splitboard serve --json`` prints when it accepts connections.

    Attributes:
        url: of the server.
        grpc: ``host:port`` of its gRPC front; null where it has none.
    """

    url: str
    grpc: str | None


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
class CheckOutput:
    """The last line of ``splitboard check --json``; before it, one judgement per split and task.

    Attributes:
        verdict: the worst of all judgements.
        bundle: the bundle folder.
        name: of the model.
        bundle_sha256: the bundle's identity.
        model_sha256: of ``model.onnx``.
        board: kind of board.
        precision: of the edge half.
        data_sha256: of the sorted hashes of the samples.
        against: what the reference is.
        n: different samples.
        n_repeated: samples that were there again and were left out.
        judged: number of judgements.
        not_judged: tasks without labels.
        reasons: of every judgement that is not PASS, one line each.
    """

    verdict: Verdict
    bundle: str
    name: str
    bundle_sha256: str
    model_sha256: str
    board: str
    precision: str
    data_sha256: str
    against: Reference
    n: int
    n_repeated: int
    judged: int
    not_judged: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class BoardsOutput:
    """``splitboard boards --json``.

    Attributes:
        kinds: all kinds of board, or the one that was asked for.
    """

    kinds: tuple[BoardKind, ...]


@dataclass(frozen=True)
class StationsOutput:
    """``splitboard boards stations --json``.

    Attributes:
        file: that they are read from.
        stations: in its order.
    """

    file: str
    stations: tuple[Station, ...]


@dataclass(frozen=True)
class DetectOutput:
    """``splitboard boards detect --json``.

    Attributes:
        detected: what the board is.
    """

    detected: Detected


@dataclass(frozen=True)
class DoctorOutput:
    """``splitboard doctor --json``.

    Attributes:
        findings: what was looked at.
    """

    findings: Findings


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
    """How well one output of a network, a task's last or an early exit, learnt its task, on one part of the data.

    Attributes:
        accuracy: share of images that are right.
        balanced_accuracy: mean of the recalls.
        recall: by the name of each class that occurs.
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
        checkpoint: the weights.
        checkpoint_sha256: of them.
        checkpoint_bytes: size of them.
        spec: the model spec beside them.
        factory: the Python file beside them whose ``make`` returns the network without them.
        network: what was trained, as a Python expression.
        recipe: how, likewise.
        seconds: that the training took.
        parts: sha256 of the train, validation and test part.
        tasks: by output, early exits included, on the test part, with the weights as written.
        export: the command that makes a model folder of it.
    """

    checkpoint: str
    checkpoint_sha256: str
    checkpoint_bytes: int
    spec: str
    factory: str
    network: str
    recipe: str
    seconds: float
    parts: dict[str, str]
    tasks: dict[str, TrainedTask]
    export: str


@dataclass(frozen=True)
class FinetuneOutput:
    """``splitboard finetune --json``.

    Attributes:
        model: the new model folder.
        model_sha256: of its ``model.onnx``.
        source_sha256: of the ``model.onnx`` that it began with.
        data_sha256: of the training images.
        images: how many there were.
        labelled: tasks that learnt from labels; all learnt from the float model.
        losses: mean loss of every epoch.
    """

    model: str
    model_sha256: str
    source_sha256: str
    data_sha256: str
    images: int
    labelled: tuple[str, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class FittedExit:
    """One exit that ``splitboard exits`` added.

    Attributes:
        output: name of the model's new output.
        task: that it answers.
        split: id of the split whose tensor it takes.
        scope: the module that this split follows.
        features: values that its linear head takes.
        inverse_penalty: scikit-learn's ``C`` that cross-validation chose.
        accuracy: of the float head on the folds that were left out, a share; better than it is where the model itself
            was trained on these images.
    """

    output: str
    task: str
    split: str
    scope: str
    features: int
    inverse_penalty: float
    accuracy: float


@dataclass(frozen=True)
class ExitsOutput:
    """``splitboard exits --json``.

    Attributes:
        model: the new model folder.
        model_sha256: of its ``model.onnx``.
        source_sha256: of the ``model.onnx`` without them.
        data_sha256: of the training images.
        images: how many there were.
        exits: in the order of the splits.
    """

    model: str
    model_sha256: str
    source_sha256: str
    data_sha256: str
    images: int
    exits: tuple[FittedExit, ...]


@dataclass(frozen=True)
class ThresholdsOutput:
    """``splitboard thresholds --json``.

    Attributes:
        rules_file: what was written.
        bundle_sha256: whose exits they are.
        data_sha256: of the held-out images.
        images: how many there were, each once.
        n_repeated: images that were there again and were left out.
        not_fitted: tasks with exits and without labels.
        rules: one for every exit of every split.
    """

    rules_file: str
    bundle_sha256: str
    data_sha256: str
    images: int
    n_repeated: int
    not_fitted: tuple[str, ...]
    rules: tuple[ExitRule, ...]


@dataclass(frozen=True)
class DiagnoseOutput:
    """``splitboard diagnose --json``.

    Attributes:
        page: the HTML page.
        bundle: the bundle folder.
        name: of the model.
        bundle_sha256: the bundle's identity.
        model_sha256: of ``model.onnx``.
        board: kind of board.
        split: id.
        data_sha256: of the sorted hashes of the samples.
        n: different samples that the tasks were measured on.
        n_noise: samples that the noise was measured on, the first of them.
        deviation: how far the edge half that was rebuilt from the bundle is off the bundle's, as a share of what INT8
            changes; 0 where they are equal bit for bit.
        met: whether the bundle as it is meets the gate on these samples, each loss at most its margin. The test of that
            is ``splitboard check``.
        tasks: what the bundle loses.
        not_judged: tasks without labels.
        keep_float: layers that the bundle has in float already.
        modules: module of each layer, where the model folder was given.
        layers: noise of every layer of the edge half, by depth.
        worst: those that add most noise and can be switched, the largest first, and what each costs the tasks.
        exclusion: what to keep in float; null where the gate is met.
        command: that builds with it; null where the gate is met or no list meets it.
    """

    page: str
    bundle: str
    name: str
    bundle_sha256: str
    model_sha256: str
    board: str
    split: str
    data_sha256: str
    n: int
    n_noise: int
    deviation: float
    met: bool
    tasks: tuple[TaskLoss, ...]
    not_judged: tuple[str, ...]
    keep_float: tuple[str, ...]
    modules: dict[str, str]
    layers: tuple[LayerNoise, ...]
    worst: tuple[LayerLoss, ...]
    exclusion: Exclusion | None
    command: str | None

    def noise_of(self, layer: str) -> LayerNoise:
        """The noise of one layer."""
        return next(one for one in self.layers if one.layer == layer)


@dataclass(frozen=True)
class TritonOutput:
    """``splitboard triton --json``.

    Attributes:
        repository: the folder that Triton is given.
        bundle_sha256: of the bundle that it was made from.
        backend: what runs the graphs inside Triton.
        models: served names.
        engines: files that Triton still needs, relative to the repository, and the command that makes each in that
            folder on the machine that Triton runs on.
    """

    repository: str
    bundle_sha256: str
    backend: str
    models: tuple[str, ...]
    engines: dict[str, str]


@dataclass(frozen=True)
class EdgeOutput:
    """``splitboard edge --json``.

    Attributes:
        path: the zip application.
        size_bytes: of it.
        sha256: of it; the same sources give the same file.
    """

    path: str
    size_bytes: int
    sha256: str
