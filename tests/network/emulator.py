"""A network between two sides, with a rate, a delay, losses and a queue: for tests and benchmarks.

The near side is the board, the far side the server. Where there is root and TUN, each is a network namespace and every
packet between them passes a user-space link; elsewhere TCP connections pass a proxy on loopback. The link is a process
of its own either way, so that whoever measures does not disturb it.

    with TunNetwork() as network:
        server = network.start_far([sys.executable, "server.py", network.far_host, "8000"])
        board = network.start_near([sys.executable, "client.py", *network.reach(8000)])
        network.play(read_trace(path))
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from network import proxy_link, tun_link
from network.traces import Trace

QUEUE_BYTES = 256 * 1024
_TESTS = Path(__file__).parents[1]


class Network(Protocol):
    """What both kinds offer, as a context manager."""

    @property
    def far_host(self) -> str:
        """The address that a server on the far side listens at."""

    def start_far(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a program on the far side; options are those of `subprocess.Popen`. Whoever starts it ends it."""

    def start_near(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a program on the near side."""

    def reach(self, port: int) -> tuple[str, str]:
        """Host and port by which the near side reaches what listens at a port of the far side."""

    def play(self, trace: Trace) -> None:
        """The link is like that from now on. Before the first trace it is instant."""


class _LinkProcess:
    """A process that says "ready", then answers a line for every line that it is given."""

    def __init__(self, module: str, *words: str) -> None:
        self._module, self._words = module, words
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> int:
        """Starts it, and gives its process id.

        Raises:
            RuntimeError: it did not become ready; with its reason.
        """
        argv = [sys.executable, "-m", self._module, *self._words]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, cwd=_TESTS, stdin=pipe, stdout=pipe, text=True)
        said = self._read()
        if said != "ready":
            self.stop()
            raise RuntimeError(f"the link could not be made: {said or 'its process ended'}")
        return self._process.pid

    def ask(self, line: str) -> str:
        """Its answer to one line."""
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("the link is not there outside of its with block")
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError("the link is not there outside of its with block")
        return self._process.stdout.readline().strip()

    def stop(self) -> None:
        """Ends it and waits until it has cleaned up."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


class TunNetwork:
    """Two network namespaces and a TUN link: real TCP and UDP, with losses and a queue that overflows.

    The namespaces and their devices go with the block, with the test's process should it die, and at the latest when
    the next link is made.

    Args:
        queue_bytes: of each direction.

    Raises:
        RuntimeError: on entering, where it cannot be made; `missing` tells why before.
    """

    def __init__(self, queue_bytes: int = QUEUE_BYTES) -> None:
        self._link = _LinkProcess("network.tun_link", str(queue_bytes))
        self._near = self._far = ""

    @staticmethod
    def missing() -> str | None:
        """What this machine lacks for it; ``None`` where nothing is known to lack."""
        if sys.platform != "linux":
            return "network namespaces need Linux"
        if os.geteuid() != 0:
            return "network namespaces need root"
        if shutil.which("ip") is None:
            return "network namespaces need iproute2 (the command ip)"
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            return "there is no /dev/net/tun to read and write"
        return None

    def __enter__(self) -> TunNetwork:
        self._near, self._far = tun_link.names(self._link.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.stop()

    @property
    def far_host(self) -> str:
        """The far namespace's end of the link."""
        return tun_link.FAR_ADDRESS

    def start_far(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a program in the far namespace; the process is the program itself, to be signalled and waited for."""
        return subprocess.Popen(["ip", "netns", "exec", self._far, *argv], **options)

    def start_near(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a program in the near namespace."""
        return subprocess.Popen(["ip", "netns", "exec", self._near, *argv], **options)

    def reach(self, port: int) -> tuple[str, str]:
        """The far side's address, and the port itself."""
        return self.far_host, str(port)

    def play(self, trace: Trace) -> None:
        """Returns when the link is like that."""
        self._link.ask(trace.as_json)


class ProxyNetwork:
    """A shaping proxy on loopback, for machines without root: rate, delay and outages of TCP connections, no losses.

    Args:
        queue_bytes: of each direction, after which senders wait.
    """

    def __init__(self, queue_bytes: int = QUEUE_BYTES) -> None:
        self._link = _LinkProcess("network.proxy_link", str(queue_bytes))
        self._ports: dict[int, str] = {}

    def __enter__(self) -> ProxyNetwork:
        self._link.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.stop()

    @property
    def far_host(self) -> str:
        """Loopback."""
        return proxy_link.HOST

    def start_far(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a program."""
        return subprocess.Popen(list(argv), **options)

    def start_near(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a program."""
        return subprocess.Popen(list(argv), **options)

    def reach(self, port: int) -> tuple[str, str]:
        """Loopback, and the proxy's port for it."""
        if port not in self._ports:
            self._ports[port] = self._link.ask(f'{{"forward": {port}}}')
        return proxy_link.HOST, self._ports[port]

    def play(self, trace: Trace) -> None:
        """Returns when the link is like that.

        Raises:
            ValueError: the trace loses packets, which a proxy cannot.
        """
        if any(one.loss > 0 for one in trace.conditions):
            raise ValueError("a proxy carries bytes, not packets: it cannot lose any")
        self._link.ask(trace.as_json)
