"""What cannot be deployed is refused by name: of the node, its operator and its module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from export.inputs import DTYPES
from export.naming import node_scope
from splitboard.contract.errors import UserError

CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def where(node: NodeProto, scope: str) -> str:
    """How a node is called in messages."""
    named = f' (node "{node.name}")' if node.name else ""
    return f'operator "{node.op_type}"{named}' + (f' of module "{scope}"' if scope else "")


def check_ends(inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> None:
    """Refuses inputs and outputs that are no dense tensors, inputs of a type without samples, outputs not float32.

    Raises:
        UserError: names the input or output.
    """
    for kind, values in (("input", inputs), ("output", outputs)):
        for value in values:
            form = value.type.WhichOneof("value")
            if form != "tensor_type":
                raise UserError(
                    f'{kind} "{value.name}" is a {str(form).removesuffix("_type")}, not a tensor',
                    ["export the model with tensors at its ends"],
                )
            dtype = _dtype(value)
            if kind == "input" and dtype not in DTYPES:
                raise UserError(f'input "{value.name}" is {dtype}', [f"a model can take: {', '.join(DTYPES)}"])
            if kind == "output" and dtype != "float32":
                raise UserError(
                    f'output "{value.name}" is {dtype}, not float32', ["return the scores that it was made from"]
                )
        if not values:
            raise UserError(f'the graph has "0" {kind}s', ["export the model again, with what it takes and returns"])


def _dtype(value: ValueInfoProto) -> str:
    return helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name


def check_operators(model: ModelProto) -> None:
    """Refuses operators that are not ONNX's own, after functions were inlined, and sparse constants.

    Raises:
        UserError: names node, operator and module, or the constant.
    """
    for node in model.graph.node:
        _check_domain(node, node_scope(node))
    for tensor in model.graph.sparse_initializer:
        raise UserError(f'the constant "{tensor.values.name}" is sparse', ["export the model with dense tensors"])


def _check_domain(node: NodeProto, scope: str) -> None:
    if node.domain not in ("", "ai.onnx"):
        raise UserError(
            f"{where(node, scope)} is of the domain {node.domain}, which no board knows",
            ["export the model with ONNX's own operators", "put the operator into the part after the outputs"],
        )


def check_finite(source: str, model: ModelProto) -> None:
    """Refuses a constant that is not a number or infinite; minus infinity may stand in a mask.

    Raises:
        UserError: names the tensor.
    """
    for name, tensor in _constants(model):
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            values = numpy_helper.to_array(tensor)
            wrong = np.isnan(values) | np.isposinf(values)
            if wrong.any():
                raise UserError(
                    f'"{source}" has "{name}", which is not finite: {int(wrong.sum())} of {values.size} values',
                    ["take a checkpoint from before it diverged"],
                )


def _constants(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                yield node.output[0], attribute.t


def check_clean(model: ModelProto, scopes: Mapping[str, str]) -> None:
    """Refuses what must not be left in a clean graph.

    Raises:
        UserError: control flow, randomness, a shape that depends on values, an input without use, an output that does
            not depend on the inputs or is an input or another output.
    """
    for node in model.graph.node:
        _check_node(node, scopes.get(node.output[0], "") if node.output else "")
    _check_shapes(model, scopes)
    _check_flow(model)


def _check_node(node: NodeProto, scope: str) -> None:
    _check_domain(node, scope)
    if node.op_type in CONTROL_FLOW:
        raise UserError(
            f"{where(node, scope)} is control flow that depends on values",
            ["compute both sides and choose with Where (torch.where)", "take the condition out of the model"],
        )
    training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
    if node.op_type in RANDOM or training:
        raise UserError(
            f"{where(node, scope)} gives other results every time",
            ["export the model to infer: model.eval(), and F.dropout(x, training=self.training)"],
        )


def _check_shapes(model: ModelProto, scopes: Mapping[str, str]) -> None:
    known = {tensor.name for tensor in model.graph.initializer} | {""}
    for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            known.add(value.name)
    for node in model.graph.node:
        unknown = next((name for name in node.output if name not in known), None)
        if unknown is not None:
            raise UserError(
                f"the shape of what {where(node, scopes.get(unknown, ''))} returns depends on values of a tensor",
                ["a board runs fixed shapes: return masks or scores, and choose from them afterwards"],
            )


def _check_flow(model: ModelProto) -> None:
    """Every input is used, every output comes from some input by a way of its own."""
    inputs = [value.name for value in model.graph.input]
    origin = {name: name for name in inputs}
    depends, used = set(inputs), set()
    for node in model.graph.node:
        used.update(node.input)
        if node.op_type == "Identity":
            origin[node.output[0]] = origin.get(node.input[0], node.input[0])
        if depends & set(node.input):
            depends.update(node.output)
    for name in inputs:
        if name not in used:
            raise UserError(
                f'the model does not use its input "{name}"', ["take it out of forward", "leave its --input out"]
            )
    outputs = [value.name for value in model.graph.output]
    for name in outputs:
        if name not in depends:
            raise UserError(
                f'the output "{name}" is the same for every input', ["take it out of what the model returns"]
            )
        _check_own(name, origin.get(name, name), inputs, outputs, origin)


def _check_own(
    name: str, source: str, inputs: Sequence[str], outputs: Sequence[str], origin: Mapping[str, str]
) -> None:
    same = [one for one in outputs if one != name and origin.get(one, one) == source]
    if source in inputs or same:
        other = f'the input "{source}"' if source in inputs else f'the output "{same[0]}"'
        raise UserError(f'the output "{name}" is the same tensor as {other}', ["return it only once"])
