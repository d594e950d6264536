"""The fake has nothing that the real module of its version lacks, so an adapter that runs on it calls nothing such.

The real ones: NVIDIA's bindings where a wheel holds them (tensorrt-lean, which has no builder; TensorRT-RTX, which has
the builder, the parser and the inspector), the stubs of 10.13, and for 8.5 what its bindings define, read from their
source.
"""

from __future__ import annotations

import ast
import importlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
from fake_tensorrt import fake_tensorrt as fake

from runtime_edge.tensorrt.library import checked_library

Names = dict[str, set[str]]

OF_8_5: Names = {
    # NVIDIA/TensorRT, release/8.5: python/src/infer/pyCore.cpp, pyGraph.cpp, pyFoundationalTypes.cpp,
    # python/src/parsers/pyOnnx.cpp. As far as the names are used here.
    "Builder": {
        "build_serialized_network",
        "create_builder_config",
        "create_network",
        "num_DLA_cores",
        "platform_has_fast_int8",
    },
    "BuilderFlag": {"FP16", "GPU_FALLBACK", "INT8"},
    "DataType": {"BOOL", "FLOAT", "HALF", "INT32", "INT8"},
    "DeviceType": {"DLA", "GPU"},
    "EngineInspector": {"get_engine_information"},
    "IBuilderConfig": {
        "DLA_core",
        "can_run_on_DLA",
        "create_timing_cache",
        "default_device_type",
        "get_timing_cache",
        "profiling_verbosity",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    },
    "ICudaEngine": {
        "create_engine_inspector",
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_shape",
        "num_io_tensors",
    },
    "IExecutionContext": {"execute_async_v3", "profiler", "set_tensor_address"},
    "ILayer": {"name"},
    "ILogger": {"ERROR", "INFO", "INTERNAL_ERROR", "VERBOSE", "WARNING", "log"},
    "INetworkDefinition": {"get_layer", "num_layers"},
    "IProfiler": {"report_layer_time"},
    "ITimingCache": {"serialize"},
    "LayerInformationFormat": {"JSON", "ONELINE"},
    "MemoryPoolType": {"WORKSPACE"},
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH"},
    "OnnxParser": {"get_error", "num_errors", "parse_from_file"},
    "ParserError": {"desc"},
    "ProfilingVerbosity": {"DETAILED", "LAYER_NAMES_ONLY", "NONE"},
    "Runtime": {"DLA_core", "deserialize_cuda_engine"},
    "TensorIOMode": {"INPUT", "NONE", "OUTPUT"},
}

# Of the fake's file, those that the modules do not hold themselves: what their methods give.
_INNER = ("IBuilderConfig", "ILayer", "INetworkDefinition", "ITimingCache", "ParserError")


def names_of_fake(version: str) -> Names:
    """Public names by class."""
    trt = fake(version)
    classes = {name: value for name, value in vars(trt).items() if isinstance(value, type)}
    classes |= {name: getattr(fake_tensorrt, name) for name in _INNER}
    found = {name: {one for one in vars(cls) if one[0] != "_"} for name, cls in classes.items()}
    for name, attributes in set_in_constructors().items():
        found[name] |= attributes
    if hasattr(trt, "IProgressMonitor"):
        found["IBuilderConfig"].add("progress_monitor")
    return found


def set_in_constructors() -> Names:
    tree = ast.parse(Path(fake_tensorrt.__file__).read_text())
    found: Names = {}
    for cls in ast.walk(tree):
        if not isinstance(cls, ast.ClassDef):
            continue
        for one in ast.walk(cls):
            of_self = isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "self"
            if of_self and isinstance(one.ctx, ast.Store) and one.attr[0] != "_":
                found.setdefault(cls.name, set()).add(one.attr)
    return found


def missing(fake_names: Names, real: Names) -> dict[str, set[str]]:
    """What the fake has and the real one lacks, of classes that the real one has."""
    lacks = {name: attributes - real[name] for name, attributes in fake_names.items() if name in real}
    return {name: attributes for name, attributes in lacks.items() if attributes}


def names_of_module(module: Any) -> Names:
    return {name: set(dir(cls)) for name, cls in vars(module).items() if isinstance(cls, type)}


def imported(module: str, reason: str) -> Any:
    return pytest.importorskip(module, reason=reason)


@pytest.mark.parametrize("version", ["8.5.2", "8.6.2"])
def test_8_5(version: str) -> None:
    found = names_of_fake(version)
    assert set(found) == set(OF_8_5)
    assert missing(found, OF_8_5) == {}


def test_stubs_of_10_13() -> None:
    try:
        files = metadata.files("tensorrt-stubs") or []
    except metadata.PackageNotFoundError:
        pytest.skip("pip install --target DIR tensorrt-stubs, with DIR in PYTHONPATH: it must not pass for TensorRT")
    (path,) = [Path(str(file.locate())) for file in files if file.name == "tensorrt.pyi"]
    real = names_of_stubs(path.read_text(encoding="utf-8"))
    found = names_of_fake("10.13.0")
    assert set(found) - set(real) == set()
    assert missing(found, real) == {}


def names_of_stubs(text: str) -> Names:
    """By lines: the file of 10.13 does not parse, since a default stands in front of an argument without one."""
    found: Names = {}
    for line in text.splitlines():
        if cls := re.match(r"class (\w+)", line):
            members = found.setdefault(cls[1], set())
        elif member := re.match(r"    (?:def )?(\w+)\s*[(:=]", line):
            members.add(member[1])
    return found


def test_lean_bindings() -> None:
    """10.16 or 11.4, whichever is installed: they import without a GPU and have what runs engines, not what builds."""
    lean = imported(
        "tensorrt_lean_bindings", "pip install --target DIR tensorrt-lean-cu12-bindings and -libs, 10.16 or 11.4"
    )
    real = names_of_module(lean)
    assert {"ICudaEngine", "IExecutionContext", "Runtime", "IProfiler", "BuilderFlag"} <= set(real)
    version = ".".join(lean.__version__.split(".")[:3])
    assert missing(names_of_fake(version), real) == {}
    assert (
        ("INT8" in real["BuilderFlag"])
        == (int(version.split(".")[0]) < 11)
        == hasattr(fake(version).BuilderFlag, "INT8")
    )
    assert checked_library(lean).version == lean.__version__


@pytest.mark.trtrtx
def test_rtx_bindings() -> None:
    """Of the family of 11: builder, parser, inspector; all strongly typed."""
    rtx = imported("tensorrt_rtx_bindings", "pip install tensorrt-rtx-cu12-bindings tensorrt-rtx-cu12-libs")
    real = names_of_module(rtx)
    found = names_of_fake("11.4.1")
    assert set(found) - set(real) == set()
    assert missing(found, real) == {}
    library = checked_library(rtx)
    assert (library.strongly_typed, library.weakly_typed) == (True, False)


@pytest.mark.parametrize(
    ("version", "strongly", "weakly"), [("8.5.2", False, True), ("10.3.0", True, True), ("11.4.1", True, False)]
)
def test_what_is_told_apart(version: str, strongly: bool, weakly: bool) -> None:
    library = checked_library(fake(version))
    assert (library.strongly_typed, library.weakly_typed) == (strongly, weakly)


def test_no_module_asks_for_a_version() -> None:
    """Differences are decided by what the library has: nothing compares its version's number."""
    folder = Path(importlib.import_module("runtime_edge.tensorrt").__path__[0])
    for path in folder.glob("*.py"):
        for one in ast.walk(ast.parse(path.read_text())):
            if isinstance(one, ast.Compare):
                said = ast.unparse(one)
                assert "__version__" not in said, said
                assert ".version" not in said, said
