"""A three-task network whose cuts need several tensors, the image among them, written as ONNX; trained by nobody.

``early`` feeds the head of ``size``, ``late`` that of ``shape``; ``colour`` takes the image, ``late`` and the scores of
``shape``.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

TASKS = {"shape": ("round", "square"), "size": ("small", "medium", "large", "huge"), "colour": ("red", "green", "blue")}


def make() -> ModelProto:
    """Image of 32x32 to {"shape": [1, 2], "size": [1, 4], "colour": [1, 3]}."""
    random = np.random.default_rng(6)

    def weights(name: str, *shape: int) -> TensorProto:
        values = random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
        return numpy_helper.from_array(values.astype(np.float32), name)

    constants = [
        weights("early.w", 8, 3, 3, 3),
        weights("late.w", 12, 8, 3, 3),
        weights("size.w", 4, 8),
        weights("shape.w", 2, 12),
        weights("colour.w", 3, 3 + 12),
        weights("hint.w", 3, 2),
        numpy_helper.from_array(np.array([2, 3]), "plane"),
        numpy_helper.from_array(np.float32(0), "zero"),
        numpy_helper.from_array(np.float32(6), "six"),
    ]
    nodes = [
        *_stage("image", "early"),
        *_stage("early", "late"),
        _mean("late", "late.mean"),
        helper.make_node("Gemm", ["late.mean", "shape.w"], ["shape"], transB=1),
        _mean("early", "early.mean"),
        helper.make_node("Gemm", ["early.mean", "size.w"], ["size"], transB=1),
        _mean("image", "image.mean"),
        helper.make_node("Concat", ["image.mean", "late.mean"], ["all"], axis=1),
        helper.make_node("Gemm", ["all", "colour.w"], ["plain"], transB=1),
        helper.make_node("Gemm", ["shape", "hint.w"], ["hint"], transB=1),
        helper.make_node("Add", ["plain", "hint"], ["colour"]),
    ]
    graph = helper.make_graph(
        nodes,
        "branches",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info(task, TensorProto.FLOAT, [1, len(labels)]) for task, labels in TASKS.items()],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return made


def _stage(source: str, target: str) -> list[NodeProto]:
    """Half the size, then what ReLU6 is exported to."""
    linear = f"{target}.conv"
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    return [
        helper.make_node("Conv", [source, f"{target}.w"], [linear], **window),
        helper.make_node("Clip", [linear, "zero", "six"], [target]),
    ]


def _mean(source: str, target: str) -> NodeProto:
    return helper.make_node("ReduceMean", [source, "plane"], [target], keepdims=0)
