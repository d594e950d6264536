"""A bundle whose server halves only take bytes and give two small outputs: what they cost is the way there and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from splitboard.contract.bundle import (
    SCHEMA_VERSION,
    Artifact,
    Bundle,
    Calibration,
    Quantisation,
    Split,
    Task,
    TensorSpec,
    file_sha256,
    write_manifest,
)
from splitboard.contract.preprocess import Preprocessing

TASKS = ("left", "right")
CLASSES = 10


def write_trivial_bundle(folder: Path, sizes: Sequence[int]) -> Path:
    """Writes it; the split ``s01`` sends the first of ``sizes`` in bytes, and so on."""
    (folder / "server").mkdir(parents=True)
    splits = tuple(_split(folder, f"s{number:02d}", size) for number, size in enumerate(sizes, 1))
    files = [folder / str(split.server) for split in splits]
    image = TensorSpec("image", (1, 3, 32, 32), "float32", "NCHW")
    bundle = Bundle(
        schema_version=SCHEMA_VERSION,
        name="trivial",
        model_sha256="0" * 64,
        checkpoint_sha256="0" * 64,
        board="linux-x86-64",
        tasks=tuple(Task(name, tuple(map(str, range(CLASSES)))) for name in TASKS),
        exits=(),
        input=image,
        edge_input=image,
        preprocessing=Preprocessing(32, 32, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        splits=splits,
        artifacts=tuple(
            Artifact(file.relative_to(folder).as_posix(), "onnx", file.stat().st_size, file_sha256(file))
            for file in files
        ),
        calibration=Calibration(0, 0, 0, {}, "0" * 64),
        quantisation=Quantisation("int8", "minmax", {}, 0, 0, ()),
        golden="",
        golden_tolerance={},
        operators={},
        notes=(),
        tool_versions={},
    )
    write_manifest(folder, bundle)
    return folder


def _split(folder: Path, split_id: str, size: int) -> Split:
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("from", 0), ("to", CLASSES), ("axis", 1))
    ]
    nodes = [helper.make_node("Slice", ["x", "from", "to", "axis"], ["some"])]
    nodes += [helper.make_node("Cast", ["some"], [name], to=TensorProto.FLOAT) for name in TASKS]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CLASSES]) for name in TASKS]
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT8, [1, size])]
    graph = helper.make_graph(nodes, "trivial", inputs, outputs, constants)
    path = f"server/{split_id}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / path)
    return Split(
        id=split_id,
        scope="remote",
        natural=False,
        tensors=(TensorSpec("x", (1, size), "int8", "NC", 1.0, 0),),
        local_tasks=(),
        exits=(),
        edge=None,
        edge_signature=None,
        server=path,
        edge_macs=0,
        server_macs=0,
        edge_parameters=0,
        server_parameters=0,
        float_error={},
    )
