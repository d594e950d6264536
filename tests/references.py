"""What every image must be answered with, from the interpreters themselves and not from our runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from runtime_edge.engines.litert import LiteRtEngine
from runtime_edge.link.connection import OPEN, Security
from runtime_edge.link.link import Link
from runtime_edge.link.sender import Sender
from runtime_edge.link.watch import ServerWatch
from runtime_edge.loop.session import Answered, Manners, OnTask, Session
from runtime_edge.pipeline import Pipeline
from runtime_edge.policy.choosers import Chooser, FixedSplit
from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle
from splitboard.contract.preprocess import normalise, prepare


@dataclass(frozen=True)
class References:
    """Scores per image by who answers.

    Attributes:
        server: by split and task, ``[image][class]``.
        local: by task.
    """

    server: dict[str, dict[str, list[list[float]]]]
    local: dict[str, list[list[float]]]

    def check(self, number: int, done: Answered) -> None:
        """Every answer must be its own image's, exactly."""
        for task, answer in done.tasks.items():
            if answer.by == "server":
                assert answer.scores == self.server[done.split][task][number], (number, task)
            elif answer.by == "local":
                np.testing.assert_allclose(answer.scores, self.local[task][number], rtol=1e-6)
            else:
                assert answer.by in ("unavailable", "edge", "exit"), answer


def references(folder: Path, bundle: Bundle, images: NDArray[np.uint8]) -> References:
    """By ONNX Runtime and the TFLite interpreter, with the declared preprocessing by ONNX's definition."""
    tasks, edge_input = [task.name for task in bundle.tasks], bundle.edge_input
    interpreter = Interpreter(model_path=str(folder / bundle.edge_files[0]))
    server: dict[str, dict[str, list[list[float]]]] = {}
    local: dict[str, list[list[float]]] = {task: [] for task in tasks}
    for split in bundle.splits:
        session = None
        if split.server is not None:
            session = onnxruntime.InferenceSession(folder / split.server, providers=["CPUExecutionProvider"])
        found = server.setdefault(split.id, {task: [] for task in tasks})
        runner = None if split.edge is None else interpreter.get_signature_runner(split.edge_signature)
        for image in images:
            pixels = prepare(image[None], bundle.preprocessing)
            real = normalise(pixels, bundle.preprocessing).transpose(0, 2, 3, 1).astype(np.float64)
            stored = np.clip(np.rint(real / float(edge_input.scale or 0)) + int(edge_input.zero_point or 0), -128, 127)
            made: dict[str, Any] = {} if runner is None else runner(image=stored.astype(np.int8))
            if session is not None:
                sent = pixels if runner is None else made[split.tensors[0].name]
                for task, scores in zip(tasks, session.run(tasks, {split.tensors[0].name: sent}), strict=True):
                    found[task].append(scores[0].tolist())
            elif runner is not None:
                for task in tasks:
                    scale, zero_point = runner.get_output_details()[task]["quantization"]
                    local[task].append(((made[task][0].astype(np.float64) - zero_point) * scale).tolist())
    return References(server, local)


@dataclass
class Edge:
    """A session on the tiny bundle, with what it is made of.

    Attributes:
        session: it.
        watch: whether its server is there.
        chooser: of its splits.
    """

    session: Session
    watch: ServerWatch
    chooser: Chooser

    def answer(self, image: NDArray[np.uint8]) -> Answered:
        done = self.session.finish(self.session.begin(image))
        self.session.settle(done)
        return done


@contextmanager
def edge(
    folder: Path,
    url: str,
    split: str,
    manners: Manners,
    timeout_s: float = 30.0,
    chooser: Chooser | None = None,
    on_task: OnTask | None = None,
    splits: tuple[str, ...] | None = None,
    security: Security = OPEN,
) -> Iterator[Edge]:
    """A real engine, a real link, a real watch.

    A request may take so long that a busy machine is never mistaken for a server that is away; tests of a server that
    does not answer set a deadline.
    """
    bundle = load_bundle(folder)
    local = bundle.splits[-1]
    wanted = {split, local.id, *(splits or ())}
    chosen: tuple[Split, ...] = tuple(one for one in bundle.splits if one.id in wanted)
    with LiteRtEngine(folder, bundle, chosen) as engine, Link(url, timeout_s, security) as link:
        pipeline = Pipeline(bundle, bundle_sha256(folder), chosen, engine, Sender(link))
        with ServerWatch(Link(url, security=security), pipeline.interfaces[split]) as watch:
            used = (
                FixedSplit(split, local.id if manners.fallback == "local" else None, 1e6)
                if chooser is None
                else chooser
            )
            yield Edge(Session(pipeline, chosen, used, watch, manners, on_task), watch, used)
