"""The files of ``tests/invalid`` before TensorRT's own parser and builder (those of TensorRT-RTX)."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from tensorrt_parser import errors

pytestmark = pytest.mark.trtrtx

INVALID = Path(__file__).parents[1] / "invalid"
REFUSED = {
    "zero_point": "Non-zero zero point is not supported",
    "int32_bias": "input has type Int32 but must have type",
    "scale": "Scale coefficients must all be positive",
    "scale_in_fp16": "must be of same type",
    "operator": "",
    "type": "Failed to convert ONNX date type to TensorRT data type",
}
BUILT_ALL_THE_SAME = {
    "legal": "the board has no INT8, which a builder for another GPU cannot know",
    "unsigned": "as signed integers: values above 127 are clipped",
    "axis": "in float",
    "axis_of_activations": "in float",
    "stored_weights": "TensorRT 10 takes them, 8 does not",
    "float64": "as float32",
    "opset": "a newer parser",
}
"""Why, by file. Here the rule is all that stands between the graph and a wrong or slow engine."""


@pytest.mark.parametrize("name", REFUSED)
def test_tensorrt_refuses_it_too(name: str) -> None:
    found = errors(onnx.load(INVALID / f"{name}.onnx"))
    assert found
    assert REFUSED[name] in found[0]


def test_without_a_profile_no_engine_is_built_for_an_open_shape() -> None:
    with pytest.raises(AssertionError):
        errors(onnx.load(INVALID / "dynamic.onnx"))


@pytest.mark.parametrize("name", BUILT_ALL_THE_SAME)
def test_tensorrt_builds_it_all_the_same(name: str) -> None:
    assert errors(onnx.load(INVALID / f"{name}.onnx")) == []


def test_every_file_is_here() -> None:
    assert {path.stem for path in INVALID.glob("*.onnx")} == {*REFUSED, *BUILT_ALL_THE_SAME, "dynamic"}
