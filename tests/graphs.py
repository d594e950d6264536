"""Small ONNX graphs for tests: random ones of Adds and Relus, and ones from a list of nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.graph import Graph

Choices = list[tuple[int, int]]
"""Per node, which two earlier tensors it takes."""


def made_of(
    nodes: Sequence[NodeProto],
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    constants: Mapping[str, np.ndarray] | None = None,
    shape: Sequence[int] = (2,),
) -> Graph:
    """A checked graph; inputs have the shape given, outputs what follows from it."""
    made = helper.make_model(
        helper.make_graph(
            list(nodes),
            "graph",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    inferred = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(inferred)
    return Graph(inferred)


def random_graph(choices: Choices, n_inputs: int = 1, n_outputs: int = 1) -> Graph:
    """Node i takes two earlier tensors; what nobody takes is added up into the outputs, in turn."""
    inputs = [f"x{i}" for i in range(n_inputs)]
    names, nodes, used = list(inputs), [], set()
    for i, picks in enumerate(choices):
        taken = [names[pick % len(names)] for pick in picks]
        kind = "Relu" if taken[0] == taken[1] else "Add"
        nodes.append(helper.make_node(kind, taken[: 1 if kind == "Relu" else 2], [f"t{i}"]))
        used.update(taken)
        names.append(f"t{i}")
    loose = [name for name in names if name not in used]
    shares = [loose[i::n_outputs] or [names[-1]] for i in range(n_outputs)]
    nodes += [helper.make_node("Sum", share, [f"y{i}"]) for i, share in enumerate(shares)]
    return made_of(nodes, inputs, [f"y{i}" for i in range(n_outputs)])
