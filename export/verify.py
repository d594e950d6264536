"""Proves a cut: server(edge(x)) equals the whole model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.cut import cut
from export.graph import Graph
from export.reference import reference_session, relative_error
from splitboard.contract.errors import SplitboardError

LIMIT = 1e-5
"""Largest max |difference| / max |reference| per output, in float32 with the optimiser off."""


def verify_cut(graph: Graph, tensor: str, inputs: NDArray[np.float32]) -> dict[str, float]:
    """Runs both halves and the whole in ONNX Runtime.

    Args:
        graph: the whole model.
        tensor: the split point.
        inputs: normalised images, ``[n, c, h, w]``.

    Returns:
        By output name, max |server(edge(x)) - whole(x)| / max |whole(x)|.

    Raises:
        SplitboardError: an output differs by more than `LIMIT`.
    """
    edge_model, server_model = cut(graph, tensor)
    edge, server, whole = (reference_session(model) for model in (edge_model, server_model, graph.model))
    image = graph.inputs[0]
    split_results, whole_results = [], []
    for sample in inputs:
        feed = {image: sample[None]}
        (payload,) = edge.run([tensor], feed)
        split_results.append(server.run(graph.outputs, {tensor: payload}))
        whole_results.append(whole.run(graph.outputs, feed))
    errors = {}
    for index, name in enumerate(graph.outputs):
        actual, expected = (np.stack([result[index] for result in r]) for r in (split_results, whole_results))
        errors[name] = relative_error(actual, expected)
        if not errors[name] <= LIMIT:
            raise SplitboardError(f'cutting at "{tensor}" changes output "{name}" by "{errors[name]:.2e}"')
    return errors
