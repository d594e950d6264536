"""The INT8 file: scales recomputed from the range table, weights, operators, quality beside ONNX Runtime's own."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ai_edge_litert.schema_py_generated import ModelT, TensorType
from ai_edge_litert.tools import flatbuffer_utils
from conftest import synthetic_images
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from calib.artefact import accelerated_partitions, count_operators, float_tensors, overflowed_biases
from calib.quantise import _check_twins
from calib.ranges import Range, RangeTable
from export.model import load_model
from export.tflite import FloatTflite, onnx_name
from runtime_edge.engines.litert import LiteRtEngine
from splitboard.contract.bundle import load_bundle
from splitboard.contract.decode import read_json
from splitboard.contract.errors import SplitboardError
from splitboard.contract.preprocess import edge_image, normalise, quantised_table, resize


@pytest.fixture(scope="module")
def content(tiny_bundle: Path) -> bytes:
    return (tiny_bundle / load_bundle(tiny_bundle).edge_files[0]).read_bytes()


@pytest.fixture(scope="module")
def file(content: bytes) -> ModelT:
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def test_every_scale_follows_from_the_table(tiny_bundle: Path, file: ModelT) -> None:
    table = read_json(RangeTable, tiny_bundle / "calibration" / "ranges.json")
    checked = 0
    for subgraph in file.subgraphs:
        made = {index for operator in subgraph.operators for index in operator.outputs} | set(subgraph.inputs)
        for index in made:
            tensor = subgraph.tensors[index]
            found = table.ranges[onnx_name(tensor.name.decode())]
            low, high = min(found.min, 0.0), max(found.max, 0.0)
            scale = (high - low) / 255
            assert tensor.quantization.scale[0] == pytest.approx(scale, rel=1e-5)
            assert tensor.quantization.zeroPoint[0] == pytest.approx(-128 - low / scale, abs=0.51)
            checked += 1
    assert checked >= 25


def test_all_is_int8_and_nothing_converts_inside(tiny_bundle: Path, content: bytes) -> None:
    assert float_tensors(content) == []
    counted = count_operators(content)
    assert counted == load_bundle(tiny_bundle).operators
    for operators in counted.values():
        assert not operators.keys() & {"TRANSPOSE", "QUANTIZE", "DEQUANTIZE"}


def test_no_weight_is_stored_twice_and_shared_ones_agree(file: ModelT) -> None:
    weights = [bytes(np.asarray(b.data, np.uint8)) for b in file.buffers if b.data is not None and len(b.data) > 32]
    assert len(weights) == len(set(weights))
    scales: dict[int, list[float]] = {}
    for subgraph in file.subgraphs:
        for tensor in subgraph.tensors:
            if tensor.type == TensorType.INT8 and file.buffers[tensor.buffer].data is not None:
                found = [float(scale) for scale in tensor.quantization.scale]
                assert scales.setdefault(tensor.buffer, found) == found
    assert len(scales) >= 6


def test_weights_are_per_channel_and_symmetric(file: ModelT) -> None:
    seen = 0
    for subgraph in file.subgraphs:
        for operator in subgraph.operators:
            if flatbuffer_utils.opcode_to_name(file, operator.opcodeIndex) == "CONV_2D":
                weight = subgraph.tensors[operator.inputs[1]]
                assert len(weight.quantization.scale) == weight.shape[0]
                assert not np.any(weight.quantization.zeroPoint)
                seen += 1
    assert seen >= 6


def test_a_name_that_could_be_another_tensors_is_refused_where_it_matters(content: bytes) -> None:
    ambiguous = FloatTflite(content, {"a": ("b",)})
    one, same = Range(-1.0, 1.0, 1.0), Range(-1.005, 1.0, 1.005)
    other = Range(-1.0, 3.0, 3.0)
    _check_twins(ambiguous, RangeTable(2, "minmax", 1, {"a": one, "b": same}))
    with pytest.raises(SplitboardError, match='the values of "a" and of "b"'):
        _check_twins(ambiguous, RangeTable(2, "minmax", 1, {"a": one, "b": other}))


def test_an_overflowed_bias_is_found(content: bytes) -> None:
    assert overflowed_biases(content) == []
    spoiled = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    bias = next(t for t in spoiled.subgraphs[0].tensors if t.type == TensorType.INT32)
    values = np.frombuffer(bytes(np.asarray(spoiled.buffers[bias.buffer].data, np.uint8)), np.int32).copy()
    values[0] = -(2**31)
    spoiled.buffers[bias.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    assert bias.name.decode() in overflowed_biases(bytes(flatbuffer_utils.convert_object_to_bytearray(spoiled)))


def test_each_signature_is_one_accelerated_partition(tiny_bundle: Path, content: bytes) -> None:
    assert accelerated_partitions(content) == dict.fromkeys(load_bundle(tiny_bundle).operators, 1)


def test_an_operator_that_is_not_accelerated_is_noticed() -> None:
    """The exact hard-swish becomes an operator that XNNPACK does not take in INT8."""
    import torch
    from litert_quantizer import calibrator, quantizer, recipe, recipe_manager
    from litert_quantizer.utils import qsv_utils

    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.Hardswish(), torch.nn.Conv2d(4, 4, 3), torch.nn.Hardswish()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litert_torch

        floating = litert_torch.convert(torch.nn.Sequential(*layers).eval(), (torch.randn(1, 3, 16, 16),))
        made = floating.model_content()
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(recipe.static_wi8_ai8())
        ranges = calibrator.Calibrator(bytearray(made), qsv_update_func=qsv_utils.min_max_update)
        ranges.calibrate({"serving_default": [{"args_0": np.ones((1, 3, 16, 16), np.float32)}]}, manager)
        worker = quantizer.Quantizer(bytearray(made), recipe.static_wi8_ai8())
        int8 = bytes(worker.quantize(ranges.get_model_qsvs()).quantized_model)
    assert accelerated_partitions(int8)["serving_default"] != 1


class _Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
    def __init__(self, samples: np.ndarray) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        sample = next(self._samples, None)
        return None if sample is None else {"image": sample[None]}


def sqnr_db(actual: np.ndarray, expected: np.ndarray) -> float:
    """Signal to quantisation noise ratio."""
    return float(10 * np.log10(np.sum(expected**2) / np.sum((actual - expected) ** 2)))


def test_int8_is_as_good_as_onnx_runtimes_own(
    tiny_model: Path, tiny_bundle: Path, tiny_samples: Path, tmp_path: Path
) -> None:
    """Same calibration images, min/max, per-channel weights; two quantisers, one float model."""
    model, bundle = load_model(tiny_model), load_bundle(tiny_bundle)
    spec = model.info.preprocessing
    with np.load(tiny_samples) as archive:
        calibration = normalise(resize(archive["images"], 32, 32), spec)
    onnx.save(model.graph.model, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "qdq.onnx",
        _Reader(calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
    )
    pixels = resize(synthetic_images(60)[30:], 32, 32)
    images = normalise(pixels, spec)
    names = model.graph.outputs
    sessions = [
        ort.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        for name in ("float.onnx", "qdq.onnx")
    ]
    floats, theirs = ([s.run(names, {"image": image[None]}) for image in images] for s in sessions)
    assert bundle.edge_input.scale is not None
    assert bundle.edge_input.zero_point is not None
    table = quantised_table(spec, bundle.edge_input.scale, bundle.edge_input.zero_point)
    with LiteRtEngine(tiny_bundle, bundle, bundle.splits) as engine:
        ours = [engine.infer(bundle.splits[-1].id, image[None]) for image in edge_image(pixels, table)]
    for index, name in enumerate(names):
        expected = np.concatenate([result[index] for result in floats])
        their_db = sqnr_db(np.concatenate([result[index] for result in theirs]), expected)
        our_db = sqnr_db(np.concatenate([result[name] for result in ours]), expected)
        # Our outputs are INT8 as well, theirs too; the two round differently.
        assert our_db > their_db - 3, (name, our_db, their_db)
        assert our_db > 20
