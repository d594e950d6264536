"""Early exits: outputs of the model's graph that answer a task before the model's end, on the edge alone.

Cuts are of the model without its exits, whose ids and payloads so stay what they are. An exit goes wherever everything
is that it takes; no server graph holds one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onnx import ModelProto

from export.blocks import block_outputs
from export.cuts import Cut
from export.graph import Graph, NodeSet, members
from export.scopes import module_ends
from splitboard.contract.bundle import Exit, Task
from splitboard.contract.errors import UserError


def without_exits(whole: Graph, exits: Collection[str]) -> Graph:
    """The model without the outputs that are exits and without what they alone need.

    Args:
        whole: the model with its exits.
        exits: the outputs; without any the result is the same graph.
    """
    if not exits:
        return whole
    kept = whole.everything & ~_own(whole, exits)
    nodes = [whole.nodes[i] for i in members(kept)]
    used = {name for node in nodes for name in node.input}
    model = ModelProto()
    model.CopyFrom(whole.model)
    del model.graph.node[:], model.graph.output[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.output.extend(one for one in whole.model.graph.output if one.name not in exits)
    model.graph.initializer.extend(one for name, one in whole.constants.items() if name in used)
    return Graph(model)


def find_exits(
    whole: Graph, tasks: Sequence[Task], exits: Mapping[str, str], scopes: Mapping[str, str], sequences: Sequence[str]
) -> tuple[Exit, ...]:
    """The exits among a model's outputs, in their order.

    Args:
        whole: the model with its exits.
        tasks: the real ones.
        exits: task by output.
        scopes: module scope by tensor.
        sequences: scopes of the model's sequences of modules.

    Raises:
        UserError: an exit is no output of the model or no end of it, its task does not exist, or it has other classes.
    """
    if not exits:
        return ()
    by_name = {task.name: task for task in tasks}
    for output, task in exits.items():
        if output not in whole.outputs:
            raise UserError(
                f'the exit "{output}" is no output of the model', [f"its outputs are: {', '.join(whole.outputs)}"]
            )
        if task not in by_name:
            raise UserError(
                f'exit "{output}" is declared for the task "{task}"', [f"the model's tasks are: {', '.join(by_name)}"]
            )
        if whole.consumers.get(output):
            node = whole.nodes[whole.consumers[output][0]]
            raise UserError(
                f'exit "{output}" is taken by operator "{node.op_type}" ("{node.output[0]}"): an exit ends where it is',
                ["let the model return a copy of its own", f'or leave "{output}" out of [exits]'],
            )
        shape, classes = whole.shapes[output], len(by_name[task].labels)
        if shape != (1, classes) or classes < 2:
            raise UserError(
                f'exit "{output}" gives "{"x".join(map(str, shape))}", task {task} has {classes} classes',
                ["an exit scores the classes of its task: 1xN, of two or more"],
            )
    graph = without_exits(whole, exits)
    blocks, ends = block_outputs(graph, scopes, sequences), module_ends(graph, scopes)
    found = []
    for output in (name for name in whole.outputs if name in exits):
        taken = taken_by(whole, output, exits)
        after = [blocks.get(name) or (*ends.get(name, ()), scopes.get(name, ""))[0] for name in taken]
        found.append(Exit(output, exits[output], " + ".join(filter(None, after)), taken))
    return tuple(found)


def taken_by(whole: Graph, output: str, exits: Collection[str]) -> tuple[str, ...]:
    """The tensors of the model without its exits that one of these takes, in the order of the graph."""
    own = _own(whole, exits)
    head = own & whole.needed([output])
    inputs = {name for i in members(head) for name in whole.nodes[i].input if name and name not in whole.constants}
    outside = [name for name in inputs if name in whole.inputs or not own >> whole.producer[name] & 1]
    return tuple(sorted(outside, key=lambda name: (whole.producer.get(name, -1), name)))


def exits_at(graph: Graph, exits: Sequence[Exit], cut: Cut) -> tuple[str, ...]:
    """The exits that an edge half can give: all that they take is there. Local tasks need none.

    Args:
        graph: the model without its exits.
        exits: all of them.
        cut: of that graph.
    """
    return tuple(one.output for one in exits if one.task not in cut.local and not graph.needed(one.takes) & ~cut.edge)


def head_nodes(whole: Graph, graph: Graph, outputs: Collection[str]) -> NodeSet:
    """The nodes of some exits' heads: those that the model without exits does not have.

    Args:
        whole: the model with its exits.
        graph: the same without.
        outputs: the exits.
    """
    return sum(1 << i for i in members(whole.needed(outputs)) if whole.nodes[i].output[0] not in graph.producer)


def _own(whole: Graph, exits: Collection[str]) -> NodeSet:
    """What the exits need and no task does."""
    tasks = [name for name in whole.outputs if name not in exits]
    return whole.needed(exits) & ~whole.needed(tasks)
