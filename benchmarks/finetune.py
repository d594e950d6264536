"""How much of what quantising to INT8 loses does fine-tuning bring back?

Takes a model folder of a network that was trained on ELPV (`splitboard train elpv --backbone ...`, then `export`) and
shows, per task and on the test part, the accuracy of: the float model; its INT8 edge file (min/max ranges from the
calibration part); the fine-tuned model in float; and its INT8 edge file. INT8 is what LiteRT computes from the real
TFLite file. Nothing is trained, calibrated or chosen on the test part.

The reference networks lose little, so there is little to bring back. `--octaves N` makes a harder model of the same
function: in every residual stage whose tensors are linear (MobileNets', EfficientNets') each channel is divided by a
random power of two between 0 and N, and the weights that take it are multiplied by the same number. INT8 has one scale
per tensor and so loses the small channels. That is the failure of MobileNets that Nagel et al. describe (arXiv
1906.04721); their remedy, equalising pairs of layers, does not reach tensors that several layers share.

Usage: python benchmarks/finetune.py mobilenet.model --octaves 4
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from output import show
from statsmodels.stats.proportion import proportion_confint

from calib.dead_channels import floor_dead_channels
from calib.finetune import FineTuning, with_weights
from calib.quantise import int8
from export.edge_form import edge_form
from export.graph import Graph
from export.model import Model, load_model
from export.reference import optimised_session
from export.tflite import convert
from runtime_edge.engines.litert import find_interpreter
from splitboard.cli.console import steps
from splitboard.cli.finetune import Progress, calibrated, finetune_model
from splitboard.contract.preprocess import normalise, prepare
from splitboard.contract.samples import Samples
from splitboard.zoo import elpv

Outputs = Mapping[str, NDArray[np.float32]]

N_MATCHED = 4
"""Images on which the TFLite file's tensors are matched with the graph's."""

LOSS_POINTS = 1.0
"""A smaller loss is nothing to bring back."""


def residual_stages(graph: Graph) -> list[set[str]]:
    """Sets of tensors that additions join, made and taken by convolutions over all channels alone.

    All tensors of a set can be scaled by one factor per channel without a change of what the network computes.
    """
    joined = {name: {name} for name in graph.shapes}
    for node in graph.nodes:
        if node.op_type == "Add" and not any(name in graph.constants for name in node.input):
            union = set().union(*(joined[name] for name in (*node.input, *node.output)))
            for name in union:
                joined[name] = union
    stages = {id(group): group for group in joined.values() if len(group) > 1}
    return [group for group in stages.values() if all(_linear(graph, name) for name in group)]


def _linear(graph: Graph, name: str) -> bool:
    takers = [graph.nodes[i] for i in graph.consumers.get(name, [])]
    inner = name in graph.producer and name not in graph.outputs
    whole = (one.op_type == "Add" or (one.op_type == "Conv" and not _grouped(one)) for one in takers)
    return inner and graph.nodes[graph.producer[name]].op_type in ("Add", "Conv") and all(whole)


def _grouped(node: onnx.NodeProto) -> bool:
    return any(one.name == "group" and one.i > 1 for one in node.attribute)


def unbalanced(graph: Graph, octaves: float, seed: int = 0) -> Graph:
    """The same function with channels of very different size in the residual stages.

    Args:
        graph: the float model.
        octaves: the most that a channel is divided by, as a power of two.
        seed: of the factors.
    """
    random = np.random.default_rng(seed)
    weights = {name: np.array(graph.constant(name)) for name in graph.constants}
    for stage in residual_stages(graph):
        factor = (2.0 ** -random.uniform(0, octaves, graph.shapes[min(stage)][1])).astype(np.float32)
        for name in stage:
            maker = graph.nodes[graph.producer[name]]
            if maker.op_type == "Conv":
                weights[maker.input[1]] = weights[maker.input[1]] * factor[:, None, None, None]
                if len(maker.input) > 2:
                    weights[maker.input[2]] = weights[maker.input[2]] * factor
            for taker in (graph.nodes[i] for i in graph.consumers[name]):
                if taker.op_type == "Conv":
                    weights[taker.input[1]] = weights[taker.input[1]] / factor[None, :, None, None]
    return with_weights(graph, weights)


def float_outputs(graph: Graph, inputs: NDArray[np.float32]) -> Outputs:
    """What ONNX Runtime says, ``{task: [n, classes]}``."""
    session = optimised_session(graph.model)
    found = [session.run(graph.outputs, {graph.inputs[0]: image[None]}) for image in inputs]
    return {task: np.concatenate(values) for task, *values in zip(graph.outputs, *found, strict=True)}


def int8_outputs(model: Model, calibration: Samples, inputs: NDArray[np.float32], progress: Progress) -> Outputs:
    """What LiteRT says of the INT8 file, ``{task: [n, classes]}``."""
    spec = model.info.declared()
    table = calibrated(model, calibration, progress)
    graph, _ = floor_dead_channels(edge_form(model.graph), [table])
    matched = normalise(prepare(calibration.images[:N_MATCHED], spec), spec)
    samples = [image[None] for image in matched]
    content = int8(convert(graph, {"local": graph.outputs}, samples, list(table.ranges)), table)
    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner("local")
    ((image, details),) = runner.get_input_details().items()
    scale, zero_point = details["quantization"]
    stored = np.clip(np.rint(inputs / scale) + zero_point, -128, 127).astype(np.int8).transpose(0, 2, 3, 1)
    # The runner hands out its own memory, which the next call overwrites.
    found = [{task: value.copy() for task, value in runner(**{image: one[None]}).items()} for one in stored]
    scales = {task: details["quantization"] for task, details in runner.get_output_details().items()}
    return {
        task: (np.concatenate([one[task] for one in found]).astype(np.float32) - zero) * np.float32(step)
        for task, (step, zero) in scales.items()
    }


def right(outputs: Outputs, truth: Mapping[str, NDArray[np.int64]]) -> dict[str, int]:
    """Number of images that are right, by task."""
    return {task: int(np.sum(outputs[task].argmax(axis=1) == truth[task])) for task in elpv.TASKS}


def row(what: str, found: Mapping[str, int], count: int) -> dict[str, str]:
    """One line of the table: accuracy per task with its count and its 95 % Wilson interval."""
    cells = {"model": what}
    for task, number in found.items():
        low, high = proportion_confint(number, count, method="wilson")
        cells[task] = f"{100 * number / count:.2f} % ({number} of {count}; {100 * low:.1f} to {100 * high:.1f})"
    return cells


def recovered(variants: Mapping[str, Mapping[str, int]], count: int) -> dict[str, str]:
    """The last line: the share of the loss that is made good, by task, where more than `LOSS_POINTS` are lost."""
    cells = {"model": "recovered"}
    for task in elpv.TASKS:
        exact, before, after = (variants[name][task] for name in ("float", "INT8", "fine-tuned, INT8"))
        lost = 100 * (exact - before) / count
        share = f"{100 * (after - before) / (exact - before):.0f} %" if lost > LOSS_POINTS else "-"
        cells[task] = f"{share} of {lost:.2f} points"
    return cells


def samples_of(part: elpv.Part) -> Samples:
    """A part of the data as `splitboard` reads it from a file."""
    return Samples(part.images, part.labels, part.hashes)


def main() -> None:
    """Quantises, fine-tunes, quantises again, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="model folder of a network that was trained on ELPV")
    parser.add_argument("--octaves", type=float, default=0.0, help="how unbalanced its channels are made")
    parser.add_argument("--epochs", type=int, default=FineTuning.epochs)
    parser.add_argument("--learning-rate", type=float, default=FineTuning.learning_rate)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data, loaded = elpv.load(), load_model(options.model)
    if options.octaves and not residual_stages(loaded.graph):
        parser.error("--octaves: the model has no residual stage whose tensors are linear")
    model = replace(loaded, graph=unbalanced(loaded.graph, options.octaves))
    spec, truth = model.info.declared(), data.test.labels
    inputs = normalise(prepare(data.test.images, spec), spec)
    calibration, training = samples_of(data.calibration), samples_of(data.train)
    settings = FineTuning(options.epochs, options.learning_rate)
    with tempfile.TemporaryDirectory() as folder, steps("benchmark") as progress:
        variants = {
            "float": right(float_outputs(model.graph, inputs), truth),
            "INT8": right(int8_outputs(model, calibration, inputs, progress), truth),
        }
        made = finetune_model(model, training, calibration, settings, Path(folder) / "tuned", progress)
        tuned = load_model(Path(folder) / "tuned")
        variants["fine-tuned, float"] = right(float_outputs(tuned.graph, inputs), truth)
        variants["fine-tuned, INT8"] = right(int8_outputs(tuned, calibration, inputs, progress), truth)
    rows = [*(row(what, found, len(inputs)) for what, found in variants.items()), recovered(variants, len(inputs))]
    losses = ", ".join(f"{loss:.4f}" for loss in made.losses)
    about = (
        f"ELPV test part; min/max ranges of {len(calibration)} images; {settings.epochs} epochs on {len(training)} "
        f"images, learning rate {settings.learning_rate:g}, mean losses {losses}; channels unbalanced by up to "
        f"{options.octaves:g} octaves; accuracy (right of all; 95 % Wilson interval)"
    )
    show(rows, find_interpreter().name, about, as_json=options.json)


if __name__ == "__main__":
    main()
