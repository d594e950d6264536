"""Runs what a bundle deploys, here and in one process: the edge half, then the server half, then the float model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from runtime_edge.engines.engine import Engine
from runtime_edge.engines.litert import LiteRtEngine
from runtime_edge.engines.onnxrt import OnnxRuntimeEngine
from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.preprocess import edge_image, prepare

Outputs = dict[str, NDArray[Any]]
"""By task or exit, what the model gives: ``[n, ...]``, float32."""

OnSample = Callable[[str, int, int], None]
"""Called with (what is being run, samples done, samples in all)."""

_ORT_LOG_ERRORS = 3


def edge_engine(folder: Path, bundle: Bundle, splits: Sequence[Split]) -> Engine:
    """The engine for the format that the splits' edge halves have."""
    is_onnx = any(str(split.edge).endswith(".onnx") for split in splits)
    return OnnxRuntimeEngine(folder, bundle, splits) if is_onnx else LiteRtEngine(folder, bundle, splits)


def server_session(path: Path) -> ort.InferenceSession:
    """ONNX Runtime on the host's processor, as `runtime_server` has it."""
    options = ort.SessionOptions()
    options.log_severity_level = _ORT_LOG_ERRORS
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def float_outputs(folder: Path, bundle: Bundle, images: NDArray[np.uint8], on_sample: OnSample) -> Outputs:
    """The float model's outputs, in one piece: remote only is that model.

    Args:
        folder: the bundle.
        bundle: its manifest.
        images: source images, ``[n, h, w, channels]``, uint8.
        on_sample: told about every image.
    """
    remote = bundle.splits[0]
    session = server_session(folder / str(remote.server))
    names = [task.name for task in bundle.tasks]
    results = []
    for done, image in enumerate(images, 1):
        results.append(session.run(names, {remote.tensors[0].name: prepare(image[None], bundle.preprocessing)}))
        on_sample("float reference", done, len(images))
    return {name: np.concatenate([result[i] for result in results]) for i, name in enumerate(names)}


def deployed_outputs(
    folder: Path, bundle: Bundle, splits: Sequence[Split], images: NDArray[np.uint8], on_sample: OnSample
) -> dict[str, Outputs]:
    """What the deployed halves give, by split: all tasks' outputs, and those of the split's exits.

    Args:
        folder: the bundle.
        bundle: its manifest.
        splits: to run.
        images: source images, ``[n, h, w, channels]``, uint8.
        on_sample: told about every image.

    Raises:
        UserError: the edge file is not what the manifest says, or there is no interpreter for it.
    """
    halves = [split for split in splits if not split.is_remote]
    servers = {split.id: server_session(folder / str(split.server)) for split in splits if not split.is_local}
    found: dict[str, list[Outputs]] = {split.id: [] for split in splits}
    table = bundle.input_table()
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(edge_engine(folder, bundle, halves)) if halves else None
        for done, image in enumerate(images, 1):
            pixels = prepare(image[None], bundle.preprocessing)
            stored = edge_image(pixels, table)
            for split in splits:
                tensors: Outputs = {split.tensors[0].name: pixels} if split.is_remote else {}
                if engine is not None and not split.is_remote:
                    tensors = {bundle.edge_input.name: stored, **engine.infer(split.id, stored)}
                found[split.id].append(_answer(split, bundle, tensors, servers.get(split.id)))
            on_sample("deployed", done, len(images))
    names = {split.id: [*(task.name for task in bundle.tasks), *split.exits] for split in splits}
    return {
        split_id: {name: np.concatenate([one[name] for one in outputs]) for name in names[split_id]}
        for split_id, outputs in found.items()
    }


def _answer(split: Split, bundle: Bundle, tensors: Outputs, server: ort.InferenceSession | None) -> Outputs:
    """All tasks' outputs, the edge's own as real numbers, the others from the server; and the exits'."""
    crossing = {tensor.name: tensor for tensor in split.tensors}
    outputs = {
        task: crossing[task].real(tensors[task]) if task in crossing else tensors[task] for task in split.local_tasks
    }
    outputs |= {name: tensors[name] for name in split.exits}
    if server is not None:
        asked = [task.name for task in bundle.tasks if task.name not in split.local_tasks]
        given = {name: tensors[name] for name in crossing}
        outputs |= dict(zip(asked, server.run(asked, given), strict=True))
    return outputs
