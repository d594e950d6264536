"""Checkpoints as people save them: where the state dict is found, and files that would run code when loaded."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from export.child_refusals import Refused
from export.child_weights import check_finite, check_size, load_weights, pickled_model
from export.model import load_model
from export.pt2 import checked_copy
from splitboard.cli.main import run
from splitboard.contract.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_exports")

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.heads = nn.ModuleDict({"kind": nn.Linear(4, 2), "state": nn.Linear(4, 2)})

    def forward(self, image, scale=None):
        features = self.body(image).mean((2, 3))
        if scale is not None:
            features = features * scale
        return {name: head(features) for name, head in self.heads.items()}


def make():
    return Net()
"""

PATH = Path("run.ckpt.pt")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.model = nn.Linear(2, 2, bias=False)
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.model.weight


def state() -> dict[str, Tensor]:
    """Of a trained network: no two values alike."""
    own = Net().state_dict()
    return {
        key: torch.arange(value.numel()).reshape(value.shape).to(value.dtype) / 7 + i
        for i, (key, value) in enumerate(own.items())
        if key != "tied.weight"
    }


def prefixed(prefix: str, **more: Tensor) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state().items()} | more


LOSS = {"criterion.weight": torch.ones(3), "n_averaged": torch.tensor(5)}
FOUND: dict[str, tuple[Any, list[str]]] = {
    "plain": (state(), []),
    "tied names both": (state() | {"tied.weight": state()["model.weight"]}, []),
    "other name of a tied weight": (
        {("tied.weight" if key == "model.weight" else key): value for key, value in state().items()}, []
    ),
    "without counters": ({key: value for key, value in state().items() if "num_batches" not in key}, []),
    "nested": ({"state_dict": state(), "epoch": 3}, ['state dict found under "state_dict"']),
    "deep": ({"a": {"b": {"net": state()}}}, ['state dict found under "a.b.net"']),
    "data parallel": (prefixed("module."), ['prefix "module." taken off its keys']),
    "compiled and parallel": (prefixed("module._orig_mod."), ['prefix "module._orig_mod." taken off its keys']),
    "compiled part": (
        {key.replace("conv.", "conv._orig_mod."): value for key, value in state().items()},
        ['"_orig_mod." of torch.compile taken out of its keys'],
    ),
    "a prefix that is a module's name as well": (prefixed("model."), ['prefix "model." taken off its keys']),
    "lightning": (
        {"state_dict": prefixed("net.model.", **LOSS), "optimizer_states": [{"state": {0: torch.ones(2)}}]},
        ['state dict found under "state_dict", prefix "net.model." taken off its keys, '
         "2 entries outside of it left out: criterion.weight, n_averaged"],
    ),
    "two of which one fits": (
        {"teacher": {"conv.weight": torch.ones(7)}, "student": state()}, ['state dict found under "student"']
    ),
    "numbers beside the weights": (state() | {"epoch": 3}, ["1 entries outside of it left out: epoch"]),
    "one dictionary under two names": (dict.fromkeys(["model", "net"], state()), ['state dict found under "model"']),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_the_models_own_state_dict_is_found_and_loaded(case: str) -> None:
    checkpoint, said = FOUND[case]
    model = Net()
    assert load_weights(model, checkpoint, PATH) == said
    expected = Net()
    expected.load_state_dict(state() | {"tied.weight": state()["model.weight"]})
    for key, value in expected.state_dict().items():
        if not ("num_batches" in key and case == "without counters"):
            torch.testing.assert_close(model.state_dict()[key], value)


MISFITS: dict[str, tuple[Any, list[str]]] = {
    "ambiguous": ({"model": state(), "ema": state()}, ['under "model"', 'under "ema"', "two state dicts"]),
    "ambiguous prefixes": (
        prefixed("student.") | prefixed("teacher."),
        ['the prefix "student."', 'the prefix "teacher."'],
    ),
    "missing": ({key: value for key, value in state().items() if "bias" not in key}, ['lacks "conv.bias" and 1 more']),
    "missing below": ({"net": {"conv.weight": torch.ones(2, 1, 1, 1)}}, ['lacks "conv.bias"', '(under "net")']),
    "unknown": (state() | {"neck.weight": torch.ones(1)}, ['has the unknown key "neck.weight"']),
    "another shape": (state() | {"conv.bias": torch.ones(3)}, ['"conv.bias" of [3]', "the model's is [2]"]),
    "no tensor": (state() | {"conv.bias": "zeros"}, ['"conv.bias", which is str']),
    "not a number": (state() | {"conv.bias": torch.tensor([1, torch.nan])}, ['"conv.bias"', "1 of 2 values"]),
    "infinite": (state() | {"conv.bias": torch.tensor([1, -torch.inf])}, ['"conv.bias"', "1 of 2 values"]),
    "no state dict": ({"epoch": 3}, ["holds no state dict"]),
    "a list": ([torch.ones(2)], ["holds no state dict"]),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_named(case: str) -> None:
    checkpoint, said = MISFITS[case]
    with pytest.raises(Refused) as error:
        load_weights(Net(), checkpoint, PATH)
    for words in said:
        assert words in str(error.value)
    assert PATH.name in str(error.value)
    assert error.value.tries


def test_a_mask_may_hold_minus_infinity_and_nothing_else() -> None:
    check_finite("m.pt", [("mask", torch.tensor([0, -torch.inf])), ("count", torch.tensor(3))], {})
    for value in (torch.nan, torch.inf):
        with pytest.raises(Refused, match='"mask"'):
            check_finite("m.pt", [("mask", torch.tensor([0, value]))], {})


def test_a_model_that_no_onnx_file_can_hold_is_refused_by_its_size() -> None:
    check_size([torch.zeros(1).expand(23_000, 23_000)])
    with pytest.raises(Refused, match=r'"2\.3 GB" of weights'):
        check_size([torch.zeros(1).expand(24_000, 24_000)])


def test_one_pickled_model_is_found_and_two_are_refused() -> None:
    half, changes = pickled_model({"epoch": 1, "model": Net().half()}, PATH)
    assert changes == ['pickled model found under "model"', "weights taken as float32"]
    assert {one.dtype for one in half.parameters()} == {torch.float32}
    with pytest.raises(Refused, match='"model", "ema"'):
        pickled_model({"model": Net(), "ema": Net()}, PATH)
    with pytest.raises(Refused, match="is a state dict"):
        pickled_model(state(), PATH)


CODE = "__import__('os').mkdir('was-run')"


class Payload:
    """A call that runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("was-run",)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: code, a whole pickled model, an exported program."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "usernet.py").write_text(NET)
    return folder


@pytest.fixture(scope="module")
def net(theirs: Path) -> Iterator[nn.Module]:
    """Their network, imported as in their own training script."""
    import sys

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(theirs)
        import usernet  # type: ignore[import-not-found, unused-ignore]

        torch.manual_seed(2)
        made: nn.Module = usernet.make().eval()
        for name, buffer in made.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2.0)
        torch.save(made, theirs / "whole.pt")
        yield made
        del sys.modules["usernet"]


def equal_to_torch(model: Path, net: nn.Module, name: str = "image") -> None:
    loaded = load_model(model)
    image = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(4))
    session = ort.InferenceSession(str(model / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = net(image)
    assert loaded.graph.outputs == list(expected)
    for ours, theirs in zip(session.run(None, {name: image.numpy()}), expected.values(), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_a_whole_pickled_model_needs_trust(
    theirs: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(theirs)
    argv = ["export", "whole.pt", "--input", "1x3x6x8", "-o", "whole.model"]
    assert run(argv) == 3
    assert "--trust-pickle" in capfd.readouterr().err
    assert run([*argv, "--trust-pickle"]) == 0
    equal_to_torch(theirs / "whole.model", net)


@pytest.fixture(scope="module")
def program(theirs: Path, net: nn.Module) -> Path:
    """An exported program whose image may be of any width."""
    path = theirs / "program.pt2"
    width = torch.export.Dim("width", min=4, max=64)
    shapes = {"image": {3: width}}
    torch.export.save(torch.export.export(net, (torch.rand(1, 3, 6, 8),), dynamic_shapes=shapes), path)
    return path


def test_an_exported_program_keeps_its_outputs_and_modules(program: Path, net: nn.Module) -> None:
    out = program.with_suffix(".model")
    assert run(["export", str(program), "--input", "1x3x6x8", "-o", str(out)]) == 0
    equal_to_torch(out, net)
    info = load_model(out).info
    assert {"body.1", "heads.kind", "heads.state"} <= set(info.scopes.values())
    assert info.sequences == ("body",)
    assert "folded 1 BatchNormalization" in info.changes


def test_a_dynamic_dimension_of_a_program_is_named(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = program.with_suffix(".none")
    assert run(["export", str(program), "-o", str(out)]) == 3
    said = capfd.readouterr().err
    assert 'input "image" of 1x3x6x' in said
    assert "dynamic dimension" in said
    assert "(number 3)" in said
    assert not out.exists()


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an exported program whose parts were changed."""
    with zipfile.ZipFile(source) as archive:
        parts = {entry.filename.partition("/")[2]: archive.read(entry) for entry in archive.infolist()}
    change(parts)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"evil/{name}", content)
    return target


def pickled(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def graph(parts: dict[str, bytes], change: Callable[[Any], None]) -> None:
    value = json.loads(parts["models/model.json"])
    change(value)
    parts["models/model.json"] = json.dumps(value).encode()


def samples_as_code(parts: dict[str, bytes]) -> None:
    parts["data/sample_inputs/model.pt"] = pickle.dumps(Payload())


def guards_as_code(parts: dict[str, bytes]) -> None:
    graph(parts, lambda value: value.update(guards_code=[CODE]))


def weights_as_code(parts: dict[str, bytes]) -> None:
    config = json.loads(parts["data/weights/model_weights_config.json"])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    parts["data/weights/weight_0"] = pickled(Payload())
    parts["data/weights/model_weights_config.json"] = json.dumps(config).encode()


def constant_as_code(parts: dict[str, bytes]) -> None:
    name = "data/constants/model_constants_config.json"
    config = json.loads(parts[name])
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
    config["config"]["evil"] = payload
    parts[name] = json.dumps(config).encode()


def object_as_code(parts: dict[str, bytes]) -> None:
    parts["data/constants/custom_obj_0"] = pickle.dumps(Payload())


def size_as_code(parts: dict[str, bytes]) -> None:
    text = parts["models/model.json"].decode()
    start = text.index('"expr_str": "') + len('"expr_str": "')
    parts["models/model.json"] = (text[:start] + CODE + text[text.index('"', start) :]).encode()


def operator_as_code(parts: dict[str, bytes]) -> None:
    graph(parts, lambda value: value["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.load_library"))


def structure_as_code(parts: dict[str, bytes]) -> None:
    spec = {"type": "collections.defaultdict", "context": '{"default_factory_module": "antigravity"}'}
    signature = {"in_spec": json.dumps([1, spec])}
    graph(parts, lambda value: value["graph_module"]["module_call_graph"][0]["signature"].update(signature))


def library(parts: dict[str, bytes]) -> None:
    parts["data/aotinductor/model/model.so"] = b"\x7fELF"


def old_weights(parts: dict[str, bytes]) -> None:
    parts["data/weights/model.pt"] = pickled(Payload())


HARMFUL = {
    weights_as_code: "as a pickle",
    constant_as_code: '"evil" as a pickle',
    object_as_code: "data/constants/custom_obj_0",
    size_as_code: CODE,
    operator_as_code: "torch.ops.load_library",
    structure_as_code: "names a module",
    library: "data/aotinductor/model/model.so",
    old_weights: "data/weights/model.pt",
}


@pytest.mark.parametrize("change", HARMFUL, ids=lambda change: change.__name__)
def test_a_program_that_would_run_code_is_refused(
    change: Callable[[dict[str, bytes]], None],
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewritten(program, tmp_path / "evil.pt2", change)
    assert run(["export", path.name, "--input", "1x3x6x8", "-o", "out"]) == 3
    first, *tries = capfd.readouterr().err.splitlines()
    assert HARMFUL[change] in first
    assert "could run any code" in first
    assert any("--trust-pickle" in line for line in tries)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["evil.pt2"]


def test_code_that_is_not_needed_is_left_behind(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def change(parts: dict[str, bytes]) -> None:
        guards_as_code(parts)
        samples_as_code(parts)

    path = rewritten(program, tmp_path / "evil.pt2", change)
    checked_copy(path, tmp_path / "safe.pt2")
    loaded = torch.export.load(tmp_path / "safe.pt2")
    loaded.module()(torch.rand(1, 3, 6, 8))
    assert not (tmp_path / "was-run").exists()


def test_the_code_would_have_run(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch itself, given the same files: otherwise the tests above would show nothing."""
    monkeypatch.chdir(tmp_path)
    for i, change in enumerate((guards_as_code, size_as_code, samples_as_code)):
        path = rewritten(program, tmp_path / f"evil{i}.pt2", change)
        with contextlib.suppress(Exception):  # it runs first, and may fail afterwards
            torch.export.load(path).module()(torch.rand(1, 3, 6, 8))
        assert (tmp_path / "was-run").exists(), change
        (tmp_path / "was-run").rmdir()


@pytest.mark.parametrize("content", [b"hello", b"PK\x05\x06" + b"\0" * 18, b""])
def test_a_file_that_is_no_program_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pt2"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.pt2"):
        checked_copy(path, tmp_path / "safe.pt2")


def test_a_truncated_program_is_refused(program: Path, tmp_path: Path) -> None:
    shutil.copy(program, tmp_path / "cut.pt2")
    with open(tmp_path / "cut.pt2", "r+b") as file:
        file.truncate(program.stat().st_size // 2)
    with pytest.raises(UserError, match="not a readable exported program"):
        checked_copy(tmp_path / "cut.pt2", tmp_path / "safe.pt2")
