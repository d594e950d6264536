"""Which tensors are outputs of whole blocks of the user's model, from the graph and its module scopes alone.

The rule. A *weighted layer* is a convolution or a matrix product with a constant, not a norm. An element of a sequence
of modules (``Sequential`` or ``ModuleList``, at any depth) with two or more weighted layers is a block unless it
contains two or more disjoint such elements; of nested ones the outermost that survives. A task head is no block: its
output is a result and not a place to cut. In a model without any block (VGG), every activation and pooling output of
its convolutional part counts. EfficientNet-B0 has 16 blocks by this rule and VGG16 18 activations and poolings, which
are the candidates of dynamic split computing (arXiv 2205.11269).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from onnx import NodeProto

from export.cuts import head
from export.graph import Graph, NodeSet, members
from export.scopes import is_inside

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_POOLINGS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"})
_ACTIVATIONS = frozenset(
    {
        "Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu",
        "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip


def block_outputs(graph: Graph, scopes: Mapping[str, str], sequences: Sequence[str]) -> dict[str, str]:
    """Tensors that are the output of a whole block, and the block's scope.

    Args:
        graph: the whole model.
        scopes: module scope by tensor.
        sequences: scopes of the model's sequences of modules.

    Returns:
        Scope by tensor; in a model without blocks the activations and poolings of its convolutional part, without one.
    """
    ends = {name for name in graph.outputs if not graph.consumers.get(name)}
    blocks: dict[str, str] = {}
    for block in find_blocks(graph, scopes, sequences):
        output = _output(graph, scopes, block)
        if output is not None and output not in ends:
            blocks[output] = block
    if blocks and not _all_in_heads(graph, blocks):
        return blocks
    return dict.fromkeys(_activations_and_poolings(graph, scopes), "")


def _all_in_heads(graph: Graph, tensors: Iterable[str]) -> bool:
    """Whether every tensor is made in the head of one task, behind a backbone with weights that tasks share."""
    heads: NodeSet = 0
    for task in graph.outputs if len(graph.outputs) > 1 else ():
        heads |= head(graph, task)
    shared = graph.everything & ~heads
    has_backbone = any(_weight(graph, graph.nodes[i]) is not None for i in members(shared))
    return has_backbone and all(heads >> graph.producer[name] & 1 for name in tensors)


def find_blocks(graph: Graph, scopes: Mapping[str, str], sequences: Sequence[str]) -> list[str]:
    """Scopes of the elements that are blocks, heads included, in the order of the graph."""
    weights: dict[str, set[str]] = {}
    for node in graph.nodes:
        weight = _weight(graph, node)
        if weight is not None:
            for element in _elements(scopes.get(node.output[0], ""), sequences):
                weights.setdefault(element, set()).add(weight)
    candidates = [element for element, found in weights.items() if len(found) >= 2]
    survivors = [
        one
        for one in candidates
        if _is_chain([other for other in candidates if other != one and is_inside(other, one)])
    ]
    return [one for one in survivors if not any(one != other and is_inside(one, other) for other in survivors)]


def _weight(graph: Graph, node: NodeProto) -> str | None:
    """Name of the weights of a convolution or a linear layer."""
    if node.op_type in _CONVOLUTIONS or node.op_type == "Gemm":
        return node.input[1] if node.input[1] in graph.constants else None
    if node.op_type == "MatMul":
        return next((name for name in node.input if name in graph.constants), None)
    return None


def _elements(scope: str, sequences: Iterable[str]) -> list[str]:
    """The elements of sequences that a scope lies in."""
    found = []
    for sequence in sequences:
        prefix = f"{sequence}." if sequence else ""
        if scope.startswith(prefix) and scope != sequence:
            found.append(prefix + scope[len(prefix) :].partition(".")[0])
    return found


def _is_within(element: str, other: str) -> bool:
    return element != other and is_inside(element, other)


def _is_chain(elements: Sequence[str]) -> bool:
    """Whether no two of the elements are disjoint: each lies in the next shorter one."""
    nested = sorted(elements, key=len)
    return all(is_inside(inner, outer) for outer, inner in itertools.pairwise(nested))


def _output(graph: Graph, scopes: Mapping[str, str], block: str) -> str | None:
    """The one tensor that leaves a block, after a residual add that its caller makes; ``None`` where several leave."""
    inside: NodeSet = 0
    for i, node in enumerate(graph.nodes):
        scope = scopes.get(node.output[0], "")
        if is_inside(scope, block):
            inside |= 1 << i
    made = [name for i in members(inside) for name in graph.nodes[i].output if name]
    outside = [name for name in made if name in graph.outputs or graph.consumer_set.get(name, 0) & ~inside]
    if len(outside) != 1:
        return None
    entering = {name for i in members(inside) for name in graph.nodes[i].input} - set(made)
    return _after_residual_add(graph, outside[0], inside, entering)


def _after_residual_add(graph: Graph, output: str, inside: NodeSet, entering: set[str]) -> str:
    """``x + block(x)`` is often written by the caller of the block, outside of its scope."""
    consumers = graph.consumers.get(output, [])
    if len(consumers) == 1 and not inside >> consumers[0] & 1:
        node = graph.nodes[consumers[0]]
        others = set(node.input) - {output}
        if node.op_type == "Add" and others and others <= entering:
            return str(node.output[0])
    return output


def _activations_and_poolings(graph: Graph, scopes: Mapping[str, str]) -> set[str]:
    """Outputs of activations and poolings up to the last convolution, and right behind it in the same sequence."""
    convolutions = [node for node in graph.nodes if node.op_type in _CONVOLUTIONS]
    if not convolutions:
        return set()
    last = convolutions[-1].output[0]
    upstream = graph.needed(node.output[0] for node in convolutions)
    parent = scopes.get(last, "").rpartition(".")[0]
    while len(graph.consumers.get(last, [])) == 1:
        (i,) = graph.consumers[last]
        node, scope = graph.nodes[i], scopes.get(graph.nodes[i].output[0], "")
        if not _is_activation_or_pooling(graph, node) or (parent and not is_inside(scope, parent)):
            break
        upstream, last = upstream | 1 << i, node.output[0]
    return {
        str(graph.nodes[i].output[0]) for i in members(upstream) if _is_activation_or_pooling(graph, graph.nodes[i])
    }


def _is_activation_or_pooling(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in _ACTIVATIONS | _POOLINGS or _gates_itself(graph, node)


def _gates_itself(graph: Graph, node: NodeProto) -> bool:
    """``x * gate(x)`` as in SiLU, hard-swish or Mish that were exported in parts."""
    if node.op_type != "Mul" or any(name in graph.constants for name in node.input):
        return False
    for value, gate in (node.input, reversed(node.input)):
        current = gate
        while current in graph.producer and current != value:
            taken = [
                name for name in graph.nodes[graph.producer[current]].input if name not in graph.constants and name
            ]
            if len(taken) != 1 or graph.nodes[graph.producer[current]].op_type in _CONVOLUTIONS | _POOLINGS:
                break
            current = taken[0]
        if current == value and gate != value:
            return True
    return False
