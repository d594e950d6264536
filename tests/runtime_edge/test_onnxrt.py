from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from quantised import weights, whole_numbers  # type: ignore[import-not-found, unused-ignore]

from calib.qdq.emit import emit
from calib.qdq.plan import plan, wire_specs
from export.reference import reference_session
from runtime_edge.engines.onnxrt import OnnxRuntimeEngine
from splitboard.contract.bundle import Bundle, Split, Task, TensorSpec, load_bundle
from splitboard.contract.errors import UserError

IMAGE = TensorSpec("x", (1, 3, 8, 8), "float32", "NCHW")


def made(
    split: Split, name: str, outputs: tuple[str, ...], local: tuple[str, ...], folder: Path
) -> tuple[Split, ModelProto]:
    """A split of `whole_numbers`: its edge file, and its entry of the manifest."""
    graph, table = whole_numbers(2)
    planned = plan(graph, outputs, table)
    model = emit(graph, planned)
    onnx.save(model, folder / "edge" / f"{name}.onnx")
    wires = wire_specs(graph, planned, [output for output in outputs if output not in local])
    edge = f"edge/{name}.onnx"
    return dataclasses.replace(split, id=name, tensors=wires, local_tasks=local, edge=edge, edge_signature=None), model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "edge").mkdir()
    return folder


@pytest.fixture(scope="module")
def models(tiny_bundle: Path, folder: Path) -> dict[str, tuple[Split, ModelProto]]:
    split = load_bundle(tiny_bundle).splits[1]
    wanted = {"s01": (("sum",), ()), "s02": (("pool", "y"), ("y",)), "s03": (("y",), ("y",))}
    return {name: made(split, name, outputs, local, folder) for name, (outputs, local) in wanted.items()}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, models: dict[str, tuple[Split, ModelProto]]) -> Bundle:
    real = load_bundle(tiny_bundle)
    splits = (real.splits[0], *(split for split, _ in models.values()))
    return dataclasses.replace(real, tasks=(Task("y", ("a", "b", "c")),), edge_input=IMAGE, splits=splits)


def test_every_split_gives_what_the_file_gives(
    folder: Path, bundle: Bundle, models: dict[str, tuple[Split, ModelProto]]
) -> None:
    x = 2 * weights(5, *IMAGE.shape)
    with OnnxRuntimeEngine(folder, bundle, bundle.splits) as engine:
        assert engine.name == f"onnxruntime {__import__('onnxruntime').__version__}"
        for name, (split, model) in models.items():
            found = engine.infer(name, x)
            wanted = [*(wire.name for wire in split.tensors), *split.local_tasks]
            assert list(found) == wanted
            for output, expected in zip(wanted, reference_session(model).run(wanted, {"x": x}), strict=True):
                np.testing.assert_array_equal(found[output], expected, strict=True)
                assert found[output].dtype == (np.float32 if output == "y" else np.int8)
        with pytest.raises(KeyError):
            engine.infer("s00", x)  # the image itself is sent


def change_first_cut(bundle: Bundle, **fields: Any) -> Bundle:
    split = bundle.splits[1]
    tensor = dataclasses.replace(split.tensors[0], **fields)
    return dataclasses.replace(bundle, splits=(dataclasses.replace(split, tensors=(tensor,)),))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shape": (1, 2, 3, 4)}, r'has "sum" as int8 \[1, 6, 8, 8\], the manifest says int8 \(1, 2, 3, 4\)'),
        ({"dtype": "float32"}, "the manifest says float32"),
        ({"name": "total"}, 'gives "sum", split s01 needs "total"'),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says(
    folder: Path, bundle: Bundle, fields: dict[str, Any], words: str
) -> None:
    other = change_first_cut(bundle, **fields)
    with pytest.raises(UserError, match=words), OnnxRuntimeEngine(folder, other, other.splits):
        pass


@pytest.mark.parametrize(
    ("fields", "words"), [({"name": "image"}, 'takes "x"'), ({"dtype": "int8"}, "has .x. as float32")]
)
def test_an_input_that_is_not_what_the_manifest_says(
    folder: Path, bundle: Bundle, fields: dict[str, Any], words: str
) -> None:
    other = dataclasses.replace(bundle, edge_input=dataclasses.replace(IMAGE, **fields))
    with pytest.raises(UserError, match=words), OnnxRuntimeEngine(folder, other, other.splits):
        pass


def test_a_task_that_is_not_float(folder: Path, bundle: Bundle) -> None:
    split = dataclasses.replace(bundle.splits[1], tensors=(), local_tasks=("sum",))
    with pytest.raises(UserError, match='gives the scores "sum" as'), OnnxRuntimeEngine(folder, bundle, [split]):
        pass


def test_a_file_that_is_no_onnx(folder: Path, bundle: Bundle) -> None:
    (folder / "edge" / "broken.onnx").write_bytes(b"no model")
    split = dataclasses.replace(bundle.splits[1], edge="edge/broken.onnx")
    with pytest.raises(UserError, match=r'broken\.onnx" does not load'), OnnxRuntimeEngine(folder, bundle, [split]):
        pass


def test_nothing_is_loaded_before_the_with_block(tmp_path: Path, bundle: Bundle) -> None:
    OnnxRuntimeEngine(tmp_path, bundle, bundle.splits)  # there is no file
    with pytest.raises(UserError, match='threads is "0"'):
        OnnxRuntimeEngine(tmp_path, bundle, bundle.splits, threads=0)


def test_the_module_loads_without_onnx_runtime_and_says_so_when_it_is_used(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from runtime_edge.engines.onnxrt import OnnxRuntimeEngine\n"
        "from splitboard.contract.errors import UserError\n"
        "try:\n    OnnxRuntimeEngine(None, None, [])\n"
        "except UserError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("error: ONNX Runtime does not load")
    assert "Try: python3 -m pip install onnxruntime" in said
