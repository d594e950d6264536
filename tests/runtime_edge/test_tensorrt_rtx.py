"""The builder part of the adapter on a real library: TensorRT-RTX parses and compiles without a GPU.

It is of TensorRT 11's family: strongly typed, no precision flags. Engines are compiled for SM 8.6, as none is here.
"""

from __future__ import annotations

import io
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
from trt_bundles import edge_model

from runtime_edge.tensorrt.build import Wanted, build
from runtime_edge.tensorrt.library import Library, checked_library
from runtime_edge.tensorrt.progress import BuildLine
from runtime_edge.tensorrt.runner import load
from splitboard.contract.errors import UserError

trt: Any = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="pip install tensorrt-rtx-cu12-bindings tensorrt-rtx-cu12-libs"
)
pytestmark = [
    pytest.mark.trtrtx,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of its timing cache, which TensorRT itself has
]


class Builder(trt.Builder):  # type: ignore[misc]  # the bindings have no types
    """For a GPU that is not here."""

    def __init__(self, logger: Any) -> None:
        trt.Builder.__init__(self, logger)

    def create_builder_config(self) -> Any:
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        return config


@pytest.fixture(scope="module")
def library() -> Library:
    module = types.ModuleType("tensorrt")
    vars(module).update({**vars(trt), "Builder": Builder})
    return checked_library(module)


class Steps(BuildLine):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__("s01", io.StringIO())
        self.texts: list[str] = []

    def step(self, phase: str, done: int) -> None:
        super().step(phase, done)
        self.texts.append(self.text)


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize("split", ["s01", "s02"])
def test_engines_are_built(library: Library, tmp_path: Path, split: str, precision: str) -> None:
    onnx.save_model(
        edge_model(split, precision),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=64,
    )
    with Steps() as line:
        built = build(library, tmp_path / "m.onnx", Wanted(precision, None, 256 << 20), b"", line)
    assert len(built.plan) > 1000
    assert built.off_dla == ()
    assert built.seconds > 0
    assert any(" %" in text for text in line.texts)
    if Path("/dev/nvidiactl").exists():
        return  # what a GPU of another kind says of it is not ours
    with pytest.raises(UserError, match=r"does not load the engine of .s01.: .*CUDA"):
        load(library, built.plan, None, "s01")  # for which it needs a driver


def test_dla_is_refused(library: Library, tmp_path: Path) -> None:
    onnx.save_model(edge_model("s02", "fp16"), tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r'--dla is "0", and this board with TensorRT .* has no DLA'):
        build(library, tmp_path / "m.onnx", Wanted("fp16", 0, 256 << 20), b"", Steps())


def test_what_the_parser_says_is_passed_on(library: Library, tmp_path: Path) -> None:
    model = edge_model("s02", "int8")
    zero = next(one for one in model.graph.initializer if one.name == "x/zero")
    zero.raw_data = bytes([3])
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"does not take .*m\.onnx.: .*[Zz]ero.point"):
        build(library, tmp_path / "m.onnx", Wanted("int8", None, 256 << 20), b"", Steps())


def test_weights_that_are_missing(library: Library, tmp_path: Path) -> None:
    onnx.save_model(
        edge_model("s02", "fp32"), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=64
    )
    (tmp_path / "w.bin").unlink()
    with pytest.raises(UserError, match=r"does not take .*m\.onnx"):
        build(library, tmp_path / "m.onnx", Wanted("fp32", None, 256 << 20), b"", Steps())
