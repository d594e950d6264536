"""A TCP proxy on loopback that does to a conversation what a bad network or a bad peer would."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

Mangle = Callable[[bytes], bytes]


class CutError(Exception):
    """Raised by a mangler: both connections are closed at once."""


def untouched(data: bytes) -> bytes:
    return data


class FaultProxy:
    """Forwards connections, every piece of data through a function that a test may exchange at any time.

    Attributes:
        up: for what the client sends.
        down: for what the server sends.
        n_connections: taken so far.
    """

    def __init__(self, port: int) -> None:
        self.up: Mangle = untouched
        self.down: Mangle = untouched
        self.n_connections = 0
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                self.n_connections += 1
                try:
                    server = socket.create_connection(("127.0.0.1", self._port), 5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                self._open += [client, server]
                for ends, way in (((client, server), "up"), ((server, client), "down")):
                    threading.Thread(target=self._forward, args=(*ends, way), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, way: str) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(getattr(self, way)(data))
        except (OSError, CutError):
            pass
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def fault_proxy(port: int) -> Iterator[FaultProxy]:
    """A proxy in front of a server on loopback."""
    proxy = FaultProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()


def once(then: Callable[[bytes], bytes]) -> Mangle:
    """Does something to the first piece of data and nothing to those after it."""
    state: dict[str, Any] = {"done": False}

    def mangle(data: bytes) -> bytes:
        if state["done"]:
            return data
        state["done"] = True
        return then(data)

    return mangle
