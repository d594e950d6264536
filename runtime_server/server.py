"""Binds the port, loads the bundles, serves until a signal, and ends in peace."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvloop

from runtime_server.access import Token, read_token, tls_context
from runtime_server.http_connection import Connection, Connections, Limits
from runtime_server.http_front import HttpFront
from runtime_server.models import load_models
from runtime_server.service import Service
from splitboard.contract.errors import UserError

BACKLOG = 1024
HANDSHAKE_S = 10.0
DRAIN_S = 30.0
"""What has begun has this long to end after a signal."""

GRPC_GRACE_S = 1.0
"""By then every call has its answer; this is for sending it."""

_SPARE_FILES = 64
"""Descriptors that are not for connections."""


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        host: address to listen on, loopback unless the user says otherwise.
        port: 0 lets the system choose.
        grpc_port: of the gRPC front, 0 lets the system choose; ``None``: there is none.
        threads: that ONNX Runtime may use inside one request.
        workers: requests that may be computed at the same time; ``None``: as many as fill the processor's cores.
        queue: requests that may wait.
        max_batch: requests of one model that are computed together where they wait already.
        token_file: holds the token that requests must carry; ``None``: everyone may ask.
        tls_cert: PEM; with ``tls_key`` the server speaks HTTPS.
        tls_key: PEM.
        limits: of every client.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    threads: int = 1
    workers: int | None = None
    queue: int = 64
    max_batch: int = 1
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def n_workers(self) -> int:
        """Requests that are computed at the same time."""
        return max(1, len(os.sched_getaffinity(0)) // self.threads) if self.workers is None else self.workers

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """Certificate and key, where the server speaks TLS."""
        return (self.tls_cert, self.tls_key) if self.tls_cert is not None and self.tls_key is not None else None

    def check(self) -> None:
        """Refuses numbers that mean nothing.

        Raises:
            UserError: one is too small, or TLS has only one of its two files.
        """
        named = {"threads": self.threads, "workers": self.n_workers, "queue": self.queue, "max-batch": self.max_batch}
        for name, value in named.items():
            if value < 1:
                raise UserError(f'{name} is "{value}"', ["give at least 1"])
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UserError(
                f'TLS needs a certificate and its key, found only "{self.tls_cert or self.tls_key}"',
                ["--tls-cert CHAIN.pem --tls-key KEY.pem"],
            )


@dataclass(frozen=True)
class Addresses:
    """Where a server listens.

    Attributes:
        url: of the HTTP front.
        grpc: ``host:port`` of the gRPC front, ``None`` where there is none.
    """

    url: str
    grpc: str | None


def serve(bundle_folders: Sequence[Path], options: ServeOptions, on_ready: Callable[[Addresses], None]) -> None:
    """Serves the server halves of bundles until SIGINT or SIGTERM; then finishes what has begun and returns.

    New requests are refused meanwhile, with a reason of its own. A second signal ends the wait.

    Args:
        bundle_folders: at least one bundle; their names must differ.
        options: how.
        on_ready: called once when connections are accepted.

    Raises:
        UserError: the port is taken, the address is not ours, or a file is broken.
    """
    options.check()
    token = read_token(options.token_file) if options.token_file is not None else None
    tls = tls_context(*options.tls) if options.tls is not None else None
    with listen(options.host, options.port) as listener:
        models = load_models(bundle_folders, options.threads, options.max_batch)
        service = Service(models, options.n_workers, options.queue, options.max_batch)
        try:
            uvloop.run(_Server(service, options, token, tls).run(listener, on_ready))
        finally:
            service.close()


class _Server:
    """Both fronts in one loop."""

    def __init__(
        self, service: Service, options: ServeOptions, token: Token | None, tls: ssl.SSLContext | None
    ) -> None:
        self._service, self._options, self._token, self._tls = service, options, token, tls

    async def run(self, listener: socket.socket, on_ready: Callable[[Addresses], None]) -> None:
        loop = asyncio.get_running_loop()
        limits = self._options.limits
        limits = replace(limits, connections=min(limits.connections, _files_allowed() - _SPARE_FILES))
        connections = Connections(HttpFront(self._service, self._token), limits, loop)
        signals = _signals(loop)
        stop_grpc, grpc = await self._start_grpc()
        server = await loop.create_server(
            lambda: Connection(connections),
            sock=listener,
            ssl=self._tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=HANDSHAKE_S if self._tls else None,
        )
        on_ready(Addresses(_url(listener, "https" if self._tls else "http"), grpc))
        while not signals.is_set():
            await _wait(signals, 1.0)
            connections.sweep()
        await self._drain(connections, signals)
        await stop_grpc(GRPC_GRACE_S)
        server.close()
        connections.close()
        await asyncio.sleep(0)  # closing takes a turn of the loop

    async def _start_grpc(self) -> tuple[Callable[[float], Awaitable[None]], str | None]:
        """The gRPC front, where it is wanted: how to stop it, and where it listens."""
        if self._options.grpc_port is None:
            return _nothing_to_stop, None
        try:
            from runtime_server.grpc_front import start_grpc  # grpc is optional, and takes a while to import
        except ModuleNotFoundError as error:
            raise UserError(
                f'the gRPC front needs "{error.name}"', ['pip install "splitboard[grpc]"', "leave --grpc out"]
            ) from error

        host = self._options.host
        front = await start_grpc(self._service, host, self._options.grpc_port, self._token, self._options.tls)
        return front.stop, f"[{host}]:{front.port}" if ":" in host else f"{host}:{front.port}"

    async def _drain(self, connections: Connections, signals: asyncio.Event) -> None:
        """Waits until what has begun is answered, within bounds; what comes meanwhile is refused."""
        self._service.drain()
        connections.draining = True
        signals.clear()
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + DRAIN_S
        while (connections.n_busy or not self._service.idle) and loop.time() < give_up_s and not signals.is_set():
            await _wait(signals, 0.02)
            connections.sweep()


async def _nothing_to_stop(_grace_s: float) -> None:
    """There is no second front."""


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def _signals(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """Set when SIGINT or SIGTERM comes; only the main thread can be told of them."""
    came = asyncio.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, came.set)
    return came


def _files_allowed() -> int:
    """Open files that this process may have, after asking for as many as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the port is taken or forbidden, or the address is not ours.
    """
    if not 0 <= port <= 65535:
        raise UserError(f'port "{port}" does not exist', ["give a port from 1 to 65535, or 0 for a free one"])
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f'host "{host}" is not an address', ["--host 127.0.0.1"]) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            tries = ["--port 0 takes a free port", "stop the other program on that port"]
            raise UserError(f'port "{port}" is in use', tries) from error
        if error.errno == errno.EACCES:
            raise UserError(f'port "{port}" is not allowed for this user', ["--port 8000"]) from error
        raise UserError(f'cannot listen on "{host}": {error.strerror}', ["--host 127.0.0.1"]) from error
    return listener


def _url(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
