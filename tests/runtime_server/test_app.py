"""What takes too long or too many clients to provoke through a socket: the ASGI callable by itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_server.app
from runtime_server.app import MAX_WAITING, App
from runtime_server.models import load_models
from splitboard.contract.wire import encode_request


class Client:
    """One request, and what came back."""

    def __init__(self, body: bytes, n_json: int, *, never_ends: bool = False, goes_away: bool = False) -> None:
        self.sent: list[MutableMapping[str, Any]] = []
        self._body, self._never_ends, self._goes_away = body, never_ends, goes_away
        headers = [(b"inference-header-content-length", str(n_json).encode())]
        self.scope = {"type": "http", "method": "POST", "path": "/v2/models/tiny-s00/infer", "headers": headers}

    async def receive(self) -> MutableMapping[str, Any]:
        if self._never_ends:
            await asyncio.sleep(60)
        if self._goes_away:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)

    @property
    def answer(self) -> tuple[int, str]:
        status, body = self.sent[0]["status"], self.sent[1]["body"]
        return status, "" if status == 200 else json.loads(body)["error"]


@pytest.fixture(scope="module")
def models(tiny_bundle: Path) -> dict[str, Any]:
    return load_models([tiny_bundle], threads=1)


@pytest.fixture(scope="module")
def request_bytes(models: dict[str, Any]) -> tuple[bytes, int]:
    message = encode_request({"image": np.zeros((1, 32, 32, 1), np.uint8)}, models["tiny-s00"].interface)
    return message.header + b"".join(message.tensors), len(message.header)


def test_the_queue_is_bounded(models: dict[str, Any], request_bytes: tuple[bytes, int]) -> None:
    free = threading.Event()
    clients = [Client(*request_bytes) for _ in range(MAX_WAITING + 3)]

    async def all_at_once(app: App) -> None:
        waiting = [asyncio.ensure_future(app(one.scope, one.receive, one.send)) for one in clients]
        await asyncio.sleep(0.2)
        free.set()
        await asyncio.gather(*waiting)

    with ThreadPoolExecutor(1) as workers:
        workers.submit(free.wait, 30)
        asyncio.run(all_at_once(App(models, workers)))
    answers = [client.answer for client in clients]
    assert answers[:MAX_WAITING] == [(200, "")] * MAX_WAITING
    assert answers[MAX_WAITING:] == [(503, f"{MAX_WAITING} requests are waiting already")] * 3


def test_a_body_that_never_ends(
    models: dict[str, Any], request_bytes: tuple[bytes, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_server.app, "BODY_TIMEOUT_S", 0.05)
    client = Client(*request_bytes, never_ends=True)
    with ThreadPoolExecutor(1) as workers:
        asyncio.run(App(models, workers)(client.scope, client.receive, client.send))
    assert client.answer == (408, "the body did not arrive within 0.05 s")


def test_a_client_that_goes_away_is_not_answered(models: dict[str, Any], request_bytes: tuple[bytes, int]) -> None:
    client = Client(*request_bytes, goes_away=True)
    with ThreadPoolExecutor(1) as workers:
        asyncio.run(App(models, workers)(client.scope, client.receive, client.send))
    assert client.sent == []
