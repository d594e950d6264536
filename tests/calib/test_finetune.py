"""Quantisation-aware fine-tuning: its arithmetic against LiteRT's, its gradients, and what it recovers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert.interpreter import Interpreter
from graphs import made_of
from numpy.typing import NDArray
from onnx import helper
from sklearn.datasets import load_digits

from calib.finetune import FineTuning, Int8Replay, finetune, with_weights
from calib.methods import minmax
from calib.observe import observe, quantisable
from calib.quantise import int8
from calib.ranges import SCHEMA_VERSION, Range, RangeTable
from export.edge_form import edge_form
from export.graph import Graph
from export.model import load_model
from export.reference import reference_session
from export.tflite import convert
from splitboard.cli.main import run
from splitboard.contract.errors import UserError
from splitboard.contract.samples import load_samples, save_samples

Images = NDArray[np.float32]
Nodes = list[tuple[str, Sequence[str], str, dict[str, object]]]

ALL_KINDS: Nodes = [
    ("Conv", ["x", "w1", "b1"], "c1", {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ("HardSwish", ["c1"], "s1", {}),
    ("Conv", ["s1", "w2", "b2"], "c2", {"group": 8, "pads": [1, 1, 1, 1]}),
    ("Relu", ["c2"], "r2", {}),
    ("GlobalAveragePool", ["r2"], "p2", {}),
    ("Conv", ["p2", "w3", "b3"], "c3", {}),
    ("HardSigmoid", ["c3"], "gate", {"alpha": 1 / 6, "beta": 0.5}),
    ("Mul", ["r2", "gate"], "m2", {}),
    ("Add", ["m2", "s1"], "a2", {}),
    ("MaxPool", ["a2"], "q2", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Conv", ["q2", "w4", "b4"], "c4", {}),
    ("Sigmoid", ["c4"], "g4", {}),
    ("Concat", ["q2", "g4"], "cat", {"axis": 1}),
    ("GlobalAveragePool", ["cat"], "p4", {}),
    ("Reshape", ["p4", "row"], "flat", {}),
    ("Gemm", ["flat", "w5", "b5"], "h5", {"transB": 1}),
    ("Relu", ["h5"], "r5", {}),
    ("Gemm", ["r5", "w6", "b6"], "y", {}),
]
"""A small network of the operators that have an INT8 form of their own; one weight lies the other way round."""


def network(nodes: Nodes, constants: dict[str, np.ndarray], shape: Sequence[int]) -> Graph:
    made = [helper.make_node(kind, inputs, [name], name, **more) for kind, inputs, name, more in nodes]
    return made_of(made, constants=constants, shape=shape)


@pytest.fixture(scope="module")
def graph() -> Graph:
    random = np.random.default_rng(5)
    shapes = {
        "w1": (8, 3, 3, 3),
        "w2": (8, 1, 3, 3),
        "w3": (8, 8, 1, 1),
        "w4": (4, 8, 1, 1),
        "w5": (10, 12),
        "w6": (10, 3),
    }
    constants = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, size in (("b1", 8), ("b2", 8), ("b3", 8), ("b4", 4), ("b5", 10), ("b6", 3)):
        constants[name] = random.normal(0, 0.3, size).astype(np.float32)
    return network(ALL_KINDS, {**constants, "row": np.array([1, 12])}, (1, 3, 16, 16))


@pytest.fixture(scope="module")
def images() -> Images:
    return np.random.default_rng(6).uniform(-1, 1, (64, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def table(graph: Graph, images: Images) -> RangeTable:
    return ranges(graph, images)


def ranges(graph: Graph, images: Images) -> RangeTable:
    edge = edge_form(graph)
    seen = observe(edge, quantisable(edge, ()), (images[i : i + 1] for i in range(len(images))), lambda done: None)
    found = {name: minmax(one) for name, one in seen.tensors.items()}
    return RangeTable(SCHEMA_VERSION, "minmax", seen.n_samples, found)


def int8_outputs(graph: Graph, table: RangeTable, images: Images) -> tuple[NDArray[np.float32], float]:
    """What the INT8 TFLite file says of images, as LiteRT computes it, and the scale of its output."""
    edge = edge_form(graph)
    samples = [images[i : i + 1] for i in range(4)]
    content = int8(convert(edge, {"local": edge.outputs}, samples, list(table.ranges)), table)
    runner = Interpreter(model_content=content).get_signature_runner("local")
    (source,), (result,) = runner.get_input_details().items(), runner.get_output_details().items()
    scale, zero = source[1]["quantization"]
    stored = np.clip(np.rint(images / scale) + zero, -128, 127).astype(np.int8).transpose(0, 2, 3, 1)
    found = np.concatenate([runner(**{source[0]: one[None]})[result[0]] for one in stored])
    out_scale, out_zero = result[1]["quantization"]
    return ((found.astype(np.float32) - out_zero) * out_scale).astype(np.float32), float(out_scale)


def float_outputs(graph: Graph, images: Images) -> NDArray[np.float32]:
    session = reference_session(graph.model)
    return np.concatenate([session.run(graph.outputs, {graph.inputs[0]: image[None]})[0] for image in images])


def replayed(graph: Graph, table: RangeTable, images: Images) -> NDArray[np.float32]:
    with torch.no_grad():
        (found,) = Int8Replay(edge_form(graph), table)(torch.from_numpy(images)).values()
    return np.asarray(found.numpy())


@pytest.fixture(scope="module")
def coarse(table: RangeTable) -> RangeTable:
    """Some ranges are so wide that rounding to them outweighs what integer arithmetic does to sums."""
    wide = {
        name: Range(16 * found.min, 16 * found.max, 16 * found.magnitude)
        for name, found in table.ranges.items()
        if name in ("s1", "r2", "m2")
    }
    return replace(table, ranges={**table.ranges, **wide})


def test_the_forward_pass_is_the_artefacts(graph: Graph, coarse: RangeTable, images: Images) -> None:
    """Not only near it: the errors that quantisation makes are the same ones."""
    artefact, scale = int8_outputs(graph, coarse, images)
    ours, exact = replayed(graph, coarse, images), float_outputs(graph, images)
    assert np.abs(ours - artefact).max() <= 4 * scale
    assert np.abs(ours - artefact).mean() <= scale
    assert np.sum((ours - artefact) ** 2) < 0.2 * np.sum((exact - artefact) ** 2)


def test_many_at_once_are_the_same_as_one_by_one(graph: Graph, table: RangeTable, images: Images) -> None:
    at_once = replayed(graph, table, images[:5])
    one_by_one = np.concatenate([replayed(graph, table, images[i : i + 1]) for i in range(5)])
    # The order of float sums may differ, and so a value at the border of two steps may fall to either.
    step = table.ranges["y"].asymmetric_scale
    assert np.abs(at_once - one_by_one).max() <= 1.01 * step
    assert np.mean(np.abs(at_once - one_by_one) > 1e-5) < 0.2


def test_gradients_reach_every_weight_and_bias(graph: Graph, table: RangeTable, images: Images) -> None:
    module = Int8Replay(edge_form(graph), table)
    (found,) = module(torch.from_numpy(images)).values()
    torch.autograd.backward(found.square().sum())
    assert {name.rstrip("0123456789") for name in module.trained()} == {"w", "b"}
    assert len(module.trained()) == 12
    for weight in module.moves.values():
        assert weight.grad is not None
        assert torch.isfinite(weight.grad).all()
        assert float(weight.grad.abs().max()) > 0


def test_the_gradient_stops_outside_of_a_range(graph: Graph, table: RangeTable, images: Images) -> None:
    """Images that are clipped at the input do not change the output, so nothing can be learnt from them."""
    module = Int8Replay(edge_form(graph), table)
    inside = torch.from_numpy(images[:1]).requires_grad_()
    outside = (torch.from_numpy(images[:1]).sign() * 9).requires_grad_()
    for image in (inside, outside):
        (found,) = module(image).values()
        torch.autograd.backward(found.sum())
    assert inside.grad is not None
    assert outside.grad is not None
    assert float(inside.grad.abs().max()) > 0
    assert float(outside.grad.abs().max()) == 0


def test_without_a_step_the_model_is_the_same(graph: Graph, table: RangeTable) -> None:
    again = with_weights(graph, Int8Replay(edge_form(graph), table).trained())
    assert again.model == graph.model


def test_a_weight_of_an_unknown_kind_is_refused_by_name() -> None:
    nodes: Nodes = [("PRelu", ["x", "slope"], "y", {})]
    strange = network(nodes, {"slope": np.full((3, 1, 1), 0.1, np.float32)}, (1, 3, 4, 4))
    with pytest.raises(UserError, match='"PRelu"'):
        Int8Replay(strange, ranges(strange, np.ones((1, 3, 4, 4), np.float32)))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_cannot_be_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match="learn at the rate"):
        FineTuning(learning_rate=rate)


# What is learnt

DIGITS: Nodes = [
    ("Conv", ["x", "w1", "b1"], "c1", {"pads": [1, 1, 1, 1]}),
    ("Relu", ["c1"], "r1", {}),
    ("Conv", ["r1", "w2", "b2"], "c2", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Relu", ["c2"], "r2", {}),
    ("Conv", ["r2", "w3", "b3"], "c3", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Relu", ["c3"], "r3", {}),
    ("GlobalAveragePool", ["r3"], "p3", {}),
    ("Flatten", ["p3"], "f3", {}),
    ("Gemm", ["f3", "w4", "b4"], "y", {"transB": 1}),
]
N_TRAIN = 1200
SPREAD = 11.0
"""Largest by smallest channel of the first two layers, as a power of two each way."""


@pytest.fixture(scope="module")
def digits() -> tuple[Images, NDArray[np.int64]]:
    """Handwritten digits of 8x8 pixels (UCI, in scikit-learn); the first ones to train on."""
    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.images))
    return (loaded.images[order, None] / 8 - 1).astype(np.float32), loaded.target[order].astype(np.int64)


@pytest.fixture(scope="module")
def unbalanced(digits: tuple[Images, NDArray[np.int64]]) -> Graph:
    """A trained network whose channels differ by orders of magnitude, as MobileNets' do.

    Scaling a channel up and dividing the weights that take it by the same number leaves a ReLU network's function as it
    is; what it does to INT8 is the failure that Nagel et al. describe (arXiv 1906.04721, sections 3 and 4.1).
    """
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(
        [torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 32, 3, 2, 1), torch.nn.Conv2d(32, 48, 3, 2, 1)]
    )
    head = torch.nn.Linear(48, 10)
    optimiser = torch.optim.Adam([*layers.parameters(), *head.parameters()], lr=3e-3)
    pixels, classes = (torch.from_numpy(values[:N_TRAIN]) for values in digits)
    for epoch in range(30):
        for chosen in torch.randperm(N_TRAIN, generator=torch.Generator().manual_seed(epoch)).view(-1, 60):
            x = pixels[chosen]
            for layer in layers:
                x = F.relu(layer(x))
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(head(x.mean((2, 3))), classes[chosen]))
            optimiser.step()
    weights = [layer.weight.detach().numpy().copy() for layer in layers]
    biases = [layer.bias.detach().numpy().copy() for layer in layers if layer.bias is not None]
    random = np.random.default_rng(1)
    for i in range(2):
        factor = (2 ** random.uniform(-SPREAD, 0, len(biases[i]))).astype(np.float32)
        weights[i] *= factor[:, None, None, None]
        biases[i] *= factor
        weights[i + 1] /= factor[None, :, None, None]
    constants = {f"w{i + 1}": value for i, value in enumerate(weights)} | {f"b{i + 1}": b for i, b in enumerate(biases)}
    constants |= {"w4": head.weight.detach().numpy(), "b4": head.bias.detach().numpy()}
    return network(DIGITS, constants, (1, 1, 8, 8))


def points(outputs: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    return float(100 * np.mean(outputs.argmax(1) == classes))


def test_fine_tuning_recovers_half_of_what_quantising_loses(
    unbalanced: Graph, digits: tuple[Images, NDArray[np.int64]]
) -> None:
    """On images that nothing was trained or calibrated on, through the real TFLite file."""
    pixels, classes = digits
    calibration, train, test = pixels[:200], pixels[:N_TRAIN], pixels[N_TRAIN:]
    truth = classes[N_TRAIN:]
    exact = points(float_outputs(unbalanced, test), truth)
    before = ranges(unbalanced, calibration)
    quantised = points(int8_outputs(unbalanced, before, test)[0], truth)
    settings = FineTuning(epochs=6, batch=60)
    labels = {"y": classes[:N_TRAIN]}
    tuned, losses = finetune(unbalanced, before, lambda i: train[i], N_TRAIN, labels, settings, lambda *_: None)
    recovered = points(int8_outputs(tuned, ranges(tuned, calibration), test)[0], truth)
    assert exact - quantised > 1
    assert exact - recovered < 0.5 * (exact - quantised), (exact, quantised, recovered)
    assert losses[-1] < 0.7 * losses[0]


def test_it_learns_from_the_float_model_without_labels_and_the_same_every_time(
    unbalanced: Graph, digits: tuple[Images, NDArray[np.int64]]
) -> None:
    pixels, _ = digits
    table = ranges(unbalanced, pixels[:200])
    seen: list[tuple[int, int]] = []

    def tuned() -> tuple[Graph, tuple[float, ...]]:
        settings = FineTuning(epochs=2, batch=50)
        return finetune(unbalanced, table, lambda i: pixels[i], 120, {}, settings, lambda *at: seen.append(at[:2]))

    (first, losses), (second, _) = tuned(), tuned()
    assert first.model == second.model
    assert losses[1] < losses[0]
    assert seen[:6] == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]  # 120 images: the last of three steps has 20


# The command


@pytest.fixture
def command(tiny_model: Path, tiny_samples: Path, tmp_path: Path) -> list[str]:
    options = ["--data", str(tiny_samples), "--calib", str(tiny_samples), "--epochs", "2", "-o", str(tmp_path / "new")]
    return ["finetune", str(tiny_model), *options]


def test_a_model_folder_is_written(
    command: list[str], tiny_model: Path, tiny_samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    old, new = load_model(tiny_model), load_model(tmp_path / "new")
    assert said["model_sha256"] == new.info.model_sha256 != old.info.model_sha256 == said["source_sha256"]
    assert said["labelled"] == ["shape", "colour"]
    assert said["losses"][1] < said["losses"][0]
    change = new.info.changes[-1]
    assert new.info.changes[:-1] == old.info.changes
    for part in (old.info.model_sha256, "2 epochs on 120 images", load_samples(tiny_samples, 1).sha256):
        assert part in change
    assert new.info.tasks == old.info.tasks
    assert [(node.op_type, list(node.input)) for node in new.graph.nodes] == [
        (node.op_type, list(node.input)) for node in old.graph.nodes
    ]
    weights = {name for node in old.graph.nodes if node.op_type in ("Conv", "Gemm") for name in node.input[1:]}
    for name in old.graph.constants:
        assert np.array_equal(old.graph.constant(name), new.graph.constant(name)) == (name not in weights), name
    onnx.checker.check_model(new.graph.model, full_check=True)


def test_images_without_labels_will_do(
    command: list[str], tiny_samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_samples(tmp_path / "bare.npz", load_samples(tiny_samples, 1).images[:40], {})
    command[command.index("--data") + 1] = str(tmp_path / "bare.npz")
    assert run(command) == 0
    assert "from the float model alone" in capsys.readouterr().out
