"""A bundle's server halves as a model repository of NVIDIA Triton."""

from __future__ import annotations

import enum
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import runtime_server
from splitboard.contract.bundle import Bundle, Split, TensorSpec, bundle_sha256, load_bundle
from splitboard.contract.decode import to_json
from splitboard.contract.errors import UserError
from splitboard.contract.folder import new_folder
from splitboard.contract.interface import Interface, interface
from splitboard.contract.wire import DATATYPES

REPOSITORY_JSON = "splitboard.json"
"""Marks a repository as ours. Triton reads folders only."""

MAX_QUEUED = 64
"""Requests that may wait for a model; Triton refuses more as unavailable."""

_ENGINE_FORMATS = {"uint8": "uint8:chw", "int8": "int8:chw", "float32": "fp32:chw"}
"""What trtexec calls the types that TensorRT takes."""

_TIMEOUTS = "timeout_action: REJECT default_timeout_microseconds: 60000000 allow_timeout_override: true"
"""A request's own timeout counts where it is shorter than the default, so there must be one."""


class Backend(enum.Enum):
    """What runs the graphs inside Triton.

    ``onnxruntime`` is in NVIDIA's images and runs ``model.onnx`` as it is, on a GPU where there is one. ``python``
    needs the package onnxruntime in Triton's environment, runs on the processor, and is the one that checks the pair
    and the crc32. ``tensorrt`` runs an engine, which fits one kind of GPU and one version of TensorRT and is built
    there.
    """

    ONNXRUNTIME = "onnxruntime"
    PYTHON = "python"
    TENSORRT = "tensorrt"


@dataclass(frozen=True)
class Repository:
    """What ``splitboard.json`` says of a repository.

    Attributes:
        bundle: name of the bundle.
        bundle_sha256: its identity.
        backend: of all its models.
        models: served names.
        engines: files that Triton still needs, relative to the repository, and the command that makes each in that
            folder on the machine that Triton runs on.
    """

    bundle: str
    bundle_sha256: str
    backend: str
    models: tuple[str, ...]
    engines: dict[str, str]


def write_repository(bundle_folder: Path, target: Path, backend: Backend, threads: int, instances: int) -> Repository:
    """Writes one model for every server half.

    Args:
        bundle_folder: the bundle.
        target: the repository; one that this function wrote before is replaced.
        backend: what shall run the graphs.
        threads: that ONNX Runtime may use inside one request; without meaning for ``tensorrt``.
        instances: requests of one model that may run at the same time.

    Raises:
        UserError: the bundle is broken or has no server half, or ``target`` is something else or cannot be written.
    """
    bundle, sha256 = load_bundle(bundle_folder), bundle_sha256(bundle_folder)
    halves = [split for split in bundle.splits if split.server is not None]
    if not halves:
        raise UserError(f'no split of "{bundle_folder}" has a server half', ["splitboard build --split all"])
    models = tuple(map(bundle.served_name, halves))
    engines = dict(map(_engine, halves, models)) if backend is Backend.TENSORRT else {}
    written = Repository(bundle.name, sha256, backend.value, models, engines)
    with new_folder(target, REPOSITORY_JSON) as folder:
        for split, name in zip(halves, models, strict=True):
            version = folder / name / "1"
            version.mkdir(parents=True)
            shutil.copyfile(bundle_folder / str(split.server), version / "model.onnx")
            if backend is Backend.PYTHON:
                source = Path(runtime_server.__path__[0]) / "triton_model.py"
                shutil.copyfile(source, version / "model.py")
            text = config_text(bundle, split, interface(bundle, sha256, split), backend, threads, instances)
            (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
        (folder / REPOSITORY_JSON).write_text(to_json(written, indent=1) + "\n", encoding="utf-8")
    return written


def config_text(
    bundle: Bundle, split: Split, offered: Interface, backend: Backend, threads: int, instances: int
) -> str:
    """The ``config.pbtxt`` of one model (Triton's ``ModelConfig`` in protobuf's text form).

    The shapes hold the batch of one, so ``max_batch_size`` is 0. The queue is bounded, and a request that its
    ``timeout`` parameter says is too old is refused before it is computed.
    """
    tasks = {task.name: task.labels for task in bundle.tasks if task.name not in split.local_tasks}
    parameters = {"bundle": offered.bundle, "split": offered.split, "tasks": json.dumps(tasks)}
    if backend is not Backend.TENSORRT:
        parameters["intra_op_thread_count"] = str(threads)  # the name that NVIDIA's onnxruntime back end reads
    kinds = {Backend.ONNXRUNTIME: "KIND_AUTO", Backend.PYTHON: "KIND_CPU", Backend.TENSORRT: "KIND_GPU"}
    lines = [
        f"name: {json.dumps(offered.model)}",
        f"backend: {json.dumps(backend.value)}",
        "max_batch_size: 0",
        *_tensors("input", offered.inputs),
        *_tensors("output", offered.outputs),
        f"instance_group [ {{ count: {instances} kind: {kinds[backend]} }} ]",
        "dynamic_batching {",
        f"  default_queue_policy {{ max_queue_size: {MAX_QUEUED} {_TIMEOUTS} }}",
        "}",
    ]
    for key, value in parameters.items():
        lines.append(f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}")
    return "\n".join(lines) + "\n"


def _engine(split: Split, name: str) -> tuple[str, str]:
    """An engine's place, and the command for it. Without its formats trtexec makes INT8 inputs float ones."""
    for tensor in split.tensors:
        if tensor.dtype not in _ENGINE_FORMATS:
            tries = ["--backend onnxruntime", "build the bundle with --precision int8"]
            raise UserError(f'TensorRT does not take "{tensor.dtype}", which split {split.id} sends', tries)
    formats = ",".join(_ENGINE_FORMATS[tensor.dtype] for tensor in split.tensors)
    plan = f"{name}/1/model.plan"
    return plan, f"trtexec --onnx={name}/1/model.onnx --saveEngine={plan} --inputIOFormats={formats}"


def _tensors(field: str, specs: Sequence[TensorSpec]) -> Iterator[str]:
    for spec in specs:
        kind, dims = DATATYPES[spec.dtype], ", ".join(map(str, spec.shape))
        yield f"{field} [ {{ name: {json.dumps(spec.name)} data_type: TYPE_{kind} dims: [ {dims} ] }} ]"
