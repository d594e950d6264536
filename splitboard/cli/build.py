"""From a model folder to a bundle: cut, calibrate, quantise, verify, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.artefact import CONVERSIONS, accelerated_partitions, constant_bytes, count_shuffles
from calib.dataset import CalibrationSet, hold_out
from calib.gate.deployed import edge_engine
from calib.keep_float import resolve
from calib.qdq.cache import write_cache
from calib.qdq.keep import DEPTHWISE, float_layers
from calib.recipe import Prepared, Recipe, prepare
from export.choice import Choice
from export.costs import Costs
from export.cut import remote_graph, wire_server_graph
from export.exits import exits_at, head_nodes
from export.graph import Graph, members
from export.metadata import describe
from export.model import Model
from export.opset import lower_opset
from export.packed import pack, packed_weights
from export.reference import reference_session, relative_error
from export.splits import LOCAL, SplitPoint, Splits
from export.verify import LIMIT, verify_cut
from splitboard.cli.edge_half import N_MATCHED, EdgeHalf, judges, tflite_half
from splitboard.cli.onnx_half import onnx_half
from splitboard.contract import bundle as contract
from splitboard.contract.board import BoardKind
from splitboard.contract.bundle import Artifact, Bundle, Calibration, Quantisation, Split, TensorSpec
from splitboard.contract.decode import to_json
from splitboard.contract.errors import SplitboardError, UserError
from splitboard.contract.folder import new_folder
from splitboard.contract.preprocess import edge_image, normalise
from splitboard.report.outputs import BuildOutput, PackedHalf

GOLDEN_FILE = "golden/golden.npz"
RANGES_FILE = "calibration/ranges.json"
BIASES_FILE = "calibration/biases.npz"
"""Corrected biases by the name of the tensor that the layer makes; with the ranges, all that calibration found."""

SAMPLES_FILE = "calibration/samples.txt"
EXIT_SAMPLES_FILE = "calibration/exit_samples.txt"
"""Hashes of the images that the exits were fitted on; only there where some were."""

ONNX_WEIGHTS = "onnx-weights"
"""Format of the file that the ONNX files of the edge have their weights in."""

LEAST_TOLERANCE = 0.01
"""Of an ONNX half's self-check, as a share of the largest score: TensorRT computes fp32 in TF32 on newer boards, and
rounds fp16 more often than ONNX Runtime does here."""

N_GOLDEN = 8
N_VERIFIED = 4
MIN_CALIBRATION = 100
"""Fewer calibration images than this are worth a warning."""


@dataclass(frozen=True)
class Halves:
    """What the splits are made of, before it is written.

    Attributes:
        edge: the edge halves.
        splits: remote only first, local only last.
        servers: server graph by split id.
    """

    edge: EdgeHalf
    splits: tuple[Split, ...]
    servers: dict[str, onnx.ModelProto]


Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        chosen: the cuts that the bundle serves, beside remote only and local only.
        kind: of the board that the edge half is for.
        recipe: how its edge half is quantised.
        licenses: texts to put into the bundle.
        server_opset: operator set of the server graphs; ``None`` keeps the model's.
        depthwise: what depthwise convolutions are in, of an INT8 half for TensorRT: one of `calib.qdq.keep.DEPTHWISE`.
    """

    chosen: Sequence[Choice]
    kind: BoardKind
    recipe: Recipe = field(default_factory=Recipe)
    licenses: Sequence[Path] = ()
    server_opset: int | None = None
    depthwise: str = DEPTHWISE[0]


def build_bundle(
    model: Model, splits: Splits, request: BuildRequest, data: CalibrationSet, target: Path, progress: Progress
) -> Bundle:
    """Builds a bundle.

    Args:
        model: the exported model.
        splits: all split points of it.
        request: what to build.
        data: calibration images.
        target: folder to write.
        progress: told about every step.

    Raises:
        UserError: the model, the calibration images or the request do not fit.
        SplitboardError: a cut, a conversion or a quantisation does not hold.
    """
    check_buildable(model)
    spec = model.info.declared()
    pixels = np.concatenate(list(data.subset(range(min(N_GOLDEN, len(data)))).pixels(spec)))
    inputs = normalise(pixels, spec)
    samples = [{model.graph.inputs[0]: inputs[i : i + 1]} for i in range(min(N_VERIFIED, len(inputs)))]
    errors: dict[str, dict[str, float]] = {}
    for done, choice in enumerate(request.chosen):
        progress(f"verify {choice.point.id}", done, len(request.chosen))
        errors[choice.point.id] = verify_cut(model.graph, choice.cut, samples)
    progress("verify", len(request.chosen), len(request.chosen))
    halves = _make_halves(model, splits, request, errors, data, inputs, progress)
    if request.server_opset is not None:
        servers = {name: lower_opset(server, request.server_opset) for name, server in halves.servers.items()}
        halves = replace(halves, servers=servers)
    # Last, since nothing but ONNX Runtime is to see the operators that unpack.
    halves = replace(halves, servers={name: pack(server) for name, server in halves.servers.items()})
    for split_id, server in halves.servers.items():
        describe(server, _server_notes(model, split_id, server))
    golden = _golden(model, pixels, inputs, halves.servers[splits.remote.id])
    with new_folder(target, contract.MANIFEST) as folder:
        _write_files(folder, halves, data, golden, request.licenses)
        if request.recipe.precision == "int8" and request.kind.format == "onnx":
            write_cache((folder / RANGES_FILE).parent, halves.edge.table, request.kind)
        if model.info.exit_samples:
            (folder / EXIT_SAMPLES_FILE).write_text("\n".join(model.info.exit_samples) + "\n", encoding="utf-8")
        bundle = _manifest(model, halves, data, request, folder)
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


def check_depthwise(kind: BoardKind, precision: str, depthwise: str | None) -> None:
    """Refuses a word about depthwise convolutions that is none, or that would change nothing.

    Raises:
        UserError: it is one of these.
    """
    if depthwise is None:
        return
    if depthwise not in DEPTHWISE:
        raise UserError(f'unknown depthwise "{depthwise}"', [f"--depthwise {one}" for one in DEPTHWISE])
    if kind.format != "onnx" or precision != "int8":
        raise UserError(
            f'--depthwise "{depthwise}" is about INT8 halves for TensorRT, and this is {precision} for "{kind.name}"',
            ["leave --depthwise out", "--board of a Jetson with --precision int8"],
        )


def _make_halves(
    model: Model,
    splits: Splits,
    request: BuildRequest,
    errors: dict[str, dict[str, float]],
    data: CalibrationSet,
    inputs: NDArray[np.float32],
    progress: Progress,
) -> Halves:
    image = model.graph.inputs[0]
    exits = {choice.point.id: exits_at(model.graph, model.info.exits, choice.cut) for choice in request.chosen}
    wanted: dict[str, Sequence[str]] = {
        choice.point.id: [*_edge_outputs(choice, image), *exits[choice.point.id]] for choice in request.chosen
    }
    wanted[LOCAL] = model.graph.outputs
    samples = [inputs[i : i + 1] for i in range(min(N_MATCHED, len(inputs)))]
    edge = _edge_half(model, wanted, request, data, samples, progress)
    servers = {splits.remote.id: remote_graph(model.graph, model.info.declared())}
    source = TensorSpec(image, splits.remote.crossing[0].shape, "uint8", "NHWC")
    halves = [_split(splits.remote, None, (source,), (), {})]
    costs = Costs(model.whole)
    for choice in request.chosen:
        specs = {**edge.outputs[choice.point.id], image: edge.input}
        wires = tuple(specs[name] for name in choice.cut.crossing)
        servers[choice.point.id] = wire_server_graph(model.graph, choice.cut, wires)
        split = _split(choice.point, edge, wires, choice.cut.local, errors[choice.point.id])
        halves.append(_with_exits(split, exits[choice.point.id], model, costs))
    halves.append(_split(splits.local, edge, (), tuple(model.graph.outputs), {}))
    return Halves(edge, tuple(halves), servers)


def _edge_half(
    model: Model,
    wanted: dict[str, Sequence[str]],
    request: BuildRequest,
    data: CalibrationSet,
    samples: Sequence[NDArray[np.float32]],
    progress: Progress,
) -> EdgeHalf:
    """Calibrates and quantises, in the format of the board."""
    graph, spec = model.whole, model.info.declared()
    # What an exit's head takes is as good as sent, and the head is its own affair: channels stay as they are there.
    heads = members(head_nodes(graph, model.graph, [one.output for one in model.info.exits]))
    own = [graph.nodes[i].output for i in heads]
    given = (*wanted.values(), *(one.takes for one in model.info.exits), *own)
    crossing = {name for names in given for name in names}
    asked, ours = request.recipe.keep_float, _float_by_itself(graph, request)
    recipe = replace(request.recipe, keep_float=resolve(graph, model.info.scopes, (*asked, *ours), crossing))
    calibrating, judging = data, None
    if len(recipe.candidates) > 1:
        calibrating, held_out = hold_out(data)
        judging = judges(model.graph, held_out, spec)
    n_images = len(calibrating)
    prepared = prepare(
        graph, crossing, calibrating.inputs(spec), recipe, lambda done: progress("calibrate", done, n_images)
    )
    if request.kind.format == "tflite":
        edge = tflite_half(prepared, wanted, LOCAL, samples, recipe, judging, progress)
    else:
        edge = onnx_half(prepared, wanted, LOCAL, request.kind, recipe, judging, progress)
    if ours:
        told = (
            f"{len(ours)} depthwise and squeeze-excite layers are in fp16: INT8 loses most there, and is seldom faster"
        )
        edge = replace(edge, notes=(told, *edge.notes))
    return replace(edge, notes=(*_preparation_notes(prepared, request.recipe, len(data)), *edge.notes))


def _float_by_itself(graph: Graph, request: BuildRequest) -> list[str]:
    """Tensors of the layers that are better left in float than asked about."""
    if request.kind.format != "onnx" or request.recipe.precision != "int8":
        return []
    return sorted(float_layers(graph, request.depthwise))


def _preparation_notes(prepared: Prepared, recipe: Recipe, n_images: int) -> list[str]:
    notes = []
    if n_images < MIN_CALIBRATION:
        notes.append(f"only {n_images} calibration images, {MIN_CALIBRATION} or more are wise")
    if recipe.equalise:
        notes.append(f"{prepared.equalised} pairs of layers were scaled to equal ranges")
    if recipe.keep_float:
        notes.append(f"in float as asked for: {', '.join(recipe.keep_float)}")
    if recipe.precision == "int16x8":
        notes.append("int16x8 is an accuracy reference: no kernel accelerates it, so its times mean nothing")
    return notes


def _edge_outputs(choice: Choice, image: str) -> list[str]:
    """What the edge half computes: what crosses, the image itself left out, and the scores of the local tasks."""
    wanted = dict.fromkeys((*choice.cut.crossing, *choice.cut.local))
    return [name for name in wanted if name != image]


def _split(
    point: SplitPoint,
    edge: EdgeHalf | None,
    wires: tuple[TensorSpec, ...],
    local_tasks: tuple[str, ...],
    errors: dict[str, float],
) -> Split:
    half = LOCAL if point.scope == LOCAL else point.id
    return Split(
        id=point.id,
        scope=point.scope,
        natural=point.natural,
        tensors=wires,
        local_tasks=local_tasks,
        exits=(),
        edge=None if edge is None else edge.paths[half],
        edge_signature=None if edge is None else edge.signatures.get(half),
        server=f"server/{point.id}.onnx" if wires else None,
        edge_macs=point.edge_macs,
        server_macs=point.server_macs,
        edge_parameters=point.edge_parameters,
        server_parameters=point.server_parameters,
        float_error=errors,
    )


def _with_exits(split: Split, exits: tuple[str, ...], model: Model, costs: Costs) -> Split:
    """The same split with exits on the edge and what their heads cost."""
    heads = head_nodes(model.whole, model.graph, exits)
    return replace(
        split,
        exits=exits,
        edge_macs=split.edge_macs + costs.macs(heads),
        edge_parameters=split.edge_parameters + costs.parameters(heads),
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
    data: CalibrationSet,
    golden: dict[str, NDArray[Any]],
    licenses: Sequence[Path],
) -> None:
    for name in ("edge", "server", "golden", "calibration"):
        (folder / name).mkdir()
    for path, content in halves.edge.files.items():
        (folder / path).write_bytes(content)
    for split_id, server in halves.servers.items():
        onnx.save(server, folder / "server" / f"{split_id}.onnx")
    # numpy types all keyword arguments, here and below, as its own option allow_pickle.
    np.savez(folder / GOLDEN_FILE, **golden)  # type: ignore[arg-type]
    np.savez(folder / BIASES_FILE, **halves.edge.prepared.biases)  # type: ignore[arg-type]
    (folder / RANGES_FILE).write_text(to_json(halves.edge.table, indent=1) + "\n", encoding="utf-8")
    (folder / SAMPLES_FILE).write_text("\n".join(sorted(data.hashes)) + "\n", encoding="utf-8")
    if licenses:
        (folder / "licenses").mkdir()
    for text in licenses:
        (folder / "licenses" / text.name).write_bytes(text.read_bytes())


_FORMATS = {".tflite": "tflite", ".onnx": "onnx", ".bin": ONNX_WEIGHTS, ".npz": "npz", ".json": "json"}


def _manifest(model: Model, halves: Halves, data: CalibrationSet, request: BuildRequest, folder: Path) -> Bundle:
    edge = halves.edge
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tools = ("ai-edge-litert", "litert-quantizer", "litert-torch", "numpy", "onnxruntime", "splitboard")
    return Bundle(
        schema_version=contract.SCHEMA_VERSION,
        name=model.info.name,
        model_sha256=model.info.model_sha256,
        checkpoint_sha256=model.info.checkpoint_sha256,
        board=request.kind.name,
        tasks=model.info.tasks,
        exits=model.info.exits,
        input=model.info.inputs[0],
        edge_input=edge.input,
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
        calibration=Calibration(
            n_samples=edge.table.n_samples,
            n_held_out=len(data) - edge.table.n_samples,
            n_duplicates=data.n_duplicates,
            strata=data.strata,
            sha256=hashlib.sha256("\n".join(sorted(data.hashes)).encode()).hexdigest(),
        ),
        quantisation=Quantisation(
            precision=request.recipe.precision,
            ranges=edge.choice.method,
            errors=edge.choice.errors,
            equalised=edge.prepared.equalised,
            corrected=len(edge.prepared.biases),
            keep_float=edge.keep_float,
        ),
        golden=GOLDEN_FILE,
        golden_tolerance={},
        operators=edge.operators,
        notes=edge.notes,
        tool_versions={**model.info.tool_versions, **{tool: version(tool) for tool in tools}},
    )


def _golden_tolerance(folder: Path, bundle: Bundle, golden: dict[str, NDArray[Any]]) -> dict[str, float]:
    """By task, twice the largest |edge - float| seen here: interpreters differ in rounding by some steps of a scale."""
    local = bundle.splits[-1]
    edge_inputs = edge_image(golden["images"].astype(np.uint8, copy=False), bundle.input_table())
    with edge_engine(folder, bundle, [local]) as engine:
        results = [engine.infer(local.id, sample[None]) for sample in edge_inputs]
    least = LEAST_TOLERANCE if local.edge_signature is None else 0.0
    tolerance = {}
    for task in bundle.tasks:
        found = np.concatenate([result[task.name] for result in results])
        off = 2 * float(np.abs(found - golden[task.name]).max())
        tolerance[task.name] = max(off, least * float(np.abs(golden[task.name]).max()))
    return tolerance


def build_output(target: Path, bundle: Bundle, chosen: Sequence[Choice]) -> BuildOutput:
    """What ``build`` tells about a bundle."""
    warnings = []
    files = {path: (target / path).read_bytes() for path in bundle.edge_files if path.endswith(".tflite")}
    shuffles = {key: number for content in files.values() for key, number in count_shuffles(content).items()}
    # Layers kept in float and float weights need conversions; they are worth a word where nobody asked for either.
    expected = bundle.quantisation.keep_float or bundle.precision != "int8"
    for signature, operators in bundle.operators.items():
        for name in ("TRANSPOSE",) if expected else ("TRANSPOSE", *CONVERSIONS):
            number = operators.get(name, 0) - (shuffles.get(signature, 0) if name == "TRANSPOSE" else 0)
            if number:
                warnings.append(f"signature {signature} holds {number} {name}")
    partitions: dict[str, int | None] = {}
    shared = {one.path: one.size_bytes for one in bundle.artifacts if one.format == ONNX_WEIGHTS}
    weights = sum(shared.values()) if shared else None
    for content in files.values():
        partitions, weights = accelerated_partitions(content), constant_bytes(content)
    warnings += [
        f"signature {signature} runs in {'unknown' if parts is None else parts} accelerated parts instead of one"
        for signature, parts in partitions.items()
        if parts != 1
    ]
    servers = {split.id: onnx.load(target / split.server) for split in bundle.splits if split.server is not None}
    packed = {split_id: tuple(packed_weights(server)) for split_id, server in servers.items()}
    return BuildOutput(
        bundle=str(target),
        bundle_sha256=contract.bundle_sha256(target),
        board=bundle.board,
        precision=bundle.precision,
        splits=tuple(split.id for split in bundle.splits),
        exits={split.id: split.exits for split in bundle.splits if split.exits},
        edge_bytes=sum((target / path).stat().st_size for path in (*bundle.edge_files, *shared)),
        weight_bytes=weights,
        operators=bundle.operators,
        accelerated_partitions=partitions,
        packed={
            split_id: PackedHalf(len(found), sum(w.dense_bytes for w in found), sum(w.packed_bytes for w in found))
            for split_id, found in packed.items()
            if found
        },
        float_error={split.id: split.float_error for split in bundle.splits if split.float_error},
        reasons={choice.point.id: choice.reason for choice in chosen if choice.reason is not None},
        calibration=bundle.calibration,
        quantisation=bundle.quantisation,
        warnings=(*warnings, *bundle.notes),
    )
