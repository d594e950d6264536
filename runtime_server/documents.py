"""What the server says about itself and its models, as the protocol's JSON objects (both fronts answer with these).

Sources: Open Inference Protocol v2; Triton's extensions "Model Configuration", "Statistics" and "Model Repository".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime_server import jpeg
from runtime_server.models import Model
from runtime_server.service import VERSION, Service
from runtime_server.statistics import Snapshot
from splitboard import __version__
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.wire import DATATYPES, EXTENSION_JPEG, EXTENSION_ZSTD
from splitboard.contract.zstd import find_zstd

NAME = "splitboard"
PLATFORM = "onnxruntime_onnx"
"""The protocol's name of ONNX Runtime."""


def extensions() -> list[str]:
    """What the server understands beyond the protocol's core."""
    always = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
    return [*always, *([EXTENSION_ZSTD] if find_zstd() else []), *([EXTENSION_JPEG] if jpeg.available() else [])]


def server_metadata() -> dict[str, Any]:
    """The server."""
    return {"name": NAME, "version": __version__, "extensions": extensions()}


def model_metadata(model: Model) -> dict[str, Any]:
    """A model: what it takes and gives. Its parameters name the pair that it is half of."""

    def listed(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": list(spec.shape)} for spec in specs]

    offered = model.interface
    return {
        "name": offered.model,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": listed(offered.inputs),
        "outputs": listed(offered.outputs),
        "parameters": {"bundle": offered.bundle, "split": offered.split},
    }


def model_config(model: Model) -> dict[str, Any]:
    """A model's configuration, as much of Triton's ``ModelConfig`` as says something here.

    Shapes are whole, with the batch of one: the protocol's ``max_batch_size`` 0 means that clients do not batch.
    """

    def listed(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [
            {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}", "dims": list(spec.shape)}
            for spec in specs
        ]

    offered = model.interface
    return {
        "name": offered.model,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": listed(offered.inputs),
        "output": listed(offered.outputs),
        "parameters": {
            "bundle": {"string_value": offered.bundle},
            "split": {"string_value": offered.split},
        },
    }


def statistics(service: Service, names: Sequence[str]) -> dict[str, Any]:
    """What models have done."""
    return {"model_stats": [_model_statistics(name, service.statistics(name)) for name in names]}


def repository_index(service: Service, *, ready_only: bool) -> list[dict[str, Any]]:
    """All models, or those that take requests."""
    if ready_only and not service.ready:
        return []
    state = {"state": "READY", "reason": ""} if service.ready else {"state": "UNAVAILABLE", "reason": "draining"}
    return [{"name": name, "version": VERSION, **state} for name in service.models]


def _model_statistics(name: str, found: Snapshot) -> dict[str, Any]:
    def took(count: int, total_ns: int) -> dict[str, int]:
        return {"count": count, "ns": total_ns}

    n_done = found.inference_count
    return {
        "name": name,
        "version": VERSION,
        "last_inference": found.last_inference_ms,
        "inference_count": n_done,
        "execution_count": found.execution_count,
        "inference_stats": {
            "success": took(n_done, found.success_ns),
            "fail": took(found.fail_count, found.fail_ns),
            "queue": took(n_done, found.queue.sum_ns),
            "compute_input": took(n_done, found.decode.sum_ns),
            "compute_infer": took(n_done, found.compute.sum_ns),
            "compute_output": took(n_done, 0),
            "cache_hit": took(0, 0),
            "cache_miss": took(0, 0),
        },
        "batch_stats": [
            {"batch_size": size, "compute_infer": took(runs, sum_ns)}
            for size, (runs, sum_ns) in sorted(found.batches.items())
        ],
    }
