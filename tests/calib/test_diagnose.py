"""The diagnosis against numpy, ONNX Runtime and LiteRT alone, and on layers that were spoiled on purpose."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from conftest import synthetic_images
from numpy.typing import NDArray

from calib.diagnose.exclusion import Search, badness, cure, met
from calib.diagnose.finding import LayerNoise, TaskLoss
from calib.diagnose.noise import layer_noise, worst
from calib.diagnose.qdq import QdqVariants
from calib.diagnose.rebuild import Rebuilt, rebuild
from calib.diagnose.tflite import TfliteVariants
from calib.diagnose.variants import Variants, sources_of
from calib.qdq.emit import emit
from calib.qdq.plan import plan
from calib.ranges import Range
from calib.recipe import Prepared, Recipe
from calib.tflite_edge import float_edge, quantised
from export.cut import whole_graph
from export.model import load_model
from splitboard.cli.main import run
from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.decode import to_json
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise, prepare

pytestmark = pytest.mark.slow

BOARDS = {"tflite": "rpi5", "qdq": "jetson-orin-nano"}
WIDER = 100.0


@pytest.fixture(scope="module", params=list(BOARDS))
def bundle(
    request: pytest.FixtureRequest, tiny_model: Path, tiny_samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny network for a board of each format."""
    out = tmp_path_factory.mktemp(request.param) / "bundle"
    options = ["--board", BOARDS[request.param], "--split", "blocks.0", "--ranges", "minmax"]
    assert run(["build", str(tiny_model), *options, "--calib", str(tiny_samples), "-o", str(out)]) == 0
    return out


def opened(folder: Path) -> tuple[Bundle, Rebuilt, Variants]:
    """Of the split that is local only."""
    made = load_bundle(folder)
    split = made.splits[-1]
    rebuilt = rebuild(folder, made, split)
    if split.edge_signature is not None:
        return made, rebuilt, TfliteVariants(folder, str(split.edge), split.edge_signature, rebuilt)
    return made, rebuilt, QdqVariants(folder, str(split.edge), rebuilt)


def inputs(made: Bundle, count: int = 6) -> list[NDArray[np.float32]]:
    images = normalise(prepare(synthetic_images(count), made.preprocessing), made.preprocessing)
    return [images[i : i + 1] for i in range(count)]


def reference(model: onnx.ModelProto, names: Sequence[str], feed: dict[str, NDArray[np.float32]]) -> list[np.ndarray]:
    """ONNX Runtime alone, some tensors made outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names), feed))


def test_the_whole_model_comes_back_bit_for_bit(tiny_model: Path, bundle: Path) -> None:
    exported = load_model(tiny_model).graph
    found = whole_graph(onnx.load(bundle / "server" / "s00.onnx"))
    assert [node.SerializeToString() for node in found.nodes] == [node.SerializeToString() for node in exported.nodes]
    assert (found.inputs, found.outputs) == (exported.inputs, exported.outputs)
    for name, tensor in exported.constants.items():
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), found.constant(name))
    (image,) = inputs(load_bundle(bundle), 1)
    feed = {exported.inputs[0]: image}
    for a, b in zip(
        reference(exported.model, exported.outputs, feed), reference(found.model, found.outputs, feed), strict=True
    ):
        assert a.tobytes() == b.tobytes()


def test_a_graph_without_preprocessing_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="image"):
        whole_graph(onnx.load(tiny_model / "model.onnx"))


def test_the_edge_half_is_rebuilt_bit_for_bit(bundle: Path) -> None:
    made, rebuilt, variants = opened(bundle)
    assert variants.deviation == 0.0
    assert len(rebuilt.biases) == made.quantisation.corrected > 0


def test_a_bundle_with_another_edge_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    """Built with a range a quarter as wide; the bundle's own table says nothing of it."""
    made, rebuilt, _ = opened(bundle)
    spoiled = {"hardtanh": narrower(rebuilt.table.ranges["hardtanh"])}
    copy = respoiled(bundle, tmp_path / "copy", spoiled)
    shutil.copy(bundle / "calibration" / "ranges.json", copy / "calibration" / "ranges.json")
    manifest(copy, made)
    with pytest.raises(UserError, match="does not follow from its ranges"):
        opened(copy)


def test_noise_is_that_of_the_artefacts_tensors(bundle: Path, tiny_model: Path) -> None:
    """SQNR and cosine from ONNX Runtime's float tensors and the interpreter's INT8 ones."""
    made, rebuilt, variants = opened(bundle)
    images = inputs(made)
    found = layer_noise(rebuilt.balanced, variants, images, lambda done: None)
    names = [one.layer for one in found]
    assert len(names) >= 10
    exported = onnx.load(tiny_model / "model.onnx")
    exact = [reference(exported, names, {rebuilt.graph.inputs[0]: image}) for image in images]
    shown = (_tflite_tensors if rebuilt_for_tflite(made) else _qdq_tensors)(bundle, made, names, images)
    for i, one in enumerate(found):
        a = np.concatenate([values[i].ravel() for values in exact]).astype(np.float64)
        b = np.concatenate([shown[k][one.layer].ravel() for k in range(len(images))]).astype(np.float64)
        error = np.square(b - a).sum()
        if error == 0:
            assert one.sqnr_db is None
            continue
        assert one.sqnr_db == pytest.approx(10 * np.log10(np.square(a).sum() / error), abs=1e-3)
        assert one.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)


def rebuilt_for_tflite(made: Bundle) -> bool:
    return made.splits[-1].edge_signature is not None


def _tflite_tensors(
    folder: Path, made: Bundle, names: Collection[str], images: Sequence[NDArray[np.float32]]
) -> list[dict[str, NDArray[np.float64]]]:
    split, spec = made.splits[-1], made.edge_input
    interpreter = Interpreter(
        str(folder / str(split.edge)),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    runner = interpreter.get_signature_runner(split.edge_signature)
    subgraph = list(interpreter.get_signature_list()).index(split.edge_signature)
    found = []
    for image in images:
        real = image.transpose(0, 2, 3, 1).astype(np.float64)
        stored = np.clip(np.rint(real / spec.scale) + spec.zero_point, -128, 127)
        runner(**{spec.name: stored.astype(np.int8)})
        values = {}
        for details in interpreter.get_tensor_details(subgraph):
            name = details["name"].removeprefix(f"{split.edge_signature}/")
            if name in names:
                scale, zero = details["quantization"]
                value = (interpreter.get_tensor(details["index"], subgraph).astype(np.float64) - zero) * scale
                values[name] = value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
        found.append(values)
    return found


def _qdq_tensors(
    folder: Path, made: Bundle, names: Sequence[str], images: Sequence[NDArray[np.float32]]
) -> list[dict[str, NDArray[np.float64]]]:
    """A layer's result before whoever takes it rounds it."""
    model = onnx.load(folder / str(made.splits[-1].edge))
    return [dict(zip(names, reference(model, names, {made.edge_input.name: image}), strict=True)) for image in images]


def test_what_layers_add_explains_what_they_cost_alone(bundle: Path) -> None:
    """With float inputs, a layer alone in INT8 is off by what it adds; a first layer's inputs are the image itself."""
    made, rebuilt, variants = opened(bundle)
    images = inputs(made)
    exact = [
        dict(zip(rebuilt.outputs, reference(rebuilt.graph.model, rebuilt.outputs, {"image": one}), strict=True))
        for one in images
    ]
    found = {one.layer: one for one in layer_noise(rebuilt.balanced, variants, images, lambda done: None)}
    for head in rebuilt.outputs:
        alone, others = variants.int8(head), [task for task in rebuilt.outputs if task != head]
        answers = [alone(image) for image in images]
        error = sum(np.square(a[head] - e[head]).sum() for a, e in zip(answers, exact, strict=True))
        power = sum(np.square(e[head]).sum() for e in exact)
        assert 0 < error / power < 10 * found[head].added
        for other in others:
            for a, e in zip(answers, exact, strict=True):
                # In TFLite, whoever else takes the layer's input may see it rounded.
                share = 0.02 if rebuilt_for_tflite(made) else 1e-4
                assert np.abs(a[other] - e[other]).max() < share * np.abs(e[other]).max()


def test_all_layers_in_float_are_the_float_model(bundle: Path) -> None:
    """Also their biases: a correction without rounded weights would be an error of its own."""
    made, rebuilt, variants = opened(bundle)
    (image, *_), last = inputs(made), variants.left_float(variants.switchable)
    exact = reference(rebuilt.graph.model, rebuilt.outputs, {"image": image})
    for name, value in zip(rebuilt.outputs, exact, strict=True):
        off = np.abs(last(image)[name] - value).max() / np.abs(value).max()
        # TFLite's image and scores are INT8 all the same; what is float in Q/DQ is fp16.
        assert off < (0.1 if rebuilt_for_tflite(made) else 1e-3)


def narrower(one: Range) -> Range:
    return Range(one.min / 4, one.max / 4, one.magnitude / 4)


def wider(one: Range) -> Range:
    return Range(one.min * WIDER, one.max * WIDER, one.magnitude * WIDER)


def respoiled(folder: Path, copy: Path, changed: dict[str, Range]) -> Path:
    """A copy of a bundle whose edge half was quantised with other ranges, as a build would with that table."""
    shutil.copytree(folder, copy)
    made, rebuilt, _ = opened(folder)
    table = replace(rebuilt.table, ranges={**rebuilt.table.ranges, **changed})
    (copy / "calibration" / "ranges.json").write_text(to_json(table))
    local = made.splits[-1]
    if local.edge_signature is not None:
        signatures = {local.edge_signature: rebuilt.outputs}
        prepared = Prepared(rebuilt.corrected(), {"minmax": table}, 0, rebuilt.biases)
        edge = float_edge(prepared, signatures, [rebuilt.images[i : i + 1] for i in range(3)])
        content = quantised(edge, Recipe(), table)
    else:
        graph = rebuilt.corrected()
        content = emit(graph, plan(graph, rebuilt.outputs, table)).SerializeToString()
    (copy / str(local.edge)).write_bytes(content)
    manifest(copy, made)
    return copy


def manifest(copy: Path, made: Bundle) -> None:
    """Makes the manifest fit the files."""
    artifacts = tuple(
        replace(
            one,
            size_bytes=(copy / one.path).stat().st_size,
            sha256=hashlib.sha256((copy / one.path).read_bytes()).hexdigest(),
        )
        for one in made.artifacts
    )
    (copy / "manifest.json").write_text(to_json(replace(made, artifacts=artifacts)))


def test_a_range_that_is_far_too_wide_is_found(bundle: Path, tmp_path: Path) -> None:
    """One tensor's range, a hundred times as wide, takes all its precision; its steps are to blame, not its weights."""
    copy = respoiled(bundle, tmp_path / "copy", {"hardtanh_3": wider(opened(bundle)[1].table.ranges["hardtanh_3"])})
    made, rebuilt, variants = opened(copy)
    assert variants.deviation == 0.0
    noises = layer_noise(rebuilt.balanced, variants, inputs(made), lambda done: None)
    first, second = worst(noises, variants.switchable, 2)
    sources = sources_of(rebuilt.balanced, variants.layers, rebuilt.crossing)
    takers = {one: tuple(other for other in variants.layers if one in sources[other]) for one in variants.layers}
    # In Q/DQ a tensor is rounded by whoever takes it.
    spoiled = {"hardtanh_3", "conv2d_5"} if rebuilt_for_tflite(made) else {"conv2d_5"}
    assert first.layer == ("hardtanh_3" if rebuilt_for_tflite(made) else "conv2d_5")
    assert first.added > 10 * second.added
    assert cure(first, takers) == spoiled
    image = inputs(made, 1)[0]
    exact = reference(rebuilt.graph.model, rebuilt.outputs, {"image": image})

    def off(layers: Collection[str]) -> float:
        answers = variants.left_float(layers)(image)
        return max(float(np.abs(answers[n] - e).max()) for n, e in zip(rebuilt.outputs, exact, strict=True))

    assert off(spoiled) < 0.5 * off(()), "what the diagnosis names does not cure it"
    if rebuilt_for_tflite(made):
        assert off({"hardtanh_3"}) > 0.5 * off(()), "the tensor is INT8 as long as its taker is"


def loss(amount: float, noise: float = 0.1) -> tuple[TaskLoss, ...]:
    return (TaskLoss("task", "top1", "points", 1.0, 1 - amount / 100, amount, 1.0, amount <= 1.0, noise),)


def searched(needed: Collection[frozenset[str]], count: int = 6) -> tuple[Search, frozenset[str], bool]:
    """A search where the gate is met by every list that has one of these in it."""
    names = [chr(ord("a") + i) for i in range(count)]

    def measure(layers: frozenset[str]) -> tuple[TaskLoss, ...]:
        useful = max(len(one & layers) / len(one) for one in needed)
        return loss(0.0 if useful == 1 else 5.0, noise=1 - useful / 2)

    search = Search(names, [frozenset({name}) for name in names], measure)
    return (search, *search.find())


@pytest.mark.parametrize(
    "needed", [{"c"}, {"b", "f"}, {"a", "c", "e"}, {"b", "c", "d", "f"}, {"a", "b", "c", "d", "e", "f"}]
)
def test_the_list_is_the_shortest_that_brute_force_finds(needed: set[str]) -> None:
    search, found, shortest = searched([frozenset(needed)])
    every = [frozenset(one) for size in range(1, 7) for one in combinations("abcdef", size)]
    best = next(one for one in every if needed <= one)
    assert found == best
    assert shortest == (len(best) <= 2)
    assert met(search.losses(found))


def test_a_list_of_two_is_preferred_to_one_of_three() -> None:
    assert searched([frozenset("abc"), frozenset("df")])[1:] == (frozenset("df"), True)


def test_where_no_list_meets_the_gate_the_best_one_seen_is_told() -> None:
    def measure(layers: frozenset[str]) -> tuple[TaskLoss, ...]:
        return loss(9.0 - ("b" in layers) - ("c" in layers))

    search = Search(["a", "b", "c"], [frozenset(one) for one in "abc"], measure)
    found, shortest = search.find()
    assert found >= {"b", "c"}
    assert not shortest
    assert search.losses(found)[0].loss == 7.0


def test_the_worst_task_decides_then_the_noise() -> None:
    bad, worse = loss(3.0)[0], replace(loss(5.0)[0], task="other")
    assert badness((bad, worse)) > badness((bad, bad))
    assert badness(loss(0.5, noise=0.2)) > badness(loss(0.9, noise=0.1))  # both within the margin
    assert met((loss(1.0)[0],))
    assert not met((loss(0.5)[0], bad))


def test_steps_are_to_blame_only_where_they_explain_what_is_added() -> None:
    layer = LayerNoise("a", 0, noise=0.5, added=0.4, steps=0.01, sqnr_db=3.0, cosine=0.9)
    assert cure(layer, {"a": ("b", "c")}) == {"a"}
    assert cure(replace(layer, steps=0.39), {"a": ("b", "c")}) == {"a", "b", "c"}
    assert cure(replace(layer, steps=None), {"a": ("b",)}) == {"a"}


def test_biases_that_are_missing_are_refused(bundle: Path, tmp_path: Path) -> None:
    made = load_bundle(bundle)
    shutil.copytree(bundle, tmp_path / "copy")
    np.savez(tmp_path / "copy" / "calibration" / "biases.npz")
    with pytest.raises(UserError, match=r"0 corrected biases in .calibration/biases.npz."):
        rebuild(tmp_path / "copy", made, made.splits[-1])


def test_other_precisions_have_no_layers_to_blame(bundle: Path) -> None:
    made = load_bundle(bundle)
    fp16 = replace(made, quantisation=replace(made.quantisation, precision="fp16"))
    with pytest.raises(UserError, match='"fp16"'):
        rebuild(bundle, fp16, fp16.splits[-1])
