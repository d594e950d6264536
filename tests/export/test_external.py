"""Several ONNX files with their weights in one: they are read by path, and nothing is stored twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from graphs import made_of
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.external import ALIGNMENT_BYTES, SMALLEST_BYTES, SharedWeights
from export.reference import reference_options, reference_session

node = helper.make_node
LARGE = np.random.default_rng(0).normal(size=(20, 20)).astype(np.float32)
OTHER = np.random.default_rng(1).normal(size=(20, 17)).astype(np.float32)


def models() -> list[ModelProto]:
    first = [node("MatMul", ["x", "large"], ["a"]), node("MatMul", ["a", "other"], ["y"])]
    second = [node("MatMul", ["x", "same"], ["a"]), node("Mul", ["a", "scale"], ["y"])]
    return [
        made_of(first, constants={"large": LARGE, "other": OTHER}, shape=(1, 20)).model,
        made_of(second, constants={"same": LARGE, "scale": np.float32([2])}, shape=(1, 20)).model,
    ]


def stored(folder: Path) -> list[ModelProto]:
    """Two models in a folder, with shared weights."""
    weights, made = SharedWeights("w.bin"), models()
    for number, model in enumerate(made):
        weights.take(model)
        (folder / f"{number}.onnx").write_bytes(model.SerializeToString())
    (folder / "w.bin").write_bytes(weights.content)
    return made


def test_the_files_compute_what_the_models_do(tmp_path: Path) -> None:
    stored(tmp_path)
    x = np.random.default_rng(2).normal(size=(1, 20)).astype(np.float32)
    for number, model in enumerate(models()):
        path = tmp_path / f"{number}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        session = ort.InferenceSession(str(path), reference_options(), providers=["CPUExecutionProvider"])
        (expected,) = reference_session(model).run(None, {"x": x})
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def test_every_content_is_stored_once_and_aligned(tmp_path: Path) -> None:
    places = set()
    for model in stored(tmp_path):
        for tensor in model.graph.initializer:
            info = onnx.external_data_helper.ExternalDataInfo(tensor)
            if tensor.data_location == TensorProto.EXTERNAL:
                assert info.offset % ALIGNMENT_BYTES == 0
                places.add((info.offset, info.length))
            else:
                assert len(tensor.raw_data) < SMALLEST_BYTES
    content = (tmp_path / "w.bin").read_bytes()
    values = sorted(content[start : start + length] for start, length in places)
    assert values == sorted([LARGE.tobytes(), OTHER.tobytes()])
    assert len(content) < sum(map(len, values)) + ALIGNMENT_BYTES


def test_values_in_fields_of_their_type_are_moved_too() -> None:
    made = models()[0]
    typed = helper.make_tensor("other", TensorProto.FLOAT, OTHER.shape, OTHER.ravel())
    assert not typed.HasField("raw_data")
    made.graph.initializer[1].CopyFrom(typed)
    weights = SharedWeights("w.bin")
    weights.take(made)
    assert OTHER.tobytes() in weights.content
    assert numpy_helper.to_array(typed).tobytes() == OTHER.tobytes()
