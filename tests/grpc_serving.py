"""The gRPC front in this process: a loop in a thread of its own, on loopback, on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from runtime_server.grpc_front import start_grpc
from runtime_server.models import load_models
from runtime_server.service import Service


@contextlib.contextmanager
def running_front(service: Service, port: int = 0, **options: Any) -> Iterator[str]:
    """Yields ``host:port``; the options are those of `start_grpc`."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        front = asyncio.run_coroutine_threadsafe(start_grpc(service, "127.0.0.1", port, **options), loop).result(20)
        try:
            yield f"127.0.0.1:{front.port}"
        finally:
            asyncio.run_coroutine_threadsafe(front.stop(0), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def running_grpc(*bundles: Path, **options: Any) -> Iterator[str]:
    """The front with a service of its own for these bundles."""
    service = Service(load_models(bundles, threads=1))
    try:
        with running_front(service, **options) as address:
            yield address
    finally:
        service.close()
