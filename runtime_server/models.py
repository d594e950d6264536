"""The server graphs of the bundles, each in an ONNX Runtime session of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from splitboard.contract.bundle import TensorSpec, bundle_sha256, load_bundle
from splitboard.contract.errors import UserError
from splitboard.contract.interface import Interface, interface

_ORT_TYPES = {"uint8": "tensor(uint8)", "int8": "tensor(int8)", "int16": "tensor(int16)", "float32": "tensor(float)"}
_ORT_LOG_ERRORS = 3


@dataclass(frozen=True)
class Model:
    """One server half, ready to run.

    Attributes:
        interface: what it takes and gives.
        session: the loaded graph.
    """

    interface: Interface
    session: onnxruntime.InferenceSession

    def run(self, inputs: dict[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Runs the graph.

        Args:
            inputs: the wire tensors by name, checked against the interface.
            outputs: names wanted.

        Returns:
            The outputs by name, float32 ``[1, classes]``.
        """
        return dict(zip(outputs, self.session.run(list(outputs), inputs), strict=True))


def load_models(folders: Sequence[Path], threads: int) -> dict[str, Model]:
    """Loads every server graph of the bundles.

    Args:
        folders: the bundles.
        threads: that ONNX Runtime may use inside one operator.

    Returns:
        The models by served name.

    Raises:
        UserError: a bundle that is broken or was edited, two bundles of one name, or a graph whose inputs and outputs
            are not those of the manifest.
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
            models[name] = Model(offered, _session(folder / split.server, offered, threads))
    return models


def _session(path: Path, offered: Interface, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ORT_LOG_ERRORS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    _compare(path, "inputs", session.get_inputs(), offered.inputs)
    _compare(path, "outputs", session.get_outputs(), offered.outputs)
    return session


def _compare(path: Path, what: str, nodes: Sequence[onnxruntime.NodeArg], specs: Sequence[TensorSpec]) -> None:
    found = {(node.name, node.type, tuple(node.shape)) for node in nodes}
    expected = {(spec.name, _ORT_TYPES[spec.dtype], spec.shape) for spec in specs}
    if found != expected:
        raise UserError(
            f'the {what} of "{path}" are "{sorted(found)}", the manifest says "{sorted(expected)}"',
            ["build the bundle again: splitboard build"],
        )
