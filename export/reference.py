"""The reference that everything is compared with: ONNX Runtime without its optimiser, and what *equal* means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto


def reference_options() -> ort.SessionOptions:
    """Optimiser off, one thread: the numbers depend on the graph alone."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception
    return options


def reference_session(model: ModelProto) -> ort.InferenceSession:
    """ONNX Runtime with `reference_options`."""
    options = reference_options()
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def optimised_session(model: ModelProto) -> ort.InferenceSession:
    """ONNX Runtime as it comes: the same function with its arithmetic in another order."""
    options = reference_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def relative_error(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Max |actual - expected| / max |expected|."""
    scale = float(np.abs(expected).max())
    return float(np.abs(actual - expected).max()) / (scale if scale > 0 else 1.0)


@dataclass(frozen=True)
class Parity:
    """How near one output is to its reference, over all samples.

    Attributes:
        max_abs: max |actual - expected|.
        relative: max |actual - expected| / max |expected|.
        cosine: of the angle between both as vectors; 1 where they point the same way.
    """

    max_abs: float
    relative: float
    cosine: float


def parity(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> Parity:
    """Compares one output with its reference; both of any, but the same, shape."""
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    same = 1.0 if not a.any() and not b.any() else 0.0
    return Parity(
        max_abs=float(np.abs(a - b).max()),
        relative=relative_error(actual, expected),
        cosine=float(a @ b) / norms if norms > 0 else same,
    )
