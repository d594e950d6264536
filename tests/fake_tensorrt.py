"""A module like ``tensorrt``, of any version from 8.2 on, that computes with ONNX Runtime.

Every name in here is one that the real module of that version has (`tests/runtime_edge/test_tensorrt_contract.py`), and
what a version lacks is not there: an adapter that runs with all of these calls nothing that one of them lacks. It
refuses what the real ones refuse: precision flags for a strongly typed network, Q/DQ without the INT8 flag in a weakly
typed one, an engine of another version, execution without addresses.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import importlib.machinery
import json
import types
from typing import Any

import numpy as np
import onnx
import onnxruntime

_WEAK = ("FP16", "INT8")
_SENTENCES = {
    "float32": "Row major linear FP32",
    "float16": "Row major linear FP16 format",
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
}
_WORDS = {"float32": "Float", "float16": "Half", "int8": "Int8"}
_WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProfiler:
    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.IntEnum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class LayerInformationFormat(enum.IntEnum):
    ONELINE, JSON = range(2)


class DeviceType(enum.IntEnum):
    GPU, DLA = range(2)


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class DataType(enum.IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL = range(5)


_DTYPES = {np.float32: DataType.FLOAT, np.float16: DataType.HALF, np.int8: DataType.INT8, np.int32: DataType.INT32}


class IHostMemory:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bytes__(self) -> bytes:
        return self._data


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._data)


class ILayer:
    def __init__(self, node: onnx.NodeProto) -> None:
        self._node = node

    @property
    def name(self) -> str:
        return self._node.name or f"node_of_{self._node.output[0]}"


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._model: onnx.ModelProto | None = None

    @property
    def num_layers(self) -> int:
        return len(self._nodes)

    def get_layer(self, index: int) -> ILayer:
        return ILayer(self._nodes[index])

    @property
    def _nodes(self) -> list[onnx.NodeProto]:
        assert self._model is not None
        return list(self._model.graph.node)


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    def __init__(self, network: INetworkDefinition, _logger: ILogger) -> None:
        self._network, self._errors = network, list[ParserError]()

    def parse_from_file(self, model: str) -> bool:
        try:
            self._network._model = onnx.load(model)  # with its external data
            onnx.checker.check_model(self._network._model)
        except Exception as error:
            self._errors.append(ParserError(f"In node -1 (parseGraph): {error}"))
            return False
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IBuilderConfig:
    def __init__(self, trt: Any) -> None:
        self._trt, self._flags, self._pools = trt, set[str](), dict[Any, int]()
        self._cache: ITimingCache | None = None
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.default_device_type = DeviceType.GPU
        self.DLA_core = -1

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, _ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def _grow(self, model: bytes) -> None:
        """Adds what was timed; nothing where that is known already."""
        line = hashlib.sha256(model).hexdigest().encode() + b"\n"
        if self._cache is not None and line not in self._cache._data:
            self._cache._data += line

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache

    def can_run_on_DLA(self, layer: ILayer) -> bool:  # noqa: N802
        return layer._node.op_type in ("Conv", "Relu", "MaxPool", "Add")


class EngineInspector:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002
        assert format == LayerInformationFormat.JSON
        return json.dumps({"Layers": self._engine._layers(), "Bindings": self._engine._names})


class ICudaEngine:
    def __init__(self, trt: Any, header: dict[str, Any], model: bytes) -> None:
        self._trt, self._header = trt, header
        self._model = onnx.load_model_from_string(model)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        infos = onnx.shape_inference.infer_shapes(self._model).graph
        self._infos = {info.name: info for info in (*infos.value_info, *infos.input, *infos.output)}
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._names = [*self._inputs, *(one.name for one in self._session.get_outputs())]

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(one.dim_value for one in self._infos[name].type.tensor_type.shape.dim)

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DTYPES[self._dtype(name).type]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def _dtype(self, name: str) -> np.dtype[Any]:
        return onnx.helper.tensor_dtype_to_np_dtype(self._infos[name].type.tensor_type.elem_type)

    def _layers(self) -> list[Any]:
        """One layer per operator; Q/DQ of activations stand alone, those of weights are part of their operator."""
        constants = {one.name for one in self._model.graph.initializer}
        makers = {name: node for node in self._model.graph.node for name in node.output}
        found = []
        for node in self._model.graph.node:
            from_weights = node.op_type == "QuantizeLinear" and node.input[0] in constants
            back = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
            if from_weights or (back is not None and back.input[0] in constants):
                continue
            found.append(self._layer(node, constants, makers))
        return found

    def _layer(self, node: onnx.NodeProto, constants: set[str], makers: dict[str, onnx.NodeProto]) -> Any:
        name = ILayer(node).name
        if self._header["verbosity"] != ProfilingVerbosity.DETAILED:
            return name
        one: dict[str, Any] = {"Name": name, "LayerType": node.op_type}
        inputs = [tensor for tensor in node.input if tensor and tensor not in constants][:1]
        through = [makers[tensor].input[0] for tensor in inputs if tensor in makers and self._is_back(makers[tensor])]
        if node.op_type in _WEIGHTED:
            kind = "Int8" if through else "Float"
            one |= {"LayerType": "CaskConvolution", "Weights": {"Type": kind, "Count": 1}}
            inputs = through or inputs
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            one |= {"LayerType": "Reformat", "Origin": "QDQ", "ParameterType": "Reformat"}
        one["Inputs"] = [self._tensor(tensor) for tensor in inputs]
        one["Outputs"] = [self._tensor(tensor) for tensor in node.output]
        if hasattr(self._trt, "IProgressMonitor"):  # of those here, the releases that tell the metadata
            one["Metadata"] = f"[ONNX Layer: {name}]"
        return one

    def _is_back(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "DequantizeLinear"

    def _tensor(self, name: str) -> dict[str, Any]:
        words = _WORDS if hasattr(self._trt, "IProgressMonitor") else _SENTENCES
        return {"Name": name, "Format/Datatype": words[self._dtype(name).name]}


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._addresses = engine, dict[str, int]()
        self.profiler: IProfiler | None = None

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine._names

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        if set(self._addresses) != set(engine._names) or not stream_handle:
            return False
        feeds = {name: self._view(name) for name in engine._inputs}
        outputs = [name for name in engine._names if name not in engine._inputs]
        for name, value in zip(outputs, engine._session.run(outputs, feeds), strict=True):
            self._view(name)[...] = value
        if self.profiler is not None:
            for i, layer in enumerate(engine._layers()):
                self.profiler.report_layer_time(layer["Name"], (i + 1) / 1000)
        return True

    def _view(self, name: str) -> Any:
        shape, dtype = self._engine.get_tensor_shape(name), self._engine._dtype(name)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_uint8 * n_bytes).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)


class _OldEngine:
    """Of 8.2: tensors by number."""

    num_bindings = 0


class _OldContext:
    def execute_async_v2(self, _bindings: list[int], _stream_handle: int) -> bool:
        return False


def fake_tensorrt(version: str, dla_cores: int = 0, fast_int8: bool = True) -> Any:
    """The module of a version.

    Args:
        version: e.g. ``10.3.0``.
        dla_cores: of the board.
        fast_int8: whether its GPU has INT8.
    """
    number = tuple(int(part) for part in version.split("."))
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version  # type: ignore[attr-defined]
    trt.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None, origin=__file__)
    for one in (ILogger, IProfiler, MemoryPoolType, ProfilingVerbosity, LayerInformationFormat, DeviceType):
        setattr(trt, one.__name__, one)
    for other in (TensorIOMode, DataType, OnnxParser, EngineInspector):
        setattr(trt, other.__name__, other)
    named = number >= (8, 5)
    trt.ICudaEngine = ICudaEngine if named else _OldEngine  # type: ignore[attr-defined]
    trt.IExecutionContext = IExecutionContext if named else _OldContext  # type: ignore[attr-defined]
    if number >= (10,):
        trt.IProgressMonitor = IProgressMonitor  # type: ignore[attr-defined]
    weak = ["FP16", "INT8"] if number < (11,) else []
    trt.BuilderFlag = enum.IntEnum("BuilderFlag", [*weak, "GPU_FALLBACK"], start=0)  # type: ignore[attr-defined]
    kinds = ["EXPLICIT_BATCH"] if number < (11,) else []
    kinds += ["STRONGLY_TYPED"] if number >= (10,) else []
    trt.NetworkDefinitionCreationFlag = enum.IntEnum(  # type: ignore[attr-defined]
        "NetworkDefinitionCreationFlag", kinds, start=0
    )
    trt.Builder = _builder(trt, number, dla_cores, fast_int8)  # type: ignore[attr-defined]
    trt.Runtime = _runtime(trt)  # type: ignore[attr-defined]
    return trt


def _builder(trt: Any, number: tuple[int, ...], dla_cores: int, fast_int8: bool) -> type[Any]:
    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        @property
        def num_DLA_cores(self) -> int:  # noqa: N802
            return dla_cores

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            config = IBuilderConfig(trt)
            if number >= (10,):
                config.progress_monitor = None  # type: ignore[attr-defined]
            return config

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            model, error = network._model, _objection(trt, network, config)
            if error is not None or model is None:
                self._logger.log(Severity.ERROR, f"[builder.cpp] Error Code 4: {error}")
                return None
            _tell(getattr(config, "progress_monitor", None))
            header = {
                "version": trt.__version__,
                "verbosity": int(config.profiling_verbosity),
                "flags": sorted(config._flags),
                "workspace": config._pools[MemoryPoolType.WORKSPACE],
                "strongly_typed": _is_strong(trt, network),
                "dla": config.DLA_core,
            }
            data = model.SerializeToString()
            config._grow(data)
            return IHostMemory(json.dumps(header).encode() + b"\n" + data)

    if number < (11,):
        Builder.platform_has_fast_int8 = property(lambda _: fast_int8)  # type: ignore[attr-defined]
    return Builder


def _tell(watching: IProgressMonitor | None) -> None:
    if watching is not None:
        watching.phase_start("Building Engine", None, 2)
        watching.step_complete("Building Engine", 1)
        watching.phase_finish("Building Engine")


def _is_strong(trt: Any, network: INetworkDefinition) -> bool:
    kinds = trt.NetworkDefinitionCreationFlag
    return hasattr(kinds, "STRONGLY_TYPED") and bool(network._flags & 1 << int(kinds.STRONGLY_TYPED))


def _objection(trt: Any, network: INetworkDefinition, config: IBuilderConfig) -> str | None:
    if _is_strong(trt, network):
        return "precision flags are not allowed when strongly typed" if config._flags & set(_WEAK) else None
    if any(node.op_type == "QuantizeLinear" for node in network._nodes) and "INT8" not in config._flags:
        return "Network contains Q/DQ and the INT8 flag is not set"
    if not network._flags & 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH):
        return "the parser needs an explicit batch"
    return None


def _runtime(trt: Any) -> type[Any]:
    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger
            self.DLA_core = -1

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            first, _, model = serialized_engine.partition(b"\n")
            header = json.loads(first)
            if header["version"] != trt.__version__:
                self._logger.log(Severity.ERROR, f"engine built by {header['version']}, this is {trt.__version__}")
                return None
            return ICudaEngine(trt, header, model)

    return Runtime


def engine_header(plan: bytes) -> dict[str, Any]:
    """How an engine of the fake was built."""
    header: dict[str, Any] = json.loads(plan.partition(b"\n")[0])
    return header
