"""From a model folder to a bundle: cut, calibrate, quantise, verify, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.artefact import accelerated_partitions, count_operators, io_specs
from calib.dead_channels import floor_dead_channels
from calib.quantise import quantise_tflite
from calib.ranges import RangeTable, collect_ranges
from export.cut import remote_graph, wire_server_graph
from export.model import Model
from export.reference import reference_session, relative_error
from export.splits import LOCAL, SplitPoint
from export.tflite import convert
from export.verify import LIMIT, verify_cut
from runtime_edge.litert import LiteRtEngine
from splitboard.contract import bundle as contract
from splitboard.contract.board import BoardKind
from splitboard.contract.bundle import Artifact, Bundle, Calibration, Split, TensorSpec
from splitboard.contract.decode import to_json
from splitboard.contract.errors import SplitboardError, UserError
from splitboard.contract.folder import new_folder
from splitboard.contract.preprocess import normalise, quantise, quantised_table, resize
from splitboard.contract.samples import Samples
from splitboard.report.outputs import BuildOutput

EDGE_FILE = "edge/edge.int8.tflite"
GOLDEN_FILE = "golden/golden.npz"
RANGES_FILE = "calibration/ranges.json"
SAMPLES_FILE = "calibration/samples.txt"
N_GOLDEN = 8
N_VERIFIED = 4
MIN_CALIBRATION = 100
"""Fewer calibration images than this are worth a warning."""


@dataclass(frozen=True)
class Halves:
    """What the splits are made of, before it is written.

    Attributes:
        edge: the INT8 TFLite file.
        edge_input: its input.
        splits: remote only first, local only last.
        servers: server graph by split id.
        notes: what was changed on the way and is worth knowing.
    """

    edge: bytes
    edge_input: TensorSpec
    splits: tuple[Split, ...]
    servers: dict[str, onnx.ModelProto]
    notes: tuple[str, ...]


Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


def build_bundle(
    model: Model,
    points: Sequence[SplitPoint],
    chosen: Sequence[SplitPoint],
    calibration: Samples,
    kind: BoardKind,
    target: Path,
    progress: Progress,
    licenses: Sequence[Path] = (),
) -> Bundle:
    """Builds a bundle.

    Args:
        model: the exported model.
        points: all split points of it.
        chosen: the cuts that the bundle serves, beside remote only and local only.
        calibration: source images.
        kind: of the board that the edge half is for.
        target: folder to write.
        progress: told about every step.
        licenses: texts to put into the bundle.

    Raises:
        UserError: the calibration images do not fit.
        SplitboardError: a cut, a conversion or a quantisation does not hold.
    """
    spec = model.info.declared()
    pixels = resize(calibration.images, spec.height, spec.width)
    inputs = normalise(pixels, spec)
    errors: dict[str, dict[str, float]] = {}
    for done, point in enumerate(chosen):
        progress(f"verify {point.id}", done, len(chosen))
        errors[point.id] = verify_cut(model.graph, _tensor(point), inputs[:N_VERIFIED])
    progress("verify", len(chosen), len(chosen))
    table = collect_ranges(
        model.graph,
        (inputs[i : i + 1] for i in range(len(inputs))),
        lambda done: progress("calibrate", done, len(inputs)),
    )
    halves = _make_halves(model, points, chosen, errors, inputs, table, progress)
    golden = _golden(model, pixels[:N_GOLDEN], inputs[:N_GOLDEN], halves.servers[points[0].id])
    with new_folder(target, contract.MANIFEST) as folder:
        _write_files(folder, halves, table, calibration, golden, licenses)
        bundle = _manifest(model, halves, table, calibration, kind, folder)
        contract.write_manifest(folder, bundle)
        tolerance = _golden_tolerance(folder, bundle, golden)
        bundle = replace(bundle, golden_tolerance=tolerance)
        contract.write_manifest(folder, bundle)
    return bundle


def _tensor(point: SplitPoint) -> str:
    if point.tensor is None:
        raise UserError(f'"{point.id}" ({point.scope}) is in every bundle and cannot be asked for')
    return point.tensor


def _make_halves(
    model: Model,
    points: Sequence[SplitPoint],
    chosen: Sequence[SplitPoint],
    errors: dict[str, dict[str, float]],
    inputs: NDArray[np.float32],
    table: RangeTable,
    progress: Progress,
) -> Halves:
    graph = model.graph
    signatures: dict[str, Sequence[str]] = {point.id: [_tensor(point)] for point in chosen}
    signatures[LOCAL] = graph.outputs
    progress("convert", 0, 1)
    edge_graph, floored = floor_dead_channels(graph, table)
    floating = convert(edge_graph, signatures, inputs[:1])
    progress("convert", 1, 1)
    progress("quantise", 0, 1)
    edge = quantise_tflite(floating, table)
    progress("quantise", 1, 1)
    servers = {points[0].id: remote_graph(graph, model.info.declared())}
    wires: dict[str, tuple[TensorSpec, ...]] = {
        points[0].id: (TensorSpec(graph.inputs[0], points[0].shape, "uint8", "NHWC"),),
        points[-1].id: (),
    }
    edge_input, _ = io_specs(edge, LOCAL, graph.inputs[0])
    for point in chosen:
        _, outputs = io_specs(edge, point.id, graph.inputs[0])
        wires[point.id] = (outputs[_tensor(point)],)
        servers[point.id] = wire_server_graph(graph, _tensor(point), outputs[_tensor(point)])
    splits = [_split(point, wires[point.id], errors) for point in (points[0], *chosen, points[-1])]
    notes = [
        f"{one.channels} dead channels of {one.node} were given a weight that carries their bias" for one in floored
    ]
    return Halves(edge, edge_input, tuple(splits), servers, tuple(notes))


def _split(point: SplitPoint, wire: tuple[TensorSpec, ...], errors: dict[str, dict[str, float]]) -> Split:
    remote, local = point.edge_macs == 0, not wire
    return Split(
        id=point.id,
        scope=point.scope,
        natural=point.natural,
        tensors=wire,
        edge_signature=None if remote else LOCAL if local else point.id,
        server=None if local else f"server/{point.id}.onnx",
        edge_macs=point.edge_macs,
        server_macs=point.server_macs,
        edge_parameters=point.edge_parameters,
        server_parameters=point.server_parameters,
        float_error=errors.get(point.id, {}),
    )


def _golden(
    model: Model, pixels: NDArray[np.uint8], inputs: NDArray[np.float32], remote: onnx.ModelProto
) -> dict[str, NDArray[Any]]:
    """Images and the float model's outputs; the remote graph must give the same from the pixels."""
    names, image = model.graph.outputs, model.graph.inputs[0]
    whole, behind = reference_session(model.graph.model), reference_session(remote)
    expected = [whole.run(names, {image: sample[None]}) for sample in inputs]
    actual = [behind.run(names, {image: sample[None]}) for sample in pixels]
    golden: dict[str, NDArray[Any]] = {"images": pixels}
    for index, name in enumerate(names):
        golden[name] = np.concatenate([result[index] for result in expected])
        error = relative_error(np.concatenate([result[index] for result in actual]), golden[name])
        if not error <= LIMIT:
            raise SplitboardError(f'remote only changes output "{name}" by "{error:.2e}"')
    return golden


def _write_files(
    folder: Path,
    halves: Halves,
    table: RangeTable,
    calibration: Samples,
    golden: dict[str, NDArray[Any]],
    licenses: Sequence[Path],
) -> None:
    for name in ("edge", "server", "golden", "calibration"):
        (folder / name).mkdir()
    (folder / EDGE_FILE).write_bytes(halves.edge)
    for split_id, server in halves.servers.items():
        onnx.save(server, folder / "server" / f"{split_id}.onnx")
    # numpy types all keyword arguments as its own option allow_pickle.
    np.savez(folder / GOLDEN_FILE, **golden)  # type: ignore[arg-type]
    (folder / RANGES_FILE).write_text(to_json(table, indent=1) + "\n", encoding="utf-8")
    (folder / SAMPLES_FILE).write_text("\n".join(sorted(calibration.hashes)) + "\n", encoding="utf-8")
    if licenses:
        (folder / "licenses").mkdir()
    for text in licenses:
        (folder / "licenses" / text.name).write_bytes(text.read_bytes())


_FORMATS = {".tflite": "tflite", ".onnx": "onnx", ".npz": "npz", ".json": "json"}


def _manifest(
    model: Model, halves: Halves, table: RangeTable, calibration: Samples, kind: BoardKind, folder: Path
) -> Bundle:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tools = ("ai-edge-litert", "litert-quantizer", "litert-torch", "numpy", "onnxruntime", "splitboard")
    return Bundle(
        schema_version=contract.SCHEMA_VERSION,
        name=model.info.name,
        model_sha256=model.info.model_sha256,
        checkpoint_sha256=model.info.checkpoint_sha256,
        board=kind.name,
        precision="int8",
        tasks=model.info.tasks,
        input=model.info.inputs[0],
        edge_input=halves.edge_input,
        preprocessing=model.info.declared(),
        splits=halves.splits,
        artifacts=tuple(
            Artifact(
                path=path.relative_to(folder).as_posix(),
                format=_FORMATS.get(path.suffix, "text"),
                size_bytes=path.stat().st_size,
                sha256=contract.file_sha256(path),
            )
            for path in files
        ),
        calibration=Calibration(table.method, table.n_samples, calibration.sha256),
        golden=GOLDEN_FILE,
        golden_tolerance={},
        operators=count_operators(halves.edge),
        notes=halves.notes,
        tool_versions={**model.info.tool_versions, **{tool: version(tool) for tool in tools}},
    )


def _golden_tolerance(folder: Path, bundle: Bundle, golden: dict[str, NDArray[Any]]) -> dict[str, float]:
    """By task, twice the largest |INT8 - float| seen here: interpreters differ in rounding by some steps of a scale."""
    spec, local = bundle.edge_input, bundle.splits[-1]
    if spec.scale is None or spec.zero_point is None:
        raise SplitboardError("the edge file's input has no scale")
    table = quantised_table(bundle.preprocessing, spec.scale, spec.zero_point)
    edge_inputs = quantise(golden["images"].astype(np.uint8, copy=False), table)
    with LiteRtEngine(folder, bundle, [local]) as engine:
        results = [engine.infer(local.id, sample[None]) for sample in edge_inputs]
    return {
        task.name: 2 * float(np.abs(np.concatenate([r[task.name] for r in results]) - golden[task.name]).max())
        for task in bundle.tasks
    }


def build_output(target: Path, bundle: Bundle) -> BuildOutput:
    """What ``build`` tells about a bundle."""
    warnings = []
    if bundle.calibration.n_samples < MIN_CALIBRATION:
        warnings.append(f"only {bundle.calibration.n_samples} calibration images, {MIN_CALIBRATION} or more are wise")
    for signature, operators in bundle.operators.items():
        for name in ("TRANSPOSE", "QUANTIZE", "DEQUANTIZE"):
            if operators.get(name):
                warnings.append(f"signature {signature} holds {operators[name]} {name}")
    partitions = accelerated_partitions((target / bundle.edge_file).read_bytes())
    warnings += [
        f"signature {signature} runs in {'unknown' if parts is None else parts} accelerated parts instead of one"
        for signature, parts in partitions.items()
        if parts != 1
    ]
    return BuildOutput(
        bundle=str(target),
        bundle_sha256=contract.bundle_sha256(target),
        board=bundle.board,
        precision=bundle.precision,
        splits=tuple(split.id for split in bundle.splits),
        edge_bytes=(target / bundle.edge_file).stat().st_size,
        operators=bundle.operators,
        accelerated_partitions=partitions,
        float_error={split.id: split.float_error for split in bundle.splits if split.float_error},
        warnings=(*warnings, *bundle.notes),
    )
