"""A checkpoint becomes a model folder: exported by a child process, simplified, checked against torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxsim
from numpy.typing import NDArray
from onnx import ModelProto

from export.graph import Graph
from export.model import MODEL_JSON, MODEL_ONNX, SCHEMA_VERSION, ModelInfo
from export.reference import Parity, parity, reference_session
from export.spec import ModelSpec
from splitboard.contract.bundle import Task, TensorSpec, file_sha256
from splitboard.contract.decode import to_json
from splitboard.contract.errors import EXIT_USER_ERROR, SplitboardError, UserError
from splitboard.contract.folder import new_folder

PARITY_LIMIT = 1e-4
"""Largest max |onnx - torch| / max |torch| per output. Two float32 convolution libraries differ by about 1e-6."""

_CHILD = Path(__file__).with_name("child.py")
_CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth")


def export_checkpoint(
    checkpoint: Path,
    factory: str,
    input_shape: Sequence[int],
    spec: ModelSpec,
    target: Path,
    *,
    name: str,
    source_folder: Path,
) -> ModelInfo:
    """Exports a checkpoint.

    Args:
        checkpoint: a state dict, ``.safetensors``, ``.pt`` or ``.pth``.
        factory: ``package.module:function`` that returns the model without weights.
        input_shape: of the model's input, batch first, e.g. ``(1, 3, 224, 224)``.
        spec: preprocessing and class names.
        target: the model folder to write.
        name: names the served models.
        source_folder: the only folder that is put on the child's import path.

    Returns:
        What was written to ``model.json``.

    Raises:
        UserError: the checkpoint, the factory or the spec does not fit.
        SplitboardError: the exported graph differs from torch.
    """
    _check_request(checkpoint, input_shape, spec)
    with tempfile.TemporaryDirectory() as work:
        _run_child(checkpoint, factory, input_shape, source_folder, Path(work))
        child = json.loads((Path(work) / "child.json").read_text())
        simplified = _simplify(onnx.load(Path(work) / "model.onnx"))
        with np.load(Path(work) / "parity.npz", allow_pickle=False) as reference:
            measured = _parity(simplified, {key: reference[key] for key in reference})
    graph = Graph(simplified)
    with new_folder(target, MODEL_JSON) as folder:
        onnx.save(graph.model, folder / MODEL_ONNX)
        info = ModelInfo(
            schema_version=SCHEMA_VERSION,
            name=name,
            model_sha256=file_sha256(folder / MODEL_ONNX),
            checkpoint_sha256=file_sha256(checkpoint),
            tasks=_tasks(graph, spec),
            inputs=(TensorSpec(graph.inputs[0], tuple(input_shape), "float32", "NCHW"),),
            image=graph.inputs[0],
            preprocessing=spec.preprocessing,
            scopes=_surviving_scopes(graph, child["scopes"]),
            sequences=tuple(child["sequences"]),
            changes=(),
            parity=measured,
            tool_versions={
                "torch": child["torch"],
                **{tool: version(tool) for tool in ("onnx", "onnxscript", "onnxsim")},
            },
        )
        (folder / MODEL_JSON).write_text(to_json(info, indent=1) + "\n", encoding="utf-8")
    return info


def _check_request(checkpoint: Path, input_shape: Sequence[int], spec: ModelSpec) -> None:
    if not checkpoint.is_file():
        raise UserError(f'there is no checkpoint at "{checkpoint}"', ["check the path", "splitboard train --help"])
    if checkpoint.suffix not in _CHECKPOINT_SUFFIXES:
        raise UserError(
            f'checkpoint "{checkpoint.name}" has the suffix "{checkpoint.suffix}"',
            [f"supported: {', '.join(_CHECKPOINT_SUFFIXES)} with a state dict"],
        )
    wanted = (1, spec.preprocessing.channels, spec.preprocessing.height, spec.preprocessing.width)
    if tuple(input_shape) != wanted:
        raise UserError(
            f'--input "{"x".join(map(str, input_shape))}" is not what the preprocessing makes',
            [f"--input {'x'.join(map(str, wanted))}", "change height, width or mean in the model spec"],
        )


def _run_child(checkpoint: Path, factory: str, input_shape: Sequence[int], source_folder: Path, work: Path) -> None:
    request = {
        "checkpoint": str(checkpoint.resolve()),
        "factory": factory,
        "folder": str(source_folder.resolve()),
        "input": list(input_shape),
        "out": str(work),
    }
    done = subprocess.run(
        [sys.executable, "-I", str(_CHILD)], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    if done.returncode == EXIT_USER_ERROR:
        error = json.loads((work / "error.json").read_text())
        raise UserError(error["message"], error["tries"])
    if done.returncode != 0:
        raise SplitboardError(f'the export process ended with "{done.returncode}": {done.stderr.strip()[-2000:]}')


def _simplify(model: ModelProto) -> ModelProto:
    simplified: ModelProto
    simplified, same = onnxsim.simplify(model)
    if not same:
        raise SplitboardError("onnxsim changed the model's results")
    return simplified


def _tasks(graph: Graph, spec: ModelSpec) -> tuple[Task, ...]:
    unknown = spec.labels.keys() - set(graph.outputs)
    if unknown:
        raise UserError(
            f'the model spec labels the task "{sorted(unknown)[0]}"',
            [f"the model's outputs are: {', '.join(graph.outputs)}"],
        )
    tasks = []
    for output in graph.outputs:
        classes = graph.shapes[output][-1]
        labels = spec.labels.get(output, tuple(str(index) for index in range(classes)))
        if len(labels) != classes:
            raise UserError(
                f'task "{output}" has "{len(labels)}" labels, the model has {classes} classes',
                [f"name {classes} classes in the model spec", "or none, and they are numbered"],
            )
        tasks.append(Task(output, labels))
    return tuple(tasks)


def _surviving_scopes(graph: Graph, scopes: dict[str, str]) -> dict[str, str]:
    """Module scope by tensor after simplification; a tensor that the simplifier made takes its producer's input's."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        inherited = next((found[name] for name in node.input if name in found), "")
        for output in node.output:
            found[output] = scopes.get(output, inherited)
    return found


def _parity(model: ModelProto, reference: dict[str, NDArray[np.float32]]) -> dict[str, Parity]:
    """How near each output is to torch's, over the child's samples."""
    session = reference_session(model)
    names = [output.name for output in session.get_outputs()]
    results = [session.run(names, {session.get_inputs()[0].name: sample}) for sample in reference["input"]]
    found = {}
    for index, name in enumerate(names):
        found[name] = parity(np.stack([result[index] for result in results]), reference[f"output.{name}"])
        if not found[name].relative <= PARITY_LIMIT:  # also refuses NaN
            raise SplitboardError(
                f'output "{name}" of the exported graph differs from torch by "{found[name].relative:.2e}"'
            )
    return found
