"""The server graphs of the bundles, each in an ONNX Runtime session of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime_server.batching import check_batch, open_batch
from runtime_server.jpeg import decode_jpeg
from splitboard.contract.bundle import TensorSpec, bundle_sha256, load_bundle
from splitboard.contract.errors import UserError
from splitboard.contract.forms import ServedForm
from splitboard.contract.interface import Interface, interface
from splitboard.contract.wire import Request

_ORT_TYPES = {"uint8": "tensor(uint8)", "int8": "tensor(int8)", "int16": "tensor(int16)", "float32": "tensor(float)"}
_ORT_LOG_ERRORS = 3


@dataclass(frozen=True)
class Model:
    """One server half, ready to run.

    Attributes:
        interface: what it takes and gives.
        session: the loaded graph.
        max_batch: requests that one run of the graph can answer.
    """

    interface: Interface
    session: onnxruntime.InferenceSession
    max_batch: int = 1

    @cached_property
    def form(self) -> ServedForm:
        """How its requests are read and its replies written."""
        return ServedForm(self.interface)

    def prepared(self, request: Request) -> Request:
        """The request with its image decoded where it came as a JPEG file.

        Raises:
            WireError: the file is not an image of the model's size, or JPEG is not taken.
        """
        if request.jpeg is None:
            return request
        ((spec),) = self.interface.inputs
        return replace(request, inputs={spec.name: decode_jpeg(request.jpeg, spec)}, jpeg=None)

    def run(self, requests: Sequence[Request]) -> list[dict[str, NDArray[np.float32]]]:
        """Runs the graph once.

        Args:
            requests: at least one, at most `max_batch`, checked against the interface.

        Returns:
            The outputs that each asks for, by name, float32 ``[1, classes]``.
        """
        if len(requests) == 1:
            (request,) = requests
            found = self.session.run(list(request.outputs), request.inputs)
            return [dict(zip(request.outputs, found, strict=True))]
        names = [spec.name for spec in self.interface.outputs]
        feeds = {
            spec.name: np.concatenate([request.inputs[spec.name] for request in requests])
            for spec in self.interface.inputs
        }
        found = dict(zip(names, self.session.run(names, feeds), strict=True))
        return [{name: found[name][row : row + 1] for name in request.outputs} for row, request in enumerate(requests)]


def load_models(folders: Sequence[Path], threads: int, max_batch: int = 1) -> dict[str, Model]:
    """Loads every server graph of the bundles.

    Args:
        folders: the bundles.
        threads: that ONNX Runtime may use inside one operator.
        max_batch: requests that one run of a graph shall be able to answer.

    Returns:
        The models by served name.

    Raises:
        UserError: a bundle that is broken or was edited, two bundles of one name, a graph whose inputs and outputs are
            not those of the manifest, or one that cannot be batched.
    """
    models: dict[str, Model] = {}
    for folder in folders:
        bundle, sha256 = load_bundle(folder), bundle_sha256(folder)
        for split in bundle.splits:
            if split.server is None:
                continue
            name = bundle.served_name(split)
            if name in models:
                raise UserError(f'two bundles offer a model "{name}"', ["serve one of them on another port"])
            offered = interface(bundle, sha256, split)
            models[name] = Model(offered, _load(folder / split.server, offered, threads, max_batch), max_batch)
    return models


def _load(path: Path, offered: Interface, threads: int, max_batch: int) -> onnxruntime.InferenceSession:
    session = _session(path, threads)
    _compare(path, "inputs", session.get_inputs(), offered.inputs)
    _compare(path, "outputs", session.get_outputs(), offered.outputs)
    if max_batch == 1:
        return session
    opened = _session(open_batch(path), threads)
    check_batch(opened, session, offered)
    return opened


def _session(graph: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ORT_LOG_ERRORS
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _compare(path: Path, what: str, nodes: Sequence[onnxruntime.NodeArg], specs: Sequence[TensorSpec]) -> None:
    found = {(node.name, node.type, tuple(node.shape)) for node in nodes}
    expected = {(spec.name, _ORT_TYPES[spec.dtype], spec.shape) for spec in specs}
    if found != expected:
        raise UserError(
            f'the {what} of "{path}" are "{sorted(found)}", the manifest says "{sorted(expected)}"',
            ["build the bundle again: splitboard build"],
        )
