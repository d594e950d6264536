"""A small bundle of ONNX edge halves for the tests of the TensorRT runtime, written by hand.

``x`` -> Conv ``first`` -> Relu -> Conv ``second`` (= ``mid``) -> pool, Flatten, Gemm ``head`` (= ``y``). Split ``s01``
sends ``mid`` as INT8, ``s02`` answers ``y`` on the board. In int8 both convolutions take Q/DQ, the head stays float; in
fp16 the Relu is of half floats, and only the wire is quantised.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

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
    load_bundle,
    write_manifest,
)
from splitboard.contract.preprocess import Preprocessing

IMAGE = TensorSpec("x", (1, 3, 8, 8), "float32", "NCHW")
MID_SCALE = 2**-4
WIRE = TensorSpec("mid", (1, 4, 8, 8), "int8", "NCHW", MID_SCALE, 0)
LABELS = ("a", "b", "c")
PIXELS = Preprocessing(8, 8, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
_SCALES = {"x": 2**-5, "r": 2**-4, "first.w": 2**-7, "second.w": 2**-7, "mid": MID_SCALE}
node = helper.make_node


def images(count: int) -> NDArray[np.uint8]:
    """Prepared images."""
    return np.random.default_rng(5).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def edge_model(split: str, precision: str) -> onnx.ModelProto:
    """The edge half of a split."""
    random = np.random.default_rng(3)
    values = {
        "first.w": random.integers(-90, 90, (4, 3, 3, 3)).astype(np.float32) * np.float32(2**-7),
        "second.w": random.integers(-90, 90, (4, 4, 1, 1)).astype(np.float32) * np.float32(2**-7),
        "head.w": random.normal(size=(3, 4)).astype(np.float32),
    }
    for name, scale in _SCALES.items():
        values[f"{name}/scale"] = np.float32(scale)
        values[f"{name}/zero"] = np.int8(0)
    mid = "mid/real" if split == "s01" else "mid"
    nodes = _trunk(precision, mid)
    if split == "s01":
        nodes.append(node("QuantizeLinear", [mid, "mid/scale", "mid/zero"], ["mid"], name="mid/quantize"))
        output = helper.make_tensor_value_info("mid", TensorProto.INT8, WIRE.shape)
    else:
        nodes += [
            node("GlobalAveragePool", [mid], ["pool"]),
            node("Flatten", ["pool"], ["flat"]),
            node("Gemm", ["flat", "head.w"], ["y"], transB=1, name="head"),
        ]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3))
    taken = {name for one in nodes for name in one.input}
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items() if name in taken]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE.shape)
    made = helper.make_graph(nodes, "edge", [image], [output], constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _trunk(precision: str, mid: str) -> list[NodeProto]:
    if precision == "int8":
        return [
            *_pair("first.w"),
            *_pair("second.w"),
            *_pair("x"),
            node("Conv", ["x/back", "first.w/back"], ["c"], pads=[1, 1, 1, 1], name="first"),
            node("Relu", ["c"], ["r"], name="relu"),
            *_pair("r"),
            node("Conv", ["r/back", "second.w/back"], [mid], name="second"),
        ]
    return [
        node("Conv", ["x", "first.w"], ["c"], pads=[1, 1, 1, 1], name="first"),
        node("Cast", ["c"], ["c16"], to=TensorProto.FLOAT16),
        node("Relu", ["c16"], ["r16"], name="relu"),
        node("Cast", ["r16"], ["r"], to=TensorProto.FLOAT),
        node("Conv", ["r", "second.w"], [mid], name="second"),
    ]


def _pair(tensor: str) -> list[NodeProto]:
    parameters = [f"{tensor}/scale", f"{tensor}/zero"]
    return [
        node("QuantizeLinear", [tensor, *parameters], [f"{tensor}/int8"], name=f"{tensor}/quantize"),
        node("DequantizeLinear", [f"{tensor}/int8", *parameters], [f"{tensor}/back"], name=f"{tensor}/dequantize"),
    ]


def _split(split_id: str, edge: str | None, tensors: tuple[TensorSpec, ...], local: tuple[str, ...]) -> Split:
    return Split(
        id=split_id,
        scope=split_id,
        natural=False,
        tensors=tensors,
        local_tasks=local,
        exits=(),
        edge=edge,
        edge_signature=None,
        server=None if local else f"server/{split_id}.onnx",
        edge_macs=0,
        server_macs=0,
        edge_parameters=0,
        server_parameters=0,
        float_error={},
    )


def write_bundle(folder: Path, precision: str = "int8", tolerance: float = 1e-4) -> Bundle:
    """Writes the bundle, with the weights of all edge halves in one file beside them, and reads it back."""
    (folder / "edge").mkdir(parents=True)
    (folder / "server").mkdir()
    weights = f"weights.{precision}.bin"
    paths = {split: f"edge/{split}.{precision}.op17.onnx" for split in ("s01", "s02")}
    for split, path in paths.items():
        onnx.save_model(
            edge_model(split, precision),
            folder / path,
            save_as_external_data=True,
            location=f"{split}.{weights}",
            size_threshold=64,
        )
    for split in ("s00", "s01"):
        (folder / f"server/{split}.onnx").write_bytes(b"the server's")
    _write_golden(folder, precision)
    pixels = TensorSpec("x", (1, 8, 8, 3), "uint8", "NHWC")
    made = Bundle(
        schema_version=SCHEMA_VERSION,
        name="small",
        model_sha256="0" * 64,
        checkpoint_sha256="1" * 64,
        board="jetson-orin-nano",
        tasks=(Task("y", LABELS),),
        exits=(),
        input=IMAGE,
        edge_input=IMAGE,
        preprocessing=PIXELS,
        splits=(
            _split("s00", None, (pixels,), ()),
            _split("s01", paths["s01"], (WIRE,), ()),
            _split("s02", paths["s02"], (), ("y",)),
        ),
        artifacts=(),
        calibration=Calibration(1, 0, 0, {}, "2" * 64),
        quantisation=Quantisation(precision, "minmax", {}, 0, 0, ()),
        golden="golden/golden.npz",
        golden_tolerance={"y": tolerance},
        operators={},
        notes=(),
        tool_versions={},
    )
    return rewritten(folder, made)


def rewritten(folder: Path, bundle: Bundle) -> Bundle:
    """Lists the folder's files in the manifest and reads the bundle back."""
    formats = {".onnx": "onnx", ".bin": "onnx-weights", ".npz": "npz"}
    files = sorted(path for path in folder.rglob("*") if path.suffix in formats)
    artifacts = tuple(
        Artifact(path.relative_to(folder).as_posix(), formats[path.suffix], path.stat().st_size, file_sha256(path))
        for path in files
    )
    write_manifest(folder, type(bundle)(**{**vars(bundle), "artifacts": artifacts}))
    return load_bundle(folder)


def _write_golden(folder: Path, precision: str) -> None:
    from export.reference import reference_session

    (folder / "golden").mkdir()
    prepared = images(4)
    real = ((prepared.astype(np.float64) / 255 - 0.5) / 0.25).astype(np.float32).transpose(0, 3, 1, 2)
    session = reference_session(edge_model("s02", precision))
    scores = np.concatenate([session.run(["y"], {"x": image[None]})[0] for image in real])
    np.savez(folder / "golden/golden.npz", images=prepared, y=scores)
