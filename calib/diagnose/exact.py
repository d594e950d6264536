"""The exact measurement: what each task loses with some layers in INT8, on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from calib.diagnose.finding import TaskLoss
from calib.diagnose.variants import Runner
from calib.gate.config import Rule
from calib.gate.deployed import Outputs
from calib.gate.metrics import Array
from calib.gate.own_metric import own_pair
from export.cut import server_graph
from export.cuts import Cut
from export.graph import Graph
from export.reference import optimised_session
from splitboard.contract.bundle import Split
from splitboard.contract.preprocess import Preprocessing, normalise, prepare

_ROUNDING = 1e-9
"""A loss of exactly the margin is within it, whatever binary fractions make of it."""


@dataclass(frozen=True)
class Yardstick:
    """What outputs are held against.

    Attributes:
        rules: by task with labels.
        truth: labels by task.
        reference: the float model's outputs by task.
        folder: that a metric of the user's own lies in.
    """

    rules: Mapping[str, Rule]
    truth: Mapping[str, Array]
    reference: Outputs
    folder: Path

    def losses(self, outputs: Outputs) -> tuple[TaskLoss, ...]:
        """What every task with labels has lost."""
        return tuple(self._loss(task, rule, outputs[task]) for task, rule in self.rules.items())

    def _loss(self, task: str, rule: Rule, outputs: Array) -> TaskLoss:
        metric, exact = rule.metric, self.reference[task]
        before, after = self._values(task, rule, outputs)
        unit = 100.0 if metric.share else 1.0
        loss = before - after if metric.higher_is_better else after - before
        return TaskLoss(
            task=task,
            metric=metric.name,
            unit="points" if metric.share else "",
            reference=before,
            value=after,
            loss=unit * loss,
            margin=unit * rule.margin,
            met=loss <= rule.margin + _ROUNDING,
            noise=float(np.linalg.norm(outputs - exact) / (np.linalg.norm(exact) or 1.0)),
        )

    def _values(self, task: str, rule: Rule, outputs: Array) -> tuple[float, float]:
        truth, exact = self.truth[task], self.reference[task]
        every = np.arange(len(truth))
        if rule.metric.over is None:
            with own_pair(rule.metric.name, self.folder, truth, exact, outputs) as pair:
                before, after = pair(every)
            return float(before), float(after)
        return float(rule.metric.over(truth, exact)(every)), float(rule.metric.over(truth, outputs)(every))


class Course:
    """The labelled images on their way through an edge half and the split's server half in float.

    Args:
        graph: the float model.
        split: to run.
        outputs: what its edge half gives.
        images: source images, ``[n, h, w, channels]``, uint8.
        spec: their preprocessing.
    """

    def __init__(
        self, graph: Graph, split: Split, outputs: Sequence[str], images: NDArray[np.uint8], spec: Preprocessing
    ) -> None:
        self._graph, self._split, self._spec = graph, split, spec
        self._pixels = prepare(images, spec)  # once, and as uint8: they are needed for every variant
        self._server: ort.InferenceSession | None = None
        if not split.is_local:
            crossing = tuple(tensor.name for tensor in split.tensors)
            where = Cut(graph.needed(outputs), crossing, split.local_tasks)
            self._server = optimised_session(server_graph(graph, where))
            self._asked = [name for name in graph.outputs if name not in split.local_tasks]

    def __len__(self) -> int:
        return len(self._pixels)

    def outputs(self, edge: Runner, on_image: Callable[[int], None]) -> Outputs:
        """All tasks' outputs on all images.

        Args:
            edge: the edge half.
            on_image: called with the number of images done.
        """
        found = []
        for done, pixels in enumerate(self._pixels, 1):
            found.append(self._answer(edge, normalise(pixels[None], self._spec)))
            on_image(done)
        return {name: np.concatenate([one[name] for one in found]) for name in self._graph.outputs}

    def _answer(self, edge: Runner, image: NDArray[np.float32]) -> Outputs:
        made: Outputs = {self._graph.inputs[0]: image, **edge(image)}
        answers = {task: made[task] for task in self._split.local_tasks}
        if self._server is not None:
            given = {tensor.name: made[tensor.name] for tensor in self._split.tensors}
            answers |= dict(zip(self._asked, self._server.run(self._asked, given), strict=True))
        return answers
