"""NVIDIA's own clients, by HTTP and by gRPC, in an environment and a process of their own."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from protocol_table import PIXELS, SHAPES
from serving import running_server
from triton_messages import fields
from triton_server import find_triton_python

from runtime_server.grpc_messages import CLASSES, ENUMS
from splitboard.contract.bundle import bundle_sha256, load_bundle

CLIENT = Path(__file__).parents[1] / "triton_client.py"
PACKAGES = ["tritonclient[grpc,http]==2.73.0"]


@pytest.fixture(scope="module")
def client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triton's environment has the clients; where there is none they get one of their own."""
    found = find_triton_python()
    if found is not None:
        return found
    folder = tmp_path_factory.mktemp("tritonclient")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    argv = [str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", *PACKAGES]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"tritonclient cannot be installed: {done.stderr.strip()[-200:]}")
    return python


@pytest.fixture(scope="module")
def told(client_python: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What both clients were told by one server, first the one by HTTP."""
    pixels = tmp_path_factory.mktemp("pixels") / "pixels.npy"
    np.save(pixels, PIXELS)
    with running_server(tiny_bundle, grpc_port=0) as server:
        argv = [str(client_python), str(CLIENT), f"127.0.0.1:{server.port}", server.grpc, str(pixels)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(params=["http", "grpc"])
def said(request: pytest.FixtureRequest, told: dict[str, Any]) -> dict[str, Any]:
    """What one client was told."""
    found: dict[str, Any] = told[request.param]
    return found


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> dict[str, Any]:
    """ONNX Runtime's outputs, as the client prints them."""
    session = onnxruntime.InferenceSession(tiny_bundle / "server" / "s00.onnx", providers=["CPUExecutionProvider"])
    arrays = dict(zip(SHAPES, session.run(list(SHAPES), {"image": PIXELS}), strict=True))
    return {name: ["float32", list(array.shape), array.tobytes().hex()] for name, array in arrays.items()}


def test_outputs_are_those_of_onnx_runtime(said: dict[str, Any], expected: dict[str, Any]) -> None:
    assert said["all"] == expected
    assert said["unasked"] == expected
    assert said["by version"] == expected
    assert said["some"] == {"colour": expected["colour"]}
    assert said["id"] == "seven"


def test_readiness(said: dict[str, Any]) -> None:
    assert said["live"] is said["ready"] is said["model ready"] is True
    assert said["unknown model ready"] is False


def test_metadata(said: dict[str, Any], tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert said["server"]["name"] == "splitboard"
    assert "statistics" in said["server"]["extensions"]
    model = said["model"]
    assert (model["name"], model["versions"], model["platform"]) == ("tiny-s00", ["1"], "onnxruntime_onnx")
    (image,) = model["inputs"]
    assert (image["name"], image["datatype"], [int(size) for size in image["shape"]]) == (
        "image",
        "UINT8",
        [1, 32, 32, 1],
    )
    assert [output["name"] for output in model["outputs"]] == [task.name for task in bundle.tasks]


def test_configuration(said: dict[str, Any], tiny_bundle: Path) -> None:
    config = said["config"].get("config", said["config"])
    assert config["parameters"]["bundle"]["string_value"] == bundle_sha256(tiny_bundle)
    assert config["parameters"]["split"]["string_value"] == "s00"
    assert config["input"][0]["data_type"] == "TYPE_UINT8"
    assert [int(size) for size in config["output"][1]["dims"]] == [1, 3]
    assert config.get("max_batch_size", 0) == 0  # protobuf leaves zeros out


def test_the_repository(said: dict[str, Any], tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    listed = said["index"]["models"] if isinstance(said["index"], dict) else said["index"]
    assert {(model["name"], model["state"]) for model in listed} == {
        (bundle.served_name(split), "READY") for split in bundle.splits if not split.is_local
    }


@pytest.mark.parametrize(("front", "answered", "refused"), [("http", 4, 0), ("grpc", 8, 3)])
def test_statistics(told: dict[str, Any], front: str, answered: int, refused: int) -> None:
    """Each client has four answers when it asks; what the first is refused after that, the second finds."""
    (found,) = told[front]["statistics"]["model_stats"]
    assert (found["name"], found["version"]) == ("tiny-s00", "1")
    assert int(found["inference_count"]) == int(found["execution_count"]) == answered
    stats = found["inference_stats"]
    assert int(stats["success"]["count"]) == answered
    assert int(stats["success"]["ns"]) >= int(stats["compute_infer"]["ns"]) > 0
    assert int(stats["fail"].get("count", 0)) == refused


@pytest.mark.parametrize(
    ("case", "http", "grpc", "words"),
    [
        ("unknown model", "404", "StatusCode.NOT_FOUND", 'there is no model "nix"'),
        ("another shape", "400", "StatusCode.INVALID_ARGUMENT", "must have shape [1, 32, 32, 1]"),
        ("another type", "400", "StatusCode.INVALID_ARGUMENT", "must be UINT8"),
        ("another bundle", "409", "StatusCode.FAILED_PRECONDITION", "is of bundle"),
    ],
)
def test_refusals(told: dict[str, Any], case: str, http: str, grpc: str, words: str) -> None:
    for front, status in (("http", http), ("grpc", grpc)):
        found, message = told[front][case]
        assert found == status
        assert words in message


INNER = {
    "inference.TensorMetadata": "inference.ModelMetadataResponse.TensorMetadata",
    "inference.InferInputTensor": "inference.ModelInferRequest.InferInputTensor",
    "inference.InferRequestedOutputTensor": "inference.ModelInferRequest.InferRequestedOutputTensor",
    "inference.InferOutputTensor": "inference.ModelInferResponse.InferOutputTensor",
    "inference.ModelIndex": "inference.RepositoryIndexResponse.ModelIndex",
}
"""Names of ours, which are all at the top, and of theirs, which are not. Names do not cross the wire."""


def theirs(name: str) -> str:
    """Their name of a message or enumeration of ours."""
    outer, _, entry = name.rpartition(".")
    return f"{theirs(outer)}.{entry}" if outer in INNER else INNER.get(name, name)


def test_our_messages_have_the_numbers_and_types_of_theirs(client_python: Path) -> None:
    script = CLIENT.with_name("triton_messages.py")
    done = subprocess.run([str(client_python), str(script)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    compared = 0
    for name, made in CLASSES.items():
        if name.startswith("Check"):  # of another service
            continue
        message = made.DESCRIPTOR
        for one in (message, *message.nested_types):
            expected = found["messages"][theirs(one.full_name)]
            for key, value in fields(one).items():
                assert [*value[:4], value[4] and theirs(value[4])] == expected[key], (one.full_name, key)
                compared += 1
    assert compared > 100
    for name, values in ENUMS.items():
        if name != "ServingStatus":
            assert values.items() <= found["enums"][theirs(f"inference.{name}")].items()


BESIDE = """
from tritonclient.grpc import service_pb2
from runtime_server.grpc_messages import CLASSES

theirs = service_pb2.ModelInferRequest(model_name="a", model_version="1", id="b", raw_input_contents=[b"c", b"d"])
theirs.inputs.add(name="e", datatype="INT8", shape=[1, 2])
theirs.outputs.add(name="f")
theirs.parameters["crc32"].int64_param = 7
ours = CLASSES["ModelInferRequest"].FromString(theirs.SerializeToString())
assert str(ours) == str(theirs)
assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()) == theirs
"""


def test_our_messages_live_beside_theirs(client_python: Path) -> None:
    """In one process, and with the older protobuf that they ask for."""
    argv = [str(client_python), "-W", "error", "-c", BESIDE]
    done = subprocess.run(argv, cwd=CLIENT.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
