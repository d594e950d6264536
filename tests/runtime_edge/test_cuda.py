"""The CUDA seam: the shipped fake, pycuda's calls on a stand-in for its driver, and cuda-bindings for real.

Tests marked ``cuda`` need an NVIDIA GPU; they run every call of the seam and compare INT8 arithmetic on it with that on
the processor.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import fake_pycuda
import numpy as np
import pytest

from runtime_edge.cuda.fake import FakeCuda
from runtime_edge.cuda.pycuda_seam import PyCuda
from runtime_edge.cuda.seam import Cuda, Mapped, Stream, find_cuda
from splitboard.contract.errors import UserError


@pytest.fixture(params=["fake", "pycuda"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    if request.param == "fake":
        return FakeCuda()
    fake_pycuda.install(monkeypatch)
    return PyCuda()


def test_memory_is_the_same_on_both_sides(cuda: Cuda) -> None:
    with cuda, cuda.current():
        memory = cuda.map(12)
        assert memory.host.dtype == np.uint8
        assert memory.host.tolist() == [0] * 12
        memory.host[3] = 7
        assert ctypes.string_at(memory.address, 12) == bytes([0, 0, 0, 7] + [0] * 8)
        cuda.free(memory)
        assert cuda.compute_capability() == (8, 7)


def test_time_between_two_marks(cuda: Cuda) -> None:
    with cuda, cuda.current():
        stream, first, last = cuda.stream(), cuda.event(), cuda.event()
        assert stream.address > 0
        cuda.record(first, stream)
        sum(range(10_000))
        cuda.record(last, stream)
        cuda.synchronise(stream)
        assert 0 < cuda.elapsed_ns(first, last) < 1e9


def test_a_context_belongs_to_a_thread_for_a_block_only(cuda: Cuda) -> None:
    failed: list[str] = []

    def elsewhere() -> None:
        try:
            cuda.map(4)
        except Exception as error:
            failed.append(str(error))
        with cuda.current():
            cuda.free(cuda.map(4))

    with cuda:
        with cuda.current(), cuda.current():
            cuda.free(cuda.map(4))
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
        assert len(failed) == 1
        with pytest.raises(Exception, match="context"):
            cuda.map(4)


def test_memory_is_freed_once(cuda: Cuda) -> None:
    with cuda, cuda.current():
        memory = cuda.map(4)
        cuda.free(memory)
        with pytest.raises((KeyError, fake_pycuda.LogicError)):
            cuda.free(memory)


def test_pycuda_leaves_the_context_as_it_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pycuda.install(monkeypatch)
    before = fake_pycuda.Context.detached
    with PyCuda() as cuda:
        assert cuda.name == "pycuda 2024.1.2"
        with pytest.raises(ValueError, match="broken"), cuda.current():
            raise ValueError("broken")
        with pytest.raises(RuntimeError, match="pycuda captures none"), cuda.current():
            cuda.capture(cuda.stream(), lambda: None)
    assert fake_pycuda.Context.detached == before + 1
    with pytest.raises(fake_pycuda.LogicError):
        fake_pycuda.Context.pop()


def test_a_driver_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = fake_pycuda.install(monkeypatch)

    def broken(flags: int = 0) -> None:
        raise fake_pycuda.LogicError("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setattr(driver, "init", broken)
    with pytest.raises(UserError, match=r'pycuda 2024\.1\.2 cannot open the GPU: "cuInit failed'), PyCuda():
        pass


# Which binding


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)


def test_pycuda_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pycuda.install(monkeypatch)
    assert find_cuda().name == "pycuda 2024.1.2"


def test_no_binding_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.runtime")
    with pytest.raises(UserError, match='neither "pycuda" nor "cuda-bindings"') as caught:
        find_cuda()
    assert "PATH=/usr/local/cuda/bin:$PATH python3 -m pip install pycuda" in caught.value.tries[0]
    assert '"cuda-bindings<13"' in caught.value.tries[1]


def test_a_binding_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> None:
            if name == "pycuda.driver":
                raise ImportError("libcurand.so.10: cannot open shared object file")

    fake_pycuda.install(monkeypatch)
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    monkeypatch.setattr(sys.modules["pycuda"], "__path__", [], raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(UserError, match='pycuda is installed and does not load: "libcurand'):
        find_cuda()


# cuda-bindings, which import without a driver


@pytest.fixture
def bindings() -> Any:
    pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    from runtime_edge.cuda.bindings_seam import CudaBindings

    return CudaBindings()


def has_gpu() -> bool:
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


def test_cuda_bindings_without_a_driver(bindings: Any) -> None:
    if has_gpu():
        pytest.skip("there is a driver here")
    assert bindings.no_graphs is None
    with pytest.raises(UserError, match=r'cuda-bindings .* cannot open the GPU: "cudaSetDevice: cudaError'), bindings:
        pass


def test_every_call_of_cuda_bindings_is_there(bindings: Any) -> None:
    """By the source's own text: what it calls by name must be in the module."""
    import inspect
    import re

    from cuda.bindings import runtime  # type: ignore[import-not-found, unused-ignore]

    source = inspect.getsource(sys.modules["runtime_edge.cuda.bindings_seam"])
    names = set(re.findall(r'_call\("(\w+)"', source)) | set(re.findall(r"_cuda\.(cuda\w+)", source))
    assert {"cudaHostAlloc", "cudaStreamBeginCapture", "cudaGraphLaunch", "cudaDeviceAttr"} <= names
    assert {name for name in names if not hasattr(runtime, name)} == set()
    mode = runtime.cudaStreamCaptureMode
    assert hasattr(mode, "cudaStreamCaptureModeThreadLocal")
    assert hasattr(runtime.cudaDeviceAttr, "cudaDevAttrComputeCapabilityMinor")


@pytest.fixture
def gpu(bindings: Any) -> Iterator[Any]:
    if not has_gpu():
        pytest.skip("no NVIDIA GPU here")
    with bindings, bindings.current():
        yield bindings


def copying(stream: Stream, source: Mapped, target: Mapped) -> Callable[[], None]:
    """A copy by the GPU between two of its own addresses."""
    from cuda.bindings import runtime

    kind = runtime.cudaMemcpyKind.cudaMemcpyDefault

    def enqueue() -> None:
        n_bytes = source.host.size
        (status,) = runtime.cudaMemcpyAsync(target.address, source.address, n_bytes, kind, stream.handle)
        assert status == runtime.cudaError_t.cudaSuccess

    return enqueue


@pytest.mark.cuda
def test_a_gpu_reads_and_writes_mapped_memory(gpu: Any) -> None:
    stream = gpu.stream()
    source, target = gpu.map(1 << 20), gpu.map(1 << 20)
    source.host[:] = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    first, last = gpu.event(), gpu.event()
    gpu.record(first, stream)
    copying(stream, source, target)()
    gpu.record(last, stream)
    gpu.synchronise(stream)
    np.testing.assert_array_equal(target.host, source.host)
    assert 0 < gpu.elapsed_ns(first, last) < 1e9
    assert gpu.compute_capability() >= (5, 0)
    gpu.free(source)
    gpu.free(target)


@pytest.mark.cuda
def test_a_captured_graph_works_on_what_is_there_when_it_is_launched(gpu: Any) -> None:
    stream = gpu.stream()
    source, target = gpu.map(4096), gpu.map(4096)
    graph = gpu.capture(stream, copying(stream, source, target))
    gpu.synchronise(stream)
    assert not target.host.any()  # captured, not run
    for value in (1, 2, 3):
        source.host[:] = value
        gpu.launch(graph, stream)
        gpu.synchronise(stream)
        assert set(target.host.tolist()) == {value}


@pytest.mark.cuda
def test_a_capture_that_fails_leaves_the_stream_usable(gpu: Any) -> None:
    stream = gpu.stream()
    source, target = gpu.map(16), gpu.map(16)
    source.host[:] = 9

    def broken() -> None:
        raise RuntimeError("TensorRT does not run the engine")

    with pytest.raises(RuntimeError, match="does not run"):
        gpu.capture(stream, broken)
    copying(stream, source, target)()
    gpu.synchronise(stream)
    assert set(target.host.tolist()) == {9}


@pytest.mark.cuda
def test_another_thread_uses_the_same_context(gpu: Any) -> None:
    stream = gpu.stream()
    source, target = gpu.map(16), gpu.map(16)
    source.host[:] = 5

    def elsewhere() -> None:
        with gpu.current():
            copying(stream, source, target)()
            gpu.synchronise(stream)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert set(target.host.tolist()) == {5}


def columns(x: Any, size: int) -> Any:
    """The patches that a convolution with stride 1 and equal borders sees, ``[positions, channels * size * size]``."""
    border = size // 2
    padded = np.pad(x[0], ((0, 0), (border, border), (border, border)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return patches.transpose(1, 2, 0, 3, 4).reshape(-1, x.shape[1] * size * size)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(("source", "weights", "output"), [("x", "first.w", "c"), ("r", "second.w", "mid")])
def test_int8_arithmetic_of_exported_layers(device: str, source: str, weights: str, output: str) -> None:
    """Whole numbers multiplied and summed on the device are what ONNX Runtime makes of the layer's Q/DQ form."""
    import onnx
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from trt_bundles import IMAGE, edge_model

    from export.reference import reference_session

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU here")
    model = edge_model("s02", "int8")
    wanted = {f"{source}/int8": TensorProto.INT8, f"{weights}/int8": TensorProto.INT8, output: TensorProto.FLOAT}
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in wanted.items())
    image = np.random.default_rng(2).normal(size=IMAGE.shape).astype(np.float32)
    x, w, real = reference_session(onnx.shape_inference.infer_shapes(model)).run([*wanted], {"x": image})
    scales = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    rows = np.pad(columns(x, w.shape[-1]), ((0, 0), (0, -w[0].size % 8)))  # the kernel takes multiples of 8
    matrix = np.pad(w.reshape(len(w), -1), ((0, -len(w) % 8), (0, -w[0].size % 8))).T
    sums = torch._int_mm(*(torch.from_numpy(np.ascontiguousarray(one)).to(device) for one in (rows, matrix)))
    found = sums.cpu().numpy()[:, : len(w)].T.reshape(real.shape)
    scale = float(scales[f"{source}/scale"]) * float(scales[f"{weights}/scale"])
    np.testing.assert_array_equal((found * scale).astype(np.float32), real)
