"""What the server says of itself: the protocol's extensions, and Prometheus' page read by Prometheus' own parser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import INFER, ask, by_hand, remote_request, wire_tensor
from prometheus_client.parser import text_string_to_metric_families
from serving import Running, running_server

from splitboard.contract.bundle import bundle_sha256, load_bundle
from splitboard.contract.wire import ServerTiming, parse_server_timing


@pytest.fixture
def fresh(tiny_bundle: Path) -> Iterator[Running]:
    """A server that nobody has asked yet."""
    with running_server(tiny_bundle) as running:
        yield running


def get(server: Running, path: str, method: str = "GET", body: bytes = b"") -> Any:
    status, headers, answer = ask(server.port, method, path, body)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    return json.loads(answer)


@pytest.mark.parametrize("path", ["/v2/models/tiny-s03", "/v2/models/tiny-s03/versions/1", "/v2/models/tiny-s03/"])
def test_metadata_with_and_without_the_version(server: Running, tiny_bundle: Path, path: str) -> None:
    said = get(server, path)
    ((tensor),) = load_bundle(tiny_bundle).split("s03").tensors
    assert said["inputs"] == [{"name": tensor.name, "datatype": "INT8", "shape": list(tensor.shape)}]
    assert said["versions"] == ["1"]


def test_configuration(server: Running, tiny_bundle: Path) -> None:
    said = get(server, "/v2/models/tiny-s00/config")
    assert (said["name"], said["max_batch_size"]) == ("tiny-s00", 0)
    assert said["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [1, 32, 32, 1]}]
    assert said["output"][1] == {"name": "colour", "data_type": "TYPE_FP32", "dims": [1, 3]}
    pair = {"bundle": bundle_sha256(tiny_bundle), "split": "s00"}
    assert {name: value["string_value"] for name, value in said["parameters"].items()} == pair


def test_the_repository_lists_all_models(server: Running) -> None:
    for body in (b"", b"{}", b'{"ready": true}'):
        listed = get(server, "/v2/repository/index", "POST", body)
        assert [one["name"] for one in listed] == ["tiny-s00", "tiny-s03", "tiny-s05"]
        assert {(one["version"], one["state"]) for one in listed} == {("1", "READY")}
    assert ask(server.port, "POST", "/v2/repository/index", b"{")[0] == 400


def asked(server: Running, bundle: Path, count: int) -> list[ServerTiming]:
    """Answers to as many requests to s05, and three refusals of others."""
    split = load_bundle(bundle).split("s05")
    body, headers = by_hand(load_bundle(bundle), bundle, split, wire_tensor(split))
    timings = []
    for _ in range(count):
        _, said, _ = ask(server.port, "POST", "/v2/models/tiny-s05/infer", body, headers)
        timings.append(parse_server_timing(said["Server-Timing"]))
    corrupt = body[:-1] + bytes([body[-1] ^ 1])
    assert ask(server.port, "POST", "/v2/models/tiny-s05/infer", corrupt, headers)[0] == 400
    assert ask(server.port, "POST", INFER, *remote_request(bundle, split="s03"))[0] == 409
    assert ask(server.port, "GET", "/nothing")[0] == 404
    return timings


def test_statistics(fresh: Running, tiny_bundle: Path) -> None:
    timings = asked(fresh, tiny_bundle, 12)
    ((found),) = get(fresh, "/v2/models/tiny-s05/stats")["model_stats"]
    assert (found["name"], found["inference_count"], found["execution_count"]) == ("tiny-s05", 12, 12)
    stats = found["inference_stats"]
    assert {name: one["count"] for name, one in stats.items() if name in ("success", "fail")} == {
        "success": 12,
        "fail": 1,
    }
    for name, values in zip(("queue", "compute_input", "compute_infer"), zip(*timings, strict=True), strict=True):
        assert stats[name] == {"count": 12, "ns": sum(values)}
    assert stats["success"]["ns"] == sum(map(sum, timings))
    assert [one["batch_size"] for one in found["batch_stats"]] == [1]
    everything = get(fresh, "/v2/models/stats")["model_stats"]
    assert [one["inference_count"] for one in everything] == [0, 0, 12]


def test_metrics(fresh: Running, tiny_bundle: Path) -> None:
    timings = asked(fresh, tiny_bundle, 12)
    status, headers, page = ask(fresh.port, "GET", "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = {family.name: family for family in text_string_to_metric_families(page.decode())}
    kinds = {name: family.type for name, family in families.items()}
    assert kinds == {
        "splitboard_queue_depth": "gauge",
        "splitboard_queue_limit": "gauge",
        "splitboard_ready": "gauge",
        "splitboard_requests": "counter",
        "splitboard_failures": "counter",
        "splitboard_queue_seconds": "histogram",
        "splitboard_decode_seconds": "histogram",
        "splitboard_compute_seconds": "histogram",
        "splitboard_batch_size": "histogram",
    }
    requests = {one.labels["model"]: one.value for one in families["splitboard_requests"].samples}
    assert requests == {"tiny-s00": 0, "tiny-s03": 0, "tiny-s05": 12}
    failures = {tuple(one.labels.values()): one.value for one in families["splitboard_failures"].samples}
    assert failures == {("tiny-s05", "corrupt"): 1, ("tiny-s00", "pair"): 1, ("", "not_found"): 1}
    for stage, values in zip(("queue", "decode", "compute"), zip(*timings, strict=True), strict=True):
        samples = [one for one in families[f"splitboard_{stage}_seconds"].samples if one.labels["model"] == "tiny-s05"]
        total = {one.name.rpartition("_")[2]: one.value for one in samples if "le" not in one.labels}
        assert total["count"] == 12
        assert total["sum"] == pytest.approx(sum(values) / 1e9)
        for one in samples:
            if "le" in one.labels:
                assert one.value == sum(value <= float(one.labels["le"]) * 1e9 for value in values)
