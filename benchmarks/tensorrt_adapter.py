"""What the TensorRT engine adds to a bare ``execute_async_v3()``: input and output, events, the wait, the context.

On the tests' stand-in for TensorRT, which computes with ONNX Runtime, and the shipped fake of CUDA: so it is the
adapter's own Python that is measured, not a GPU. Both are run in turn within every round, on the same graph and image.
The image is small; what copying one of 224 x 224 adds, which depends on the memory alone, is a row of its own.

Usage: python benchmarks/tensorrt_adapter.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from output import ratio, show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fake_tensorrt import fake_tensorrt
from trt_bundles import IMAGE, write_bundle

from runtime_edge.cuda.fake import FakeCuda
from runtime_edge.tensorrt.engine import TensorRtEngine
from runtime_edge.tensorrt.library import checked_library
from runtime_edge.tensorrt.options import BuildOptions
from runtime_edge.tensorrt.runner import load

AIM_US = 20.0
VERSION = "10.3.0"
SPLIT = "s02"


def bare_context(plan: bytes) -> Any:
    """An execution context of an engine, with memory of its own."""
    library = checked_library(fake_tensorrt(VERSION))
    engine = load(library, plan, None, SPLIT).engine
    context = engine.create_execution_context()
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        memory = np.zeros(engine.get_tensor_shape(name), np.float32)
        context.set_tensor_address(name, memory.ctypes.data)
        kept.append(memory)
    return context


kept: list[Any] = []
"""Memory that a context has the address of."""


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Medians in microseconds."""
    bundle = write_bundle(folder / "bundle")
    options = BuildOptions(folder / "engines", workspace_bytes=1 << 28)
    image = np.random.default_rng(0).normal(size=IMAGE.shape).astype(np.float32)
    library = checked_library(fake_tensorrt(VERSION))
    bare_ns: list[float] = []
    engine_ns: list[float] = []
    splits = (bundle.split(SPLIT),)
    with TensorRtEngine(folder / "bundle", bundle, splits, options, library, FakeCuda()) as engine:
        (plan,) = (folder / "engines").rglob("*.engine")
        context = bare_context(plan.read_bytes())
        for number in range(rounds + 50):
            start_ns = time.perf_counter_ns()
            context.execute_async_v3(1)
            executed_ns = time.perf_counter_ns()
            engine.infer(SPLIT, image)
            inferred_ns = time.perf_counter_ns()
            if number >= 50:
                bare_ns.append(executed_ns - start_ns)
                engine_ns.append(inferred_ns - executed_ns)
    return [
        {
            "what": "engine over execute_async_v3",
            "bare us": float(np.median(bare_ns)) / 1e3,
            "engine us": float(np.median(engine_ns)) / 1e3,
            "ratio": ratio(engine_ns, bare_ns),
            "added us": float(np.median(np.subtract(engine_ns, bare_ns))) / 1e3,
            "aim us": AIM_US,
        },
        copying(rounds),
    ]


def copying(rounds: int) -> dict[str, Any]:
    """One image of 224 x 224 to where the GPU reads it."""
    image, memory = np.ones((1, 3, 224, 224), np.float32), np.zeros((1, 3, 224, 224), np.float32)
    took_ns = []
    for _ in range(rounds):
        start_ns = time.perf_counter_ns()
        np.copyto(memory, image, casting="equiv")
        took_ns.append(time.perf_counter_ns() - start_ns)
    row = {"what": "copying an image of 224 x 224", "bare us": "-", "engine us": "-", "ratio": "-"}
    return {**row, "added us": float(np.median(took_ns)) / 1e3, "aim us": "-"}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    about = (
        f"{options.rounds} rounds after 50 that are discarded, medians, one thread; aim: at most {AIM_US:g} us added"
    )
    with tempfile.TemporaryDirectory() as folder:
        show(measure(Path(folder), options.rounds), f"fake tensorrt {VERSION}", about, as_json=options.json)


if __name__ == "__main__":
    main()
