"""From a model folder to a bundle: cut, calibrate, quantise, verify, write."""

from __future__ import annotations

import json
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
from export.choice import Choice
from export.cut import remote_graph, wire_server_graph
from export.metadata import describe
from export.model import Model
from export.opset import lower_opset
from export.reference import reference_session, relative_error
from export.splits import LOCAL, SplitPoint, Splits
from export.tflite import convert
from export.verify import LIMIT, verify_cut
from runtime_edge.litert import LiteRtEngine
from splitboard.contract import bundle as contract
from splitboard.contract.board import BoardKind
from splitboard.contract.bundle import Artifact, Bundle, Calibration, Split, TensorSpec
from splitboard.contract.decode import to_json
from splitboard.contract.errors import SplitboardError, UserError
from splitboard.contract.folder import new_folder
from splitboard.contract.preprocess import normalise, prepare, quantise
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
    splits: Splits,
    chosen: Sequence[Choice],
    calibration: Samples,
    kind: BoardKind,
    target: Path,
    progress: Progress,
    *,
    licenses: Sequence[Path] = (),
    server_opset: int | None = None,
) -> Bundle:
    """Builds a bundle.

    Args:
        model: the exported model.
        splits: all split points of it.
        chosen: the cuts that the bundle serves, beside remote only and local only.
        calibration: source images.
        kind: of the board that the edge half is for.
        target: folder to write.
        progress: told about every step.
        licenses: texts to put into the bundle.
        server_opset: operator set of the server graphs; ``None`` keeps the model's.

    Raises:
        UserError: the model, the calibration images or the opset do not fit.
        SplitboardError: a cut, a conversion or a quantisation does not hold.
    """
    check_buildable(model)
    spec = model.info.declared()
    pixels = prepare(calibration.images, spec)
    inputs = normalise(pixels, spec)
    samples = [{model.graph.inputs[0]: inputs[i : i + 1]} for i in range(min(N_VERIFIED, len(inputs)))]
    errors: dict[str, dict[str, float]] = {}
    for done, choice in enumerate(chosen):
        progress(f"verify {choice.point.id}", done, len(chosen))
        errors[choice.point.id] = verify_cut(model.graph, choice.cut, samples)
    progress("verify", len(chosen), len(chosen))
    table = collect_ranges(
        model.graph,
        (inputs[i : i + 1] for i in range(len(inputs))),
        lambda done: progress("calibrate", done, len(inputs)),
    )
    halves = _make_halves(model, splits, chosen, errors, inputs, table, progress)
    if server_opset is not None:
        servers = {split_id: lower_opset(server, server_opset) for split_id, server in halves.servers.items()}
        halves = replace(halves, servers=servers)
    for split_id, server in halves.servers.items():
        describe(server, _server_notes(model, split_id, server))
    golden = _golden(model, pixels[:N_GOLDEN], inputs[:N_GOLDEN], halves.servers[splits.remote.id])
    with new_folder(target, contract.MANIFEST) as folder:
        _write_files(folder, halves, table, calibration, golden, licenses)
        bundle = _manifest(model, halves, table, calibration, kind, folder)
        contract.write_manifest(folder, bundle)
        tolerance = _golden_tolerance(folder, bundle, golden)
        bundle = replace(bundle, golden_tolerance=tolerance)
        contract.write_manifest(folder, bundle)
    return bundle


def _server_notes(model: Model, split_id: str, server: onnx.ModelProto) -> dict[str, str]:
    """What a server graph says of itself in its metadata."""
    outputs = {output.name for output in server.graph.output}
    return {
        "model_sha256": model.info.model_sha256,
        "split": split_id,
        "tasks": json.dumps({task.name: task.labels for task in model.info.tasks if task.name in outputs}),
        "preprocessing": to_json(model.info.declared()),
        "tools": json.dumps({**model.info.tool_versions, "splitboard": version("splitboard")}),
    }


def check_buildable(model: Model) -> None:
    """Refuses what the runtimes cannot run yet, before any work.

    Raises:
        UserError: no preprocessing, several inputs, or a task that is not one row of class scores.
    """
    graph = model.graph
    if len(graph.inputs) != 1:
        raise UserError(
            f'model "{model.info.name}" has the inputs "{", ".join(graph.inputs)}"; a bundle feeds one image',
            ["export and splits work with several inputs, build does not yet", "export the part behind one image"],
        )
    for task in graph.outputs:
        if len(graph.shapes[task]) != 2:
            raise UserError(
                f'task "{task}" gives "{"x".join(map(str, graph.shapes[task]))}"; a bundle serves class scores, 1xN',
                ["export and splits work with dense tasks, build does not yet", "export the other tasks alone"],
            )
    model.info.declared()


def _make_halves(
    model: Model,
    splits: Splits,
    chosen: Sequence[Choice],
    errors: dict[str, dict[str, float]],
    inputs: NDArray[np.float32],
    table: RangeTable,
    progress: Progress,
) -> Halves:
    graph, image = model.graph, model.graph.inputs[0]
    signatures: dict[str, Sequence[str]] = {choice.point.id: _edge_outputs(choice, image) for choice in chosen}
    signatures[LOCAL] = graph.outputs
    progress("convert", 0, 1)
    edge_graph, floored = floor_dead_channels(graph, table)
    floating = convert(edge_graph, signatures, inputs[:1])
    progress("convert", 1, 1)
    progress("quantise", 0, 1)
    edge = quantise_tflite(floating, table)
    progress("quantise", 1, 1)
    edge_input, _ = io_specs(edge, LOCAL, image)
    servers = {splits.remote.id: remote_graph(graph, model.info.declared())}
    source = TensorSpec(image, splits.remote.crossing[0].shape, "uint8", "NHWC")
    halves = [_split(splits.remote, None, (source,), (), {})]
    for choice in chosen:
        _, outputs = io_specs(edge, choice.point.id, image)
        wires = tuple({**outputs, image: edge_input}[name] for name in choice.cut.crossing)
        servers[choice.point.id] = wire_server_graph(graph, choice.cut, wires)
        halves.append(_split(choice.point, choice.point.id, wires, choice.cut.local, errors[choice.point.id]))
    halves.append(_split(splits.local, LOCAL, (), tuple(graph.outputs), {}))
    notes = [
        f"{one.channels} dead channels of {one.node} were given a weight that carries their bias" for one in floored
    ]
    return Halves(edge, edge_input, tuple(halves), servers, tuple(notes))


def _edge_outputs(choice: Choice, image: str) -> list[str]:
    """What the edge half computes: what crosses, the image itself left out, and the scores of the local tasks."""
    wanted = dict.fromkeys((*choice.cut.crossing, *choice.cut.local))
    return [name for name in wanted if name != image]


def _split(
    point: SplitPoint,
    edge_signature: str | None,
    wires: tuple[TensorSpec, ...],
    local_tasks: tuple[str, ...],
    errors: dict[str, float],
) -> Split:
    return Split(
        id=point.id,
        scope=point.scope,
        natural=point.natural,
        tensors=wires,
        local_tasks=local_tasks,
        edge_signature=edge_signature,
        server=f"server/{point.id}.onnx" if wires else None,
        edge_macs=point.edge_macs,
        server_macs=point.server_macs,
        edge_parameters=point.edge_parameters,
        server_parameters=point.server_parameters,
        float_error=errors,
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
    local = bundle.splits[-1]
    edge_inputs = quantise(golden["images"].astype(np.uint8, copy=False), bundle.input_table())
    with LiteRtEngine(folder, bundle, [local]) as engine:
        results = [engine.infer(local.id, sample[None]) for sample in edge_inputs]
    return {
        task.name: 2 * float(np.abs(np.concatenate([r[task.name] for r in results]) - golden[task.name]).max())
        for task in bundle.tasks
    }


def build_output(target: Path, bundle: Bundle, chosen: Sequence[Choice]) -> BuildOutput:
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
        reasons={choice.point.id: choice.reason for choice in chosen if choice.reason is not None},
        warnings=(*warnings, *bundle.notes),
    )
