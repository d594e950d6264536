"""An ONNX edge graph as a torch module, node by node, for litert-torch to convert.

litert-torch converts torch modules only, and the graph that was cut, simplified and verified is an ONNX file. So its
nodes are replayed as torch operations. One explicit table says which operators are known; anything else is refused by
name. All modules of one model share the tensors of its constants, so that a multi-signature file stores each once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import NodeProto, helper
from torch import Tensor, nn

from export.graph import Graph
from export.shuffles import Shuffle, shuffles
from splitboard.contract.errors import UserError

Attributes = Mapping[str, Any]
Operator = Callable[[Sequence[Any], Attributes], Tensor]
"""Takes its operands, tensors or plain numbers."""


def _pads(attributes: Attributes) -> tuple[int, int, int, int]:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return top, left, bottom, right


def _conv(x: Sequence[Tensor], attributes: Attributes) -> Tensor:
    top, left, bottom, right = _pads(attributes)
    image, padding = x[0], (top, left)
    if (top, left) != (bottom, right):
        # Written apart, the converter folds it into TensorFlow's SAME padding where it is that.
        image, padding = F.pad(image, (left, right, top, bottom)), (0, 0)
    bias = x[2] if len(x) > 2 else None
    return F.conv2d(
        image,
        x[1],
        bias,
        attributes.get("strides", (1, 1)),
        padding,
        attributes.get("dilations", (1, 1)),
        attributes.get("group", 1),
    )


def _clip(x: Sequence[Tensor], attributes: Attributes) -> Tensor:
    low, high = attributes.get("input_1"), attributes.get("input_2")
    return F.relu6(x[0]) if (low, high) == (0.0, 6.0) else torch.clamp(x[0], low, high)


def _gemm(x: Sequence[Tensor], attributes: Attributes) -> Tensor:
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
        raise UserError('operator "Gemm" with alpha, beta or transA has no TFLite form', ["export with plain Linear"])
    weight = x[1] if attributes.get("transB", 0) else x[1].t()
    return F.linear(x[0], weight, x[2] if len(x) > 2 else None)


def _reduce_mean(x: Sequence[Tensor], attributes: Attributes) -> Tensor:
    # Averaged with the dimensions kept and dropped afterwards: otherwise the converter transposes to NCHW first.
    axes = attributes.get("input_1", attributes.get("axes"))  # an attribute before opset 18
    kept = x[0].mean(axes, keepdim=True)
    return kept if attributes.get("keepdims", 1) else kept.squeeze(axes)


def _global_mean(x: Sequence[Tensor], _: Attributes) -> Tensor:
    # Written on NHWC, as shuffles are: of a map that both take, the converter would make one in NCHW for both.
    return x[0].permute(0, 2, 3, 1).mean((1, 2), keepdim=True).permute(0, 3, 1, 2)


def _reshape(x: Sequence[Tensor], attributes: Attributes) -> Tensor:
    # In ONNX a size of 0 means: as it was.
    return x[0].reshape([x[0].shape[i] if size == 0 else size for i, size in enumerate(attributes["input_1"])])


def _max_pool(x: Sequence[Tensor], attributes: Attributes) -> Tensor:
    top, left, bottom, right = _pads(attributes)
    image = x[0]
    if any((top, left, bottom, right)):
        image = F.pad(image, (left, right, top, bottom), value=attributes[_LOWEST])
    return F.max_pool2d(
        image,
        attributes["kernel_shape"],
        attributes.get("strides", (1, 1)),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _shuffle(x: Sequence[Tensor], attributes: Attributes) -> Tensor:
    # Written on NHWC in four dimensions: in NCHW, or in five, the converter would transpose around it.
    n, channels, height, width = x[0].shape
    groups = attributes[_GROUPS]
    dealt = x[0].permute(0, 2, 3, 1).reshape(n, height * width, groups, channels // groups).transpose(2, 3)
    return dealt.reshape(n, height, width, channels).permute(0, 3, 1, 2)


_GROUPS = "groups"
"""Of a channel shuffle."""

_LOWEST = "lowest"
"""What pads an image before its maximum is taken: 0 where nothing is below, since INT8 has no number for infinity."""


def _lowest(graph: Graph, name: str) -> float:
    """A number that no value of a tensor is below: 0 behind a rectifier."""
    if name not in graph.producer:
        return float("-inf")
    maker = graph.nodes[graph.producer[name]]
    if maker.op_type == "Clip":
        low = maker.input[1] if len(maker.input) > 1 else ""
        return 0.0 if low in graph.constants and float(graph.constant(low)) >= 0 else float("-inf")
    return 0.0 if maker.op_type in ("Relu", "Sigmoid") else float("-inf")


_OPERATORS: Mapping[str, Operator] = {
    "Add": lambda x, a: x[0] + x[1],
    "Clip": _clip,
    "Concat": lambda x, a: torch.cat(list(x), a["axis"]),
    "Conv": _conv,
    "Flatten": lambda x, a: torch.flatten(x[0], a.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_mean,
    "Identity": lambda x, a: x[0],
    "MaxPool": _max_pool,
    "Mul": lambda x, a: x[0] * x[1],
    "ReduceMean": _reduce_mean,
    "Relu": lambda x, a: F.relu(x[0]),
    "Reshape": _reshape,
    "Sigmoid": lambda x, a: torch.sigmoid(x[0]),
    "Squeeze": lambda x, a: x[0].squeeze(tuple(a["input_1"])) if "input_1" in a else x[0].squeeze(),
    "Sub": lambda x, a: x[0] - x[1],
}

_PLAIN_OPERANDS = {"Clip": (1, 2), "ReduceMean": (1,), "Reshape": (1,), "Squeeze": (1,)}
"""Operands that torch takes as plain numbers: they reach the operator as the attributes ``input_1``, ``input_2``."""


@dataclass(frozen=True)
class _Step:
    """One node: what to run on which tensors, and what its result is called."""

    operator: Operator
    operands: tuple[str, ...]
    attributes: Attributes
    result: str


def _step(graph: Graph, node: NodeProto) -> _Step:
    if node.op_type not in _OPERATORS:
        raise UserError(
            f'operator "{node.op_type}" (node "{node.name}") has no TFLite form here',
            [f"known: {', '.join(_OPERATORS)}", "cut before it with --split"],
        )
    plain = _PLAIN_OPERANDS.get(node.op_type, ())
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    attributes |= {
        f"input_{i}": graph.constant(name).tolist() for i, name in enumerate(node.input) if name and i in plain
    }
    if node.op_type == "MaxPool":
        attributes[_LOWEST] = _lowest(graph, node.input[0])
    operands = tuple(name for i, name in enumerate(node.input) if name and i not in plain)
    return _Step(_OPERATORS[node.op_type], operands, attributes, node.output[0])


def _shuffle_step(one: Shuffle) -> _Step:
    """The three operators of a channel shuffle as one."""
    return _Step(_shuffle, (one.source,), {_GROUPS: one.groups}, one.result)


class Replay(nn.Module):
    """Computes some tensors of a graph from its input.

    Args:
        graph: the whole model.
        outputs: names of the tensors to return; one is returned bare, several as a tuple.
        constants: the model's constants as tensors, shared between modules; from `shared_constants`.
        after: what to do to a tensor as soon as it is there, by name, the model's input included.

    Attributes:
        buffer_names: of the constants that are used, by name.
    """

    def __init__(
        self,
        graph: Graph,
        outputs: Sequence[str],
        constants: Mapping[str, Tensor],
        after: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        super().__init__()
        bits = 0
        for name in outputs:
            bits |= graph.ancestors[graph.producer[name]]
        dealt = {one.result: one for one in shuffles(graph) if not {*one.inner} & {*outputs}}
        inside = {name for one in dealt.values() for name in one.inner}
        nodes = [node for i, node in enumerate(graph.nodes) if bits >> i & 1 and node.output[0] not in inside]
        self._steps = [
            _shuffle_step(dealt[node.output[0]]) if node.output[0] in dealt else _step(graph, node) for node in nodes
        ]
        self._image, self._outputs = graph.inputs[0], tuple(outputs)
        used = dict.fromkeys(name for step in self._steps for name in step.operands if name in constants)
        # A scalar stays a plain number: as a tensor it makes the converter transpose around the operator.
        self._scalars = {name: float(constants[name]) for name in used if constants[name].ndim == 0}
        self.buffer_names = {name: f"constant_{i}" for i, name in enumerate(used) if name not in self._scalars}
        for name, buffer in self.buffer_names.items():
            self.register_buffer(buffer, constants[name])
        self._after = dict(after or {})

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps the model's input to the wanted tensors."""
        values: dict[str, Any] = {self._image: self._finished(self._image, image), **self._scalars}
        values.update({name: getattr(self, buffer) for name, buffer in self.buffer_names.items()})
        for step in self._steps:
            made = step.operator([values[name] for name in step.operands], step.attributes)
            values[step.result] = self._finished(step.result, made)
        results = tuple(values[name] for name in self._outputs)
        return results if len(results) > 1 else results[0]

    def _finished(self, name: str, value: Tensor) -> Tensor:
        return self._after[name](value) if name in self._after else value


def shared_constants(graph: Graph) -> dict[str, Tensor]:
    """All constants of a model as tensors."""
    return {name: torch.from_numpy(np.array(graph.constant(name))) for name in graph.constants}
