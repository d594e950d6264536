"""Proves cuts: server(edge(x)) equals the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from export.cut import cut, edge_graph, server_graph
from export.cuts import Cut
from export.graph import Graph
from export.reference import reference_options, reference_session, relative_error
from splitboard.contract.errors import SplitboardError

LIMIT = 1e-5
"""Largest max |difference| / max |reference| per output, in float32 with the optimiser off."""

_N_WORKERS = 2
"""Sessions that run side by side, each on one thread."""

_MIN_EXTERNAL_VALUES = 1024
"""Constants smaller than this travel inside the graph; shape inference needs to see some of them."""

Tensors = Mapping[str, NDArray[Any]]
"""Values by tensor name."""


def verify_cut(graph: Graph, where: Cut, samples: Sequence[Tensors]) -> dict[str, float]:
    """Runs both halves and the whole in ONNX Runtime.

    Args:
        graph: the whole model.
        where: the division of its nodes; local tasks are answered by the edge half.
        samples: the model's inputs by name, once per sample.

    Returns:
        By output name, max |server(edge(x)) - whole(x)| / max |whole(x)|.

    Raises:
        SplitboardError: an output differs by more than `LIMIT`.
    """
    edge, server, whole = (reference_session(model) for model in (*cut(graph, where), graph.model))
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in graph.outputs}
    expected: dict[str, list[NDArray[Any]]] = {name: [] for name in graph.outputs}
    for sample in samples:
        sent = {**sample, **_run(edge, sample)}
        answers = {**sent, **_run(server, sent)}
        for name, value in _run(whole, sample).items():
            expected[name].append(value)
            found[name].append(answers[name])
    return {
        name: _checked(relative_error(np.stack(found[name]), np.stack(expected[name])), where, name)
        for name in graph.outputs
    }


def verify_all(
    graph: Graph, cuts: Mapping[str, Cut], sample: Tensors, on_cut: Callable[[int], None] | None = None
) -> dict[str, dict[str, float]]:
    """Proves many cuts at once.

    The model runs once and gives every tensor that crosses anywhere: an edge half is a part of the model with the same
    nodes, so those are the edge halves' results (that each half holds all nodes that its results need is checked). Then
    every server half runs on them. All sessions share the weights.

    Args:
        graph: the whole model.
        cuts: divisions of its nodes, without local tasks, by split id.
        sample: the model's inputs by name.
        on_cut: called with the number of cuts done.

    Returns:
        By split id and output name, max |server(edge(x)) - whole(x)| / max |whole(x)|.

    Raises:
        SplitboardError: an output differs by more than `LIMIT`.
    """
    lean = _without_weights(graph)
    weights = {name: graph.constant(name) for name, tensor in lean.constants.items() if _is_external(tensor)}
    made = [name for name in _crossing_anywhere(cuts) if name not in graph.inputs]
    made = list(dict.fromkeys((*graph.outputs, *made)))
    whole = _session(edge_graph(lean, Cut(graph.everything, tuple(made))), weights)
    values = {**sample, **dict(zip(made, whole.run(made, dict(sample)), strict=True))}

    def proved(where: Cut) -> dict[str, float]:
        if graph.needed(where.crossing) != where.edge:
            raise SplitboardError(f'the edge half of "{", ".join(where.crossing)}" lacks nodes that it needs')
        server = _session(server_graph(lean, where), weights)
        answers = server.run(graph.outputs, {name: values[name] for name in where.crossing})
        return {
            name: _checked(relative_error(answer, values[name]), where, name)
            for name, answer in zip(graph.outputs, answers, strict=True)
        }

    found = {}
    with ThreadPoolExecutor(_N_WORKERS) as pool:
        for done, (split_id, errors) in enumerate(zip(cuts, pool.map(proved, cuts.values()), strict=True), 1):
            found[split_id] = errors
            if on_cut is not None:
                on_cut(done)
    return found


def _crossing_anywhere(cuts: Mapping[str, Cut]) -> Iterator[str]:
    for where in cuts.values():
        yield from where.crossing


def _checked(error: float, where: Cut, output: str) -> float:
    if not error <= LIMIT:  # also refuses NaN
        raise SplitboardError(f'cutting at "{", ".join(where.crossing)}" changes output "{output}" by "{error:.2e}"')
    return error


def _run(session: ort.InferenceSession, values: Tensors) -> dict[str, NDArray[Any]]:
    names = [output.name for output in session.get_outputs()]
    feed = {given.name: values[given.name] for given in session.get_inputs()}
    return dict(zip(names, session.run(names, feed), strict=True))


def _without_weights(graph: Graph) -> Graph:
    """The same graph with its large constants outside of it, so that a half of it costs no copy of its weights."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims, dtype=np.int64)) >= _MIN_EXTERNAL_VALUES:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="memory")
    return Graph(model)


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _session(model: ModelProto, weights: Tensors) -> ort.InferenceSession:
    """The reference session of a model whose large constants are given apart."""
    used = [tensor.name for tensor in model.graph.initializer if _is_external(tensor)]
    options = reference_options()
    options.add_external_initializers(used, [ort.OrtValue.ortvalue_from_numpy(weights[name]) for name in used])
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
