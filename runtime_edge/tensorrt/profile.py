"""Every layer's precision and time, on the board."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from runtime_edge.cuda.seam import Cuda
from runtime_edge.engines.engine import Array
from runtime_edge.tensorrt.compare import Side
from runtime_edge.tensorrt.findings import Findings, LayerReport, findings, reports
from runtime_edge.tensorrt.graph import read_graph
from runtime_edge.tensorrt.inspect import inspect
from runtime_edge.tensorrt.library import Library
from runtime_edge.tensorrt.prepare import Workshop
from runtime_edge.tensorrt.runner import Runner, load, tensors
from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.preprocess import edge_image
from splitboard.contract.record import Environment

SCHEMA_VERSION = 1
N_WARMUP = 10


@dataclass(frozen=True)
class EngineProfile:
    """One engine, layer by layer; a line of what ``trt-build`` and ``trt-profile`` write.

    Attributes:
        schema_version: of this result.
        bundle_name: the model's name.
        bundle_sha256: the bundle's identity.
        split: id.
        precision: that the bundle asks for.
        engine: TensorRT, binding, and how the engine was run.
        engine_sha256: of the engine's bytes.
        build_seconds: that its build took.
        layers: in the order that they run in.
        findings: what is not as the graph asked for.
        off_dla: layers that DLA could not take.
        device_ns: time of the GPU for the whole engine, one per run, profiler off; empty after ``trt-build``.
        environment: after the last run.
    """

    schema_version: int
    bundle_name: str
    bundle_sha256: str
    split: str
    precision: str
    engine: str
    engine_sha256: str
    build_seconds: float
    layers: Tuple[LayerReport, ...]
    findings: Findings
    off_dla: Tuple[str, ...]
    device_ns: Tuple[int, ...]
    environment: Environment


class Looked(NamedTuple):
    """An engine that was looked into.

    Attributes:
        side: layers, times and graph.
        sha256: of the engine.
        seconds: that its build took.
        off_dla: layers that DLA could not take.
        device_ns: one per run without the profiler.
        how: how it was run.
    """

    side: Side
    sha256: str
    seconds: float
    off_dla: Tuple[str, ...]
    device_ns: Tuple[int, ...]
    how: str

    @property
    def findings(self) -> Findings:
        """What is not as the graph asked for."""
        return findings(self.side.layers, self.side.graph, self.side.times)

    @property
    def reports(self) -> Tuple[LayerReport, ...]:
        """The layers, for a result."""
        return reports(self.side.layers, self.side.times)


class Task(NamedTuple):
    """What is to be looked into.

    Attributes:
        folder: the bundle.
        bundle: its manifest.
        dla: core to run on.
        runs: with and without the profiler; 0 runs nothing.
    """

    folder: Path
    bundle: Bundle
    dla: Optional[int]
    runs: int


def look(task: Task, split: Split, place: str, workshop: Workshop, library: Library, cuda: Cuda) -> Looked:
    """Builds an engine where it is not there, reads its layers, and times them where runs are asked for.

    Args:
        task: what and how often.
        split: with an edge half.
        place: of the split among those wanted, for the progress line.
        workshop: gives the engine.
        library: TensorRT.
        cuda: entered, and current in this thread.
    """
    stored = workshop.engine(split, place)
    graph = read_graph(task.folder / str(split.edge))
    loaded = load(library, stored.plan, task.dla, split.id)
    layers = inspect(library, loaded, graph)
    times: Dict[str, int] = {}
    device_ns: Tuple[int, ...] = ()
    how = "not run"
    if task.runs:
        image = cuda.map(task.bundle.edge_input.n_bytes)
        runner = Runner(loaded, tensors(library, loaded), cuda, cuda.stream(), image)
        try:
            how = runner.no_graph or "CUDA graphs"
            images = golden_images(task.folder, task.bundle)
            device_ns = tuple(_timed(runner, images, task.runs))
            times = _profiled(library, runner, images, task.runs)
        finally:
            runner.close()
            cuda.free(image)
    side = Side(layers, times, graph)
    return Looked(side, stored.facts.sha256, stored.facts.seconds, stored.facts.off_dla, device_ns, how)


def golden_images(folder: Path, bundle: Bundle) -> List[Array]:
    """The bundle's golden inputs as the edge graph takes them, each with the batch of one."""
    table = bundle.input_table()
    with np.load(folder / bundle.golden, allow_pickle=False) as golden:
        return [edge_image(image[None], table) for image in golden["images"]]


def _timed(runner: Runner, images: Sequence[Array], runs: int) -> List[int]:
    found = [runner.run(images[i % len(images)])[1] for i in range(N_WARMUP + runs)]
    return found[N_WARMUP:]


def _profiled(library: Library, runner: Runner, images: Sequence[Array], runs: int) -> Dict[str, int]:
    """Median time of every layer; a layer that runs more than once per image counts all of it."""
    profiler = _profiler(library.module)
    runner.watch(profiler)
    samples: Dict[str, List[float]] = {}
    for i in range(N_WARMUP + runs):
        profiler.of_one_run = {}
        runner.run(images[i % len(images)])
        if i >= N_WARMUP:
            for name, ms in profiler.of_one_run.items():
                samples.setdefault(name, []).append(ms)
    return {name: round(median(values) * 1e6) for name, values in samples.items()}


def _profiler(trt: Any) -> Any:
    class _Profiler(trt.IProfiler):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.of_one_run: Dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.of_one_run[layer_name] = self.of_one_run.get(layer_name, 0.0) + ms

    return _Profiler()
