"""Writes the graphs of this folder, one per rule of `calib.qdq.legal`: ``python tests/invalid/make.py``.

Each is the graph of ``legal.onnx``, a convolution in INT8, with one thing wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FOLDER = Path(__file__).parent
Constants = dict[str, NDArray[np.generic]]


def legal() -> ModelProto:
    """Conv of an image and of weights, both in INT8, with a float bias."""
    return model(conv_nodes(), conv_constants())


def conv_nodes(axis: int = 0) -> list[NodeProto]:
    """Q/DQ of the image and of the weights, and the convolution."""
    return [*pair("x", 1), *pair("w", axis), helper.make_node("Conv", ["x/d", "w/d", "b"], ["y"])]


def conv_constants(axis: int = 0) -> Constants:
    """Weights of 4 filters of 3x3 for 3 channels, and scales along one of their axes."""
    weights = np.linspace(-1, 1, 4 * 3 * 3 * 3, dtype=np.float32).reshape(4, 3, 3, 3)
    channels = weights.shape[axis]
    return {
        "w": weights,
        "b": np.linspace(0, 1, 4, dtype=np.float32),
        "x/s": np.array(0.03125, np.float32),
        "x/z": np.array(0, np.int8),
        "w/s": np.full(channels, 0.0078125, np.float32),
        "w/z": np.zeros(channels, np.int8),
    }


def pair(tensor: str, axis: int) -> list[NodeProto]:
    """QuantizeLinear and DequantizeLinear behind a tensor."""
    scale, zero = f"{tensor}/s", f"{tensor}/z"
    return [
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{tensor}/q"], axis=axis),
        helper.make_node("DequantizeLinear", [f"{tensor}/q", scale, zero], [f"{tensor}/d"], axis=axis),
    ]


def model(
    nodes: list[NodeProto],
    constants: Constants,
    *,
    shape: tuple[int | str, ...] = (1, 3, 8, 8),
    opset: int = 13,
    elem_type: int = TensorProto.FLOAT,
) -> ModelProto:
    """A graph from ``x`` to ``y``, whose shape is inferred."""
    image = helper.make_tensor_value_info("x", elem_type, shape)
    answer = helper.make_tensor_value_info("y", elem_type, None)
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", [image], [answer], initializers)
    versions = {node.domain: 1 for node in nodes} | {"": opset}
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in versions.items()], ir_version=7)
    made.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(made).graph.output[0])
    return made


def changed(**constants: NDArray[np.generic]) -> ModelProto:
    """The legal graph with other constants; ``x_s`` stands for ``x/s``."""
    return model(conv_nodes(), conv_constants() | {name.replace("_", "/"): v for name, v in constants.items()})


def int32_bias() -> ModelProto:
    """As ONNX Runtime's quantiser writes it by default."""
    bias = {"b/q": np.arange(4, dtype=np.int32), "b/s": np.full(4, 2**-12, np.float32), "b/z": np.zeros(4, np.int32)}
    node = helper.make_node("DequantizeLinear", ["b/q", "b/s", "b/z"], ["b"], axis=0)
    constants = {name: value for name, value in conv_constants().items() if name != "b"}
    return model([node, *conv_nodes()], constants | bias)


def stored_weights() -> ModelProto:
    """Weights as INT8 alone, another default of ONNX Runtime's quantiser."""
    nodes = [node for node in conv_nodes() if node.output[0] != "w/q"]
    quantised = np.arange(-54, 54, dtype=np.int8).reshape(4, 3, 3, 3)
    return model(nodes, {name: value for name, value in conv_constants().items() if name != "w"} | {"w/q": quantised})


def per_channel_image() -> ModelProto:
    """One scale per channel of what is no constant."""
    return changed(x_s=np.full(3, 0.03125, np.float32), x_z=np.zeros(3, np.int8))


def one_operator(
    op_type: str,
    *,
    opset: int = 13,
    shape: tuple[int | str, ...] = (1, 3, 8, 8),
    elem_type: int = TensorProto.FLOAT,
) -> ModelProto:
    """One operator, without INT8."""
    return model([helper.make_node(op_type, ["x"], ["y"])], {}, opset=opset, shape=shape, elem_type=elem_type)


GRAPHS: Mapping[str, ModelProto] = {
    "legal": legal(),
    "unsigned": changed(x_z=np.array(0, np.uint8)),
    "zero_point": changed(x_z=np.array(3, np.int8)),
    "int32_bias": int32_bias(),
    "axis": model(conv_nodes(axis=1), conv_constants(axis=1)),
    "axis_of_activations": per_channel_image(),
    "scale": changed(x_s=np.array(0, np.float32)),
    "scale_in_fp16": changed(x_s=np.array(0.03125, np.float16)),
    "stored_weights": stored_weights(),
    "type": one_operator("Abs", elem_type=TensorProto.INT16),
    "float64": one_operator("Abs", elem_type=TensorProto.DOUBLE),
    "dynamic": one_operator("Relu", shape=("batch", 3, 8, 8)),
    "operator": one_operator("Det"),
    "opset": one_operator("Relu", opset=18),
}
"""By name of the file. INT8 on a board without it is ``legal`` on such a board."""


if __name__ == "__main__":
    for name, graph in GRAPHS.items():
        onnx.save(graph, FOLDER / f"{name}.onnx")
