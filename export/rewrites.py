"""Exact rewrites of an ONNX graph into the forms that boards are fast at. Each works in place, and counts.

All take a graph whose shapes are inferred (``value_info``) and whose constants are initializers, and keep every name
that they can. A new tensor gets the module scope of the one that it helps to make.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

Scopes = MutableMapping[str, str]


def lift_constants(model: ModelProto) -> None:
    """``Constant`` nodes become initializers."""
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        (attribute,) = node.attribute
        if attribute.name == "value":
            values = numpy_helper.to_array(attribute.t)
        elif attribute.name in ("value_float", "value_floats"):
            values = np.asarray(helper.get_attribute_value(attribute), np.float32)
        elif attribute.name in ("value_int", "value_ints"):
            values = np.asarray(helper.get_attribute_value(attribute), np.int64)
        else:
            continue  # text, or sparse: no operator that a board runs takes it
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)


def drop_no_ops(model: ModelProto, _scopes: Scopes) -> None:
    """Takes out ``Identity``, ``Dropout`` when it infers, and pooling over windows of one value."""
    for node in list(model.graph.node):
        if _is_identity(node) or _is_resting_dropout(model, node) or _is_pool_of_one(node):
            _bypass(model, node)


def _is_identity(node: NodeProto) -> bool:
    return node.op_type == "Identity"


def _is_resting_dropout(model: ModelProto, node: NodeProto) -> bool:
    if node.op_type != "Dropout" or any(_takers(model, name) for name in node.output[1:]):
        return False
    training = _constant(model, node.input[2]) if len(node.input) > 2 and node.input[2] else np.False_
    return training is not None and not bool(np.any(training))


def _is_pool_of_one(node: NodeProto) -> bool:
    if node.op_type not in ("AveragePool", "MaxPool", "LpPool") or len(node.output) > 1:
        return False
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    padded = any(attributes.get("pads", ())) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    sizes = [*attributes["kernel_shape"], *attributes.get("strides", ())]
    return all(size == 1 for size in sizes) and not padded and node.op_type != "LpPool"


def _bypass(model: ModelProto, node: NodeProto) -> None:
    """Takes out a node that hands on its first input; it stays, as ``Identity``, where two ends of the graph meet."""
    source, result = node.input[0], node.output[0]
    outputs = {value.name for value in model.graph.output}
    if result not in outputs:
        _replace_input(model, result, source)
    else:
        producer = next((one for one in model.graph.node if source in one.output), None)
        if producer is None or source in outputs:  # both ends must keep their names
            node.CopyFrom(helper.make_node("Identity", [source], [result], name=node.name))
            return
        producer.output[:] = [result if name == source else name for name in producer.output]
        _replace_input(model, source, result)
    model.graph.node.remove(node)


def average_globally(model: ModelProto, scopes: Scopes) -> None:
    """``ReduceMean`` over height and width becomes ``GlobalAveragePool``, and ``Squeeze`` where it drops both.

    TensorRT and version conversion know the pooling in every opset; the axes of the mean moved to an input in opset 18.
    """
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]
    }

    def pooled(node: NodeProto) -> Sequence[NodeProto]:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        axes = attributes.get("axes")
        if axes is None and len(node.input) > 1 and node.input[1]:
            axes = _constant(model, node.input[1])
        if ranks.get(node.input[0]) != 4 or axes is None or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
            return [node]
        result = node.output[0]
        if attributes.get("keepdims", 1):
            return [helper.make_node("GlobalAveragePool", [node.input[0]], [result], name=node.name)]
        inner, both = f"{result}/pooled", f"{result}/axes"
        scopes[inner] = scopes.get(result, "")
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), both))
        return [
            helper.make_node("GlobalAveragePool", [node.input[0]], [inner], name=node.name),
            helper.make_node("Squeeze", [inner, both], [result], name=f"{node.name}/squeeze"),
        ]

    _rewrite(model, "ReduceMean", pooled)


def scale_and_shift(model: ModelProto, scopes: Scopes) -> None:
    """``BatchNormalization`` that no convolution before it could take in becomes ``Mul`` and ``Add``."""
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim) for value in [*model.graph.input, *model.graph.value_info]
    }

    def scaled(node: NodeProto) -> Sequence[NodeProto]:
        values = [_constant(model, name) for name in node.input[1:5]]
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        known = [one.astype(np.float64) for one in values if one is not None]
        if len(known) < 4 or node.input[0] not in ranks or attributes.get("training_mode", 0):
            return [node]
        weight, bias, mean, variance = known
        factor = weight / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        shape = (-1, *[1] * (ranks[node.input[0]] - 2))
        result = node.output[0]
        inner, by, plus = (f"{result}/{part}" for part in ("scaled", "factor", "shift"))
        scopes[inner] = scopes.get(result, "")
        for name, constant in ((by, factor), (plus, bias - mean * factor)):
            model.graph.initializer.append(numpy_helper.from_array(constant.astype(np.float32).reshape(shape), name))
        return [
            helper.make_node("Mul", [node.input[0], by], [inner], name=node.name),
            helper.make_node("Add", [inner, plus], [result], name=f"{node.name}/shift"),
        ]

    _rewrite(model, "BatchNormalization", scaled)


def convolve_flattened(model: ModelProto, _scopes: Scopes) -> None:
    """A grouped convolution of a flattened image becomes one of the image, with a window as large as the image.

    That is how a block-diagonal layer stands behind a feature map: ``[1, c, h, w]`` seen as ``[1, c * h * w, 1, 1]``.
    Where a group holds whole channels the two compute the same, and the flattening is no operator of its own.
    """
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]
    }
    flattened = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Reshape"}

    def on_image(node: NodeProto) -> Sequence[NodeProto]:
        source = flattened.get(node.input[0], "")
        weight = _constant(model, node.input[1])
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        groups = int(attributes.get("group", 1))
        image = shapes.get(source, [])
        if groups == 1 or weight is None or len(image) != 4 or any(attributes.get("pads", ())):
            return [node]
        one, channels, height, width = image
        if shapes.get(node.input[0]) != [one, channels * height * width, 1, 1] or channels % groups:
            return [node]
        windows = f"{node.input[1]}/windows"
        shaped = weight.reshape(len(weight), channels // groups, height, width)
        model.graph.initializer.append(numpy_helper.from_array(shaped, windows))
        inputs = [source, windows, *node.input[2:]]
        kernel = [height, width]
        return [helper.make_node("Conv", inputs, node.output, name=node.name, group=groups, kernel_shape=kernel)]

    _rewrite(model, "Conv", on_image)
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    for node in [node for node in model.graph.node if node.output[0] in flattened and node.output[0] not in used]:
        model.graph.node.remove(node)


def drop_unused_constants(model: ModelProto) -> None:
    """Takes out initializers that no node takes."""
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    if len(kept) < len(model.graph.initializer):
        copies = ModelProto()
        copies.graph.initializer.extend(kept)
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies.graph.initializer)


def _rewrite(model: ModelProto, op_type: str, replacement: Callable[[NodeProto], Sequence[NodeProto]]) -> None:
    """Replaces every node of a type, in its place in the order."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes += replacement(node) if node.op_type == op_type else [node]
    copies = ModelProto()
    copies.graph.node.extend(nodes)
    del model.graph.node[:]
    model.graph.node.extend(copies.graph.node)


def _replace_input(model: ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _takers(model: ModelProto, name: str) -> list[NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def _constant(model: ModelProto, name: str) -> NDArray[np.generic] | None:
    tensor = next((one for one in model.graph.initializer if one.name == name), None)
    return None if tensor is None else numpy_helper.to_array(tensor)
