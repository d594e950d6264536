from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from runtime_edge.engines.engine import FakeEngine
from runtime_edge.engines.litert import LiteRtEngine, find_interpreter
from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.errors import UserError


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def image() -> NDArray[np.int8]:
    return np.random.default_rng(1).integers(-128, 128, (1, 32, 32, 3)).astype(np.int8)


def test_every_cut_gives_what_the_interpreter_gives(tiny_bundle: Path, bundle: Bundle, image: NDArray[np.int8]) -> None:
    cuts = [split for split in bundle.splits if not split.is_remote and not split.is_local]
    interpreter = Interpreter(model_path=str(tiny_bundle / bundle.edge_files[0]), num_threads=1)
    with LiteRtEngine(tiny_bundle, bundle, bundle.splits) as engine:
        for split in cuts * 2:
            found = engine.infer(split.id, image)
            (expected,) = interpreter.get_signature_runner(split.edge_signature)(image=image).values()
            (tensor,) = split.tensors
            np.testing.assert_array_equal(found[tensor.name], expected, strict=True)
            assert (found[tensor.name].shape, found[tensor.name].dtype.name) == (tensor.shape, "int8")


def test_local_only_gives_real_scores(tiny_bundle: Path, bundle: Bundle, image: NDArray[np.int8]) -> None:
    local = bundle.splits[-1]
    runner = Interpreter(model_path=str(tiny_bundle / bundle.edge_files[0])).get_signature_runner(local.edge_signature)
    stored = runner(image=image)
    with LiteRtEngine(tiny_bundle, bundle, [local]) as engine:
        found = engine.infer(local.id, image)
    for task in bundle.tasks:
        scale, zero_point = runner.get_output_details()[task.name]["quantization"]
        expected = [[(int(value) - zero_point) * scale for value in stored[task.name][0]]]
        np.testing.assert_allclose(found[task.name], expected, rtol=1e-6, atol=1e-9)
        assert found[task.name].dtype == np.float32


def change_first_cut(bundle: Bundle, **fields: Any) -> Bundle:
    tensor = dataclasses.replace(bundle.splits[1].tensors[0], **fields)
    split = dataclasses.replace(bundle.splits[1], tensors=(tensor,))
    return dataclasses.replace(bundle, splits=(split,))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scale": 1.0}, "with scale"),
        ({"zero_point": 99}, "zero point"),
        ({"shape": (1, 2, 3, 4)}, "the manifest says int8"),
        ({"dtype": "uint8"}, "the manifest says uint8"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says(
    tiny_bundle: Path, bundle: Bundle, fields: dict[str, Any], words: str
) -> None:
    other = change_first_cut(bundle, **fields)
    with pytest.raises(UserError, match=words), LiteRtEngine(tiny_bundle, other, other.splits):
        pass


def test_a_missing_signature(tiny_bundle: Path, bundle: Bundle) -> None:
    other = dataclasses.replace(bundle.splits[1], edge_signature="s99")
    with pytest.raises(UserError, match='has no signature "s99"'), LiteRtEngine(tiny_bundle, bundle, [other]):
        pass


def test_nothing_is_loaded_before_the_with_block(tmp_path: Path, bundle: Bundle) -> None:
    engine = LiteRtEngine(tmp_path, bundle, bundle.splits)  # there is no file
    assert engine.name.startswith("ai-edge-litert ")


def test_no_thread_is_no_engine(tiny_bundle: Path, bundle: Bundle) -> None:
    with pytest.raises(UserError, match='threads is "0"'):
        LiteRtEngine(tiny_bundle, bundle, bundle.splits, threads=0)


@pytest.fixture(autouse=True)
def _forget_made_up_packages() -> Iterator[None]:
    yield
    for name in ("tflite_runtime", "tflite_runtime.interpreter"):
        sys.modules.pop(name, None)


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setitem(sys.modules, f"{package}.interpreter", None)


def test_no_interpreter_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "ai_edge_litert", "tflite_runtime")
    with pytest.raises(UserError, match='neither "ai-edge-litert" nor "tflite-runtime" is installed') as caught:
        find_interpreter()
    assert "pip install ai-edge-litert" in caught.value.tries[0]


def install(folder: Path, package: str, code: str) -> None:
    (folder / package).mkdir()
    (folder / package / "__init__.py").touch()
    (folder / package / "interpreter.py").write_text(code)
    info = folder / f"{package}-2.14.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 2.14.0\n")


def test_the_old_interpreter_with_the_new_numpy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide(monkeypatch, "ai_edge_litert")
    install(tmp_path, "tflite_runtime", "class Interpreter: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(np, "__version__", "1.26.4")
    assert find_interpreter().name == "tflite-runtime 2.14.0"
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(UserError, match=r'does not work with numpy "2\.1\.0"'):
        find_interpreter()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import flatbuffers_that_is_not_there", 'installed without "flatbuffers_that_is_not_there"'),
        ("raise ImportError('GLIBC_2.34 not found')", 'does not load: "GLIBC_2.34 not found"'),
    ],
)
def test_an_interpreter_that_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, words: str) -> None:
    hide(monkeypatch, "ai_edge_litert")
    install(tmp_path, "tflite_runtime", code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=words):
        find_interpreter()


def test_the_fake_works_inside_its_block_only(bundle: Bundle, image: NDArray[np.int8]) -> None:
    engine = FakeEngine(bundle, bundle.splits)
    with pytest.raises(RuntimeError, match="outside"):
        engine.infer("s03", image)
    with engine:
        for split in bundle.splits[1:-1]:
            assert engine.infer(split.id, image)[split.tensors[0].name].shape == split.tensors[0].shape
        scores = engine.infer(bundle.splits[-1].id, image)
        assert {task: array.shape for task, array in scores.items()} == {"shape": (1, 2), "colour": (1, 3)}
