"""Another implementation's client: the standard library's, fed with bytes written by hand from the protocol's text."""

from __future__ import annotations

import http.client
import json
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle

INFER = "/v2/models/tiny-s00/infer"


def ask(port: int, method: str, path: str, body: Any = b"", headers: Any = None) -> tuple[int, Any, bytes]:
    """One request on a connection of its own: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body or None, headers or {})
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def until_draining(port: int) -> None:
    """Returns when the server has heard that it shall end."""
    end = time.monotonic() + 60
    while ask(port, "GET", "/v2/health/ready")[0] == 200:
        assert time.monotonic() < end


def refusal(answer: bytes) -> str:
    """The reason that an answer gives."""
    return str(json.loads(answer)["reason"])


def by_hand(
    bundle: Bundle, folder: Path, split: Split, pixels: np.ndarray[Any, Any], /, **parameters: Any
) -> tuple[bytes, dict[str, str]]:
    """A request as the protocol's text has it: its body and its HTTP headers."""
    tensor, raw = split.tensors[0], pixels.tobytes()
    pair = {"bundle": bundle_sha256(folder), "split": split.id, "crc32": zlib.crc32(raw)}
    text = json.dumps(
        {
            "id": "one",
            "parameters": {**pair, **parameters},
            "inputs": [
                {
                    "name": tensor.name,
                    "shape": list(pixels.shape),
                    "datatype": {"uint8": "UINT8", "int8": "INT8"}[str(pixels.dtype)],
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "outputs": [{"name": task.name, "parameters": {"binary_data": True}} for task in bundle.tasks],
        }
    ).encode()
    return text + raw, {"Inference-Header-Content-Length": str(len(text))}


def wire_tensor(split: Split, seed: int = 5) -> np.ndarray[Any, Any]:
    """A random tensor of a split with one."""
    low, high = (0, 256) if split.tensors[0].dtype == "uint8" else (-128, 128)
    return np.random.default_rng(seed).integers(low, high, split.tensors[0].shape).astype(split.tensors[0].dtype)


def remote_request(folder: Path, /, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """A request to a bundle's remote only."""
    bundle = load_bundle(folder)
    return by_hand(bundle, folder, bundle.splits[0], wire_tensor(bundle.splits[0]), **parameters)


def raw_request(body: bytes, headers: dict[str, str], path: str = INFER, method: str = "POST") -> bytes:
    """The bytes of a whole request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def scores(headers: Any, body: bytes) -> list[list[float]]:
    """The outputs of a reply, in its order."""
    n_json = int(headers["Inference-Header-Content-Length"])
    found, start = [], n_json
    for entry in json.loads(body[:n_json])["outputs"]:
        size = entry["parameters"]["binary_data_size"]
        found.append(np.frombuffer(body[start : start + size], "<f4").tolist())
        start += size
    assert start == len(body)
    return found
