"""TensorRT's calibration cache, against caches that TensorRT wrote and a decoding of our own bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantised import (  # type: ignore[import-not-found, unused-ignore]
    exported,
    images,
    observed,
    table_of,
)

from boards.kinds import kind_names, load_kind
from calib.qdq.cache import cache_text, read_cache, write_cache
from calib.qdq.plan import plan
from splitboard.contract.errors import UserError

# LeNet on MNIST, by TensorRT 7.2.2, for NVDLA's compiler: published with a guide to it.
LENET = """TRT-7202-EntropyCalibration2
data: 3c008912
conv1: 3c60dd38
pool1: 3c60dd38
conv2: 3d895e44
pool2: 3d895e44
(Unnamed Layer* 4) [Fully Connected]_output: 3d65992f
ip1: 3d65ff18
ip2: 3e11094c
prob: 3c083ffd
"""

# A network exported from PyTorch, by TensorRT 8.5.10, from notes on how it fuses.
PYTORCH = """TRT-8510-EntropyCalibration2
x: 4000890a
/conv1/Conv_output_0: 3f9db09c
/relu1/Relu_output_0: 3fb6163c
(Unnamed Layer* 8) [Constant]_output: 39137939
(Unnamed Layer* 28) [TopK]_output_1: 3be6d87f
"""


def decoded(digits: str) -> float:
    """IEEE 754 binary32, by its definition."""
    bits = int(digits, 16)
    sign, exponent, fraction = bits >> 31, bits >> 23 & 0xFF, bits & 0x7FFFFF
    assert 0 < exponent < 255
    return (-1.0) ** sign * 2.0 ** (exponent - 127) * (1 + fraction / 2**23)


@pytest.mark.parametrize("text", [LENET, PYTORCH])
def test_what_tensorrt_wrote_is_read(text: str) -> None:
    found = read_cache(text)
    assert found.calibrator == "EntropyCalibration2"
    lines = text.splitlines()[1:]
    assert len(found.scales) == len(lines)
    for line in lines:
        name, _, digits = line.rpartition(": ")
        assert found.scales[name] == decoded(digits)


def test_tensorrts_own_cache_is_written_from_its_ranges() -> None:
    """The scales of a real cache, as ranges, give that cache to the letter."""
    limits = {name: (0.0, scale * 127) for name, scale in read_cache(PYTORCH).scales.items()}
    assert cache_text(table_of(limits), "8.5.10") == PYTORCH


def test_a_known_vector() -> None:
    """NVIDIA/TensorRT issue 2036: 3c009976 is 0.00785."""
    (scale,) = read_cache("TRT-8203-EntropyCalibration2\ninput: 3c009976\n").scales.values()
    assert scale == decoded("3c009976") == pytest.approx(0.00785, abs=5e-6)
    assert cache_text(table_of({"input": (0.0, 127 * scale)}), "8.2.3").endswith("\ninput: 3c009976\n")
    assert cache_text(table_of({"one": (-127.0, 3.0)}), "8.2.1") == "TRT-8201-EntropyCalibration2\none: 3f800000\n"


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1),
        st.floats(2.0**-100, 2.0**100, allow_nan=False),
        max_size=8,
    )
)
def test_round_trip(magnitudes: dict[str, float]) -> None:
    table = table_of({name: (-value, 0.0) for name, value in magnitudes.items()})
    found = read_cache(cache_text(table, "8.6.2"))
    assert found.release == "8602"
    assert found.scales == {name: float(np.float32(value / 127)) for name, value in magnitudes.items()}


def test_tensors_that_were_always_zero_have_no_line() -> None:
    table = table_of({"dead": (0.0, 0.0), "alive": (0.0, 1.0)})
    assert list(read_cache(cache_text(table, "8.5.2")).scales) == ["alive"]


def test_the_cache_holds_the_scales_of_qdq() -> None:
    """One calibration for both modes; concatenated tensors, which share a scale in Q/DQ, are not in this network."""
    graph = exported("mobilenet_v3_small_two_heads")
    assert not any(node.op_type == "Concat" for node in graph.nodes)
    table = observed(graph, images(graph, 2))
    scales = read_cache(cache_text(table, "8.5.2")).scales
    planned = plan(graph, graph.outputs, table)
    assert planned.scales
    assert {name: scales[name] for name in planned.scales} == planned.scales


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'begins with ""'),
        ("input: 3c009976\n", 'begins with "input: 3c009976"'),
        ("TRT-8502-EntropyCalibration2\ninput 3c009976\n", 'line 2 of the calibration cache is "input 3c009976"'),
        ("TRT-8502-EntropyCalibration2\na: 3c009976\nb: 3c0099\n", 'line 3 of the calibration cache is "b: 3c0099"'),
    ],
)
def test_what_is_no_cache_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_cache(text)


def test_bundles_of_kinds_with_int8_and_tensorrt_8_have_one(tmp_path: Path) -> None:
    table = table_of({"x": (0.0, 1.0)})
    written = {}
    for name in kind_names():
        (tmp_path / name).mkdir()
        write_cache(tmp_path / name, table, load_kind(name))
        for path in (tmp_path / name).iterdir():
            assert path.name == "trt8.cache"
            written[name] = read_cache(path.read_text(encoding="utf-8")).release
    orins = dict.fromkeys(("jetson-agx-orin", "jetson-orin-nano", "jetson-orin-nx"), "8602")
    assert written == {**orins, "jetson-agx-xavier": "8502", "jetson-xavier-nx": "8502"}
