"""A server graph for several requests in one run. Bundles hold graphs of a batch of one, as Triton is given them too.

Needs the package onnx, which a server that does not batch does without.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from splitboard.contract.bundle import TensorSpec
from splitboard.contract.errors import UserError
from splitboard.contract.interface import Interface

BATCH = "batch"
"""The name of the dimension that is left open."""

_SEED = 7
_MAX_RELATIVE_ERROR = 1e-5
"""Of the largest output: sums are rounded in another order when the batch is larger."""


def open_batch(path: Path) -> bytes:
    """The graph with an open batch dimension in its inputs, its outputs and the shapes that it reshapes to.

    What may still be wrong with it `check_batch` finds out.

    Args:
        path: an ONNX file whose shapes begin with 1.

    Raises:
        UserError: the package onnx is not there.
    """
    if importlib.util.find_spec("onnx") is None:
        raise UserError('a batch above "1" needs the package onnx', ["pip install onnx", "--max-batch 1"])
    import onnx

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del model.graph.value_info[:]  # shapes inside were of a batch of one
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for constant in model.graph.initializer:
        if constant.name in shapes:
            constant.CopyFrom(
                onnx.numpy_helper.from_array(_opened(onnx.numpy_helper.to_array(constant)), constant.name)
            )
    return bytes(model.SerializeToString())


def _opened(shape: NDArray[np.int64]) -> NDArray[np.int64]:
    """A shape to reshape to, its leading 1 as whatever is left (-1), or as in the input (0) where -1 is taken."""
    if len(shape) < 2 or shape[0] != 1:
        return shape
    return np.concatenate([[0 if -1 in shape else -1], shape[1:]])


def check_batch(opened: onnxruntime.InferenceSession, single: onnxruntime.InferenceSession, offered: Interface) -> None:
    """Runs two different requests together and apart.

    Raises:
        UserError: the results differ, or the graph holds the batch of one in its middle and cannot be run.
    """
    random = np.random.default_rng(_SEED)
    feeds = {spec.name: _sample(random, spec) for spec in offered.inputs}
    names = [spec.name for spec in offered.outputs]
    tries = ["--max-batch 1"]
    try:
        together = opened.run(names, feeds)
    except Exception as error:  # ONNX Runtime raises classes of its own for every kind of failure
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f'"{offered.model}" cannot be run with a batch above 1: {reason}', tries) from error
    for row in range(2):
        alone = single.run(names, {name: feed[row : row + 1] for name, feed in feeds.items()})
        for name, expected, found in zip(names, alone, together, strict=True):
            off = float(np.abs(found[row : row + 1] - expected).max() / max(np.abs(expected).max(), 1e-30))
            if not off <= _MAX_RELATIVE_ERROR:
                raise UserError(f'"{offered.model}" gives another "{name}" in a batch of 2, off by "{off:.1e}"', tries)


def _sample(random: np.random.Generator, spec: TensorSpec) -> NDArray[Any]:
    """Two random inputs."""
    shape, dtype = (2, *spec.shape[1:]), np.dtype(spec.dtype)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
