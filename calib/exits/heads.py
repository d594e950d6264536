"""Puts fitted heads into a model's graph, whose other outputs keep every bit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from calib.exits.fitting import IMAGE_RANK, Fitted
from export.graph import Graph
from export.reference import reference_session
from splitboard.contract.errors import SplitboardError, UserError

_SEED = 0
_N_IMAGES = 3


@dataclass(frozen=True)
class Head:
    """A head and its place.

    Attributes:
        task: that it answers.
        scope: the module that it follows; names the head.
        tensor: that it takes.
        fitted: its weights.
    """

    task: str
    scope: str
    tensor: str
    fitted: Fitted

    @property
    def place(self) -> str:
        """What the heads at this place share is called: ``exit_blocks_4``."""
        return f"exit_{_plain(self.scope)}"

    @property
    def output(self) -> str:
        """The exit: ``defect_exit_blocks_4``."""
        return f"{_plain(self.task)}_{self.place}"


def _plain(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")


def with_heads(whole: Graph, heads: Sequence[Head]) -> Graph:
    """The model with further outputs.

    Heads at one place share their pooling. With one each, TFLite's converter, which counts operators around a tensor,
    would rather transpose the tensor than all of them, and in every signature that goes through it.

    Args:
        whole: the model, exits that it has included.
        heads: to append, in order; an image-like tensor is averaged over its positions first.

    Raises:
        UserError: the model has a tensor of the name of a head.
        SplitboardError: another output changed.
    """
    model = ModelProto()
    model.CopyFrom(whole.model)
    for head in heads:
        _append(model, whole, head)
    onnx.checker.check_model(model, full_check=True)
    made = Graph(model)
    _require_same_outputs(whole, made)
    return made


def _append(model: ModelProto, whole: Graph, head: Head) -> None:
    taken, rank = head.tensor, len(whole.shapes[head.tensor])
    if rank == IMAGE_RANK:
        taken = _made(model, helper.make_node("GlobalAveragePool", [taken], [f"{head.place}.pooled"]))
    if rank != 2:
        taken = _made(model, helper.make_node("Flatten", [taken], [f"{head.place}.values"], axis=1))
    weight, bias = f"{head.output}.weight", f"{head.output}.bias"
    if any(head.output in node.output for node in model.graph.node) or head.output in whole.shapes:
        raise UserError(f'the model has "{head.output}" already', ["name another place with --at, or another --task"])
    _made(model, helper.make_node("Gemm", [taken, weight, bias], [head.output], transB=1))
    model.graph.initializer.append(numpy_helper.from_array(head.fitted.weight, weight))
    model.graph.initializer.append(numpy_helper.from_array(head.fitted.bias, bias))
    shape = [1, len(head.fitted.bias)]
    model.graph.output.append(helper.make_tensor_value_info(head.output, TensorProto.FLOAT, shape))


def _made(model: ModelProto, node: NodeProto) -> str:
    """Appends a node unless it is there; returns what it makes."""
    name = str(node.output[0])
    node.name = name
    there = next((one for one in model.graph.node if name in one.output), None)
    if there is None:
        model.graph.node.append(node)
    elif (there.op_type, there.input) != (node.op_type, node.input):
        raise UserError(f'the model has another tensor "{name}"', ["name another place with --at"])
    return name


def _require_same_outputs(before: Graph, after: Graph) -> None:
    """Runs both on seeded inputs; the other outputs must be equal bit for bit."""
    random = np.random.default_rng(_SEED)
    old, new = reference_session(before.model), reference_session(after.model)
    for _ in range(_N_IMAGES):
        feed: dict[str, NDArray[np.float32]] = {
            name: random.uniform(-1, 1, before.shapes[name]).astype(np.float32) for name in before.inputs
        }
        found = zip(before.outputs, old.run(before.outputs, feed), new.run(before.outputs, feed), strict=True)
        for name, one, other in found:
            if not np.array_equal(one, other, equal_nan=True):
                raise SplitboardError(f'the exits changed the output "{name}"')
