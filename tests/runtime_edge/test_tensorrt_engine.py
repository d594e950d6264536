"""The TensorRT engine on a fake of each version, which computes with ONNX Runtime."""

from __future__ import annotations

import dataclasses
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_tensorrt import engine_header, fake_tensorrt
from trt_bundles import IMAGE, edge_model, rewritten, write_bundle

from export.reference import reference_session
from runtime_edge.cuda.fake import FakeCuda
from runtime_edge.cuda.seam import Stream
from runtime_edge.tensorrt.engine import TensorRtEngine
from runtime_edge.tensorrt.library import checked_library, find_library
from runtime_edge.tensorrt.options import BuildOptions
from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.errors import UserError

VERSIONS = ("8.5.2", "8.6.2", "10.3.0", "10.16.2", "11.4.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for precision in ("int8", "fp16", "fp32"):
        write_bundle(folder / precision, precision)
    return folder


def image(seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=IMAGE.shape).astype(np.float32)


def engine(
    folder: Path,
    cache: Path,
    version: str = "10.3.0",
    cuda: FakeCuda | None = None,
    change: Callable[[Bundle], Bundle] = lambda bundle: bundle,
    precision: str = "int8",
    dla: int | None = None,
    **board: Any,
) -> TensorRtEngine:
    bundle = change(load_bundle(folder / precision))
    library = checked_library(fake_tensorrt(version, **board))
    options = BuildOptions(cache, dla=dla, workspace_bytes=1 << 28)
    return TensorRtEngine(folder / precision, bundle, bundle.splits, options, library, cuda or FakeCuda())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_every_version_gives_what_the_file_gives(folder: Path, tmp_path: Path, version: str, precision: str) -> None:
    cuda = FakeCuda()
    with engine(folder, tmp_path, version, cuda, precision=precision) as made:
        assert made.name == f"tensorrt {version}, fake, CUDA graphs"
        assert made.device_ns is None
        for seed in range(3):
            for split, output in (("s01", "mid"), ("s02", "y")):
                found = made.infer(split, image(seed))
                expected = reference_session(edge_model(split, precision)).run([output], {"x": image(seed)})[0]
                assert list(found) == [output]
                np.testing.assert_array_equal(found[output], expected, strict=True)
                assert (made.device_ns or 0) > 0
        with pytest.raises(KeyError):
            made.infer("s00", image())  # the image itself is sent
    assert not cuda.in_use


# By release of TensorRT and precision: the builder's flags for local only, and whether the types are the graph's.
BUILDS = [
    ("8.5.2", "int8", None, ["FP16", "INT8"], False),
    ("8.5.2", "fp16", None, ["FP16"], False),
    ("8.5.2", "fp32", None, [], False),
    ("8.5.2", "fp16", 0, ["FP16", "GPU_FALLBACK"], False),
    ("8.6.2", "int8", None, ["FP16", "INT8"], False),
    ("10.3.0", "int8", None, [], True),
    ("10.3.0", "fp16", None, [], True),
    ("10.3.0", "fp16", 1, ["FP16", "GPU_FALLBACK"], False),
    ("11.4.1", "int8", None, [], True),
    ("11.4.1", "fp16", 0, ["GPU_FALLBACK"], True),
    ("11.4.1", "int8", 0, ["GPU_FALLBACK"], True),
]


def only(split: str) -> Callable[[Bundle], Bundle]:
    return lambda bundle: dataclasses.replace(bundle, splits=(bundle.split(split),))


@pytest.mark.parametrize(("version", "precision", "dla", "flags", "typed"), BUILDS)
def test_how_an_engine_is_built(
    folder: Path, tmp_path: Path, version: str, precision: str, dla: int | None, flags: list[str], typed: bool
) -> None:
    with engine(folder, tmp_path, version, None, only("s02"), precision, dla, dla_cores=2) as made:
        assert ("DLA core" in made.name) == (dla is not None)
    (plan,) = tmp_path.rglob("*.engine")
    assert engine_header(plan.read_bytes()) == {
        "version": version,
        "verbosity": 2,  # DETAILED
        "flags": flags,
        "workspace": 1 << 28,
        "strongly_typed": typed,
        "dla": -1 if dla is None else dla,
    }


@pytest.mark.parametrize(("version", "flags"), [("8.5.2", ["FP16", "INT8"]), ("10.3.0", [])])
def test_a_wire_is_quantised_in_fp16_too(folder: Path, tmp_path: Path, version: str, flags: list[str]) -> None:
    with engine(folder, tmp_path, version, None, only("s01"), "fp16"):
        pass
    (plan,) = tmp_path.rglob("*.engine")
    assert engine_header(plan.read_bytes())["flags"] == flags


@pytest.mark.parametrize(
    ("version", "precision", "dla", "board", "words"),
    [
        ("10.3.0", "fp16", 0, {}, '--dla is "0", and this board with TensorRT 10.3.0 has no DLA'),
        ("8.5.2", "fp16", 2, {"dla_cores": 2}, '--dla is "2", this board has the cores 0, 1'),
        ("8.5.2", "fp32", 0, {"dla_cores": 2}, 'DLA computes in fp16 or INT8, and the bundle is "fp32"'),
        ("8.5.2", "int8", 0, {"dla_cores": 2}, "DLA takes no Q/DQ from TensorRT 8.5.2"),
        ("10.3.0", "int8", 0, {"dla_cores": 2}, "DLA takes no Q/DQ from TensorRT 10.3.0"),
        ("8.5.2", "int8", None, {"fast_int8": False}, 'this GPU has no INT8, and the graph holds "QuantizeLinear"'),
    ],
)
def test_what_a_board_cannot(
    folder: Path, tmp_path: Path, version: str, precision: str, dla: int | None, board: dict[str, Any], words: str
) -> None:
    cuda = FakeCuda()
    with (
        pytest.raises(UserError, match=words),
        engine(folder, tmp_path, version, cuda, precision=precision, dla=dla, **board),
    ):
        pass
    assert not cuda.in_use
    assert not list(tmp_path.rglob("*.engine"))


def test_tensorrt_without_named_tensors() -> None:
    with pytest.raises(UserError, match=r'TensorRT "8\.2\.1" has no named tensors') as caught:
        checked_library(fake_tensorrt("8.2.1"))
    assert "trtexec, from the host" in caught.value.tries[0]


def test_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match="TensorRT does not load"):
        find_library()
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))  # a folder of type stubs
    with pytest.raises(UserError, match='the package "tensorrt" holds no library'):
        find_library()


def test_nothing_is_touched_before_the_with_block(folder: Path, tmp_path: Path) -> None:
    cuda = FakeCuda()
    engine(folder, tmp_path / "cache", cuda=cuda)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(RuntimeError, match="not open"), cuda.current():
        pass


def test_any_thread_may_infer(folder: Path, tmp_path: Path) -> None:
    with engine(folder, tmp_path) as made:
        here, there = made.infer("s02", image()), list[Any]()
        thread = threading.Thread(target=lambda: there.append(made.infer("s02", image())))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(there[0]["y"], here["y"])


def test_answers_are_the_callers_own(folder: Path, tmp_path: Path) -> None:
    with engine(folder, tmp_path) as made:
        first = made.infer("s01", image(1))["mid"]
        kept = first.copy()
        made.infer("s01", image(2))
    np.testing.assert_array_equal(first, kept)


def test_a_binding_without_graphs(folder: Path, tmp_path: Path) -> None:
    with engine(folder, tmp_path, cuda=FakeCuda(graphs=False)) as made:
        assert made.name == "tensorrt 10.3.0, fake, this fake captures none"
        graphless = made.infer("s02", image())["y"]
    expected = reference_session(edge_model("s02", "int8")).run(["y"], {"x": image()})[0]
    np.testing.assert_array_equal(graphless, expected)


class Unwilling(FakeCuda):
    def capture(self, _: Stream, __: Callable[[], None]) -> Any:
        raise RuntimeError("cudaStreamEndCapture: cudaErrorStreamCaptureInvalidated")


def test_work_that_cannot_be_captured_is_run_and_said(folder: Path, tmp_path: Path) -> None:
    with engine(folder, tmp_path, cuda=Unwilling()) as made:
        assert made.name.endswith("cudaErrorStreamCaptureInvalidated")
        assert made.infer("s02", image())["y"].shape == (1, 3)


class Streamless(FakeCuda):
    def stream(self) -> Stream:
        return Stream(0, None)


def test_an_engine_that_does_not_run(folder: Path, tmp_path: Path) -> None:
    cuda = Streamless()
    with pytest.raises(RuntimeError, match="TensorRT does not run the engine"), engine(folder, tmp_path, cuda=cuda):
        pass
    assert not cuda.in_use


@pytest.mark.parametrize(
    ("edge_input", "wire", "words"),
    [
        ({"name": "image"}, {}, 'the engine of split s01 takes "x", the manifest says image'),
        ({"dtype": "int8"}, {}, 'has "x" as float32'),
        ({"shape": (1, 3, 8, 9)}, {}, r"the manifest says float32 \(1, 3, 8, 9\)"),
        ({}, {"dtype": "float32"}, 'has "mid" as int8'),
        ({}, {"name": "other"}, 'gives "mid", the manifest says other'),
    ],
)
def test_an_engine_that_is_not_what_the_manifest_says(
    folder: Path, tmp_path: Path, edge_input: dict[str, Any], wire: dict[str, Any], words: str
) -> None:
    def change(bundle: Bundle) -> Bundle:
        first = bundle.splits[1]
        split = dataclasses.replace(first, tensors=(dataclasses.replace(first.tensors[0], **wire),))
        taken = dataclasses.replace(bundle.edge_input, **edge_input)
        return dataclasses.replace(bundle, edge_input=taken, splits=(bundle.splits[0], split, bundle.splits[2]))

    cuda = FakeCuda()
    with pytest.raises(UserError, match=words), engine(folder, tmp_path, cuda=cuda, change=change):
        pass
    assert not cuda.in_use


def test_an_image_of_another_type(folder: Path, tmp_path: Path) -> None:
    with engine(folder, tmp_path) as made:
        with pytest.raises(TypeError, match="float64"):
            made.infer("s02", image().astype(np.float64))
        with pytest.raises(ValueError, match="broadcast"):
            made.infer("s02", image()[:, :, :4])


def test_graphs_that_tensorrt_does_not_take(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "int8")
    path = tmp_path / "int8" / str(bundle.splits[1].edge)
    model = onnx.load(path, load_external_data=False)
    model.graph.node[-1].op_type = "Nonsense"
    for data, words in (
        (model.SerializeToString(), r'TensorRT 10\.3\.0 does not take ".*s01.*onnx": In node -1.*Nonsense'),
        (b"no model", r'".*s01.*onnx" is no ONNX file'),
    ):
        path.write_bytes(data)
        rewritten(tmp_path / "int8", bundle)
        with pytest.raises(UserError, match=words), engine(tmp_path, tmp_path / "cache"):
            pass
