"""A real server in a process of its own, on loopback, on a free port."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]

_SERVE = """
import dataclasses, json, sys
from pathlib import Path
from runtime_server.http_connection import Limits
from runtime_server.server import ServeOptions, serve
from splitboard.contract.errors import UserError
given = json.loads(sys.argv[1])
paths = {name: Path(given[name]) for name in ("token_file", "tls_cert", "tls_key") if name in given}
options = ServeOptions(**{**given, **paths, "limits": Limits(**given.get("limits", {}))})
try:
    serve([Path(p) for p in sys.argv[2:]], options, lambda at: print(at.url, at.grpc, flush=True))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@dataclass(frozen=True)
class Running:
    """A server that accepts connections; ``grpc`` is host and port of that front, ``"None"`` where there is none."""

    url: str
    process: subprocess.Popen[str]
    grpc: str = "None"

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that were free a moment ago, all different.

    They lie below those that systems hand out, so that nobody else's connection takes one before it is used, or while
    its server is started again.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found += [port] if port not in found else []
    return found


def start_server(port: int, *bundles: Path, **options: Any) -> subprocess.Popen[str]:
    """The process; its first line of output is its URL and its gRPC address.

    Args:
        port: 0 for a free one.
        bundles: to serve.
        options: other fields of `ServeOptions`; paths as text, ``limits`` as a dictionary.
    """
    given = json.dumps({"port": port, **options})
    command = [sys.executable, "-W", "error", "-c", _SERVE, given, *map(str, bundles)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def running_server(*bundles: Path, port: int = 0, **options: Any) -> Iterator[Running]:
    """A server that is ended with the block; the options are those of `start_server`."""
    process = start_server(port, *bundles, **options)
    try:
        if process.stdout is None:
            raise RuntimeError("the server's output is not piped")
        url, _, grpc = process.stdout.readline().strip().partition(" ")
        if not url:
            raise RuntimeError(f"the server did not start: {process.communicate()[1]}")
        yield Running(url, process, grpc)
    finally:
        process.kill()
        process.communicate()
