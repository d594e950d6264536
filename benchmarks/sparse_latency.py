"""Does predefined sparsity make a board faster, or only smaller?

Shows the latency of ResNet18 with its convolutions in groups (`splitboard.zoo.sparsity.Grouped`) at several densities
beside its dense twin, as dense / sparse: above 1 the sparse one is faster. Measured are the sparse parts alone (the
four stages, from the stem's feature map on) and the whole network (stem, stages, two pooled heads), in LiteRT in float
and in INT8 and in ONNX Runtime in float, one thread each, as an edge half of a bundle has them. A scattered pattern
stands beside: its absent weights are zeros there, which nothing skips. Weights are random; only time counts. All
variants run in turn within every round, and the order alternates.

Usage: python benchmarks/sparse_latency.py [--sizes 64,224] [--rounds 100]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from output import ratio, show
from torch import Tensor, nn

from calib.recipe import Recipe, prepare
from calib.tflite_edge import float_edge, quantised
from export.clean import clean
from export.graph import Graph
from runtime_edge.engines.litert import find_interpreter
from splitboard.cli.console import steps
from splitboard.zoo.multitask import MultiTaskNet
from splitboard.zoo.resnet import ResNet18
from splitboard.zoo.sparsity import Grouped, Scattered, Sparsity, sparsify

Run = Callable[[], object]

_DENSITIES = tuple(Fraction(1, groups) for groups in (2, 4, 8, 16))
_SCATTERED = Fraction(1, 8)
_TASKS = {"shape": 4, "hue": 10}
_STEM_STRIDE = 4
_N_CALIBRATION = 4
_SIGNATURE = "local"


class Stages(nn.Module):
    """The sparse parts of ResNet18: ``[n, 64, h, w]`` to ``[n, 512, h / 8, w / 8]``."""

    def __init__(self, net: MultiTaskNet) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(net.backbone.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)))

    def forward(self, image: Tensor) -> Tensor:
        """Returns the last feature map."""
        features: Tensor = self.stages(image)
        return features


def network(sparsity: Sparsity) -> MultiTaskNet:
    """The two-task network with random weights, batch norms with statistics of noise."""
    torch.manual_seed(0)
    net = MultiTaskNet(ResNet18().features, ResNet18.channels, _TASKS)
    sparsify(net, sparsity)
    with torch.no_grad():
        for _ in range(5):
            net.train()(torch.randn(4, 3, 64, 64))
    return net.eval()


def onnx_graph(module: nn.Module, example: Tensor, outputs: list[str]) -> Graph:
    """As `splitboard export` makes it."""
    with warnings.catch_warnings(), steps("benchmark"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(), (example,), dynamo=True, optimize=False, verbose=False, output_names=outputs
        )
    assert program is not None
    return Graph(clean(program.model_proto).model)


def engines(graph: Graph, shape: tuple[int, ...]) -> dict[str, Run]:
    """A call by engine that runs the graph once."""
    images = np.random.default_rng(1).normal(size=(_N_CALIBRATION, *shape)).astype(np.float32)
    inputs = [one[None] for one in images]
    recipe = Recipe(ranges="minmax")
    with warnings.catch_warnings(), steps("benchmark"):
        warnings.simplefilter("ignore")
        prepared = prepare(graph, graph.outputs, inputs, recipe, lambda _: None)
        edge = float_edge(prepared, {_SIGNATURE: graph.outputs}, inputs[:2])
    (table,) = edge.tables.values()
    image = np.ascontiguousarray(inputs[0].transpose(0, 2, 3, 1))
    int8 = np.random.default_rng(2).integers(-128, 128, image.shape).astype(np.int8)
    return {
        "LiteRT float": _litert(edge.floating.content, image),
        "LiteRT INT8": _litert(quantised(edge, recipe, table), int8),
        "ONNX Runtime float": _onnx_runtime(graph, inputs[0]),
    }


def _litert(content: bytes, image: NDArray[Any]) -> Run:
    interpreter = Interpreter(model_content=content, num_threads=1)
    runner = interpreter.get_signature_runner(_SIGNATURE)
    (name,) = runner.get_input_details()
    return lambda: runner(**{name: image})


def _onnx_runtime(graph: Graph, image: NDArray[np.float32]) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {graph.inputs[0]: image})


def measure(variants: dict[str, dict[str, Run]], rounds: int, warmup: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by engine and variant, one per round."""
    names = list(variants)
    times: dict[str, dict[str, list[float]]] = {engine: {name: [] for name in names} for engine in variants[names[0]]}
    for number in range(-warmup, rounds):
        for engine, found in times.items():
            for name in names if number % 2 else reversed(names):
                start_ns = time.perf_counter_ns()
                variants[name][engine]()
                if number >= 0:
                    found[name].append((time.perf_counter_ns() - start_ns) / 1e6)
    return times


def rows_of(part: str, size: int, times: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """What was measured of one part at one size."""
    return [
        {
            "part": part,
            "input": size,
            "engine": engine,
            "variant": name,
            "dense ms": float(np.median(found["dense"])),
            "sparse ms": float(np.median(own)),
            "dense / sparse": ratio(found["dense"], own),
        }
        for engine, found in times.items()
        for name, own in found.items()
        if name != "dense"
    ]


def main() -> None:
    """Converts, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="64,224", help="pixels of the square input, comma-separated")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = {"dense": Sparsity()}
    asked |= {f"grouped {density}": Sparsity(density, density, Grouped()) for density in _DENSITIES}
    asked[f"scattered {_SCATTERED}"] = Sparsity(_SCATTERED, _SCATTERED, Scattered())
    nets = {name: network(sparsity) for name, sparsity in asked.items()}
    rows: list[dict[str, Any]] = []
    for size in (int(text) for text in options.sizes.split(",")):
        inside = (64, size // _STEM_STRIDE, size // _STEM_STRIDE)
        whole = (3, size, size)
        for part, shape in (("four stages", inside), ("whole", whole)):
            variants = {}
            for name, net in nets.items():
                module = Stages(net) if part == "four stages" else net
                outputs = ["features"] if part == "four stages" else list(_TASKS)
                variants[name] = engines(onnx_graph(module, torch.zeros(1, *shape), outputs), shape)
            rows += rows_of(part, size, measure(variants, options.rounds, options.warmup))
    about = f"medians of {options.rounds} interleaved rounds, one thread; 95 % bootstrap interval of the ratio"
    show(rows, f"{find_interpreter().name}, onnxruntime {ort.__version__}", about, as_json=options.json)


if __name__ == "__main__":
    main()
