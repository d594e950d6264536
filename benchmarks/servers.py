"""The servers that benchmarks compare, each in a process of its own, on loopback and free ports."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]  # the root first: tests/runtime_server is no package

from triton_server import Triton, running_triton  # noqa: E402 - behind the line that makes the tests importable

from runtime_server.triton import Backend, write_repository  # noqa: E402 - behind the line that makes the tests importable

_GRPC = """
import asyncio, sys
from pathlib import Path
import uvloop
from runtime_server.grpc_front import start_grpc
from runtime_server.models import load_models
from runtime_server.service import Service

async def serve():
    front = await start_grpc(Service(load_models([Path(sys.argv[1])], threads=1)), "127.0.0.1", 0)
    print(f"127.0.0.1:{front.port}", flush=True)
    await front.server.wait_for_termination()

uvloop.run(serve())
"""


@contextlib.contextmanager
def _process(argv: list[str]) -> Iterator[str]:
    """Yields the first line that a program prints; ends it with the block."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextlib.contextmanager
def our_http(bundle: Path, *options: str) -> Iterator[str]:
    """``splitboard serve``; yields its URL."""
    argv = [sys.executable, "-m", "splitboard.cli.main", "serve", str(bundle), "--port", "0", "--json", *options]
    with _process(argv) as line:
        yield str(json.loads(line)["url"])


@contextlib.contextmanager
def our_grpc(bundle: Path) -> Iterator[str]:
    """The gRPC front; yields ``host:port``."""
    with _process([sys.executable, "-c", _GRPC, str(bundle)]) as address:
        yield address


@contextlib.contextmanager
def real_triton(bundle: Path, folder: Path, threads: int = 1, instances: int = 1) -> Iterator[Triton]:
    """Triton with the bundle's server halves in its Python back end; ``folder`` must not exist."""
    write_repository(bundle, folder, Backend.PYTHON, threads, instances)
    with running_triton(folder) as triton:
        yield triton
