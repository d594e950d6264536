"""Synthetic run records: a test helper. Nothing in here was measured, and nothing of it ships."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from splitboard.contract.bundle import Artifact, Bundle, Calibration, Quantisation, Split, Task, TensorSpec
from splitboard.contract.preprocess import Preprocessing
from splitboard.contract.record import FLOAT_REFERENCE, SCHEMA_VERSION, SPANS, Environment, RunRecord, Window

TASKS = {"defect": ("functional", "defective"), "cell_type": ("mono", "poly")}
# split: scope, tensor shape, edge ms, server ms
_SPLITS: dict[str, tuple[str, tuple[int, ...], float, float]] = {
    "s00": ("remote", (1, 224, 224, 1), 0.0, 9.1),
    "s03": ("backbone.blocks.2", (1, 28, 28, 40), 5.4, 5.0),
    "s06": ("backbone.blocks.4", (1, 14, 14, 112), 8.9, 2.2),
    "s09": ("backbone.blocks.6", (1, 7, 7, 320), 11.9, 0.7),
    "s10": ("backbone.pool", (1, 1, 1, 1280), 13.4, 0.2),
    "s11": ("local", (), 13.6, 0.0),
}

Records = Callable[..., list[RunRecord]]


def environment(unix_ns: int, **changes: Any) -> Environment:
    """The environment of no machine in particular."""
    sample = Environment(
        unix_ns=unix_ns,
        machine="x86_64",
        cpu_model="Example CPU @ 2.80GHz",
        cpu_count=2,
        kernel="6.1.0",
        python="3.11.2",
        runtime="LiteRT 2.2.0",
        governor=None,
        clock_hz=2.8e9,
        temperature_c=None,
        throttled=None,
        load_1min=0.42,
        missing={
            "governor": "no /sys/devices/system/cpu/cpu0/cpufreq",
            "temperature_c": "no thermal zone",
            "throttled": "no firmware flags on this kind of board",
        },
    )
    return replace(sample, **changes)


def synthetic_records(n: int = 200, seed: int = 0, **changes: Any) -> list[RunRecord]:
    """One record per split and the float reference, with durations and scores from a random number generator."""
    rng = np.random.default_rng(seed)
    ids = tuple(hashlib.sha256(str(i).encode()).hexdigest() for i in range(n))
    truth = {task: rng.integers(0, len(names), n) for task, names in TASKS.items()}
    exact = {task: rng.normal(size=(n, 2)) + 2.4 * np.eye(2)[truth[task]] for task in TASKS}
    base = RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id="run-0001",
        bundle_name="elpv",
        bundle_sha256="ab" * 32,
        split=FLOAT_REFERENCE,
        scope="model",
        board="host",
        emulated=False,
        engine="onnxruntime 1.22.0",
        threads=2,
        n_warmup=10,
        payload_bytes=0,
        sample_ids=ids,
        spans_ns={},
        total_ns=(),
        outputs={task: tuple(map(tuple, scores.tolist())) for task, scores in exact.items()},
        labels={task: tuple(values.tolist()) for task, values in truth.items()},
        windows=(),
        idle_windows=(),
        energy_reason="no meter on this machine",
        before=environment(1_700_000_000_000_000_000),
        after=environment(1_700_000_090_000_000_000, clock_hz=2.75e9, load_1min=1.61),
    )
    records = [base]
    for split, (scope, shape, edge_ms, server_ms) in _SPLITS.items():
        payload = int(np.prod(shape)) if shape else 0
        typical = {
            "read": 0.0,
            "pre": 0.6,
            "edge": edge_ms,
            "encode": 0.0,
            "serialise": 0.04 + payload * 1e-6 if shape else 0.0,
            "link": 0.5 + payload * 2e-5 if shape else 0.0,
            "queue": 0.05 if shape else 0.0,
            "decode": 0.02 if shape else 0.0,
            "server": server_ms,
            "post": 0.03,
        }
        spans = {name: (typical[name] * 1e6 * rng.lognormal(0, 0.12, n)).astype(int) for name in SPANS}
        noise = {task: scores + rng.normal(0, 0.12, scores.shape) for task, scores in exact.items()}
        record = replace(
            base,
            split=split,
            scope=scope,
            board="local",
            engine="none" if scope == "remote" else "litert 2.2.0",
            payload_bytes=payload,
            spans_ns={name: tuple(values.tolist()) for name, values in spans.items()},
            total_ns=tuple((sum(spans.values()) + rng.integers(0, 40_000, n)).tolist()),
            outputs={task: tuple(map(tuple, (exact if scope == "remote" else noise)[task].tolist())) for task in TASKS},
        )
        records.append(replace(record, **changes))
    return records


def synthetic_bundle() -> Bundle:
    """A manifest that fits `synthetic_records`."""
    pixels = TensorSpec("image", (1, 224, 224, 1), "uint8", "NHWC")
    splits = []
    for split, (scope, shape, edge_ms, server_ms) in _SPLITS.items():
        tensor = pixels if scope == "remote" else TensorSpec(scope, shape, "int8", "NHWC", 0.05, -3)
        splits.append(
            Split(
                id=split,
                scope=scope,
                natural=split != "s01",
                tensors=(tensor,) if shape else (),
                local_tasks=() if shape else tuple(TASKS),
                exits=(),
                edge=None if scope == "remote" else "edge/edge.int8.tflite",
                edge_signature=None if scope == "remote" else split,
                server=None if scope == "local" else f"server/{split}.onnx",
                edge_macs=int(edge_ms * 28e6),
                server_macs=int(server_ms * 40e6),
                edge_parameters=int(edge_ms * 2e5),
                server_parameters=int(server_ms * 3e5),
                float_error=dict.fromkeys(TASKS, 2e-06),
            )
        )
    return Bundle(
        schema_version=1,
        name="elpv",
        model_sha256="cd" * 32,
        checkpoint_sha256="ef" * 32,
        board="rpi5",
        tasks=tuple(Task(name, labels) for name, labels in TASKS.items()),
        exits=(),
        input=TensorSpec("image", (1, 3, 224, 224), "float32", "NCHW"),
        edge_input=TensorSpec("image", (1, 224, 224, 3), "int8", "NHWC", 0.0078, 0),
        preprocessing=Preprocessing(224, 224, 1, (0.5,) * 3, (0.5,) * 3),
        splits=tuple(splits),
        artifacts=(
            Artifact("edge/edge.int8.tflite", "tflite", 3_912_344, "12" * 32),
            Artifact("server/s03.onnx", "onnx", 14_203_112, "34" * 32),
        ),
        calibration=Calibration(211, 52, 0, {"": 263}, "56" * 32),
        quantisation=Quantisation("int8", "minmax", {}, 0, 49, ()),
        golden="golden/golden.npz",
        golden_tolerance=dict.fromkeys(TASKS, 0.4),
        operators={
            split: {"CONV_2D": 8 + 6 * i, "DEPTHWISE_CONV_2D": 4 + 3 * i, "ADD": 2 * i, "QUANTIZE": 1}
            | ({"FULLY_CONNECTED": 4, "AVERAGE_POOL_2D": 1} if split == "s11" else {})
            for i, split in enumerate(_SPLITS)
            if split != "s00"
        },
        notes=("2 hard-swish rewritten as x * relu6(x + 3) / 6",),
        tool_versions={"splitboard": "0.1.0", "torch": "2.8.0", "litert-torch": "0.6.0"},
    )


def metered(record: RunRecord, n_windows: int = 5, source: str = "ina3221:VDD_IN") -> RunRecord:
    """The record with energy windows of 10 s at 6 W and 50 inferences each, idle at 2 W."""
    window = Window(0, 10_000_000_000, 60.0, source, 50)
    idle = replace(window, energy_j=20.0, n_samples=0)
    return replace(record, windows=(window,) * n_windows, idle_windows=(idle,) * n_windows, energy_reason=None)


@pytest.fixture
def make_records() -> Records:
    """`synthetic_records`."""
    return synthetic_records


@pytest.fixture
def records() -> list[RunRecord]:
    """200 samples of six splits and the float reference."""
    return synthetic_records()


@pytest.fixture
def bundle() -> Bundle:
    """`synthetic_bundle`."""
    return synthetic_bundle()


@pytest.fixture
def with_energy() -> Callable[..., RunRecord]:
    """`metered`."""
    return metered
