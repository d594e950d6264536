"""The engine that a bundle's edge half needs, made for this board."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple, Optional, Sequence, Tuple

from runtime_edge.engines.engine import Engine, edge_splits
from runtime_edge.engines.litert import LiteRtEngine, find_interpreter
from runtime_edge.engines.memory import free_bytes
from runtime_edge.engines.onnxrt import OnnxRuntimeEngine, find_onnxruntime
from runtime_edge.tensorrt.options import BuildOptions, default_cache
from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.errors import UserError

TEGRA_RELEASE = Path("/etc/nv_tegra_release")
"""Every Jetson has it, and nothing else."""


class Resources(NamedTuple):
    """What an engine may use.

    Attributes:
        threads: of the interpreter.
        arena_bytes: memory for signatures that are set up before they are used; ``None`` for half of what is free.
        building: how TensorRT builds; ``None`` for the GPU, a share of the memory and the usual cache.
    """

    threads: int = 1
    arena_bytes: Optional[int] = None
    building: Optional[BuildOptions] = None


def make_engine(folder: Path, bundle: Bundle, splits: Sequence[Split], resources: Resources) -> Optional[Engine]:
    """The engine for these splits, not entered; ``None`` where none of them has an edge half.

    TFLite files run in LiteRT. ONNX files run in TensorRT where Python has it; elsewhere in ONNX Runtime, which only
    simulates them, and so not on a Jetson.

    Args:
        folder: the bundle.
        bundle: its manifest.
        splits: that will be run.
        resources: that it may use.

    Raises:
        UserError: what it needs is not installed, or cannot do what is asked for.
    """
    edge = edge_splits(splits)
    if not edge:
        return None
    if all(str(split.edge).endswith(".onnx") for split in edge.values()):
        if has_tensorrt():
            return _tensorrt_engine(folder, bundle, splits, resources)
        _find_simulation()
        _check_no_dla(resources, "ONNX Runtime")
        return OnnxRuntimeEngine(folder, bundle, splits, resources.threads)
    _check_no_dla(resources, "LiteRT")
    arena_bytes = free_bytes() // 2 if resources.arena_bytes is None else resources.arena_bytes
    return LiteRtEngine(folder, bundle, splits, resources.threads, arena_bytes)


def find_runtime(bundle: Optional[Bundle] = None) -> str:
    """What this machine would run a bundle with: names and versions.

    Args:
        bundle: its manifest; ``None`` for any that this machine can run.

    Raises:
        UserError: there is nothing to run it with.
    """
    if bundle is None:
        try:
            return find_interpreter().name
        except UserError:
            if not has_tensorrt():
                raise
            return _tensorrt_name()
    if not all(path.endswith(".onnx") for path in bundle.edge_files):
        return find_interpreter().name
    if has_tensorrt():
        return _tensorrt_name()
    return f"onnxruntime {_find_simulation().__version__}"


def has_tensorrt() -> bool:
    """Whether Python has the package ``tensorrt``; it is not loaded. A folder of that name without code is none."""
    found = importlib.util.find_spec("tensorrt")
    return found is not None and found.origin is not None


def _tensorrt_engine(folder: Path, bundle: Bundle, splits: Sequence[Split], resources: Resources) -> Engine:
    # Loaded here, since most boards have no use for it.
    from runtime_edge.cuda.seam import find_cuda
    from runtime_edge.tensorrt.engine import TensorRtEngine
    from runtime_edge.tensorrt.library import find_library

    if resources.threads != 1:
        raise UserError(f'threads is "{resources.threads}", and TensorRT has none to set', ["leave out --threads"])
    building = resources.building or BuildOptions(default_cache())
    return TensorRtEngine(folder, bundle, splits, building, find_library(), find_cuda())


def _tensorrt_name() -> str:
    from runtime_edge.cuda.seam import find_cuda
    from runtime_edge.tensorrt.library import find_library

    return f"tensorrt {find_library().version}, {find_cuda().name}"


def _find_simulation() -> Any:
    """ONNX Runtime, for where there is no TensorRT: a container on a Jetson looks like a host, so both are named."""
    in_venv = "in a virtual environment: python3 -m venv --system-site-packages DIR"
    if TEGRA_RELEASE.exists():
        raise UserError(
            'this is a Jetson, and this Python has no "tensorrt"', ["sudo apt install python3-libnvinfer", in_venv]
        )
    try:
        return find_onnxruntime()
    except UserError as error:
        raise UserError(
            f'nothing runs ONNX files here: TensorRT is not there (this Python has no "tensorrt"), and {error.message}',
            [
                "on a Jetson, in a container too: JetPack's TensorRT, sudo apt install python3-libnvinfer",
                in_venv,
                f"on a host, which only simulates the board: {error.tries[0]}",
            ],
        ) from error


def _check_no_dla(resources: Resources, name: str) -> None:
    if resources.building is not None and resources.building.dla is not None:
        raise UserError(f'--dla is "{resources.building.dla}", and this bundle runs in {name}', ["leave out --dla"])


def bind_cpus(text: str) -> Tuple[int, ...]:
    """Keeps this process, and every thread that it starts from now on, on some processors.

    Args:
        text: their numbers, ``0,2``.

    Raises:
        UserError: they are no numbers, or this machine has no such processor.
    """
    try:
        wanted = {int(part) for part in text.split(",")}
        if not wanted <= os.sched_getaffinity(0):
            raise ValueError("the kernel would pass over those that are not there")
        os.sched_setaffinity(0, wanted)
    except (ValueError, OSError) as error:
        known = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        raise UserError(f'cannot run on the processors "{text}"', [f"this process may use: {known}"]) from error
    return tuple(sorted(wanted))
