"""One ONNX file to one engine, by whichever TensorRT is installed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Tuple

from runtime_edge.tensorrt.graph import read_graph
from runtime_edge.tensorrt.library import Library, Log
from runtime_edge.tensorrt.progress import BuildLine, monitor
from splitboard.contract.errors import UserError

_WEAK_FLAGS = {"int8": ("FP16",), "fp16": ("FP16",), "fp32": ()}
"""By precision, what a builder that chooses the types itself may choose beside FP32, and INT8 where there is Q/DQ."""


class Wanted(NamedTuple):
    """What an engine shall be.

    Attributes:
        precision: of the bundle, which its graph has: ``int8``, ``fp16`` or ``fp32``.
        dla: the accelerator's core; ``None`` for the GPU alone.
        workspace_bytes: most scratch memory that a kernel may take.
    """

    precision: str
    dla: Optional[int]
    workspace_bytes: int


class Built(NamedTuple):
    """A built engine.

    Attributes:
        plan: the serialised engine.
        timing: the timing cache afterwards.
        seconds: that it took.
        off_dla: layers that the DLA core cannot run and the GPU does; empty without DLA.
        warnings: of TensorRT, the last ones.
    """

    plan: bytes
    timing: bytes
    seconds: float
    off_dla: Tuple[str, ...]
    warnings: Tuple[str, ...]


def build(library: Library, path: Path, wanted: Wanted, timing: bytes, line: BuildLine) -> Built:
    """Builds an engine; minutes on a board.

    Args:
        library: that builds.
        path: of the ONNX file; its weights may lie in a file beside it.
        wanted: what it shall be.
        timing: a timing cache from before; empty for none.
        line: shows how far it is.

    Raises:
        UserError: TensorRT does not take the graph, or this board cannot run it as it is wanted.
    """
    trt, log, start_s = library.module, Log(library), time.monotonic()
    quantised = read_graph(path).is_quantised
    builder = trt.Builder(log.logger)
    _check_int8(builder, quantised)
    network = builder.create_network(_creation_flags(library, wanted))
    _parse(library, network, log, path)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, wanted.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector; it costs the engine no time
    for name in _precision_flags(library, wanted, quantised):
        config.set_flag(getattr(trt.BuilderFlag, name))
    off_dla = _on_dla(library, builder, network, config, wanted)
    config.set_timing_cache(config.create_timing_cache(timing), False)
    watching = monitor(trt, line)
    if watching is not None:
        config.progress_monitor = watching
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f'TensorRT {library.version} builds no engine of "{path}": {log.last}', _tries(wanted))
    after = config.get_timing_cache().serialize()
    return Built(bytes(plan), bytes(after), time.monotonic() - start_s, off_dla, log.lines)


def _tries(wanted: Wanted) -> List[str]:
    tries = [f"--workspace, more than {wanted.workspace_bytes >> 20} MiB, with other programs ended"]
    if wanted.precision == "int8":
        tries.append("the bundle in fp16: splitboard build --precision fp16")
    return tries


def _weakly_typed(library: Library, wanted: Wanted) -> bool:
    """Types as flags: where there is no choice, and for DLA, which takes no strongly typed network before 11."""
    return not library.strongly_typed or (wanted.dla is not None and library.weakly_typed)


def _creation_flags(library: Library, wanted: Wanted) -> int:
    kinds = library.module.NetworkDefinitionCreationFlag
    if not _weakly_typed(library, wanted):
        return 1 << int(kinds.STRONGLY_TYPED)
    return 1 << int(kinds.EXPLICIT_BATCH)  # without it, 8.x has no fixed batch; 10 passes over it


def _precision_flags(library: Library, wanted: Wanted, quantised: bool) -> Tuple[str, ...]:
    if not _weakly_typed(library, wanted):
        return ()
    # A tensor that is sent is quantised in every precision; where no Q/DQ asks for it, nothing becomes INT8.
    return (*_WEAK_FLAGS[wanted.precision], *(["INT8"] if quantised else []))


def _check_int8(builder: Any, quantised: bool) -> None:
    # Gone in TensorRT 11, which runs on no GPU without INT8.
    if quantised and not getattr(builder, "platform_has_fast_int8", True):
        raise UserError(
            'this GPU has no INT8, and the graph holds "QuantizeLinear"',
            ["the bundle in fp16, local only: splitboard build --precision fp16"],
        )


def _parse(library: Library, network: Any, log: Log, path: Path) -> None:
    parser = library.module.OnnxParser(network, log.logger)
    # From a file, so that weights in a file beside it are found.
    if not parser.parse_from_file(str(path)):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise UserError(
            f'TensorRT {library.version} does not take "{path}": {reasons or log.last}',
            ["build the bundle again for this board's kind: splitboard build"],
        )


def _on_dla(library: Library, builder: Any, network: Any, config: Any, wanted: Wanted) -> Tuple[str, ...]:
    """Puts the network on a DLA core; returns the layers that stay on the GPU.

    Raises:
        UserError: there is no such core, or it cannot run this precision.
    """
    if wanted.dla is None:
        return ()
    trt, gpu = library.module, ["leave out --dla: the GPU runs it"]
    cores = int(getattr(builder, "num_DLA_cores", 0))
    if cores == 0:
        raise UserError(f'--dla is "{wanted.dla}", and this board with TensorRT {library.version} has no DLA', gpu)
    if not 0 <= wanted.dla < cores:
        known = ", ".join(str(core) for core in range(cores))
        raise UserError(f'--dla is "{wanted.dla}", this board has the cores {known}', gpu)
    if wanted.precision == "fp32":
        raise UserError('DLA computes in fp16 or INT8, and the bundle is "fp32"', ["splitboard build --precision fp16"])
    if wanted.precision == "int8" and _weakly_typed(library, wanted):
        raise UserError(
            f'DLA takes no Q/DQ from TensorRT {library.version}, and the bundle is "int8"',
            ["--dla with a bundle in fp16: splitboard build --precision fp16", *gpu],
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = wanted.dla
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return tuple(layer.name for layer in layers if not config.can_run_on_DLA(layer))
