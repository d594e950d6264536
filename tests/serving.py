"""A real server in a process of its own, on loopback, on a free port."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

_SERVE = """
import sys
from pathlib import Path
from runtime_server.server import serve
from splitboard.contract.errors import UserError
try:
    serve([Path(p) for p in sys.argv[2:]], port=int(sys.argv[1]), on_ready=lambda url: print(url, flush=True))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@dataclass(frozen=True)
class Running:
    """A server that accepts connections."""

    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


def start_server(port: int, *bundles: Path) -> subprocess.Popen[str]:
    """The process; its first line of output is its URL."""
    command = [sys.executable, "-W", "error", "-c", _SERVE, str(port), *map(str, bundles)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def running_server(*bundles: Path, port: int = 0) -> Iterator[Running]:
    """A server that is ended with the block."""
    process = start_server(port, *bundles)
    try:
        if process.stdout is None:
            raise RuntimeError("the server's output is not piped")
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"the server did not start: {process.communicate()[1]}")
        yield Running(url, process)
    finally:
        process.kill()
        process.communicate()
