"""Any trained model becomes a model folder: read, cleaned, checked against its source, outputs named after tasks."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper
from onnxruntime import InferenceSession

from export import checkpoint, onnx_file
from export.checks import check_clean
from export.exits import find_exits
from export.exported import Exported, ExportRequest, Results, Samples
from export.graph import Graph
from export.inputs import find_image, input_spec
from export.metadata import describe
from export.model import MODEL_JSON, MODEL_ONNX, SCHEMA_VERSION, ModelInfo
from export.naming import numbered_sequences, rename_outputs, task_names
from export.reference import Parity, optimised_session, parity, reference_session
from export.spec import ModelSpec
from splitboard.contract.bundle import Task, file_sha256
from splitboard.contract.decode import to_json
from splitboard.contract.errors import SplitboardError, UserError
from splitboard.contract.folder import new_folder

if TYPE_CHECKING:
    from export.clean import Cleaned

PARITY_LIMIT = 1e-4
"""Largest max |onnx - source| / max |source| per output. Two float32 convolution libraries differ by about 1e-6."""

_TIMES_OWN = 4
_MOST = 1e-2
"""A model may be worse conditioned than that: a sigmoid of -10, or a logarithm near 0, changes by more between two
float32 libraries. How much is measured: ONNX Runtime's own optimiser reorders the arithmetic of the source's graph. An
output may differ by a few times of that, but never by more than a percent."""


def export_model(request: ExportRequest, target: Path) -> ModelInfo:
    """Exports a model.

    Args:
        request: what, and how it is declared.
        target: the model folder to write.

    Returns:
        What was written to ``model.json``.

    Raises:
        UserError: the source, the factory, the inputs, the spec or the names do not fit.
        SplitboardError: the cleaned graph differs from its source.
    """
    _check_source(request)
    with ThreadPoolExecutor(1) as meanwhile:  # the libraries take seconds to load, and a child is busy for longer
        loading = meanwhile.submit(importlib.import_module, "export.clean")
        exported = _read(request)
    cleaning = loading.result()
    image = None if request.spec is None else find_image(exported.inputs, request.spec.preprocessing)
    names = task_names(list(exported.results), request.tasks)
    ends = exported.model.graph.output
    rename_outputs(exported.model, dict(zip([value.name for value in ends], names.values(), strict=True)))
    for value, found in zip(ends, exported.results.values(), strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, found.shape[1:]))
    exported = replace(exported, results={names[name]: found for name, found in exported.results.items()})
    check_results(exported.results)
    cleaned: Cleaned = cleaning.clean(exported.model)
    check_clean(cleaned.model, cleaned.scopes)
    measured = compare(cleaned.model, exported.model, exported.samples, exported.results)
    return _write(request, exported, cleaned, measured, image, target)


def _check_source(request: ExportRequest) -> None:
    known = (*checkpoint.SUFFIXES, onnx_file.SUFFIX)
    if not request.source.is_file():
        raise UserError(f'there is no checkpoint at "{request.source}"', ["check the path", "splitboard train --help"])
    if request.source.suffix not in known:
        raise UserError(
            f'checkpoint "{request.source.name}" has the suffix "{request.source.suffix}"',
            [f"supported: {', '.join(known)}"],
        )
    if request.spec is not None and request.factory is not None and request.inputs:
        # What follows takes seconds, and all inputs are known already.
        asked = [input_spec(one.name or "", one.shape, one.dtype or "float32") for one in request.inputs]
        find_image(asked, request.spec.preprocessing)


def _read(request: ExportRequest) -> Exported:
    if request.source.suffix == onnx_file.SUFFIX:
        return onnx_file.read_onnx(request)
    return checkpoint.export_torch(request)


def check_results(results: Results) -> None:
    """Refuses a source whose own results cannot be compared.

    Raises:
        UserError: names the output that is not finite.
    """
    for name, values in results.items():
        if not np.isfinite(values).all():
            raise UserError(
                f'the output "{name}" is not finite on values from -1 to 1',
                ["check the weights", "take logarithms and divisions out of the model, or bound their arguments"],
            )


def compare(model: ModelProto, source: ModelProto, samples: Samples, results: Results) -> dict[str, Parity]:
    """How near each output is to what the source computes, over all samples.

    Args:
        model: the cleaned graph.
        source: the graph before it was cleaned.
        samples: by input.
        results: of the source itself, by output.

    Raises:
        SplitboardError: one differs by more than `PARITY_LIMIT`, and by more than rounding explains.
    """
    found = _differences(reference_session(model), samples, results)
    if not all(one.relative <= PARITY_LIMIT for one in found.values()):  # NaN is more than any limit
        own = _differences(optimised_session(source), samples, results)
        for name, one in found.items():
            if not one.relative <= max(PARITY_LIMIT, min(_TIMES_OWN * own[name].relative, _MOST)):
                raise SplitboardError(
                    f'output "{name}" of the exported graph differs from its source by "{one.relative:.2e}"'
                )
    return found


def _differences(session: InferenceSession, samples: Samples, results: Results) -> dict[str, Parity]:
    names = list(results)
    count = len(next(iter(results.values())))
    feeds = [{name: np.asarray(values[i]) for name, values in samples.items()} for i in range(count)]
    runs = [session.run(names, feed) for feed in feeds]
    return {name: parity(np.stack([run[i] for run in runs]), results[name]) for i, name in enumerate(names)}


def _write(
    request: ExportRequest,
    exported: Exported,
    cleaned: Cleaned,
    measured: Mapping[str, Parity],
    image: str | None,
    target: Path,
) -> ModelInfo:
    graph = Graph(cleaned.model)
    tasks = tasks_of(graph, request.spec)
    sequences = numbered_sequences(cleaned.scopes.values()) if exported.sequences is None else exported.sequences
    declared = {} if request.spec is None else request.spec.exits
    exits = find_exits(graph, tasks, declared, cleaned.scopes, sequences)
    preprocessing = None if request.spec is None else request.spec.preprocessing
    tools = {**exported.tool_versions, **{tool: version(tool) for tool in ("onnx", "onnxscript", "onnxsim")}}
    describe(
        graph.model,
        {
            "checkpoint_sha256": exported.source_sha256,
            "tasks": json.dumps({task.name: task.labels for task in tasks}),
            "exits": json.dumps({one.output: one.task for one in exits}),
            "preprocessing": json.dumps(None if preprocessing is None else asdict(preprocessing)),
            "tools": json.dumps(tools),
        },
    )
    with new_folder(target, MODEL_JSON) as folder:
        onnx.save(graph.model, folder / MODEL_ONNX)
        info = ModelInfo(
            schema_version=SCHEMA_VERSION,
            name=request.name,
            model_sha256=file_sha256(folder / MODEL_ONNX),
            checkpoint_sha256=exported.source_sha256,
            tasks=tasks,
            inputs=exported.inputs,
            image=image,
            preprocessing=preprocessing,
            scopes=dict(cleaned.scopes),
            sequences=sequences,
            changes=(*exported.changes, *cleaned.changes),
            parity=dict(measured),
            tool_versions=tools,
            exits=exits,
        )
        (folder / MODEL_JSON).write_text(to_json(info, indent=1) + "\n", encoding="utf-8")
    return info


def tasks_of(graph: Graph, spec: ModelSpec | None) -> tuple[Task, ...]:
    """The tasks with their class names, numbered where none are declared; outputs that are exits are no tasks.

    Classes lie along the last dimension, in dense outputs ``[1, classes, h, w]`` along the second.

    Raises:
        UserError: the spec labels an unknown task, or another number of classes.
    """
    labels = {} if spec is None else spec.labels
    exits = {} if spec is None else spec.exits
    outputs = [name for name in graph.outputs if name not in exits]
    unknown = labels.keys() - set(outputs)
    if unknown:
        raise UserError(
            f'the model spec labels the task "{sorted(unknown)[0]}"',
            [f"the model's tasks are: {', '.join(outputs)}"],
        )
    if not outputs:
        raise UserError(
            f'every output is declared an exit: "{", ".join(exits)}"', ["leave the tasks themselves out of [exits]"]
        )
    tasks = []
    for output in outputs:
        shape = graph.shapes[output]
        classes = (*shape, 1)[1 if len(shape) == 4 else max(len(shape) - 1, 0)]
        named = labels.get(output, tuple(str(index) for index in range(classes)))
        if len(named) != classes:
            raise UserError(
                f'task "{output}" has "{len(named)}" labels, the model has {classes} classes',
                [f"name {classes} classes in the model spec", "or none, and they are numbered"],
            )
        tasks.append(Task(output, named))
    return tuple(tasks)
