"""ONNX files of any framework: what comes out computes what went in, and what cannot run on a board is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from export.model import Model, load_model
from export.naming import node_scope
from splitboard.cli.main import run

FLOAT = TensorProto.FLOAT
SPEC = """labels = {}
[preprocessing]
height = 6
width = 6
source_channels = 3
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


def value(name: str, shape: Sequence[int | str | None] | None = (1, 3, 6, 6), kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: Sequence[NodeProto],
    constants: dict[str, Any] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] = (value("x"),),
    outputs: Sequence[onnx.ValueInfoProto] = (value("y", None),),
    opset: int = 17,
    **more: Any,
) -> ModelProto:
    tensors = [
        one if isinstance(one, TensorProto) else numpy_helper.from_array(np.asarray(one), name)
        for name, one in (constants or {}).items()
    ]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), tensors)
    opsets = [helper.make_opsetid("", opset), *more.pop("domains", ())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def node(op_type: str, inputs: str, outputs: str, **more: Any) -> NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **more)


def exported(path: Path, *options: str) -> Model:
    out = path.with_suffix(".model")
    assert run(["export", str(path), "-o", str(out), *options]) == 0
    return load_model(out)


def results(model: ModelProto | Path, feeds: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    found: list[np.ndarray[Any, Any]] = ort.InferenceSession(source, providers=["CPUExecutionProvider"]).run(
        None, feeds
    )
    return found


# What comes out computes what went in.


@pytest.fixture(scope="module")
def foreign(foreign_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    copy = tmp_path_factory.mktemp("foreign") / "notes.onnx"
    copy.write_bytes(foreign_onnx.read_bytes())
    return exported(copy, "--input", "1x43844x1", "--tasks", "onset,note,contour")


def test_another_frameworks_network_computes_what_its_file_computes(foreign: Model, foreign_onnx: Path) -> None:
    sound = np.random.default_rng(7).normal(0, 0.3, (1, 43844, 1)).astype(np.float32)
    feeds = {"serving_default_input_2:0": sound}
    assert foreign.graph.outputs == ["onset", "note", "contour"]
    for ours, theirs in zip(results(foreign.graph.model, feeds), results(foreign_onnx, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_another_frameworks_network_is_clean_and_fixed(foreign: Model, foreign_onnx: Path) -> None:
    before = onnx.load(foreign_onnx)
    assert [one.version for one in foreign.graph.model.opset_import if one.domain == ""] == [15]
    assert len(foreign.graph.nodes) < len(before.graph.node)
    assert not {"Shape", "Cast", "Constant"} & {one.op_type for one in foreign.graph.nodes}
    assert foreign.info.changes[-1] == f"nodes {len(before.graph.node)} to {len(foreign.graph.nodes)}"
    assert foreign.graph.shapes["note"] == (1, 172, 88)
    assert [len(task.labels) for task in foreign.info.tasks] == [88, 88, 264]
    assert {"model_1.conv2d_3", "model_1.contours-reduced"} <= set(foreign.info.scopes.values())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        unit = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
        self.layer1 = nn.Sequential(nn.Sequential(*unit), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
        self.head = nn.Linear(4, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.layer1(image).mean((2, 3)))
        return y


def test_a_file_of_torchs_older_exporter_keeps_its_opset_and_its_modules(tmp_path: Path) -> None:
    path = tmp_path / "older.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter says that it is
        torch.onnx.export(
            Net().eval(), (torch.rand(1, 3, 6, 6),), str(path), dynamo=False, opset_version=13, input_names=["image"]
        )
    model = exported(path, "--tasks", "kind")
    assert [one.version for one in model.graph.model.opset_import] == [13]
    scopes = [model.info.scopes[one.output[0]] for one in model.graph.nodes]
    assert scopes == ["layer1.0.0", "layer1.0.2", "layer1.1.0", "layer1.1.1", "", "", "head"]
    assert model.info.sequences == ("layer1", "layer1.0", "layer1.1")
    image = np.random.default_rng(3).normal(size=(1, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(
        results(model.graph.model, {"image": image})[0], results(path, {"image": image})[0], atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("/blocks/blocks.1/blocks.1.0/mlp/fc1/MatMul", "blocks.1.0.mlp.fc1"),
        ("model/block_1/expand/Conv2D", "model.block_1.expand"),
        ("StatefulPartitionedCall/model/conv/Relu;StatefulPartitionedCall/model/conv/BiasAdd", "model.conv"),
        ("Conv.12", ""),
        ("", ""),
    ],
)
def test_scopes_from_the_names_that_exporters_give(name: str, scope: str) -> None:
    assert node_scope(node("Relu", "x", "y", name=name)) == scope


def test_external_data_functions_and_old_style_inputs_are_taken_in(tmp_path: Path) -> None:
    double = helper.make_function(
        "mine", "Double", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    raw = model_of(
        [node("Conv", "x w", "t"), node("Double", "t", "y", domain="mine")],
        {"w": weight},
        [value("x", ("n", 3, "h", "w"), FLOAT), value("w", weight.shape)],
        domains=[helper.make_opsetid("mine", 1)],
        functions=[double],
    )
    onnx.save(raw, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = exported(tmp_path / "m.onnx", "--input", "x=1x3x6x5")
    assert model.graph.inputs == ["x"]
    assert model.graph.shapes["y"] == (1, 4, 6, 5)
    x = np.random.default_rng(1).normal(size=(1, 3, 6, 5)).astype(np.float32)
    expected = 2 * np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x)
    np.testing.assert_allclose(results(model.graph.model, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)
    before = model.info.checkpoint_sha256
    (tmp_path / "m.data").write_bytes(b"\0" * (tmp_path / "m.data").stat().st_size)
    assert exported(tmp_path / "m.onnx", "--input", "x=1x3x6x5").info.checkpoint_sha256 != before


def test_an_old_file_is_exported_once_its_advice_was_followed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, new_path = tmp_path / "old.onnx", tmp_path / "new.onnx"
    onnx.save(model_of([node("ReduceSum", "x", "y", axes=[1], keepdims=1)], opset=12), path)
    assert run(["export", str(path), "-o", str(tmp_path / "m")]) == 3
    (advice,) = [line for line in capfd.readouterr().err.splitlines() if "convert_version" in line]
    exec(advice.removeprefix("Try: "), {"onnx": onnx, "path": path, "new_path": new_path})
    x = np.random.default_rng(1).normal(size=(1, 3, 6, 6)).astype(np.float32)
    actual = results(exported(new_path).graph.model, {"x": x})[0]
    np.testing.assert_allclose(actual, x.sum(1, keepdims=True), rtol=1e-5, atol=1e-5)


def test_whole_numbers_and_an_image_beside_them(tmp_path: Path) -> None:
    raw = model_of(
        [
            node("Gather", "table ids", "rows"),
            node("ReduceMean", "rows", "row", axes=[1], keepdims=0),
            node("ReduceMean", "x", "grey", axes=[1, 2, 3], keepdims=0),
            node("Unsqueeze", "grey one", "column"),
            node("Add", "row column", "y"),
        ],
        {"table": np.eye(2, 5, dtype=np.float32), "one": np.array([1])},
        [value("x"), value("ids", (1, "tokens"), TensorProto.INT64)],
    )
    onnx.save(raw, tmp_path / "m.onnx")
    (tmp_path / "spec.toml").write_text(SPEC)
    model = exported(tmp_path / "m.onnx", "--input", "ids=1x7:int64", "--spec", str(tmp_path / "spec.toml"))
    assert [(one.name, one.shape, one.dtype) for one in model.info.inputs] == [
        ("x", (1, 3, 6, 6), "float32"), ("ids", (1, 7), "int64")
    ]  # fmt: skip
    assert model.info.image == "x"


def test_a_condition_that_is_constant_is_no_control_flow(tmp_path: Path) -> None:
    onnx.save(branching({"c": np.array(True)}, [value("x")]), tmp_path / "m.onnx")
    model = exported(tmp_path / "m.onnx")
    assert [one.op_type for one in model.graph.nodes] == ["Relu"]


def branching(constants: dict[str, Any], inputs: Sequence[onnx.ValueInfoProto]) -> ModelProto:
    sides = [
        helper.make_graph([node(kind, "x", "side", name=f"/gate/{kind}")], kind, [], [value("side")])
        for kind in ("Relu", "Neg")
    ]
    chosen = helper.make_node("If", ["c"], ["y"], name="/gate/If", then_branch=sides[0], else_branch=sides[1])
    return model_of([chosen], constants, inputs)


# What cannot run on a board is refused: by name, in one line, with nothing left behind.


def looping() -> ModelProto:
    body = helper.make_graph(
        [node("Identity", "go", "go_on"), node("Add", "sum sum", "doubled")],
        "body",
        [value("i", (), TensorProto.INT64), value("go", (), TensorProto.BOOL), value("sum")],
        [value("go_on", (), TensorProto.BOOL), value("doubled")],
    )
    return model_of(
        [node("ReduceMax", "x", "high", keepdims=0), node("Greater", "high zero", "big"),
         node("Loop", "n big x", "y", name="/rnn/Loop", body=body)],
        {"n": np.array(3), "zero": np.float32(0)},
    )  # fmt: skip


def external(folder: Path, location: str, length: int = 36) -> ModelProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[3, 3, 1, 1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(length))
    return model_of([node("Conv", "x w", "y")], {"w": tensor})


def huge(folder: Path) -> ModelProto:
    with open(folder / "huge.bin", "wb") as file:
        file.truncate(3_000_000_000)  # a hole: it takes no room
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[250_000_000, 3, 1, 1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="huge.bin")
    return model_of([node("Conv", "x w", "y")], {"w": tensor})


def escaping(folder: Path) -> ModelProto:
    (folder.parent / "secret.bin").write_bytes(b"\0" * 36)
    return external(folder, "../secret.bin")


def linked(folder: Path) -> ModelProto:
    (folder.parent / "secret.bin").write_bytes(b"\0" * 36)
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    return external(folder, "link.bin")


def short(folder: Path) -> ModelProto:
    (folder / "short.bin").write_bytes(b"\0" * 35)
    return external(folder, "short.bin")


def sparse() -> ModelProto:
    made = model_of([node("MatMul", "x w", "y")])
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "w"), numpy_helper.from_array(np.array([0]))
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6, 6]))
    return made


RELU = [node("Relu", "x", "y")]
SPLIT = [node("Relu", "x", "y"), node("Neg", "x", "z")]
BOTH = (value("y", None), value("z", None))
SEQUENCE = helper.make_tensor_sequence_value_info("y", FLOAT, None)
OPTIONAL = helper.make_value_info("x", helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [1, 3])))
CUSTOM = model_of(
    [node("Relu", "x", "t"), node("Deform", "t", "y", name="/neck/dcn/Deform", domain="mmcv")],
    domains=[helper.make_opsetid("mmcv", 1)],
)
MISFIT = model_of([node("MatMul", "x w", "y")], {"w": np.ones((5, 5), np.float32)})
WIDE = model_of(RELU, inputs=[value("x", (1, 3, 6, 7))])

REFUSED: dict[str, tuple[Callable[[Path], ModelProto | bytes], list[str], str, str]] = {
    # file, options, what the line quotes, what a piece of advice says
    "text": (lambda _: b"hello", [], "m.onnx", "truncated"),
    "truncated": (lambda _: model_of(RELU).SerializeToString()[:-9], [], "m.onnx", ""),
    "old opset": (lambda _: model_of(RELU, opset=12), [], "12", "convert_version"),
    "custom operator": (lambda _: CUSTOM, [], "/neck/dcn/Deform", ""),
    "its module": (lambda _: CUSTOM, [], "neck.dcn", ""),
    "data missing": (lambda folder: external(folder, "gone.bin"), [], "gone.bin", "same folder"),
    "data elsewhere": (escaping, [], "../secret.bin", "same folder"),
    "data behind a link": (linked, [], "link.bin", "same folder"),
    "data cut off": (short, [], "w", "copy"),
    "too large": (huge, [], "3.0 GB", ""),
    "sparse": (lambda _: sparse(), [], "w", "dense"),
    "sequence": (lambda _: model_of([node("SequenceConstruct", "x", "y")], outputs=[SEQUENCE]), [], "y", "tensors"),
    "optional": (lambda _: model_of([node("OptionalGetElement", "x", "y")], inputs=[OPTIONAL]), [], "x", "tensors"),
    "whole numbers out": (
        lambda _: model_of([node("ArgMax", "x", "y")], outputs=[value("y", None, TensorProto.INT64)]), [], "y", "scores"
    ),
    "half": (
        lambda _: model_of(RELU, inputs=[value("x", kind=10)], outputs=[value("y", kind=10)]), [], "x", "float32"
    ),
    "dynamic": (lambda _: model_of(RELU, inputs=[value("x", ("n", 3, 6, 6))]), [], "n", "--input x="),
    "nameless dimension": (lambda _: model_of(RELU, inputs=[value("x", (None, 3))]), [], "?", "--input x="),
    "other shape": (lambda _: model_of(RELU), ["--input", "1x3x6x7"], "1x3x6x7", "1x3x6x6"),
    "other input": (lambda _: model_of(RELU), ["--input", "z=1x3x6x6"], "z", "x"),
    "other type": (lambda _: model_of(RELU), ["--input", "1x3x6x6:int64"], "int64", "without"),
    "batch": (lambda _: model_of(RELU, inputs=[value("x", (8, 3, 6, 6))]), [], "x", "batch of 1"),
    "control flow": (
        lambda _: branching({}, [value("x"), value("c", (), TensorProto.BOOL)]), [], "/gate/If", "Where"
    ),
    "its module too": (lambda _: branching({}, [value("x"), value("c", (), TensorProto.BOOL)]), [], "gate", "Where"),
    "loop": (lambda _: looping(), [], "/rnn/Loop", ""),
    "not a number": (
        lambda _: model_of([node("Mul", "x w", "y")], {"w": np.array([1, np.nan], np.float32)}), [], "w", "diverged"
    ),
    "infinite": (lambda _: model_of([node("Mul", "x w", "y")], {"w": np.float32(np.inf)}), [], "w", "diverged"),
    "infinite result": (lambda _: model_of([node("Log", "x", "y")]), [], "y", "bound"),
    "constant output": (
        lambda _: model_of([*RELU, node("Shape", "x", "s"), node("Cast", "s", "z", to=1)], outputs=BOTH), [], "z", ""
    ),
    "unused input": (lambda _: model_of(RELU, inputs=[value("x"), value("meta", (1, 6))]), [], "meta", "--input"),
    "one tensor twice": (
        lambda _: model_of([*RELU, node("Identity", "y", "z")], outputs=BOTH), [], "z", "once"
    ),
    "input returned": (lambda _: model_of([*RELU, node("Identity", "x", "z")], outputs=BOTH), [], "z", "once"),
    "random": (
        lambda _: model_of([node("RandomNormalLike", "x", "r", name="/noise/Random"), node("Add", "x r", "y")]),
        [], "noise", "model.eval()",
    ),
    "shape by values": (
        lambda _: model_of([node("NonZero", "x", "n", name="/nms/NonZero"), node("Cast", "n", "y", to=1)]),
        [], "/nms/NonZero", "masks",
    ),
    "contradiction": (lambda _: MISFIT, [], "m.onnx", ""),
    "output without a usable name": (
        lambda _: model_of([node("Relu", "x", "a:0")], outputs=[value("a:0", None)]), [], "a:0", "--tasks"
    ),
    "unknown task": (lambda _: model_of(RELU), ["--tasks", "z=kind"], "z=kind", "y"),
    "empty task": (lambda _: model_of(SPLIT, outputs=BOTH), ["--tasks", "kind,"], "kind,", "y, z"),
    "too few tasks": (lambda _: model_of(SPLIT, outputs=BOTH), ["--tasks", "kind"], "kind", "y, z"),
    "task twice": (lambda _: model_of(SPLIT, outputs=BOTH), ["--tasks", "kind,kind"], "kind", "--tasks"),
    "task as another output": (lambda _: model_of(SPLIT, outputs=BOTH), ["--tasks", "y=z"], "z", "--tasks"),
    "task as an input": (lambda _: model_of(RELU), ["--tasks", "x"], "x", "--tasks"),
    "factory": (lambda _: model_of(RELU), ["--model", "net:make"], "net:make", "leave --model out"),
    "no image": (lambda _: WIDE, ["--spec", "spec.toml"], "1x3x6x7", "height"),
    "two images": (
        lambda _: model_of([node("Add", "x z", "y")], inputs=[value("x"), value("z")]), ["--spec", "spec.toml"], "z", ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made, options, quoted, advice = REFUSED[case]
    (tmp_path / "theirs").mkdir()
    monkeypatch.chdir(tmp_path / "theirs")
    Path("spec.toml").write_text(SPEC)
    content = made(Path.cwd())
    Path("m.onnx").write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    before = sorted(Path.cwd().iterdir())
    assert run(["export", "m.onnx", "-o", "out", *options]) == 3
    out, err = capfd.readouterr()
    first, *tries = err.splitlines()
    assert first.startswith("error: ")
    assert f'"{quoted}"' in first
    assert tries
    assert all(line.startswith("Try: ") for line in tries)
    assert any(advice in line for line in tries)
    assert out == ""
    assert sorted(Path.cwd().iterdir()) == before
