"""`splitboard triton`: what it writes, and the edge's own code against a real Triton that serves it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from serving import Running, running_server
from triton_server import Triton, running_triton

from runtime_edge.engines.litert import LiteRtEngine
from runtime_edge.link.connection import LinkError
from runtime_edge.link.link import Link
from runtime_edge.link.sender import PLAIN, Sender
from runtime_edge.pipeline import Pipeline
from splitboard.cli.main import run
from splitboard.contract.bundle import Bundle, bundle_sha256, load_bundle, write_manifest
from splitboard.contract.errors import EXIT_USER_ERROR
from splitboard.contract.forms import RequestForm
from splitboard.contract.interface import Interface, interface
from splitboard.contract.samples import load_samples
from splitboard.contract.wire import HEADER_LENGTH


def written(bundle: Path, folder: Path, *options: str) -> Path:
    repository = folder / "repository"
    assert run(["triton", str(bundle), "-o", str(repository), *options]) == 0
    return repository


@pytest.fixture(scope="module", params=["two tensors", "a head on the board"])
def placed(request: pytest.FixtureRequest, tiny_model: Path, tiny_samples: Path, tmp_path_factory: Any) -> Path:
    """A bundle of which two tensors cross, and one that answers `shape` on the board."""
    from export.model import load_model
    from export.splits import list_splits

    pooled = next(p.id for p in list_splits(load_model(tiny_model)).proper if p.local_tasks and p.id[0] == "s")
    split = ["m01"] if request.param == "two tensors" else [pooled, "--local", "shape"]
    out: Path = tmp_path_factory.mktemp("placed") / "bundle"
    options = ["--board", "linux-x86-64", "--calib", str(tiny_samples), "-o", str(out), "--split", *split]
    assert run(["build", str(tiny_model), *options]) == 0
    return out


@pytest.fixture(scope="module")
def triton(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with running_triton(written(tiny_bundle, tmp_path_factory.mktemp("one"), "--backend", "python")) as running:
        yield running


def tensors_of(bundle: Bundle) -> dict[str, dict[str, NDArray[Any]]]:
    """Random wire tensors by split."""
    random = np.random.default_rng(8)
    return {
        split.id: {
            spec.name: random.integers(*((0, 256) if spec.dtype == "uint8" else (-128, 128)), spec.shape).astype(
                spec.dtype
            )
            for spec in split.tensors
        }
        for split in bundle.splits
        if not split.is_local
    }


def asked(url: str, folder: Path, tensors: dict[str, dict[str, NDArray[Any]]]) -> dict[str, dict[str, NDArray[Any]]]:
    """What a server answers to the edge's own client, by split and output."""
    bundle, answers = load_bundle(folder), {}
    with Link(url) as link:
        for split_id, inputs in tensors.items():
            to = interface(bundle, bundle_sha256(folder), bundle.split(split_id))
            found = Sender(link).ask(to, [spec.name for spec in to.outputs], inputs, PLAIN)
            answers[split_id] = {name: array.copy() for name, array in found.outputs.items()}
    return answers


def test_a_repository_holds_every_server_half(tiny_bundle: Path, tmp_path: Path) -> None:
    repository = written(tiny_bundle, tmp_path)
    bundle = load_bundle(tiny_bundle)
    halves = {bundle.served_name(split): split.server for split in bundle.splits if split.server}
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert files == {"splitboard.json"} | {
        f"{name}/{file}" for name in halves for file in ("config.pbtxt", "1/model.onnx")
    }
    for name, graph in halves.items():
        assert (repository / name / "1/model.onnx").read_bytes() == (tiny_bundle / str(graph)).read_bytes()
    about = json.loads((repository / "splitboard.json").read_text())
    assert (about["bundle_sha256"], about["backend"]) == (bundle_sha256(tiny_bundle), "onnxruntime")


def test_what_is_printed(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "repository"
    assert run(["triton", str(tiny_bundle), "--backend", "tensorrt", "-o", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["repository"] == str(out)
    assert said["engines"]["tiny-s00/1/model.plan"] == (
        "trtexec --onnx=tiny-s00/1/model.onnx --saveEngine=tiny-s00/1/model.plan --inputIOFormats=uint8:chw"
    )
    assert said["engines"].keys() == {f"{name}/1/model.plan" for name in said["models"]}


def test_one_of_ours_is_replaced_and_nothing_else(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = written(tiny_bundle, tmp_path, "--backend", "python")
    assert not (written(tiny_bundle, tmp_path) / "tiny-s00/1/model.py").exists()
    (repository / "splitboard.json").unlink()
    capsys.readouterr()
    assert run(["triton", str(tiny_bundle), "-o", str(repository)]) == EXIT_USER_ERROR
    assert f'error: "{repository}" exists and was not made by this command' in capsys.readouterr().err
    assert (repository / "tiny-s00/config.pbtxt").is_file()


def test_an_unknown_back_end(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--backend", "openvino", "-o", str(tmp_path / "repository")]
    assert run(["triton", str(tiny_bundle), *options]) == EXIT_USER_ERROR
    assert 'error: unknown back end "openvino"\nTry: --backend onnxruntime' in capsys.readouterr().err


def test_what_tensorrt_does_not_take(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, folder = load_bundle(tiny_bundle), tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    remote, first, *others = bundle.splits
    wide = replace(first, tensors=(replace(first.tensors[0], dtype="int16"),))
    write_manifest(folder, replace(bundle, splits=(remote, wide, *others)))
    out = tmp_path / "repository"
    assert run(["triton", str(folder), "--backend", "tensorrt", "-o", str(out)]) == EXIT_USER_ERROR
    assert f'error: TensorRT does not take "int16", which split {first.id} sends' in capsys.readouterr().err
    assert not out.exists()


def test_a_bundle_without_a_server_half(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, folder = load_bundle(tiny_bundle), tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    shutil.rmtree(folder / "server")
    kept = tuple(file for file in bundle.artifacts if not file.path.startswith("server/"))
    write_manifest(folder, replace(bundle, splits=bundle.splits[-1:], artifacts=kept))
    assert run(["triton", str(folder), "-o", str(tmp_path / "repository")]) == EXIT_USER_ERROR
    assert f'error: no split of "{folder}" has a server half' in capsys.readouterr().err


@pytest.mark.triton
def test_the_same_edge_gets_the_same_bits_from_triton_and_from_us(
    triton: Triton, server: Running, tiny_bundle: Path, tiny_samples: Path
) -> None:
    bundle, sha256 = load_bundle(tiny_bundle), bundle_sha256(tiny_bundle)
    images = load_samples(tiny_samples, channels=1).images[:6]
    splits = tuple(split for split in bundle.splits if not split.is_local)
    assert len(splits) == 3
    with LiteRtEngine(tiny_bundle, bundle, splits) as engine, Link(triton.url) as theirs, Link(server.url) as ours:
        for split in splits:
            found = []
            for link in (theirs, ours):
                pipeline = Pipeline(bundle, sha256, splits, engine, Sender(link))
                link.check_pair(pipeline.interfaces[split.id], timeout_s=60)
                found.append([pipeline.infer(split, image).scores for image in images])
            assert found[0] == found[1]  # floats, equal bit for bit


@pytest.mark.triton
def test_triton_answers_as_onnx_runtime_does_directly(triton: Triton, tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    tensors = tensors_of(bundle)
    for split_id, found in asked(triton.url, tiny_bundle, tensors).items():
        graph = tiny_bundle / str(bundle.split(split_id).server)
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        expected = dict(zip(found, session.run(list(found), tensors[split_id]), strict=True))
        assert len(found) == len(bundle.tasks)
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name], strict=True)


@pytest.mark.triton
def test_several_tensors_and_a_head_on_the_board(placed: Path, tmp_path: Path) -> None:
    bundle = load_bundle(placed)
    split = bundle.splits[1]
    assert (len(split.tensors), split.local_tasks) in [(2, ()), (1, ("shape",))]
    tensors = tensors_of(bundle)
    with running_triton(written(placed, tmp_path, "--backend", "python")) as theirs, running_server(placed) as ours:
        found, expected = asked(theirs.url, placed, tensors), asked(ours.url, placed, tensors)
    assert found.keys() == {"s00", split.id}
    for split_id, outputs in found.items():
        assert outputs.keys() == {"shape", "colour"} - set(bundle.split(split_id).local_tasks)
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, expected[split_id][name], strict=True)


@pytest.fixture(scope="module")
def packed(tiny_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose server halves hold scattered weights as values and places."""
    import sparse_nets
    from safetensors.torch import save_file

    folder: Path = tmp_path_factory.mktemp("packed")
    save_file(sparse_nets.scattered().state_dict(), folder / "sparse.safetensors")
    (folder / "sparse.toml").write_text(
        "[preprocessing]\nheight = 32\nwidth = 32\nsource_channels = 1\n"
        "mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n",
        encoding="utf-8",
    )
    factory = ["--model", "sparse_nets:scattered", "--path", str(Path(sparse_nets.__file__).parent)]
    like = ["--spec", str(folder / "sparse.toml"), "--input", "1x3x32x32", "-o", str(folder / "model")]
    assert run(["export", str(folder / "sparse.safetensors"), *factory, *like]) == 0
    cut = ["--board", "linux-x86-64", "--calib", str(tiny_samples), "--split", "backbone.1"]
    assert run(["build", str(folder / "model"), *cut, "-o", str(folder / "bundle")]) == 0
    return folder / "bundle"


@pytest.mark.triton
def test_packed_weights(packed: Path, tmp_path: Path) -> None:
    tensors = tensors_of(load_bundle(packed))
    with running_triton(written(packed, tmp_path, "--backend", "python")) as theirs, running_server(packed) as ours:
        found, expected = asked(theirs.url, packed, tensors), asked(ours.url, packed, tensors)
    for split_id, outputs in found.items():
        graph = onnx.load(packed / "server" / f"{split_id}.onnx").graph
        assert "ScatterElements" in {node.op_type for node in graph.node}
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, expected[split_id][name], strict=True)


@pytest.mark.triton
def test_triton_refuses_another_bundle(triton: Triton, tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    to = interface(bundle, "0" * 64, bundle.splits[0])
    with Link(triton.url) as link:
        with pytest.raises(LinkError, match='serves tiny-s00 of bundle "') as refused:
            link.check_pair(to, timeout_s=60)
        assert refused.value.reason == "pair"
        with pytest.raises(LinkError, match="tiny-s00 is of bundle"):
            Sender(link).ask(to, ["shape"], tensors_of(bundle)["s00"], PLAIN)


@pytest.mark.triton
def test_the_queue_of_triton_is_bounded(triton: Triton, tiny_bundle: Path) -> None:
    """Of 200 requests at once some are refused as overloaded, and the others are answered."""
    bundle = load_bundle(tiny_bundle)
    to = interface(bundle, bundle_sha256(tiny_bundle), bundle.splits[0])
    inputs = tensors_of(bundle)["s00"]
    outcomes: Counter[int] = Counter()
    for _ in range(5):  # on a busy machine the requests may come so slowly that the queue never fills
        outcomes += all_at_once(triton, to, inputs)
        if outcomes[503]:
            break
    assert outcomes.keys() == {200, 503}
    assert outcomes[200] >= 64


def all_at_once(triton: Triton, to: Interface, inputs: dict[str, Any]) -> Counter[int]:
    """Statuses of 200 requests, all of them sent before the first answer is read."""
    message = RequestForm(to, ["shape"]).encode(inputs, 60_000_000)
    head = f"POST /v2/models/{to.model}/infer HTTP/1.1\r\nHost: triton\r\n{HEADER_LENGTH}: {len(message.header)}\r\n"
    request = b"".join([f"{head}Content-Length: {message.n_bytes}\r\n\r\n".encode(), message.header, *message.tensors])
    outcomes: Counter[int] = Counter()
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", triton.port), 60)) for _ in range(200)]
        for one in opened:
            one.sendall(request)
        for one in opened:
            reply = http.client.HTTPResponse(one)
            reply.begin()
            reply.read()
            outcomes[reply.status] += 1
    return outcomes
